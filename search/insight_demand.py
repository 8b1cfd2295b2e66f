"""The recommended strategy run over a day or week of demand, in units that can be added and dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from estimator.cost import PriceCard, bill
from estimator.demand import DemandCurve, counted, diurnal, schedule, units_for
from search.ledger import Ledger, with_counts
from search.money_view import DemandPlan, HourRow
from search.offer import Offer
from search.prices import PriceBook
from search.spec_money import DemandSpec
from spaces.strategy import Strategy

if TYPE_CHECKING:
    from search.spec import Spec

HOURS_PER_DAY = 24


def demand_plan(spec: Spec, book: PriceBook, ledger: Ledger, best: Offer) -> DemandPlan | None:
    """Base, burst and bill of the spec's curve; None without one."""
    asked = spec.demand
    if asked is None:
        return None
    curve = curve_of(asked, spec.traffic.rate_req_s)
    units = Units(ledger=ledger, unit=unit_of(best.strategy), known=best.strategy)
    base, burst = (_cards(book, best.strategy, kind) for kind in (asked.base_price, asked.burst_price))
    base_usd, burst_usd = _price_of(ledger, units.unit, base), _price_of(ledger, units.unit, burst)
    served = schedule(
        curve,
        units.goodput_req_s,
        base_usd_per_h=base_usd,
        burst_usd_per_h=burst_usd,
        startup_s=asked.startup_s,
        scaling=asked.scaling,
    )
    mean_sized = units_for(curve.mean_req_s, units.goodput_req_s)
    return DemandPlan(
        name=curve.name,
        unit=str(units.unit),
        unit_req_s=units.goodput_req_s(1),
        mean_req_s=curve.mean_req_s,
        peak_req_s=curve.peak_req_s,
        num_base=served.num_base,
        num_peak=served.num_peak,
        base_card=", ".join(sorted({card.id for card in base.values()})),
        burst_card=", ".join(sorted({card.id for card in burst.values()})),
        usd_per_day=served.usd_per_day,
        always_peak_usd_per_day=HOURS_PER_DAY * base_usd(served.num_peak),
        mean_sized_usd_per_day=HOURS_PER_DAY * base_usd(mean_sized),
        missed_frac=served.missed_frac,
        startup_s=asked.startup_s,
        scaling=asked.scaling,
        hours=tuple(
            HourRow(
                hour=number,
                rate_req_s=hour.rate_req_s,
                num_units=hour.num_units,
                num_base=hour.num_base,
                usd=hour.usd,
                missed_frac=hour.missed_frac,
            )
            for number, hour in enumerate(served.hours)
        ),
    )


def curve_of(asked: DemandSpec, mean_req_s: float) -> DemandCurve:
    """The curve asked for; a diurnal one has the traffic's rate as its mean."""
    if asked.hourly is not None:
        return DemandCurve(name=f"{len(asked.hourly)} hours as given", rate_req_s=tuple(asked.hourly))
    if asked.diurnal is not None:
        return diurnal(mean_req_s, asked.diurnal.peak_factor, asked.diurnal.peak_hour)
    from search.traces import load_trace

    assert asked.trace is not None  # DemandSpec has one of the three
    return counted(load_trace(Path(asked.trace)).arrival_s)


def unit_of(strategy: Strategy) -> Strategy:
    """The smallest strategy of which the given one is a whole number: one instance, or pools in the same ratio."""
    common = math.gcd(*(pool.count for pool in strategy.pools))
    return with_counts(strategy, {index: pool.count // common for index, pool in enumerate(strategy.pools)})


@dataclass(slots=True, kw_only=True)
class Units:
    """Goodput of so many units, from few simulations.

    Units behind a router see smoother arrivals than one alone, so goodput per unit does not fall with their number:
    k units carry at least k/j times what j ≤ k do. j are powers of two and the number in `known`.
    """

    ledger: Ledger
    unit: Strategy
    known: Strategy
    _per_unit: dict[int, float] = field(default_factory=dict)

    def goodput_req_s(self, num: int) -> float:
        """A lower bound of the goodput of `num` units; 0 for none."""
        if num < 1:
            return 0.0
        nearest = 2 ** int(math.log2(num))
        own = self.known.pools[0].count // self.unit.pools[0].count
        basis = own if nearest < own <= num else nearest
        if basis not in self._per_unit:
            self._per_unit[basis] = self.ledger.goodput_req_s(times(self.unit, basis)) / basis
        smaller = [per for basis_of, per in self._per_unit.items() if basis_of <= num]
        return num * max(smaller)


def times(unit: Strategy, num: int) -> Strategy:
    """So many units in one strategy."""
    return replace(unit, pools=tuple(replace(pool, count=pool.count * num) for pool in unit.pools))


def _cards(book: PriceBook, strategy: Strategy, asked: str | None) -> dict[str, PriceCard]:
    return {gpu: book.chosen[gpu] if asked is None else book.card(gpu, asked) for gpu in strategy.gpu_counts}


def _price_of(ledger: Ledger, unit: Strategy, cards: dict[str, PriceCard]) -> Callable[[int], float]:
    """$/h of so many units under those cards."""

    def price(num: int) -> float:
        if num < 1:
            return 0.0
        whole = times(unit, num)
        return bill(whole.gpu_counts, cards, ledger.tariff.network_usd_per_h(whole)).usd_per_h

    return price
