"""What the plan expects of a benchmark: any mean or percentile of TTFT, TPOT and E2E at one rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from estimator.simulation import Simulation
from estimator.slo import Metric, metric_s
from search.estimate import existing_system, simulate_at
from spaces.problem import Problem
from spaces.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """A simulated run in its steady part; `attainment`: share of requests within every limit of the SLO."""

    rate_req_s: float
    simulation: Simulation
    window: slice
    attainment: float

    def value_s(self, metric: Metric, level: float | None) -> float:
        """A percentile (0-100) in s, or the mean for None, of the requests that finish; NaN if none does."""
        values = metric_s(metric, self.simulation, self.window)
        values = values[~np.isnan(values)]
        if len(values) == 0:
            return float("nan")
        return float(values.mean() if level is None else np.percentile(values, level))


def predict(problem: Problem, strategy: Strategy, *, rate_req_s: float) -> Prediction:
    """Simulate the strategy at `rate_req_s` requests per second."""
    simulation, window, _ = simulate_at(problem, existing_system(problem, strategy), rate_req_s=rate_req_s)
    return Prediction(
        rate_req_s=rate_req_s,
        simulation=simulation,
        window=window,
        attainment=problem.slo.attainment(simulation, window),
    )
