"""Where prices and demand tip the choice: read off finished evaluations, with no simulation.

A strategy X costs a_X + b_X·f when the price of one GPU type is multiplied by f (b_X: what it pays for that type now,
a_X: the rest). Among the strategies that carry the demand the recommended one R is cheapest at f = 1; another takes
over where its line crosses R's, f = (a_X − a_R)/(b_R − b_X): above 1 if it pays less for that type (b_X < b_R), below 1
if it pays more.
"""

from __future__ import annotations

from collections.abc import Iterator

from search.ledger import Ledger
from search.money_view import TippingPoint
from search.offer import Offer, best_offer

LEAST_FACTOR = 1e-3  # of the price: below it a GPU is as good as free
SAME = 1e-9  # relative: sums of equal prices in another order


def price_tips(ledger: Ledger, best: Offer) -> Iterator[TippingPoint]:
    """For each GPU type the nearest price above and below at which another strategy is cheaper."""
    carrying = [offer for offer in ledger.offers() if offer.goodput_req_s >= ledger.demand_req_s]
    for gpu, card in ledger.tariff.cards.items():
        lines = [(_paid_for(ledger, offer, gpu), offer) for offer in carrying]
        own_slope = _paid_for(ledger, best, gpu)
        for rises in (True, False):
            crossings = [
                (factor, slope, offer)
                for slope, offer in lines
                if (slope < own_slope) == rises and abs(slope - own_slope) > SAME * (slope + own_slope)
                if (factor := _crossing(best, own_slope, offer, slope)) > LEAST_FACTOR
            ]
            if not crossings:
                continue
            nearest = min(f for f, _, _ in crossings) if rises else max(f for f, _, _ in crossings)
            # of those that cross in the same place the one furthest ahead beyond it, then in the order of every choice
            _, slope, taker = min(
                (c for c in crossings if abs(c[0] - nearest) <= 1e-9 * nearest),
                key=lambda c: (c[1] if rises else -c[1], c[2].order),
            )
            yield TippingPoint(
                group="price",
                name=f"price of {gpu}",
                unit="per GPU and hour",
                now=card.usd_per_gpu_h,
                tip=nearest * card.usd_per_gpu_h,
                change_frac=nearest - 1.0,
                takes_over=str(taker.strategy),
                gpus=taker.gpus,
                usd_per_h=taker.usd_per_h + (nearest - 1.0) * slope,
                is_simulated=False,
            )


def _paid_for(ledger: Ledger, offer: Offer, gpu: str) -> float:
    """What the strategy pays per hour for GPUs of that type, whole nodes."""
    return sum(line.usd_per_h for line in ledger.tariff.bill(offer.strategy).lines if line.card.gpu == gpu)


def _crossing(best: Offer, own_slope: float, offer: Offer, slope: float) -> float:
    """Factor of the price at which the two cost the same."""
    return ((offer.usd_per_h - slope) - (best.usd_per_h - own_slope)) / (own_slope - slope)


def rate_tips(ledger: Ledger, best: Offer) -> Iterator[TippingPoint]:
    """The demand above which the recommended strategy no longer suffices, and below which a cheaper one does."""
    offers = list(ledger.offers())
    above = best.goodput_req_s
    yield _rate_tip(ledger, above, best_offer((o for o in offers if o.goodput_req_s > above), 0.0))
    cheaper = [offer for offer in offers if offer.usd_per_h < best.usd_per_h]
    below = max((offer.goodput_req_s for offer in cheaper), default=0.0)
    if below > 0:
        yield _rate_tip(ledger, below, best_offer(cheaper, below))


def _rate_tip(ledger: Ledger, rate_req_s: float, taker: Offer | None) -> TippingPoint:
    return TippingPoint(
        group="rate",
        name="request rate",
        unit="req/s",
        now=ledger.demand_req_s,
        tip=rate_req_s,
        change_frac=rate_req_s / ledger.demand_req_s - 1.0,
        takes_over=None if taker is None else str(taker.strategy),
        gpus="" if taker is None else taker.gpus,
        usd_per_h=None if taker is None else taker.usd_per_h,
        is_simulated=False,
    )
