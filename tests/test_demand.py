"""Demand over time: curves by their law, schedules worked by hand, costs between mean-sized and peak-sized."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.demand import DemandCurve, counted, diurnal, schedule, units_for
from estimator.errors import BestServeError

CURVES = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=48).filter(lambda rates: max(rates) > 0.01)


def curve(*rates: float) -> DemandCurve:
    """Hours of those rates."""
    return DemandCurve(name="test", rate_req_s=rates)


def linear(per_unit: float):  # type: ignore[no-untyped-def]
    """Goodput or price of k units at so much each."""
    return lambda num: per_unit * num


@given(mean=st.floats(0.1, 1e3), factor=st.floats(1.05, 10.0), peak_hour=st.floats(0.0, 23.99))
def test_a_day_has_its_mean_and_its_peak(mean: float, factor: float, peak_hour: float) -> None:
    """The day's mean is exact, and the hour around the peak is the busiest, factor times the mean."""
    day = diurnal(mean, factor, peak_hour)
    assert day.mean_req_s == pytest.approx(mean)
    busiest = int(np.argmax(day.rate_req_s))
    away = abs(busiest + 0.5 - peak_hour)
    assert min(away, 24 - away) <= 0.5 + 1e-6
    assert day.peak_req_s / mean == pytest.approx(factor, rel=1e-6)


def test_a_trace_is_counted_by_the_hour() -> None:
    """3,600 arrivals in the first hour and 900 in the first half of the second are 1 and 0.5 requests/s."""
    arrivals = np.concatenate((np.arange(3600.0), 3600.0 + 2.0 * np.arange(901)))
    assert counted(arrivals).rate_req_s == pytest.approx((1.0, 0.5), rel=2e-3)


def test_units_by_hand() -> None:
    """At 4 requests/s each, 12 need 3 units, 12.1 need 4, and no demand still needs one."""
    assert [units_for(rate, linear(4.0)) for rate in (0.0, 4.0, 12.0, 12.1)] == [1, 1, 3, 4]


def test_base_and_burst_by_hand() -> None:
    """Hours of 1, 1, 1 and 4 units; reserved 2 $, on demand 3 $/h.

    Base 1: 4 h × 2 + 3 × 3 = 17 $; base 4: 4 × 4 × 2 = 32 $; base 0: 3 × (3 + 4) = 21 $. Started 1,200 s ahead, the
    three units of the last hour cost a third of an hour more: 3 × 3/3 = 3 $; in all 20 $ in 4 h, 120 $ a day.
    """
    found = schedule(
        curve(10, 10, 10, 40),
        linear(10.0),
        base_usd_per_h=linear(2.0),
        burst_usd_per_h=linear(3.0),
        startup_s=1200.0,
    )
    assert found.num_base == 1
    assert [hour.num_units for hour in found.hours] == [1, 1, 1, 4]
    assert [hour.usd for hour in found.hours] == pytest.approx([2, 2, 2, 2 + 9 + 3])
    assert found.usd_per_day == pytest.approx(120.0)
    assert found.missed_frac == 0.0


def test_reactive_scaling_misses_by_hand() -> None:
    """Asked for when the hour begins, 360 s of the busy hour are missed: 10 % of its 40 of 70 requests/s."""
    found = schedule(
        curve(10, 10, 10, 40),
        linear(10.0),
        base_usd_per_h=linear(2.0),
        burst_usd_per_h=linear(3.0),
        startup_s=360.0,
        scaling="reactive",
    )
    assert [hour.missed_frac for hour in found.hours] == pytest.approx([0, 0, 0, 0.1])
    assert found.missed_frac == pytest.approx(0.1 * 40 / 70)
    assert found.usd_per_day == pytest.approx((4 * 2 + 9) * 6)


@given(
    rates=CURVES,
    per_unit=st.floats(0.5, 50.0),
    price=st.floats(0.1, 10.0),
    extra=st.floats(1.0, 3.0),
    startup_s=st.floats(0.0, 3600.0),
)
def test_cost_lies_between_mean_sized_and_peak_sized(
    rates: list[float], per_unit: float, price: float, extra: float, startup_s: float
) -> None:
    """Units split at will for the mean are the least, always-peak sizing is the most, whatever a burst costs."""
    found = schedule(
        curve(*rates),
        linear(per_unit),
        base_usd_per_h=linear(price),
        burst_usd_per_h=linear(price * extra),
        startup_s=startup_s,
    )
    mean_sized = 24 * price * found.curve.mean_req_s / per_unit
    peak_sized = 24 * price * found.num_peak
    assert mean_sized * (1 - 1e-9) <= found.usd_per_day <= peak_sized * (1 + 1e-9)


@given(rates=CURVES, per_unit=st.floats(0.5, 50.0), startup_s=st.floats(0.0, 3600.0))
def test_every_hour_is_carried(rates: list[float], per_unit: float, startup_s: float) -> None:
    """In each hour the units carry its rate, the base is never above them, and a longer start never misses less."""
    found = [
        schedule(
            curve(*rates),
            linear(per_unit),
            base_usd_per_h=linear(1.0),
            burst_usd_per_h=linear(1.5),
            startup_s=seconds,
            scaling="reactive",
        )
        for seconds in (startup_s, 3600.0)
    ]
    for hour in found[0].hours:
        assert per_unit * hour.num_units >= hour.rate_req_s * (1 - 1e-12)
        assert hour.num_base <= hour.num_units
    assert found[0].missed_frac <= found[1].missed_frac + 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: curve(0.0, 0.0), "demand: .* must be rates ≥ 0, one above 0"),
        (lambda: curve(float("inf")), "must be rates ≥ 0"),
        (lambda: diurnal(10.0, 1.0, 12.0), r"peak_factor: 1.0 must lie in \(1, 10\]"),
        (lambda: counted(np.array([5.0])), "demand.trace: '1 arrivals' must span some time"),
        (lambda: units_for(1e9, linear(1.0)), "needs more than 100000 units"),
    ],
)
def test_impossible_demand_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    """Curves without demand or end, peaks below the mean and traces of a moment raise one sentence."""
    with pytest.raises(BestServeError, match=message):
        make()
