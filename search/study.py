"""The study: which strategies are evaluated, in what order, and what is remembered.

Proposers fill synchronous generations: an *opening* (the front of the closed form, and what a previous run found), the
Optuna *sampler*, the *forecast* (what should add most area to the front, or carry the demand for less) and the
*neighbours* of the front. Small spaces are gone through whole instead. A generation depends on the seed and on earlier
results alone, so a study repeats exactly whatever the number of workers, and a resumed one goes the same way: finished
evaluations come from the journal instead of a worker. A study that `explores` evaluates what it proposes on few
requests, and at its end confirms at full effort what the answer rests on (`search.confirming`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from estimator.errors import BestServeError
from search.confirming import to_confirm
from search.evaluate import Evaluation
from search.evaluation import key_of
from search.executor import Executor
from search.forecast import Features, Forecast, most_gain, shortfall
from search.journal import Storage
from search.known import Known
from search.offer import Offer
from search.sampling import SAMPLER_FRAC, Hopeless, Proposer, SamplerName, choose_sampler
from search.screen import MARGIN, Rows, Screen
from spaces.space import Space
from spaces.strategy import Strategy

GENERATION = (32, 256)  # strategies per synchronous generation, at least and at most: a sixteenth of the budget
NUM_OPENING = 2  # generations that the closed form alone chooses
HOPES = (1.0, 2.0, 3.0)  # standard deviations above the forecast that a strategy may prove to be, one after the other
FILL = 16  # strategies that a generation of forecasts should have, so that no worker waits for another
LEAST_GAIN_FRAC = 1e-6  # of the area: less is not worth an evaluation
DEMAND_FRAC = 0.25  # of a forecast generation looks for less cost at the demand
LEAST_CHANCE = 0.02  # that it carries the demand, for a cheaper strategy to be tried
POLL_S = 0.05  # between two looks at what other drivers finished
MAX_FAILED = 10  # evaluations that break before the study stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a study runs. `trials`: strategies evaluated at most; `screen`: leave out what the closed form rules out;
    `warm`: strategies tried first, those of them that the space holds; `explores`: proposals are evaluated on few
    requests and the answer confirmed at the end, beyond `trials`.
    """

    trials: int = 256
    sampler: SamplerName = "auto"
    seed: int = 0
    demand_req_s: float | None = None
    screen: bool = True
    warm: tuple[Strategy, ...] = ()
    explores: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One moment of a study, for a progress bar and the hypervolume log."""

    phase: str
    num_evaluated: int
    num_planned: int
    elapsed_s: float
    hypervolume: float
    best_usd_per_h: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """Every evaluation in the order of the study, and how it went. `sampler_reason`: why `auto` chose the sampler;
    `num_ruled_out`: strategies of a space gone through whole that the closed form put behind simulated ones.
    """

    evaluations: tuple[Evaluation, ...]
    sampler: str
    sampler_reason: str
    history: tuple[Progress, ...]
    num_ruled_out: int = 0


@dataclass(slots=True)
class Study:
    """One study over a space. `cost_of`: $/h of GPUs by type; `extra_of`: $/h of a strategy beside its GPUs.

    `run` proposes, evaluates, remembers until done.
    """

    space: Space
    executor: Executor
    cost_of: Callable[[Mapping[str, int]], float]
    settings: Settings
    storage: Storage | None = None
    on_progress: Callable[[Progress], None] | None = None
    screen: Screen | None = None
    extra_of: Callable[[Strategy], float] | None = None
    _known: Known = field(init=False)
    _memo: dict[str, Evaluation] = field(default_factory=dict)
    _history: list[Progress] = field(default_factory=list)
    _started_s: float = 0.0
    _planned: int = 0
    _generation: int = GENERATION[0]
    _open: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))  # rows neither known nor refused
    _row_of: dict[int, int] = field(default_factory=dict)
    _features: Features | None = None
    _table_features: NDArray[np.int64] | None = None
    _seen: list[NDArray[np.int64]] = field(default_factory=list)
    _shortfalls: list[NDArray[np.float64]] = field(default_factory=list)

    def run(self) -> StudyResult:
        """Evaluate until the budget is spent or nothing promising is left."""
        self._started_s = time.monotonic()
        self._known = Known(self.space, self.cost_of, self.settings.demand_req_s)
        self._memo = self.storage.read() if self.storage else {}
        size = self.space.size
        if size == 0:
            raise _nothing_fits(self.space)
        sampler, reason = choose_sampler(self.settings.sampler, self.settings.trials, size)
        budget = size if sampler == "exhaustive" else min(self.settings.trials, size)
        self._planned = budget
        self._generation = int(np.clip(budget // 16, *GENERATION))
        if sampler != "exhaustive" or self.settings.screen:
            self._prepare()
        if sampler == "exhaustive":
            self._exhaust(budget)
        else:
            self._search(sampler, budget)
        if self.settings.explores:
            self._confirm()
        return StudyResult(
            evaluations=tuple(self._known.evaluations.values()),
            sampler=sampler,
            sampler_reason=reason,
            history=tuple(self._history),
            num_ruled_out=size - len(self._known) if sampler == "exhaustive" else 0,
        )

    def _prepare(self) -> None:
        if self.screen is None:
            self.screen = Screen(
                self.space, self.cost_of, seed=self.settings.seed, demand_req_s=self.settings.demand_req_s
            )
        self._open = np.ones(len(self.screen.table), dtype=bool)
        self._row_of = {key: row for row, key in enumerate(self.screen.keys(self.screen.table).tolist())}
        self._features = Features(self.screen)
        self._table_features = self._features.of(self.screen.table)

    # ---- phases

    def _search(self, sampler: str, budget: int) -> None:
        proposer = Proposer(self.space, sampler, seed=self.settings.seed, cost_of=self._known.cost)
        for first in range(0, len(self.settings.warm), self._generation):
            warm = [s for s in self.settings.warm[first : first + self._generation] if s in self.space]
            self._evaluate(warm[: budget - len(self._known)], "warm start")
        for _ in range(NUM_OPENING):
            self._evaluate(self._forecast(self._room(budget // 3)), "opening")
        until = min(budget, len(self._known) + int(SAMPLER_FRAC * budget))
        while len(self._known) < until:
            room = self._room(until)
            asked = proposer.ask(room, self._known.evaluations, self._hopeless, self._known.reference_usd_per_h)
            if 2 * self._evaluate(asked, sampler) < room:
                break  # most of what the sampler proposes is known or ruled out
        while len(self._known) < budget:
            room = self._room(budget)
            if not (
                self._evaluate(self._forecast(room), "forecast") or self._evaluate(self._beside(room), "neighbours")
            ):
                break

    def _room(self, until: int) -> int:
        return max(0, min(self._generation, until - len(self._known)))

    def _exhaust(self, size: int) -> None:
        """Every strategy, best hopes first, but for those that their bound puts behind a simulated one."""
        if not self.settings.screen:
            strategies = iter(self.space)
            while chunk := list(islice(strategies, 2 * GENERATION[1])):
                self._evaluate(chunk, "exhaustive")
            return
        assert self.screen is not None
        while len(self._known) < size // 4 and self._evaluate(self._forecast(self._generation), "forecast"):
            pass
        if self.screen.is_complete:
            while chunk := self._unruled(GENERATION[1]):
                self._evaluate(chunk, "exhaustive")
            return
        strategies = iter(self.space)
        while chunk := list(islice(strategies, 16 * GENERATION[1])):
            rows = self.screen.rows(chunk)
            hopeful = rows.bound_req_s * MARGIN > self._known.staircase().at(rows.usd_per_h)
            self._evaluate([strategy for strategy, hope in zip(chunk, hopeful, strict=True) if hope], "exhaustive")

    # ---- proposing

    def _unruled(self, room: int) -> list[Strategy]:
        """Strategies of the table that the bound cannot rule out, those with the best bound for their cost first."""
        rows = self._hopeful_rows()
        table = self._table
        lead = table.bound_req_s[rows] / np.maximum(self._known.staircase().at(table.usd_per_h[rows]), 1e-12)
        return self._take(rows[np.argsort(-lead, kind="stable")], room)

    def _forecast(self, room: int) -> list[Strategy]:
        """What should carry the demand for less, and what should add most area, with ever higher hopes until `FILL`."""
        rows = self._hopeful_rows()
        if room < 1 or len(rows) == 0:
            return []
        assert self._features is not None
        assert self._table_features is not None
        seen = np.concatenate(self._seen) if self._seen else np.zeros((0, self._table_features.shape[1]), dtype=int)
        shortfalls = np.concatenate(self._shortfalls) if self._shortfalls else np.zeros(0)
        forecast = Forecast.fitted(self._features.sd, seen, shortfalls)
        mean, sd = forecast.of(self._table_features[rows])
        bound, cost = self._table.bound_req_s[rows], self._table.usd_per_h[rows]
        chosen = self._cheaper(bound, cost, mean, sd, int(DEMAND_FRAC * room)) if self._wants_less else []
        staircase, least = self._known.staircase(), LEAST_GAIN_FRAC * max(self._known.area(), 1e-12)
        for hope in HOPES:
            if len(chosen) < min(FILL, room):
                hoped = bound * np.minimum(np.exp(mean + hope * sd), MARGIN)
                hoped[chosen] = 0.0
                chosen += most_gain(hoped, cost, staircase, room=room - len(chosen), least_gain=least)
        return self._take(rows[list(dict.fromkeys(chosen))], room)

    @property
    def _wants_less(self) -> bool:
        return self.settings.demand_req_s is not None

    def _cheaper(
        self,
        bound: NDArray[np.float64],
        cost: NDArray[np.float64],
        mean: NDArray[np.float64],
        sd: NDArray[np.float64],
        room: int,
    ) -> list[int]:
        """Up to `room` rows of most expected saving: cheaper than the best, and likely to carry the demand."""
        demand, best = self.settings.demand_req_s, self._known.best_usd_per_h()
        assert demand is not None
        best = self._known.reference_usd_per_h if best is None else best
        with np.errstate(divide="ignore"):
            chance = ndtr((np.log(bound) + mean - math.log(demand)) / np.maximum(sd, 1e-9))
        saving = np.where((bound * MARGIN >= demand) & (chance >= LEAST_CHANCE), (best - cost) * chance, 0.0)
        order = np.argsort(-saving, kind="stable")[: 4 * room]
        return [int(row) for row in order[saving[order] > 1e-9 * best][:room]]

    def _beside(self, room: int) -> list[Strategy]:
        """Unevaluated neighbours of the front's strategies that may be better than it, taken in turn."""
        new = (
            other
            for strategy in self._known.best_and_front(3)
            for other in self.space.neighbours(strategy)
            if other not in self._known
        )
        beside = list(dict.fromkeys(islice(new, 8 * room)))
        if not beside or self.screen is None:
            return beside[:room]
        rows = self.screen.rows(beside)
        hopeful = rows.bound_req_s * MARGIN > self._known.staircase().at(rows.usd_per_h)
        return [strategy for strategy, hope in zip(beside, hopeful, strict=True) if hope][:room]

    def _hopeless(self, strategy: Strategy) -> Hopeless | None:
        if self.screen is None or not self.settings.screen:
            return None
        row = self.screen.rows([strategy])
        bound = float(row.bound_req_s[0])
        behind = bound * MARGIN <= float(self._known.staircase().at(row.usd_per_h)[0])
        return Hopeless(bound_req_s=bound) if behind else None

    @property
    def _table(self) -> Rows:
        assert self.screen is not None
        return self.screen.table

    def _hopeful_rows(self) -> NDArray[np.int64]:
        """Rows still open whose bound is not behind the front."""
        reached = self._known.staircase().at(self._table.usd_per_h)
        return np.flatnonzero(self._open & (self._table.bound_req_s * MARGIN > reached))

    def _take(self, rows: NDArray[np.int64], room: int) -> list[Strategy]:
        """The first `room` rows that are in the space, patterns included; others are closed."""
        assert self.screen is not None
        taken: list[Strategy] = []
        for row in rows.tolist():
            if len(taken) == room:
                break
            strategy = self.screen.strategy(self._table, row)
            self._open[row] = False
            if strategy in self.space and strategy not in self._known:
                taken.append(strategy)
        return taken

    # ---- evaluating

    def _evaluate(self, proposed: Sequence[Strategy], phase: str) -> int:
        """Evaluate what is new and remember it in the order proposed; returns how many were new."""
        new = [strategy for strategy in dict.fromkeys(proposed) if strategy not in self._known]
        self._remember(new, exploring=self.settings.explores)
        self._stop_if_broken()
        if new:
            self._learn(new)
            self._report(phase)
        return len(new)

    def _confirm(self) -> None:
        """Evaluate at full effort what the answer rests on, until all of it is."""
        while doubted := to_confirm(list(self._offers()), self.settings.demand_req_s):
            self._remember(doubted, exploring=False)
            self._report("confirmation")

    def _offers(self) -> Iterator[Offer]:
        """What is known to serve some load, with its whole price."""
        for strategy, evaluation in self._known.evaluations.items():
            if evaluation.is_ok:
                price = self._known.cost(strategy) + (self.extra_of(strategy) if self.extra_of else 0.0)
                yield Offer(strategy=strategy, evaluation=evaluation, usd_per_h=price)

    def _remember(self, strategies: Sequence[Strategy], *, exploring: bool) -> None:
        """Have the strategies evaluated, by whoever has not done so yet, and know them in the order given."""
        by_key = {key_of(str(strategy), exploring=exploring): strategy for strategy in strategies}
        while todo := [key for key in by_key if key not in self._memo]:
            claimed = todo if self.storage is None else self._claimed(todo)
            for found in self.executor.run([by_key[key] for key in claimed], exploring=exploring):
                evaluation = replace(found, is_explored=exploring)
                self._memo[evaluation.key] = evaluation
                if self.storage is not None:
                    strategy = by_key[evaluation.key]
                    self.storage.append(self.space, strategy, evaluation, self._known.cost(strategy))
        for key, strategy in by_key.items():
            self._known.evaluations[strategy] = self._memo[key]

    def _claimed(self, todo: Sequence[str]) -> list[str]:
        """What this driver is to evaluate next; others' answers are taken in, and waited for where all is theirs."""
        assert self.storage is not None
        claimed = self.storage.claim(todo)
        self._memo |= self.storage.arrived()
        if not claimed:
            time.sleep(POLL_S)
        return [key for key in claimed if key not in self._memo]

    def _learn(self, new: Sequence[Strategy]) -> None:
        """Close the rows of what is known, and keep what it says about the rest."""
        if self.screen is None or self._features is None:
            return
        rows = self.screen.rows(new)
        for key in self.screen.keys(rows).tolist():
            if key in self._row_of:
                self._open[self._row_of[key]] = False
        sound = np.array([self._known.evaluations[strategy].status != "failed" for strategy in new])
        goodput = np.array([self._known.evaluations[strategy].goodput_req_s for strategy in new])
        self._seen.append(self._features.of(rows)[sound])
        self._shortfalls.append(shortfall(goodput, rows.bound_req_s)[sound])

    def _stop_if_broken(self) -> None:
        broken = [evaluation for evaluation in self._known.evaluations.values() if evaluation.status == "failed"]
        if len(broken) > MAX_FAILED and 2 * len(broken) > len(self._known):
            raise RuntimeError(
                f"{len(broken)} evaluations broke, the last one {broken[-1].strategy}: {broken[-1].reason}"
            )

    def _report(self, phase: str) -> None:
        progress = Progress(
            phase=phase,
            num_evaluated=len(self._known),
            num_planned=self._planned,
            elapsed_s=time.monotonic() - self._started_s,
            hypervolume=self._known.area(),
            best_usd_per_h=self._known.best_usd_per_h(),
        )
        self._history.append(progress)
        if self.on_progress is not None:
            self.on_progress(progress)


def _nothing_fits(space: Space) -> BestServeError:
    reasons = "; ".join(f"{rule}: {removed.reason}" for rule, removed in space.removed.items())
    return BestServeError(
        "search", "no strategy", f"is left by the rules ({reasons})", "more or other GPUs, other degrees"
    )
