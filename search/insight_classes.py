"""Classes of requests under the recommended strategy, and the choice where misses cost money."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from estimator.latency import Percentiles
from estimator.slo import metric_s
from search.assumptions import slo_words
from search.ledger import Ledger
from search.money_view import ClassRow, PenaltyRow
from search.offer import Offer, cheapest_front

if TYPE_CHECKING:
    from search.spec import Spec

SECONDS_PER_HOUR = 3600.0
LEAST_FRAC = 0.5  # of the demand: what carries less within the targets piles up or misses nearly all
MAX_OFFERS = 12


def class_rows(spec: Spec, ledger: Ledger, best: Offer) -> Iterator[ClassRow]:
    """Share within all targets and latencies of each class at the demand."""
    if not spec.classes:
        return
    at = ledger.probe(best.strategy)
    words = {each.name: slo_words(each.slo) for each in spec.classes}
    for each, places in ledger.problem.slo.by_class(at.simulation, at.window):
        yield ClassRow(
            name=each.name,
            share=each.share,
            targets=words[each.name],
            attainment_frac=each.slo.attainment(at.simulation, places),
            ttft_p90_ms=1e3 * Percentiles.of(metric_s("ttft", at.simulation, places)).p90_s,
            tpot_p90_ms=1e3 * Percentiles.of(metric_s("tpot", at.simulation, places)).p90_s,
        )


def penalty_rows(ledger: Ledger, penalty_per_miss: float) -> list[PenaltyRow]:
    """Strategies by bill plus penalty per hour at the demand, cheapest first.

    Asked are the front's and the cheapest that carry the demand, a bounded set. Strategies that pile up requests at the
    demand are left out: what they miss grows without end.
    """
    offers = [o for o in ledger.offers() if o.goodput_req_s >= LEAST_FRAC * ledger.demand_req_s]
    asked = sorted({o.strategy: o for o in (*cheapest_front(offers), *offers)}.values(), key=lambda o: o.order)
    rows = []
    for offer in _spread(asked):
        at = ledger.probe(offer.strategy)
        if at.backlog > 1.0:
            continue
        missed = 1.0 - ledger.problem.slo.attainment(at.simulation, at.window)
        rows.append(
            PenaltyRow(
                strategy=str(offer.strategy),
                usd_per_h=offer.usd_per_h,
                missed_frac=missed,
                penalty_usd_per_h=penalty_per_miss * missed * ledger.demand_req_s * SECONDS_PER_HOUR,
            )
        )
    return sorted(rows, key=lambda row: (row.total_usd_per_h, row.usd_per_h, row.strategy))


def _spread(offers: list[Offer]) -> list[Offer]:
    """The best of each price, cheapest first, at most `MAX_OFFERS`: of equal price the one with most goodput."""
    by_price: dict[float, Offer] = {}
    for offer in offers:
        by_price.setdefault(offer.usd_per_h, offer)
    return list(by_price.values())[:MAX_OFFERS]
