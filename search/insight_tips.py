"""Where lengths, targets and the link tip the choice: the recommended strategy and its rivals, simulated at the demand.

Of each strategy only one thing is asked: does it carry the demand? That is one simulation on the requests that its
goodput was judged by (common random numbers), not a search. Making things harder (longer requests, tighter targets, a
slower link) ends where the recommended strategy no longer carries the demand; making them easier ends where the first
cheaper rival does. Rivals are a bounded set, so a strategy outside it may tip the choice earlier.

Targets need no new simulation at all: at a fixed rate the latencies do not depend on the limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from estimator.goodput import Probe
from estimator.network import BITS_PER_BYTE
from estimator.slo import Slo
from estimator.workload import ScaledLengths
from search.insight_prices import price_tips, rate_tips
from search.ledger import Ledger
from search.money_view import TippingPoint
from search.offer import Offer, cheapest_front
from spaces.strategy import Strategy

NUM_DEARER = 4
NUM_CHEAPER = 3
STEPS = (1.1, 1.3, 1.7, 2.5, 4.0)  # how far from now to look, outwards
PRECISION = 1.01
LEAST_GOODPUT_FRAC = 0.25  # of the demand: a rival that carries less is not reached by the largest step
Carries = Callable[[Offer, float], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One thing that may change. `carries(offer, factor)`: whether it does with `now` times factor.

    `harder`: +1 if a larger value is harder to serve, −1 if a smaller one is.
    """

    group: Literal["length", "slo", "link"]
    name: str
    unit: str
    now: float
    harder: int
    carries: Carries


def tipping_points(ledger: Ledger, best: Offer) -> tuple[TippingPoint, ...]:
    """All of them, nearest first."""
    rivals = rivals_of(ledger, best)
    found = [*price_tips(ledger, best), *rate_tips(ledger, best)]
    for knob in (*length_knobs(ledger), *slo_knobs(ledger), *link_knobs(ledger, best, rivals)):
        found += knob_tips(knob, best, rivals)
    return tuple(sorted(found, key=lambda tip: (distance(tip), tip.group, tip.name)))


def distance(tip: TippingPoint) -> float:
    """|ln(tip/now)|: halving is as far as doubling."""
    return abs(math.log(tip.tip / tip.now)) if tip.tip > 0 else math.inf


def rivals_of(ledger: Ledger, best: Offer) -> list[Offer]:
    """Who may take over: neighbours on the front by cost, the best of each architecture and GPU type that carries."""
    offers = list(ledger.offers())
    front = cheapest_front(offers)
    carrying = sorted((o for o in offers if o.goodput_req_s >= ledger.demand_req_s), key=lambda o: o.order)
    dearer = [o for o in front if o.order > best.order][:NUM_DEARER]
    cheaper = [o for o in reversed(front) if o.usd_per_h < best.usd_per_h][:NUM_CHEAPER]
    cheaper = [o for o in cheaper if o.goodput_req_s > LEAST_GOODPUT_FRAC * ledger.demand_req_s]
    classes: dict[object, Offer] = {}
    for offer in carrying:
        for kind in (offer.strategy.is_disaggregated, *offer.strategy.gpu_counts):
            classes.setdefault(kind, offer)
    found = {o.strategy: o for o in (*dearer, *cheaper, *carrying[1:2], *classes.values()) if o is not best}
    return sorted(found.values(), key=lambda o: o.order)


def knob_tips(knob: Knob, best: Offer, rivals: list[Offer]) -> Iterator[TippingPoint]:
    """Where the recommended strategy fails on the hard side, and where a cheaper rival suffices on the easy side."""
    fails = boundary(lambda factor: not knob.carries(best, factor), knob.harder)
    if fails is not None:
        factor, beyond = fails
        taker = next((o for o in rivals if o.order > best.order and knob.carries(o, beyond)), None)
        yield _tip(knob, factor, taker)
    nearest: tuple[float, Offer] | None = None
    for offer in (o for o in rivals if o.usd_per_h < best.usd_per_h):
        reach = math.inf if nearest is None else abs(math.log(nearest[0]))
        suffices = boundary(lambda factor, offer=offer: knob.carries(offer, factor), -knob.harder, reach)  # type: ignore[misc]
        if suffices is not None and abs(math.log(suffices[0])) < reach:
            nearest = suffices[0], offer
    if nearest is not None:
        yield _tip(knob, *nearest)


