"""Service level objectives and how well a run meets them.

| symbol | meaning |
|---|---|
| x_ij | metric j (TTFT, TPOT, E2E) of request i, s; ∞ for a request that was rejected or did not finish |
| L_j | limit of metric j, s |
| excess | the SLO's own quantile of x/L; the SLO is met if and only if excess ≤ 1 |

Two forms. *Percentile per metric* (BestServe, arXiv 2506.05871): the p-th percentile of every x_j is at most L_j; the
excess is max_j Q_p(x_j)/L_j. *Share of requests* (DistServe, arXiv 2401.09670): a share s of the arrived requests meets
all limits at once; the excess is Q_s(max_j x_j/L_j). Q is the inverted empirical distribution function (the smallest
observed value that p % of the requests do not exceed), so that "excess ≤ 1" and "attainment ≥ target" say the same.
TPOT is undefined for one output token: such a request is left out of TPOT's percentile and cannot miss TPOT in a share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from estimator.errors import require
from estimator.simulation import FINISHED, Simulation

Metric = Literal["ttft", "tpot", "e2e"]
FloatArray = NDArray[np.float64]
WHOLE_RUN = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTarget:
    """A metric's limit, and the percentile that must keep it (unused where the SLO asks for a share)."""

    metric: Metric
    limit_s: float
    percentile: float = 90.0

    def __post_init__(self) -> None:
        accepted = ("ttft", "tpot", "e2e")
        require(
            self.metric in accepted,
            field="slo metric",
            value=self.metric,
            rule="is unknown",
            accepted=", ".join(accepted),
        )
        require(
            self.limit_s > 0 and math.isfinite(self.limit_s),
            field=f"slo {self.metric} limit_s",
            value=self.limit_s,
            rule="must be positive and finite",
            accepted="seconds > 0",
        )
        require(
            0 < self.percentile <= 100,
            field=f"slo {self.metric} percentile",
            value=self.percentile,
            rule="must lie in (0, 100]",
            accepted="for example 90",
        )

    @property
    def name(self) -> str:
        """For example `ttft p90`."""
        return f"{self.metric} p{self.percentile:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Targets met each at its percentile, or, with `share` (a fraction), all at once by that share of the requests."""

    targets: tuple[SloTarget, ...]
    share: float | None = None

    def __post_init__(self) -> None:
        metrics = [target.metric for target in self.targets]
        require(bool(metrics), field="slo targets", value=(), rule="must not be empty", accepted="one target or more")
        if self.share is None:
            return
        require(
            0 < self.share <= 1,
            field="slo share",
            value=self.share,
            rule="must lie in (0, 1]",
            accepted="a fraction, for example 0.9",
        )
        require(
            len(set(metrics)) == len(metrics),
            field="slo targets",
            value=", ".join(metrics),
            rule="name one metric twice under a share",
            accepted="one limit per metric",
        )

    def excesses(self, simulation: Simulation, window: slice = WHOLE_RUN) -> dict[str, float]:
        """Quantile over limit of each target, by name; at a share, each metric alone at that share."""
        return {
            self._name(target): _quantile(_over_limit(target, simulation, window), self._level(target))
            for target in self.targets
        }

    def excess(self, simulation: Simulation, window: slice = WHOLE_RUN) -> float:
        """How far the run is from the SLO: ≤ 1 meets it, 1.2 is 20 % over; ∞ if too many requests never finish."""
        if self.share is None or len(self.targets) == 1:
            return max(self.excesses(simulation, window).values())
        worst = _over_limit(self.targets[0], simulation, window, undefined=0.0)
        for target in self.targets[1:]:
            np.maximum(worst, _over_limit(target, simulation, window, undefined=0.0), out=worst)
        return _quantile(worst, self.share)

    def met_by(self, simulation: Simulation, window: slice = WHOLE_RUN) -> bool:
        """Whether the requests of `window` (in order of arrival) meet the SLO."""
        return self.excess(simulation, window) <= 1.0

    def met_requests(self, simulation: Simulation, window: slice = WHOLE_RUN) -> NDArray[np.bool_]:
        """(num_requests in window,): whether the request finished within every limit."""
        met = simulation.status[window] == FINISHED
        for target in self.targets:
            met &= _over_limit(target, simulation, window, undefined=0.0) <= 1.0
        return np.asarray(met, dtype=np.bool_)

    def attainment(self, simulation: Simulation, window: slice = WHOLE_RUN) -> float:
        """Share of the arrived requests that meet every limit; 1 for an empty window."""
        met = self.met_requests(simulation, window)
        return float(met.mean()) if len(met) else 1.0

    def binding_target(self, simulation: Simulation, window: slice = WHOLE_RUN) -> str:
        """Name of the target that is nearest to its limit, or furthest over it; the first one of equals."""
        excesses = self.excesses(simulation, window)
        return max(excesses, key=lambda name: excesses[name])

    def _level(self, target: SloTarget) -> float:
        return target.percentile / 100.0 if self.share is None else self.share

    def _name(self, target: SloTarget) -> str:
        return target.name if self.share is None else f"{target.metric} share {100 * self.share:g} %"


def metric_s(metric: Metric, simulation: Simulation, window: slice = WHOLE_RUN) -> FloatArray:
    """(num_requests in window,) s: the metric per request; NaN where undefined or where the request did not finish."""
    arrival_s, first_token_s = simulation.arrival_s[window], simulation.first_token_s[window]
    if metric == "ttft":
        return np.asarray(first_token_s - arrival_s, dtype=np.float64)
    finish_s = simulation.finish_s[window]
    if metric == "e2e":
        return np.asarray(finish_s - arrival_s, dtype=np.float64)
    num_gaps = simulation.output_tokens[window] - 1
    safe = np.maximum(num_gaps, 1)
    return np.asarray(np.where(num_gaps > 0, (finish_s - first_token_s) / safe, np.nan), dtype=np.float64)


def _over_limit(target: SloTarget, simulation: Simulation, window: slice, undefined: float | None = None) -> FloatArray:
    """x/L per request; ∞ for requests that did not finish; undefined TPOT is dropped, or replaced by `undefined`."""
    ratio = metric_s(target.metric, simulation, window) / target.limit_s
    unfinished = simulation.status[window] != FINISHED
    if unfinished.any():
        ratio[unfinished] = np.inf
    if target.metric != "tpot":
        return ratio
    missing = np.isnan(ratio)
    if not missing.any():
        return ratio
    return ratio[~missing] if undefined is None else np.where(missing, undefined, ratio)


def _quantile(values: FloatArray, level: float) -> float:
    """Smallest value that a fraction `level` of the values does not exceed; 0 without values (nothing can miss)."""
    num = len(values)
    if num == 0:
        return 0.0
    rank = min(num, max(1, math.ceil(level * num - 1e-9))) - 1
    return float(np.partition(values, rank)[rank])
