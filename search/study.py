"""The study: which strategies are evaluated, in what order, and what is remembered.

Proposers fill synchronous generations: an *opening* (what a previous run found, the plainest layouts, and the front
of the closed form), the Optuna *sampler*, the *forecast* (what should add most area to the front, or carry the demand
for less than the best known, or than the best known of its architecture or GPU type) and, where that leaves room,
*neighbours* of the front. Small spaces are gone through whole instead. A generation depends on the seed and on earlier
results alone, so a study repeats exactly whatever the number of workers, and a resumed one goes the same way: finished
evaluations come from the journal instead of a worker. A study that `explores` evaluates what it proposes on few
requests, and at its end confirms at full effort what the answer rests on (`search.confirming`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from estimator.errors import BestServeError
from search.confirming import to_confirm
from search.evaluate import Evaluation
from search.evaluation import key_of
from search.executor import Executor
from search.journal import Storage
from search.known import Known
from search.offer import Offer
from search.prospects import FILL, Prospects
from search.sampling import SAMPLER_FRAC, Proposer, SamplerName, choose_sampler
from search.screen import Screen, dearest_usd_per_h
from search.tariff import Tariff
from spaces.space import Space
from spaces.strategy import Strategy

GENERATION = (32, 256)  # strategies per synchronous generation, at least and at most: a sixteenth of the budget
NUM_OPENING = 2  # generations that the closed form chooses, after the plainest layouts
REACH = 4.0  # times the demand: strategies that carry more answer nothing that was asked
POLL_S = 0.05  # between two looks at what other drivers finished
MAX_FAILED = 10  # evaluations that break before the study stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a study runs. `trials`: strategies evaluated at most; `screen`: leave out what the closed form rules out;
    `warm`: strategies tried first, those of them that the space holds; `explores`: proposals are evaluated on few
    requests and the answer confirmed at the end, beyond `trials`. `reach`: times the demand that is worth looking for;
    None, no demand, or a space gone through whole: the front has no end.
    """

    trials: int = 256
    sampler: SamplerName = "auto"
    seed: int = 0
    demand_req_s: float | None = None
    screen: bool = True
    warm: tuple[Strategy, ...] = ()
    explores: bool = False
    reach: float | None = REACH


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
    """One study over a space at a tariff. `run` proposes, evaluates, remembers until done."""

    space: Space
    executor: Executor
    tariff: Tariff
    settings: Settings
    storage: Storage | None = None
    on_progress: Callable[[Progress], None] | None = None
    screen: Screen | None = None
    _known: Known = field(init=False)
    _memo: dict[str, Evaluation] = field(default_factory=dict)
    _history: list[Progress] = field(default_factory=list)
    _started_s: float = 0.0
    _planned: int = 0
    _generation: int = GENERATION[0]
    _prospects: Prospects | None = None

    def run(self) -> StudyResult:
        """Evaluate until the budget is spent or nothing promising is left."""
        self._started_s = time.monotonic()
        self._known = Known(self.tariff, self.settings.demand_req_s, dearest_usd_per_h(self.space, self.tariff))
        self._memo = self.storage.read() if self.storage else {}
        size = self.space.size
        if size == 0:
            raise _nothing_fits(self.space)
        sampler, reason = choose_sampler(self.settings.sampler, self.settings.trials, size)
        budget = size if sampler == "exhaustive" else min(self.settings.trials, size)
        self._planned = budget
        self._generation = int(np.clip(budget // 16, *GENERATION))
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

    def _prepared(self, reach: float | None) -> Prospects:
        """What may be evaluated, once asked for."""
        settings = self.settings
        screen = self.screen or Screen(
            self.space, self.tariff, seed=settings.seed, demand_req_s=settings.demand_req_s, reach=reach
        )
        self._prospects = Prospects(screen, self._known, screens=settings.screen)
        return self._prospects

    # ---- phases

    def _search(self, sampler: str, budget: int) -> None:
        prospects = self._prepared(self.settings.reach)
        proposer = Proposer(self.space, sampler, seed=self.settings.seed, cost_of=self._known.cost)
        for first in range(0, len(self.settings.warm), self._generation):
            warm = [s for s in self.settings.warm[first : first + self._generation] if s in self.space]
            self._evaluate(warm[: budget - len(self._known)], "warm start")
        self._evaluate(prospects.plainest(self._room(budget // 6)), "opening")
        for _ in range(NUM_OPENING):
            self._evaluate(prospects.forecast(self._room(budget // 3)), "opening")
        until = min(budget, len(self._known) + int(SAMPLER_FRAC * budget))
        while len(self._known) < until:
            room = self._room(until)
            if 2 * self._evaluate(proposer.ask(room, prospects), sampler) < room:
                break  # most of what the sampler proposes is known or ruled out
        while len(self._known) < budget and (prospects.widen() or self._refined(prospects, self._room(budget))):
            pass

    def _refined(self, prospects: Prospects, room: int) -> int:
        """Evaluates the first of what is promising, and returns how many these were."""
        found = prospects.forecast(room)
        if len(found) < FILL:
            found += prospects.beside(min(room, FILL) - len(found), found)
        return self._evaluate(found, "forecast")

    def _room(self, until: int) -> int:
        return max(0, min(self._generation, until - len(self._known)))

    def _exhaust(self, size: int) -> None:
        """Every strategy, best hopes first, but for those that their bound puts behind a simulated one."""
        strategies = iter(self.space)
        if not self.settings.screen:
            while chunk := list(islice(strategies, 2 * GENERATION[1])):
                self._evaluate(chunk, "exhaustive")
            return
        prospects = self._prepared(None)
        while len(self._known) < size // 4 and self._evaluate(prospects.forecast(self._generation), "forecast"):
            pass
        if prospects.screen.is_complete:
            while chunk := prospects.unruled(GENERATION[1]):
                self._evaluate(chunk, "exhaustive")
            return
        while chunk := list(islice(strategies, 16 * GENERATION[1])):
            self._evaluate(prospects.hopeful(chunk), "exhaustive")

    # ---- evaluating

    def _evaluate(self, proposed: Sequence[Strategy], phase: str) -> int:
        """Evaluate what is new and remember it in the order proposed; returns how many were new."""
        new = [strategy for strategy in dict.fromkeys(proposed) if strategy not in self._known]
        self._remember(new, exploring=self.settings.explores)
        self._stop_if_broken()
        if new:
            if self._prospects is not None:
                self._prospects.learn(new)
            self._report(phase)
        return len(new)

    def _confirm(self) -> None:
        """Evaluate at full effort what the answer rests on, until all of it is."""
        while doubted := to_confirm(list(self._offers()), self.settings.demand_req_s, self._known.ceiling_req_s):
            self._remember(doubted, exploring=False)
            self._report("confirmation")

    def _offers(self) -> Iterator[Offer]:
        """What is known to serve some load, with its price."""
        for strategy, evaluation in self._known.evaluations.items():
            if evaluation.is_ok:
                yield Offer(strategy=strategy, evaluation=evaluation, usd_per_h=self._known.cost(strategy))

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
        self._known.learn({strategy: self._memo[key] for key, strategy in by_key.items()})

    def _claimed(self, todo: Sequence[str]) -> list[str]:
        """What this driver is to evaluate next; others' answers are taken in, and waited for where all is theirs."""
        assert self.storage is not None
        claimed = self.storage.claim(todo)
        self._memo |= self.storage.arrived()
        if not claimed:
            time.sleep(POLL_S)
        return [key for key in claimed if key not in self._memo]

    def _stop_if_broken(self) -> None:
        broken = [evaluation for evaluation in self._known.evaluations.values() if evaluation.status == "failed"]
        if len(broken) > MAX_FAILED and 2 * len(broken) > len(self._known):
            raise RuntimeError(
                f"{len(broken)} evaluations broke, the last one {broken[-1].strategy}: {broken[-1].reason}"
            )

    def _report(self, phase: str) -> None:
        best = self._known.best_usd_per_h
        progress = Progress(
            phase=phase,
            num_evaluated=len(self._known),
            num_planned=self._planned,
            elapsed_s=time.monotonic() - self._started_s,
            hypervolume=self._known.area(),
            best_usd_per_h=None if math.isinf(best) else best,
        )
        self._history.append(progress)
        if self.on_progress is not None:
            self.on_progress(progress)


def _nothing_fits(space: Space) -> BestServeError:
    """What leaves no strategy: the spec's patterns where the rules leave some, else the rules."""
    for name in ("only", "forbid"):
        patterns = getattr(space.allowed, name)
        if patterns and space.num_counted:
            rule = f"leaves none of the {space.num_counted:,} strategies that the rules allow"
            return BestServeError(f"search.{name}", ", ".join(patterns), rule, "patterns as in `bestserve space SPEC`")
    reasons = "; ".join(f"{rule}: {removed.reason}" for rule, removed in space.removed.items())
    return BestServeError(
        "search", "no strategy", f"is left by the rules ({reasons})", "more or other GPUs, other degrees"
    )
