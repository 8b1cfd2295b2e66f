"""Strategies with their prices, and the one order in which they are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from search.evaluation import Evaluation
from spaces.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A strategy that serves some load, with its price."""

    strategy: Strategy
    evaluation: Evaluation
    usd_per_h: float

    @property
    def goodput_req_s(self) -> float:
        """Largest rate within the SLO."""
        return self.evaluation.goodput_req_s

    @property
    def order(self) -> tuple[float, float, str]:
        """Cheaper first, of equal cost the one with more goodput, then by name: the order of every choice."""
        return self.usd_per_h, -self.goodput_req_s, self.evaluation.strategy

    @property
    def gpus(self) -> str:
        """For example `4 h100_sxm + 2 l40s`."""
        return " + ".join(f"{count} {gpu}" for gpu, count in self.strategy.gpu_counts.items())


def best_offer(offers: Iterable[Offer], demand_req_s: float) -> Offer | None:
    """The cheapest that carries the demand; of equal cost the one with most goodput, then by name."""
    carrying = (offer for offer in offers if offer.goodput_req_s >= demand_req_s)
    return min(carrying, key=lambda offer: offer.order, default=None)


def cheapest_front(offers: Iterable[Offer]) -> list[Offer]:
    """The Pareto front by rising cost: each carries more than all that cost no more."""
    front: list[Offer] = []
    for offer in sorted(offers, key=lambda offer: offer.order):
        if not front or offer.goodput_req_s > front[-1].goodput_req_s:
            front.append(offer)
    return front
