"""The network as a choice: what each link makes of disaggregation, and the least rate at which that pays.

The cheapest of each kind that carries the demand are compared, by goodput per unit of money, because whole nodes may
give both the same price. The least rate is found by bisection; every probe is a goodput on the same requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from estimator.catalogue.prices import load_links
from estimator.errors import BestServeError
from estimator.goodput import Goodput, goodput
from estimator.network import BITS_PER_BYTE, LinkCard
from search.edge import nearest_names
from search.ledger import Ledger
from search.money_view import LinkBreakEven, LinkRow
from search.offer import Offer, best_offer
from search.spec_money import LinkOptionSpec
from spaces.problem import kv_medium, port_bytes_per_s

if TYPE_CHECKING:
    from search.spec import Spec

FASTEST = 64.0  # times now: as good as infinitely fast
SLOWEST = 1.0 / 512.0
PRECISION = 1.03
INSIDE = {"nvlink": "NVLink domain", "pcie": "PCIe of a node"}


def link_cards(spec: Spec) -> list[LinkCard]:
    """The networks to compare: the spec's options, or the catalogue's where the run is in its currency."""
    known = {name: card for name, card in load_links().items() if card.currency == spec.currency}
    if spec.link.options is None:
        return list(known.values())
    return [_option(option, known, spec.currency) for option in spec.link.options]


def _option(option: str | LinkOptionSpec, known: dict[str, LinkCard], currency: str) -> LinkCard:
    if isinstance(option, str):
        if option not in known:
            names = nearest_names(option, list(known))
            raise BestServeError("link.options", option, f"is no known link in {currency}", names or "{name: …}")
        return known[option]
    return LinkCard(
        id=option.name,
        kind=option.kind,
        bytes_per_s=option.gbit_s_per_gpu * 1e9 / BITS_PER_BYTE,
        usd_per_gpu_h=option.per_gpu_h,
        source=option.source,
        date=option.date,
        currency=currency,
    )


def link_rows(spec: Spec, ledger: Ledger) -> Iterator[LinkRow]:
    """The NVLink domain, the node, the network used, then each option: the best disaggregated strategy over each."""
    offer = _best_over_network(ledger)
    for medium in INSIDE:
        inside = _best(ledger, (o for o in ledger.offers() if _medium(ledger, o) == medium))
        if inside is not None:
            yield _inside_row(ledger, inside, medium)
    if offer is None:
        return
    per_gpu = ledger.tariff.network_usd_per_gpu_h
    yield _row(
        ledger,
        offer,
        LinkCard(
            id="as planned",
            kind="ethernet" if per_gpu == 0 else "infiniband",
            bytes_per_s=ledger.network_bytes_per_s(offer.strategy),
            usd_per_gpu_h=per_gpu,
            source="the run spec" if spec.link.gbit_s_per_gpu else "the GPU's own port, part of the rent",
            date="as given",
            currency=spec.currency,
        ),
        is_used=True,
    )
    for card in link_cards(spec):
        yield _row(ledger, offer, card, is_used=False)


def _medium(ledger: Ledger, offer: Offer) -> str:
    return kv_medium(ledger.problem.gpus, offer.strategy) if offer.strategy.is_disaggregated else ""


def _inside_row(ledger: Ledger, offer: Offer, medium: str) -> LinkRow:
    """Pools, or equal parts of them, side by side in one NVLink domain or node, whose price is the GPUs'."""
    gpu = ledger.problem.gpu(offer.strategy.pools[0].gpu)
    card = LinkCard(
        id=INSIDE[medium],
        kind=medium,
        bytes_per_s=port_bytes_per_s(ledger.problem, gpu.name, medium),
        usd_per_gpu_h=0.0,
        source=gpu.source,
        date=gpu.date,
        currency=ledger.tariff.currency,
    )
    return _row(ledger, offer, card, is_used=True)


