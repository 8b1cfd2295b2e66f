"""Demand over time, and the units that serve it: a reserved base and what is added for its peaks.

| symbol | meaning |
|---|---|
| λ_h | requests per second in hour h, the curve; it repeats, so the hour before the first is the last |
| G(k) | goodput of k units of a strategy, G(k) ≥ λ carries λ |
| n_h | units in hour h: the least k with G(k) ≥ λ_h, at least one |
| b | units reserved all the time, at p_b(b) per hour; the rest, (n_h − b)⁺, costs p_r(·) per hour |
| s | seconds from asking for a unit to its first token |

    cost = Σ_h [ p_b(b) + p_r((n_h − b)⁺) + lead_h ],    b that makes it least

*Ahead*: units are asked for s early, and paid: lead_h = s/3600 · [p_r((n_h − b)⁺) − p_r((n_{h−1} − b)⁺)]⁺; nothing is
missed. *Reactive*: they are asked for when the hour begins; lead_h = 0, and where G(max(n_{h−1}, b)) < λ_h every
request of those s seconds counts as missed (an overloaded queue keeps no target for long; what it leaves to work off is
not counted).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from estimator.errors import BestServeError, require

HOURS_PER_DAY = 24
SECONDS_PER_HOUR = 3600.0
MAX_UNITS = 100_000
MAX_PEAK_FACTOR = 10.0  # two equally busy hours of 24 allow 12 at most
MAX_CONCENTRATION = 600.0  # of the von Mises shape: beyond any peak of MAX_PEAK_FACTOR
Scaling = Literal["ahead", "reactive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandCurve:
    """Requests per second in each hour of a period that repeats."""

    name: str
    rate_req_s: tuple[float, ...]

    def __post_init__(self) -> None:
        ok = len(self.rate_req_s) > 0 and all(math.isfinite(r) and r >= 0 for r in self.rate_req_s)
        require(
            ok and max(self.rate_req_s) > 0,
            field="demand",
            value=self.rate_req_s[:3],
            rule="must be rates ≥ 0, one above 0",
            accepted="requests per second by the hour",
        )

    @property
    def mean_req_s(self) -> float:
        """Mean over the period."""
        return math.fsum(self.rate_req_s) / len(self.rate_req_s)

    @property
    def peak_req_s(self) -> float:
        """The busiest hour."""
        return max(self.rate_req_s)


def diurnal(mean_req_s: float, peak_factor: float, peak_hour: float) -> DemandCurve:
    """A day of `mean_req_s` with one smooth peak, the busiest hour `peak_factor` times the mean.

    The von Mises shape λ ∝ exp(k·cos(2π(h − peak)/24)) at the middle of each hour; the busiest hour over the mean grows
    from 1 with k, so k is found by bisection.
    """
    require(
        1.0 < peak_factor <= MAX_PEAK_FACTOR,
        field="peak_factor",
        value=peak_factor,
        rule=f"must lie in (1, {MAX_PEAK_FACTOR:g}]",
        accepted="peak over mean, for example 2",
    )
    angle = 2.0 * np.pi * (np.arange(HOURS_PER_DAY) + 0.5 - peak_hour) / HOURS_PER_DAY
    height = np.cos(angle) - np.cos(angle).max()
    low, high = 0.0, MAX_CONCENTRATION
    for _ in range(60):
        k = 0.5 * (low + high)
        low, high = (k, high) if 1.0 / np.exp(k * height).mean() < peak_factor else (low, k)
    shape = np.exp(low * height)
    rates = mean_req_s * shape / shape.mean()
    return DemandCurve(name=f"day with a peak of {peak_factor:g} times the mean", rate_req_s=tuple(rates.tolist()))


def counted(arrival_s: NDArray[np.float64]) -> DemandCurve:
    """Hourly rates of a trace, arrival times (num,) in s; the last hour is scaled to the part of it that is covered."""
    require(
        len(arrival_s) >= 2 and float(arrival_s[-1]) > float(arrival_s[0]),
        field="demand.trace",
        value=f"{len(arrival_s)} arrivals",
        rule="must span some time",
        accepted="at least two arrivals at different times",
    )
    since_s = arrival_s - arrival_s[0]
    span_s = float(since_s[-1])
    num_hours = max(1, math.ceil(span_s / SECONDS_PER_HOUR))
    counts = np.bincount(np.minimum((since_s / SECONDS_PER_HOUR).astype(np.int64), num_hours - 1), minlength=num_hours)
    lengths_s = np.full(num_hours, SECONDS_PER_HOUR)
    lengths_s[-1] = span_s - (num_hours - 1) * SECONDS_PER_HOUR
    if num_hours > 1 and lengths_s[-1] < 0.1 * SECONDS_PER_HOUR:  # a few minutes tell nothing about an hour
        counts, lengths_s = counts[:-1], lengths_s[:-1]
    return DemandCurve(name=f"trace of {len(counts)} h", rate_req_s=tuple((counts / lengths_s).tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """One hour of a schedule: units running, of which `num_base` are reserved, the bill and the share missed."""

    rate_req_s: float
    num_units: int
    num_base: int
    usd: float
    missed_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A demand curve served; amounts are for the whole period unless per day."""

    curve: DemandCurve
    hours: tuple[Hour, ...]
    num_base: int

    @property
    def usd_per_day(self) -> float:
        """Mean bill of 24 h."""
        return math.fsum(hour.usd for hour in self.hours) / len(self.hours) * HOURS_PER_DAY

    @property
    def missed_frac(self) -> float:
        """Share of all requests that miss because units are still starting."""
        missed = math.fsum(hour.missed_frac * hour.rate_req_s for hour in self.hours)
        return missed / math.fsum(hour.rate_req_s for hour in self.hours)

    @property
    def num_peak(self) -> int:
        """Units in the busiest hour."""
        return max(hour.num_units for hour in self.hours)


