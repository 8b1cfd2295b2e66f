"""Optuna at the wheel: asked for strategies, told what they achieved. Kept in memory, because asking through a file
costs five times as much; the record on disk is `search.journal`.

Every generation gets a sampler seeded by its number, because one sampler object could not be resumed. Proposals repeat
(two thirds of TPE's at 3,000 trials), so what is known is told at once and asked again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Literal

import optuna

from estimator.errors import BestServeError
from search.evaluate import Evaluation
from search.prospects import Prospects
from search.trials import DIRECTIONS, finished_trial, quietly
from spaces.space import Space
from spaces.strategy import Strategy

SamplerName = Literal["auto", "exhaustive", "random", "tpe", "nsga2", "nsga3"]
SAMPLERS = ("auto", "exhaustive", "random", "tpe", "nsga2", "nsga3")
SAMPLER_FRAC = 0.15  # of the evaluations are the sampler's to choose
TPE_ASKS = 200  # proposals beyond which TPE, whose ask grows with the trials it knows, costs more than evaluating
POPULATION = 32
ASKS_PER_ANSWER = 2  # proposals per strategy wanted: what repeats or is ruled out costs an ask all the same


def choose_sampler(asked: str, trials: int, size: int) -> tuple[str, str]:
    """The sampler and, in a sentence, why."""
    if asked != "auto":
        return asked, f"{asked} was asked for"
    if size <= trials:
        return "exhaustive", f"the space of {size} strategies fits the budget of {trials}: all are considered"
    if SAMPLER_FRAC * trials <= TPE_ASKS:
        return "tpe", f"{trials} of {size} strategies: TPE learns most per evaluation and is quick for so few"
    return "nsga2", f"{trials} of {size} strategies: for so many TPE would cost more than the evaluations"


class Proposer:
    """Asks an Optuna sampler for strategies of a space. `cost_of`: $/h of a strategy."""

    def __init__(self, space: Space, name: str, *, seed: int, cost_of: Callable[[Strategy], float]) -> None:
        self._space, self._name, self._seed, self._cost_of = space, name, seed, cost_of
        self._study = quietly(lambda: optuna.create_study(directions=list(DIRECTIONS)))
        self._generation = 0
        self._taught: set[Strategy] = set()
        self._open: dict[Strategy, list[optuna.Trial]] = {}

    def ask(self, room: int, prospects: Prospects) -> list[Strategy]:
        """Up to `room` strategies that are neither known nor hopeless; what is known is taught first.

        Of a thinned space near ones stand for those proposed.
        """
        known = prospects.known.evaluations
        self._learn(known)
        self._generation += 1
        self._study.sampler = make_sampler(self._name, _generation_seed(self._seed, self._generation))
        for _ in range(ASKS_PER_ANSWER * room):
            if len(self._open) == room:
                break
            trial = self._study.ask()
            proposed = self._space.decode(trial)
            strategy = None if proposed is None else prospects.screen.rounded(proposed)
            if strategy is None or strategy not in self._space:
                trial.set_constraint("feasible", 1.0)
                self._study.tell(trial, (0.0, prospects.known.most_usd_per_h))
            elif strategy in known:
                self._tell(trial, strategy, known[strategy])
            elif (ruled_out := prospects.hopeless(strategy)) is not None:
                trial.set_constraint("feasible", 0.0)
                self._study.tell(trial, (ruled_out.bound_req_s, self._cost_of(strategy)))
            else:
                self._open.setdefault(strategy, []).append(trial)
        return list(self._open)

    def _learn(self, known: Mapping[Strategy, Evaluation]) -> None:
        """Evaluations since the last time: of the sampler's own proposals told, of others added."""
        for strategy, evaluation in known.items():
            if strategy in self._taught:
                continue
            self._taught.add(strategy)
            trials = self._open.pop(strategy, [])
            for trial in trials:
                self._tell(trial, strategy, evaluation)
            if not trials:
                self._study.add_trial(finished_trial(self._space, strategy, evaluation, self._cost_of(strategy), {}))

    def _tell(self, trial: optuna.Trial, strategy: Strategy, evaluation: Evaluation) -> None:
        if evaluation.status == "failed":
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.set_constraint("feasible", evaluation.violation)
        self._study.tell(trial, (evaluation.goodput_req_s, self._cost_of(strategy)))


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name."""
    match name:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        case "nsga3":
            return optuna.samplers.NSGAIIISampler(seed=seed, population_size=POPULATION)
    raise BestServeError("sampler", name, "is unknown", ", ".join(SAMPLERS))


def _generation_seed(seed: int, generation: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{generation}".encode()).digest()[:4], "little")
