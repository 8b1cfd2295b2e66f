"""The study: which strategies are evaluated, in what order, and what is remembered.

Four proposers fill synchronous generations: an *opening* (every shape once), the Optuna *sampler* (ask/tell), *scaling*
(counts that per-instance rates predict to be on the front or to carry the demand) and the *neighbours* of the front.
Small spaces are evaluated whole instead. A generation depends on the seed and on earlier results alone, so a study
repeats exactly whatever the number of workers, and a resumed one goes the same way: finished evaluations come from the
journal instead of a worker.

Sampling runs on a study in memory, because asking through a file costs five times as much; the journal on disk
(`search.journal`) is written as evaluations arrive.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray

from estimator.errors import BestServeError
from search.evaluate import Evaluation
from search.executor import Executor
from search.journal import DIRECTIONS, Journal, finished_trial, quietly
from search.pareto import hypervolume, non_dominated
from search.scaling import per_instance_rates, predictions, promising
from spaces.space import Space
from spaces.strategy import Pool, Strategy

SamplerName = Literal["auto", "exhaustive", "random", "tpe", "nsga2", "nsga3"]
GENERATION = 32  # strategies per synchronous generation: fills two workers for about a second, adapts 10 times in 300
OPENING_FRAC = 0.35  # of the budget at most
SAMPLER_FRAC = 0.25  # of the budget, before scaling and neighbours take over
SLACKS = (0.02, 0.05, 0.12)  # how much better than predicted a strategy may prove, tried in turn
MAX_FAILED = 10  # evaluations that break before the study stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a study runs. `trials`: strategies evaluated at most."""

    trials: int = 256
    sampler: SamplerName = "auto"
    seed: int = 0
    demand_req_s: float | None = None


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
    """Every evaluation in the order of the study, and how it went. `sampler_reason`: why `auto` chose the sampler."""

    evaluations: tuple[Evaluation, ...]
    sampler: str
    sampler_reason: str
    history: tuple[Progress, ...]


def choose_sampler(settings: Settings, size: int) -> tuple[str, str]:
    """The sampler and, in a sentence, why."""
    if settings.sampler != "auto":
        return settings.sampler, f"{settings.sampler} was asked for"
    if size <= settings.trials:
        return "exhaustive", f"the space of {size} strategies fits the budget of {settings.trials}: all are evaluated"
    if settings.trials <= 1000:
        return "tpe", f"{settings.trials} of {size} strategies: TPE learns most per evaluation and is quick below 1,000"
    return (
        "nsga2",
        f"{settings.trials} of {size} strategies: over 1,000 trials TPE would cost more than the evaluations",
    )


