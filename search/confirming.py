"""Which strategies must be evaluated at full effort before an answer may rest on them.

A study explores: it evaluates what it proposes on few requests (`estimator.goodput.EXPLORING`), which is enough to
choose where to look. What is then recommended, the best of each architecture and GPU type, and every member of the
front are *confirmed*, evaluated again at full effort; and so is what might have been in their place: the cheaper
strategies whose interval reaches the demand, and those that would be on the front with `LIFT` times what exploring
found. A confirmed goodput may differ, and another strategy take the place: this repeats until all that the answer rests
on is confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from search.offer import Offer, best_offer, cheapest_front
from spaces.strategy import Strategy

LIFT = 1.04  # few requests find 1.7 % less than many, with a deviation of 2.1 % (240 strategies, 2026-11-26)


def to_confirm(offers: Sequence[Offer], demand_req_s: float | None) -> list[Strategy]:
    """Explored strategies that the answer would rest on as things stand, each once; none: all is confirmed."""
    asked = [*cheapest_front(offers), *cheapest_front([_lifted(offer) for offer in offers])]
    if demand_req_s is not None:
        for members in _classes(offers):
            best = best_offer(members, demand_req_s)
            asked += [] if best is None else [best]
        for is_disaggregated in (False, True):
            kind = [offer for offer in offers if offer.strategy.is_disaggregated == is_disaggregated]
            asked += _rivals(kind, demand_req_s)
    return list(dict.fromkeys(offer.strategy for offer in asked if offer.evaluation.is_explored))


def _lifted(offer: Offer) -> Offer:
    """With the goodput that may prove to be; a confirmed one as it is."""
    if not offer.evaluation.is_explored:
        return offer
    return replace(offer, evaluation=replace(offer.evaluation, goodput_req_s=LIFT * offer.goodput_req_s))


def _classes(offers: Sequence[Offer]) -> Iterator[list[Offer]]:
    """Offers by architecture, and by GPU type that they use."""
    for is_disaggregated in (False, True):
        yield [offer for offer in offers if offer.strategy.is_disaggregated == is_disaggregated]
    for gpu in sorted({gpu for offer in offers for gpu in offer.strategy.gpu_counts}):
        yield [offer for offer in offers if gpu in offer.strategy.gpu_counts]


def _rivals(offers: Sequence[Offer], demand_req_s: float) -> Iterator[Offer]:
    """Explored offers cheaper than the best of these whose interval reaches the demand although their goodput does not.

    Where none carries the demand nothing is known to be dearer: all that may carry it are rivals.
    """
    best = best_offer(offers, demand_req_s)
    for offer in offers:
        may_carry = offer.goodput_req_s < demand_req_s <= offer.evaluation.high_req_s
        if offer.evaluation.is_explored and may_carry and (best is None or offer.usd_per_h < best.usd_per_h):
            yield offer
