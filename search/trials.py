"""A finished evaluation as an Optuna trial, for samplers and for storages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from search.evaluate import Evaluation
from spaces.space import Recorded, Space
from spaces.strategy import Strategy

DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = ("maximize", "minimize")  # goodput in req/s, cost in $/h
T = TypeVar("T")


def finished_trial(
    space: Space, strategy: Strategy, evaluation: Evaluation, usd_per_h: float, attributes: dict[str, Any]
) -> optuna.trial.FrozenTrial:
    """The strategy as a complete trial of its parameters; a violation becomes a constraint, so that samplers learn."""
    if evaluation.status == "failed":
        return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attributes)
    recorded = Recorded(space.encode(strategy))
    space.decode(recorded)
    distributions: dict[str, BaseDistribution] = {
        name: IntDistribution(*asked) if isinstance(asked, tuple) else CategoricalDistribution(asked)
        for name, asked in recorded.asked.items()
    }
    return optuna.trial.create_trial(
        values=[evaluation.goodput_req_s, usd_per_h],
        params=dict(recorded.params),
        distributions=distributions,
        constraints={"feasible": evaluation.violation},
        user_attrs=attributes,
    )


def quietly(make: Callable[[], T]) -> T:
    """The result of `make`, without Optuna's log lines on standard error."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return make()