@dataclass(slots=True)
class Study:
    """One study over a space. `cost_of`: $/h of GPUs by type. `run` proposes, evaluates, remembers until done."""

    space: Space
    executor: Executor
    cost_of: Callable[[Mapping[str, int]], float]
    settings: Settings
    journal: Journal | None = None
    on_progress: Callable[[Progress], None] | None = None
    _known: dict[Strategy, Evaluation] = field(default_factory=dict)
    _memo: dict[str, Evaluation] = field(default_factory=dict)
    _history: list[Progress] = field(default_factory=list)
    _costs: dict[tuple[tuple[str, int], ...], float] = field(default_factory=dict)
    _started_s: float = 0.0
    _planned: int = 0
    _sampled: optuna.Study | None = None
    _asked: dict[Strategy, list[optuna.Trial]] = field(default_factory=dict)
    _generation: int = 0

    def run(self) -> StudyResult:
        """Evaluate until the budget is spent or nothing promising is left."""
        self._started_s = time.monotonic()
        self._memo = self.journal.read() if self.journal else {}
        size = self.space.size
        if size == 0:
            raise _nothing_fits(self.space)
        sampler, reason = choose_sampler(self.settings, size)
        budget = size if sampler == "exhaustive" else min(self.settings.trials, size)
        self._planned = budget
        if sampler == "exhaustive":
            self._exhaust()
        else:
            self._search(sampler, budget)
        return StudyResult(
            evaluations=tuple(self._known.values()),
            sampler=sampler,
            sampler_reason=reason,
            history=tuple(self._history),
        )

    # ---- phases

    def _exhaust(self) -> None:
        strategies = iter(self.space)
        while chunk := list(islice(strategies, 16 * GENERATION)):
            self._evaluate(chunk, "exhaustive")

    def _search(self, sampler: str, budget: int) -> None:
        self._sampled = quietly(lambda: optuna.create_study(directions=list(DIRECTIONS)))
        opening = _opening(self.space, max(1, int(OPENING_FRAC * budget)))
        for first in range(0, len(opening), GENERATION):
            self._evaluate(opening[first : first + GENERATION], "opening")
        until = min(budget, len(self._known) + int(SAMPLER_FRAC * budget))
        while len(self._known) < until:
            if not self._evaluate(self._ask(sampler, min(GENERATION, until - len(self._known))), sampler):
                break
        while len(self._known) < budget:
            room = min(GENERATION, budget - len(self._known))
            if not any(self._evaluate(propose(room), phase) for phase, propose in self._refiners()):
                break

    def _refiners(self) -> Iterator[tuple[str, Callable[[int], list[Strategy]]]]:
        yield "scaling", lambda room: self._scaled(room, SLACKS[0])
        yield "neighbours", self._neighbours
        yield "scaling", lambda room: self._scaled(room, SLACKS[1])
        yield "scaling", lambda room: self._scaled(room, SLACKS[2])

    def _ask(self, sampler: str, room: int) -> list[Strategy]:
        """New strategies from the sampler; repeats are told what is known of them and asked again, a few times."""
        study = self._sampled
        assert study is not None
        self._generation += 1
        study.sampler = _sampler(sampler, _generation_seed(self.settings.seed, self._generation))
        self._asked = {}
        for _ in range(4 * room):
            if len(self._asked) == room:
                break
            trial = study.ask()
            strategy = self.space.decode(trial)
            if strategy is None or strategy not in self.space:
                trial.set_constraint("feasible", 1.0)
                study.tell(trial, (0.0, self._reference_usd_per_h))
            elif strategy in self._known:
                self._tell(trial, strategy)
            else:
                self._asked.setdefault(strategy, []).append(trial)
        return list(self._asked)

    def _tell(self, trial: optuna.Trial, strategy: Strategy) -> None:
        evaluation = self._known[strategy]
        assert self._sampled is not None
        if evaluation.status == "failed":
            self._sampled.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.set_constraint("feasible", evaluation.violation)
        self._sampled.tell(trial, (evaluation.goodput_req_s, self._cost(strategy)))

    def _scaled(self, room: int, slack_frac: float) -> list[Strategy]:
        """Unevaluated counts that the rates per instance put on the front, or that should carry the demand for less."""
        rates = per_instance_rates(self._known.items())
        candidates = [
            prediction
            for prediction in predictions(self.space, rates, self.settings.demand_req_s)
            if prediction.strategy in self.space
        ]
        new = [candidate for candidate in candidates if candidate.strategy not in self._known]
        chosen: dict[Strategy, None] = {}
        demand, best = self.settings.demand_req_s, self._best_usd_per_h()
        if demand is not None:
            limit = math.inf if best is None else best
            carrying = [
                (self._cost(candidate.strategy), -candidate.goodput_req_s, str(candidate.strategy), candidate.strategy)
                for candidate in new
                if candidate.goodput_req_s * (1 + slack_frac) >= demand and self._cost(candidate.strategy) < limit
            ]
            chosen.update((strategy, None) for *_, strategy in sorted(carrying)[: room // 2])
        hopeful = promising(new, self._cost, self._front(), slack_frac)
        chosen.update((candidate.strategy, None) for candidate in hopeful)
        return list(chosen)[:room]

    def _neighbours(self, room: int) -> list[Strategy]:
        """Unevaluated neighbours of the front's strategies, taken in turn."""
        known = list(self._known)
        goodput = [self._known[strategy].goodput_req_s for strategy in known]
        front = [known[i] for i in non_dominated(goodput, [self._cost(s) for s in known]) if goodput[i] > 0]
        carrying = [s for s in known if self._carries(s) and self._cost(s) == self._best_usd_per_h()]
        new = (
            other
            for strategy in carrying[:3] + front
            for other in self.space.neighbours(strategy)
            if other not in self._known
        )
        return list(dict.fromkeys(islice(new, 4 * room)))[:room]

    # ---- evaluating

    def _evaluate(self, proposed: Sequence[Strategy], phase: str) -> int:
        """Evaluate what is new and remember it in the order proposed; returns how many were new."""
        new = [strategy for strategy in dict.fromkeys(proposed) if strategy not in self._known]
        by_text = {str(strategy): strategy for strategy in new}
        todo = [strategy for text, strategy in by_text.items() if text not in self._memo]
        for evaluation in self.executor.run(todo):
            strategy = by_text[evaluation.strategy]
            self._memo[evaluation.strategy] = evaluation
            if self.journal is not None:
                self.journal.append(self.space, strategy, evaluation, self._cost(strategy))
        for text, strategy in by_text.items():
            self._known[strategy] = self._memo[text]
            self._teach(strategy)
        self._stop_if_broken()
        if new:
            self._report(phase)
        return len(new)

    def _teach(self, strategy: Strategy) -> None:
        """Show the sampler a finished evaluation: its own trials are told, others added."""
        if self._sampled is None:
            return
        trials = self._asked.pop(strategy, [])
        for trial in trials:
            self._tell(trial, strategy)
        if not trials:
            self._sampled.add_trial(
                finished_trial(self.space, strategy, self._known[strategy], self._cost(strategy), {})
            )

    def _stop_if_broken(self) -> None:
        broken = [evaluation for evaluation in self._known.values() if evaluation.status == "failed"]
        if len(broken) > MAX_FAILED and 2 * len(broken) > len(self._known):
            raise RuntimeError(
                f"{len(broken)} evaluations broke, the last one {broken[-1].strategy}: {broken[-1].reason}"
            )

    def _report(self, phase: str) -> None:
        goodput, cost = self._front()
        progress = Progress(
            phase=phase,
            num_evaluated=len(self._known),
            num_planned=self._planned,
            elapsed_s=time.monotonic() - self._started_s,
            hypervolume=hypervolume(goodput, cost, ref_usd_per_h=self._reference_usd_per_h),
            best_usd_per_h=self._best_usd_per_h(),
        )
        self._history.append(progress)
        if self.on_progress is not None:
            self.on_progress(progress)

    # ---- what is known

    @property
    def _reference_usd_per_h(self) -> float:
        """The hypervolume's reference: just over the GPU budget spent on the dearest type."""
        gpus = {shape.gpu for shapes in self.space.shapes.values() for shape in shapes}
        return 1.001 * max(self._price(((gpu, self.space.max_gpus(gpu)),)) for gpu in gpus)

    def _cost(self, strategy: Strategy) -> float:
        return self._price(tuple(sorted(strategy.gpu_counts.items())))

    def _price(self, counts: tuple[tuple[str, int], ...]) -> float:
        if counts not in self._costs:
            self._costs[counts] = self.cost_of(dict(counts))
        return self._costs[counts]

    def _front(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Goodput and cost of the front, by rising cost."""
        ok = [(e.goodput_req_s, self._cost(s)) for s, e in self._known.items() if e.is_ok]
        goodput, cost = np.array([g for g, _ in ok]), np.array([c for _, c in ok])
        front = non_dominated(goodput, cost)
        return goodput[front], cost[front]

    def _carries(self, strategy: Strategy) -> bool:
        demand = self.settings.demand_req_s
        return demand is not None and self._known[strategy].goodput_req_s >= demand

    def _best_usd_per_h(self) -> float | None:
        """Least cost that carries the demand so far."""
        return min((self._cost(strategy) for strategy in self._known if self._carries(strategy)), default=None)


def _opening(space: Space, budget: int) -> list[Strategy]:
    """Every layout once with middle limits, at about half the GPU budget; pairs take the most alike partner.

    More layouts than `budget` are thinned evenly.
    """
    found: dict[Strategy, None] = {}
    for policy in space.allowed.collocated_policies:
        for shape in space.central("m"):
            count = max(1, space.max_count(shape) // 2)
            found[Strategy(pools=(replace(shape, count=count),), policy=policy)] = None
    for policy in space.allowed.disaggregated_policies:
        for p, d in _partners(space):
            most = space.max_count(p, {d.gpu: d.num_gpus})
            if most >= 1 and space.max_count(d, {p.gpu: p.num_gpus}) >= 1:
                x = max(1, most // 3)
                y = max(1, space.max_count(d, {p.gpu: x * p.num_gpus}) // 2)
                found[Strategy(pools=(replace(p, count=x), replace(d, count=y)), policy=policy)] = None
    allowed = [strategy for strategy in found if strategy in space]
    step = max(1.0, len(allowed) / budget)
    return [allowed[int(index * step)] for index in range(min(budget, len(allowed)))]


def _partners(space: Space) -> Iterator[tuple[Pool, Pool]]:
    """Each prefill and each decode layout at least once, beside the most alike of the other role."""
    prefill, decode = space.central("p"), space.central("d")
    if not prefill or not decode:
        return
    for p in prefill:
        yield p, max(decode, key=lambda d: _alike(p, d))
    for d in decode:
        yield max(prefill, key=lambda p: _alike(p, d)), d


def _alike(a: Pool, b: Pool) -> tuple[bool, bool, float]:
    return a.gpu == b.gpu, a.parallelism == b.parallelism, -abs(math.log(a.num_gpus / b.num_gpus))


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    match name:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=GENERATION)
        case "nsga3":
            return optuna.samplers.NSGAIIISampler(seed=seed, population_size=GENERATION)
    raise BestServeError("sampler", name, "is unknown", "auto, exhaustive, random, tpe, nsga2, nsga3")


def _generation_seed(seed: int, generation: int) -> int:
    """A seed per generation: one sampler object could not be resumed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{generation}".encode()).digest()[:4], "little")


def _nothing_fits(space: Space) -> BestServeError:
    reasons = "; ".join(f"{rule}: {removed.reason}" for rule, removed in space.removed.items())
    return BestServeError(
        "search", "no strategy", f"is left by the rules ({reasons})", "more or other GPUs, other degrees"
    )