def _row(ledger: Ledger, offer: Offer, card: LinkCard, *, is_used: bool) -> LinkRow:
    rate = offer.goodput_req_s if is_used else _goodput(ledger, offer, card.bytes_per_s)
    tariff = replace(ledger.tariff, network_usd_per_gpu_h=card.usd_per_gpu_h)
    costs = tariff.bill(offer.strategy)
    return LinkRow(
        link=card.id,
        kind=card.kind,
        gbit_s_per_gpu=card.gbit_s,
        usd_per_gpu_h=card.usd_per_gpu_h,
        strategy=str(offer.strategy),
        goodput_req_s=rate,
        usd_per_h=costs.usd_per_h,
        usd_per_1m_output=costs.usd_per_million_tokens(rate, ledger.problem.workload.mean_output_tokens),
        is_used=is_used,
        source=card.source,
        date=card.date,
    )


def link_break_even(ledger: Ledger) -> LinkBreakEven | None:
    """The least network rate at which disaggregation beats collocation per money; None without both."""
    one = _best(ledger, (o for o in ledger.offers() if not o.strategy.is_disaggregated))
    within = _best(ledger, (o for o in ledger.offers() if o.strategy.is_disaggregated))
    if one is None or within is None:
        return None
    two = _best_over_network(ledger)
    if two is None:
        verdict = (
            f"The disaggregated strategies tried stay within one NVLink domain or node, so the network's rate does not "
            f"matter to them; {within.strategy} has {_worth(within) / _worth(one):.0%} of the goodput per money of "
            f"{one.strategy}."
        )
        return _found(one, within, None, 0.0, verdict)
    now = ledger.network_bytes_per_s(two.strategy)

    as_good_req_s = _worth(one) * two.usd_per_h

    def wins(factor: float) -> bool:
        rate = now * factor
        return ledger.probe(two.strategy, rate_req_s=as_good_req_s, network_bytes_per_s=rate).excess <= 1.0

    named = f"{two.strategy} over the network"
    if not wins(FASTEST):
        share = _goodput(ledger, two, now * FASTEST) / two.usd_per_h / _worth(one)
        verdict = (
            f"No network makes {named} beat {one.strategy}: even unlimited it has {share:.0%} of its goodput per money."
        )
        return _found(one, two, None, now, verdict)
    if wins(SLOWEST):
        verdict = (
            f"{named} beats {one.strategy} per money on any network from {_gbit(now * SLOWEST):.2g} Gbit/s per GPU."
        )
        return _found(one, two, None, now, verdict)
    low, high = SLOWEST, FASTEST
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if wins(middle) else (middle, high)
    verdict = (
        f"{named} beats {one.strategy} per money from {_gbit(now * high):.3g} Gbit/s per GPU on; "
        f"now it has {_gbit(now):g}."
    )
    return _found(one, two, now * high, now, verdict)


def _found(one: Offer, two: Offer, least: float | None, now: float, verdict: str) -> LinkBreakEven:
    return LinkBreakEven(
        collocated=str(one.strategy),
        disaggregated=str(two.strategy),
        least_gbit_s_per_gpu=None if least is None else _gbit(least),
        now_gbit_s_per_gpu=_gbit(now),
        verdict=verdict,
    )


def _gbit(bytes_per_s: float) -> float:
    return bytes_per_s * BITS_PER_BYTE / 1e9


def _worth(offer: Offer) -> float:
    """Goodput per money."""
    return offer.goodput_req_s / offer.usd_per_h if offer.usd_per_h > 0 else float("inf")


def _best_over_network(ledger: Ledger) -> Offer | None:
    """The best of the strategies that hand KV caches over the network."""
    return _best(ledger, (o for o in ledger.offers() if ledger.hands_over_network(o.strategy)))


def _best(ledger: Ledger, offers: Iterable[Offer]) -> Offer | None:
    """The cheapest that carries the demand, else the one with most goodput per money."""
    strategies = [offer.strategy for offer in offers]

    def chosen() -> Offer | None:
        known = [offer for strategy in strategies if (offer := ledger.offer(strategy)) is not None]
        return best_offer(known, ledger.demand_req_s) or max(known, key=_worth, default=None)

    return ledger.confirmed(chosen)


def _goodput(ledger: Ledger, offer: Offer, bytes_per_s: float | None) -> float:
    """Goodput on another network; 0 where no rate meets the SLO."""
    ledger.num_simulated += 1
    system = ledger.system(offer.strategy, bytes_per_s)
    found = goodput(system, ledger.problem.workload, ledger.problem.slo, seed=ledger.seed)
    return found.rate_req_s if isinstance(found, Goodput) else 0.0
