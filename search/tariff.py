"""What a strategy costs in one run: a card per GPU type, and the network where its traffic leaves a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from estimator.cost import Bill, PriceCard, bill
from estimator.hardware import Gpu
from search.prices import price_book
from spaces.problem import uses_network
from spaces.strategy import Strategy

if TYPE_CHECKING:
    from search.spec import Spec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tariff:
    """Cards and GPUs by type; `network_usd_per_gpu_h` is paid for every GPU of a strategy that uses the network."""

    cards: Mapping[str, PriceCard]
    gpus: Mapping[str, Gpu]
    currency: str = "USD"
    network_usd_per_gpu_h: float = 0.0

    def bill(self, strategy: Strategy) -> Bill:
        """The strategy's bill, whole nodes where the card sells them so."""
        return bill(strategy.gpu_counts, self.cards, self.network_usd_per_h(strategy))

    def usd_per_h(self, strategy: Strategy) -> float:
        """Hourly price of a strategy."""
        return self.bill(strategy).usd_per_h

    def rent_usd_per_h(self, gpu: str, num_gpus: int) -> float:
        """Hourly price of GPUs of one type; a strategy's is the sum over its types, and the network's."""
        return bill({gpu: num_gpus}, self.cards).usd_per_h

    def network_usd_per_h(self, strategy: Strategy) -> float:
        """Hourly price of the network beside the GPUs."""
        if self.network_usd_per_gpu_h == 0.0 or not uses_network(self.gpus, strategy):
            return 0.0
        return self.network_usd_per_gpu_h * strategy.num_gpus

    def scaled(self, gpu: str, factor: float) -> Tariff:
        """The same with one GPU type's price multiplied."""
        card = self.cards[gpu]
        dearer = replace(card, usd_per_gpu_h=card.usd_per_gpu_h * factor)
        return replace(self, cards={**self.cards, gpu: dearer})


def tariff_of(spec: Spec) -> Tariff:
    """The spec's prices."""
    from search.question import gpu_of

    book = price_book(spec)
    return Tariff(
        cards=book.chosen,
        gpus={gpu.name: gpu for gpu in map(gpu_of, spec.gpus)},
        currency=book.currency,
        network_usd_per_gpu_h=spec.link.per_gpu_h,
    )