def boundary(changed: Callable[[float], bool], sign: int, reach: float = math.inf) -> tuple[float, float] | None:
    """(where between, a factor just beyond) the nearest change of `changed` from False outwards; None if none.

    `sign` +1 looks at factors above 1, −1 below; `reach`: |ln factor| beyond which nothing is asked.
    """
    inner = 1.0
    for step in STEPS:
        if math.log(inner) >= reach:
            return None
        if not changed(step**sign):
            inner = step
            continue
        outer = step
        while outer / inner > PRECISION:
            middle = math.sqrt(inner * outer)
            inner, outer = (inner, middle) if changed(middle**sign) else (middle, outer)
        return math.sqrt(inner * outer) ** sign, outer**sign
    return None


def _tip(knob: Knob, factor: float, taker: Offer | None) -> TippingPoint:
    return TippingPoint(
        group=knob.group,
        name=knob.name,
        unit=knob.unit,
        now=knob.now,
        tip=knob.now * factor,
        change_frac=factor - 1.0,
        takes_over=None if taker is None else str(taker.strategy),
        gpus="" if taker is None else taker.gpus,
        usd_per_h=None if taker is None else taker.usd_per_h,
        is_simulated=True,
    )


# ---- what may change


def length_knobs(ledger: Ledger) -> Iterator[Knob]:
    """Input and output lengths, all multiplied."""
    workload = ledger.problem.workload
    for side, mean in (("input", workload.mean_input_tokens), ("output", workload.mean_output_tokens)):

        def carries(offer: Offer, factor: float, side: str = side) -> bool:
            lengths = ScaledLengths(base=workload.lengths, **{f"{side}_factor": factor})
            return ledger.probe(offer.strategy, workload=replace(workload, lengths=lengths)).excess <= 1.0

        yield Knob(group="length", name=f"mean {side} length", unit="tokens", now=mean, harder=1, carries=carries)


def slo_knobs(ledger: Ledger) -> Iterator[Knob]:
    """The limit of each target."""
    slo, probes = ledger.problem.slo, dict[Strategy, Probe]()
    for name, limit_s in slo.limits_s.items():

        def carries(offer: Offer, factor: float, name: str = name) -> bool:
            if offer.strategy not in probes:
                probes[offer.strategy] = ledger.probe(offer.strategy)
            return judged(probes[offer.strategy], slo.scaled(name, factor))

        words = f"{name.split()[0].upper()}{name[4:].replace(' p', ' P', 1)} limit"
        yield Knob(group="slo", name=words, unit="ms", now=1e3 * limit_s, harder=-1, carries=carries)


def judged(at: Probe, slo: Slo) -> bool:
    """Whether the simulated rate is carried within another SLO."""
    return at.backlog <= 1.0 and slo.excess(at.simulation, at.window) <= 1.0


def link_knobs(ledger: Ledger, best: Offer, rivals: list[Offer]) -> Iterator[Knob]:
    """The network's rate, where a strategy hands KV caches over it."""
    over = [o for o in (best, *rivals) if ledger.hands_over_network(o.strategy)]
    if not over:
        return
    rate = ledger.network_bytes_per_s(over[0].strategy)

    def carries(offer: Offer, factor: float) -> bool:
        if not ledger.hands_over_network(offer.strategy):
            return offer.goodput_req_s >= ledger.demand_req_s
        return ledger.probe(offer.strategy, network_bytes_per_s=rate * factor).excess <= 1.0

    unit, now = "Gbit/s per GPU", rate * BITS_PER_BYTE / 1e9
    yield Knob(group="link", name="KV link rate", unit=unit, now=now, harder=-1, carries=carries)
