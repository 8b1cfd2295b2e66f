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

*Classes* (chat beside batch, say) each have a share of the requests and an SLO of their own; the whole is met if every
class meets its own, and the excess is the largest of theirs. Which request is of which class is drawn once for all
runs, by its place in the order of arrival (`class_of`), so that lengths and targets of a class meet in the same
requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from estimator.errors import require
from estimator.seeds import stream
from estimator.simulation import FINISHED, Simulation

Metric = Literal["ttft", "tpot", "e2e"]
FloatArray = NDArray[np.float64]
Window = slice | NDArray[np.int64]
WHOLE_RUN = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTarget:
    """A metric's limit, and the percentile that must keep it (unused where the SLO asks for a share)."""

    metric: Metric
    limit_s: float
    percentile: float = 90.0
    of_class: str = ""

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
        """For example `ttft p90`, or `ttft p90 of chat`."""
        return f"{self.metric} p{self.percentile:g}{self.suffix}"

    @property
    def suffix(self) -> str:
        """Whose target it is, as the end of its name."""
        return f" of {self.of_class}" if self.of_class else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloClass:
    """One class of requests: its share of them (a fraction of all), and its own SLO without classes."""

    name: str
    share: float
    slo: Slo

    def __post_init__(self) -> None:
        require(
            0 < self.share <= 1,
            field=f"class {self.name} share",
            value=self.share,
            rule="must lie in (0, 1]",
            accepted="a fraction of the requests",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Targets met each at its percentile, or, with `share` (a fraction), all at once by that share of the requests.

    With `classes`, `targets` are those of all classes (`Slo.of_classes`).
    """

    targets: tuple[SloTarget, ...]
    share: float | None = None
    classes: tuple[SloClass, ...] = ()

    @classmethod
    def of_classes(cls, classes: tuple[SloClass, ...]) -> Slo:
        """The SLO that every class meets its own; raises `BestServeError` unless the shares add up to 1."""
        total = sum(each.share for each in classes)
        require(
            abs(total - 1.0) < 1e-6,
            field="classes share",
            value=round(total, 6),
            rule="must add up to 1",
            accepted="shares of all requests, for example 0.7 and 0.3",
        )
        named = tuple(
            replace(
                each, slo=replace(each.slo, targets=tuple(replace(t, of_class=each.name) for t in each.slo.targets))
            )
            for each in classes
        )
        return cls(targets=tuple(target for each in named for target in each.slo.targets), classes=named)

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

    def excesses(self, simulation: Simulation, window: Window = WHOLE_RUN) -> dict[str, float]:
        """Quantile over limit of each target, by name; at a share, each metric alone at that share."""
        if self.classes:
            parts = (each.slo.excesses(simulation, within) for each, within in self.by_class(simulation, window))
            return {name: value for part in parts for name, value in part.items()}
        return {
            self._name(target): _quantile(_over_limit(target, simulation, window), self._level(target))
            for target in self.targets
        }

    def excess(self, simulation: Simulation, window: Window = WHOLE_RUN) -> float:
        """How far the run is from the SLO: ≤ 1 meets it, 1.2 is 20 % over; ∞ if too many requests never finish."""
        if self.classes:
            return max(each.slo.excess(simulation, within) for each, within in self.by_class(simulation, window))
        if self.share is None or len(self.targets) == 1:
            return max(self.excesses(simulation, window).values())
        worst = _over_limit(self.targets[0], simulation, window, undefined=0.0)
        for target in self.targets[1:]:
            np.maximum(worst, _over_limit(target, simulation, window, undefined=0.0), out=worst)
        return _quantile(worst, self.share)

    def met_by(self, simulation: Simulation, window: Window = WHOLE_RUN) -> bool:
        """Whether the requests of `window` (in order of arrival) meet the SLO."""
        return self.excess(simulation, window) <= 1.0

    def met_requests(self, simulation: Simulation, window: Window = WHOLE_RUN) -> NDArray[np.bool_]:
        """(num_requests in window,): whether the request finished within every limit of its own."""
        if self.classes:
            met_of_all = np.zeros(len(simulation.status), dtype=np.bool_)
            for each, within in self.by_class(simulation, window):
                met_of_all[within] = each.slo.met_requests(simulation, within)
            return met_of_all[window]
        met = simulation.status[window] == FINISHED
        for target in self.targets:
            met &= _over_limit(target, simulation, window, undefined=0.0) <= 1.0
        return np.asarray(met, dtype=np.bool_)

    def attainment(self, simulation: Simulation, window: Window = WHOLE_RUN) -> float:
        """Share of the arrived requests that meet every limit; 1 for an empty window."""
        met = self.met_requests(simulation, window)
        return float(met.mean()) if len(met) else 1.0

    def binding_target(self, simulation: Simulation, window: Window = WHOLE_RUN) -> str:
        """Name of the target that is nearest to its limit, or furthest over it; the first one of equals."""
        excesses = self.excesses(simulation, window)
        return max(excesses, key=lambda name: excesses[name])

    def met_binding(self, simulation: Simulation, window: Window = WHOLE_RUN) -> NDArray[np.bool_]:
        """(num_requests that it is asked of,): whether each keeps the target that binds; at a share, every target."""
        if self.classes:
            parts = list(self.by_class(simulation, window))
            worst, within = max(parts, key=lambda part: part[0].slo.excess(simulation, part[1]))
            return worst.slo.met_binding(simulation, within)
        if self.share is not None:
            return self.met_requests(simulation, window)
        name = self.binding_target(simulation, window)
        return Slo(targets=tuple(t for t in self.targets if t.name == name)).met_requests(simulation, window)

    def by_class(
        self, simulation: Simulation, window: Window = WHOLE_RUN
    ) -> Iterator[tuple[SloClass, NDArray[np.int64]]]:
        """Each class with the places of its requests in `window`."""
        members = class_of(len(simulation.status), tuple(each.share for each in self.classes))
        places = np.arange(len(members), dtype=np.int64)[window]
        for number, each in enumerate(self.classes):
            yield each, places[members[places] == number]

    def scaled(self, name: str, factor: float) -> Slo:
        """The same with the limit of the targets of that name multiplied by `factor`."""
        if self.classes:
            return Slo.of_classes(tuple(replace(each, slo=each.slo.scaled(name, factor)) for each in self.classes))
        targets = tuple(replace(t, limit_s=t.limit_s * factor) if self._name(t) == name else t for t in self.targets)
        return replace(self, targets=targets)

    @property
    def limits_s(self) -> dict[str, float]:
        """Limit of every target by its name."""
        if self.classes:
            return {name: limit for each in self.classes for name, limit in each.slo.limits_s.items()}
        return {self._name(target): target.limit_s for target in self.targets}

    def _level(self, target: SloTarget) -> float:
        return target.percentile / 100.0 if self.share is None else self.share

    def _name(self, target: SloTarget) -> str:
        return target.name if self.share is None else f"{target.metric} share {100 * self.share:g} %{target.suffix}"


def class_of(num: int, shares: tuple[float, ...]) -> NDArray[np.int64]:
    """(num,): the class of each request by its place in the order of arrival, classes numbered as in `shares`.

    Independent draws of one fixed stream: the first requests of a longer run are those of a shorter one.
    """
    mark = stream(0, "classes").random(num)
    ends = np.cumsum(shares)[:-1]
    return np.asarray(np.searchsorted(ends, mark, side="right"), dtype=np.int64)


def metric_s(metric: Metric, simulation: Simulation, window: Window = WHOLE_RUN) -> FloatArray:
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


def _over_limit(
    target: SloTarget, simulation: Simulation, window: Window, undefined: float | None = None
) -> FloatArray:
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
