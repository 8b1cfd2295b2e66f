"""Which strategies must be evaluated at full effort before an answer may rest on them.

A study explores: it evaluates what it proposes on few requests (`estimator.goodput.EXPLORING`), which is enough to
choose where to look. What is then recommended, the best of each architecture and GPU type, and every member of the
front are *confirmed*, evaluated again at full effort; and so is what might have been in their place: the cheaper
strategies whose interval reaches the demand, and those that would add `LEAST_GAIN_FRAC` to the area below the front
with `LIFT` times what exploring found. A confirmed goodput may differ, and another strategy take the place: this
repeats until all that the answer rests on is confirmed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from search.forecast import Staircase
from search.offer import Offer, best_offer, cheapest_front
from spaces.strategy import Strategy

LIFT = 1.08  # few requests find 1.7 % less than many, with a deviation of 2.1 % (240 strategies, 2026-11-26): three
LEAST_GAIN_FRAC = 2e-4  # of the area, by one strategy: several together stay below a thousandth
PAST_DEAREST = 1.5  # times the dearest cost known, to where the area counts: the last of a front has a width too


def to_confirm(offers: Sequence[Offer], demand_req_s: float | None, ceiling_req_s: float = math.inf) -> list[Strategy]:
    """Explored strategies that the answer would rest on as things stand, each once; none: all is confirmed.

    Goodput over `ceiling_req_s` adds no area.
    """
    asked = cheapest_front(offers)
    if demand_req_s is not None:
        for members in _classes(offers):
            best = best_offer(members, demand_req_s)
            asked += [] if best is None else [best]
        for is_disaggregated in (False, True):
            kind = [offer for offer in offers if offer.strategy.is_disaggregated == is_disaggregated]
            asked += _rivals(kind, demand_req_s)
    doubted = [offer for offer in asked if offer.evaluation.is_explored] or _hopefuls(offers, ceiling_req_s)
    return list(dict.fromkeys(offer.strategy for offer in doubted))


def _hopefuls(offers: Sequence[Offer], ceiling_req_s: float) -> list[Offer]:
    """Explored offers that may add to the area below the front, once that is confirmed."""
    done = cheapest_front(offer for offer in offers if not offer.evaluation.is_explored)
    rest = [offer for offer in offers if offer.evaluation.is_explored]
    if not done or not rest:
        return []
    least = [offer for offer in done if offer.goodput_req_s < ceiling_req_s]
    front = done[: len(least) + 1]  # and the first that reaches the ceiling
    goodput, cost = ([getattr(offer, name) for offer in front] for name in ("goodput_req_s", "usd_per_h"))
    most_usd_per_h = PAST_DEAREST * max(offer.usd_per_h for offer in offers)
    staircase = Staircase(np.minimum(goodput, ceiling_req_s), np.array(cost), most_usd_per_h)
    hoped, costs = (np.array([getattr(offer, name) for offer in rest]) for name in ("goodput_req_s", "usd_per_h"))
    gain = staircase.gain(np.minimum(LIFT * hoped, ceiling_req_s), costs)
    return [rest[k] for k in np.flatnonzero(gain > LEAST_GAIN_FRAC * staircase.area)]


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