def units_for(rate_req_s: float, goodput_of: Callable[[int], float]) -> int:
    """The least k ≥ 1 with `goodput_of(k)` ≥ rate; goodput must not fall with k."""
    low, high = 0, 1
    while goodput_of(high) < rate_req_s:
        low, high = high, 2 * high
        if high > MAX_UNITS:
            rule = f"needs more than {MAX_UNITS} units"
            raise BestServeError("demand", rate_req_s, rule, "a smaller peak or a larger strategy")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if goodput_of(middle) >= rate_req_s else (middle, high)
    return high


def schedule(
    curve: DemandCurve,
    goodput_of: Callable[[int], float],
    *,
    base_usd_per_h: Callable[[int], float],
    burst_usd_per_h: Callable[[int], float],
    startup_s: float = 0.0,
    scaling: Scaling = "ahead",
) -> Schedule:
    """The curve served with the reserved base that costs least; prices are per hour of so many units."""
    needed = [units_for(rate, goodput_of) for rate in curve.rate_req_s]
    served = [
        _served(curve, needed, base, (base_usd_per_h, burst_usd_per_h), startup_s, scaling)
        for base in sorted({0, *needed})
    ]
    hours, base = min(served, key=lambda found: (math.fsum(hour.usd for hour in found[0]), found[1]))
    return Schedule(curve=curve, hours=_with_misses(hours, goodput_of, startup_s, scaling), num_base=base)


def _served(
    curve: DemandCurve,
    needed: Sequence[int],
    base: int,
    prices: tuple[Callable[[int], float], Callable[[int], float]],
    startup_s: float,
    scaling: Scaling,
) -> tuple[list[Hour], int]:
    """The hours with so many units reserved, nothing missed yet."""
    base_usd_per_h, burst_usd_per_h = prices
    reserved = base_usd_per_h(base)
    added = [burst_usd_per_h(max(num - base, 0)) for num in needed]
    lead_h = startup_s / SECONDS_PER_HOUR if scaling == "ahead" else 0.0
    hours = [
        Hour(
            rate_req_s=rate,
            num_units=max(num, base),
            num_base=base,
            usd=reserved + added[h] + lead_h * max(0.0, added[h] - added[h - 1]),
            missed_frac=0.0,
        )
        for h, (rate, num) in enumerate(zip(curve.rate_req_s, needed, strict=True))
    ]
    return hours, base


def _with_misses(
    hours: list[Hour], goodput_of: Callable[[int], float], startup_s: float, scaling: Scaling
) -> tuple[Hour, ...]:
    """The same with what is missed while units start."""
    if scaling == "ahead":
        return tuple(hours)
    missed = startup_s / SECONDS_PER_HOUR
    return tuple(
        Hour(
            rate_req_s=hour.rate_req_s,
            num_units=hour.num_units,
            num_base=hour.num_base,
            usd=hour.usd,
            missed_frac=missed if goodput_of(hours[h - 1].num_units) < hour.rate_req_s else 0.0,
        )
        for h, hour in enumerate(hours)
    )
