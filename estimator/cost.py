"""Money for GPUs: price cards and the bill of a cluster. Goodput knows nothing of this module.

All prices of one bill are in one currency; fields say `usd` because the bundled cards do, a card in euros says so in
`currency` and is billed alone. A year has 8,760 h and a month a twelfth of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from estimator.errors import BestServeError, require

HOURS_PER_YEAR = 8760.0
HOURS_PER_MONTH = HOURS_PER_YEAR / 12.0

PriceKind = Literal[
    "on_demand", "reserved_1y", "reserved_3y", "capacity_block", "spot", "marketplace", "survey", "owned"
]
PRICE_KINDS = ("on_demand", "reserved_1y", "reserved_3y", "capacity_block", "spot", "marketplace", "survey", "owned")
DEFAULT_ORDER = ("on_demand", "survey")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceCard:
    """One offer of one GPU type.

    `gpus_per_node`: GPUs that must be bought together (1 = sold singly). `kind`: `marketplace` is an unvetted host's
    on-demand price, `survey` a market average rather than an offer, `owned` the full hourly cost of owning. `date`:
    when the price was seen, YYYY-MM-DD or less exactly; prices move, so a card without date or source is refused.
    """

    id: str
    provider: str
    gpu: str
    gpus_per_node: int
    kind: PriceKind
    usd_per_gpu_h: float
    region: str
    source: str
    date: str
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("id", "provider", "gpu", "currency", "source", "date"):
            value = getattr(self, name)
            require(bool(value), field=f"price {self.id}.{name}", value=value, rule="must be given", accepted="text")
        require(
            self.kind in PRICE_KINDS,
            field=f"price {self.id}.kind",
            value=self.kind,
            rule="is unknown",
            accepted=", ".join(PRICE_KINDS),
        )
        require(
            math.isfinite(self.usd_per_gpu_h) and self.usd_per_gpu_h >= 0,
            field=f"price {self.id}.usd_per_gpu_h",
            value=self.usd_per_gpu_h,
            rule="must be finite and not negative",
            accepted="price per GPU and hour ≥ 0",
        )
        require(
            self.gpus_per_node >= 1,
            field=f"price {self.id}.gpus_per_node",
            value=self.gpus_per_node,
            rule="must be at least 1",
            accepted="1 (sold singly) or the node's size",
        )

    def num_bought(self, num_gpus: int) -> int:
        """GPUs paid for when `num_gpus` are needed: whole nodes."""
        return math.ceil(num_gpus / self.gpus_per_node) * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class BillLine:
    """GPUs of one type under one card."""

    card: PriceCard
    num_gpus: int

    @property
    def num_bought(self) -> int:
        """GPUs paid for."""
        return self.card.num_bought(self.num_gpus)

    @property
    def num_stranded(self) -> int:
        """GPUs paid for but not used, because nodes are bought whole."""
        return self.num_bought - self.num_gpus

    @property
    def usd_per_h(self) -> float:
        """Hourly price of the line."""
        return self.num_bought * self.card.usd_per_gpu_h


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a cluster costs. `extra_usd_per_h`: what is not a GPU, such as a network upgrade."""

    lines: tuple[BillLine, ...]
    extra_usd_per_h: float = 0.0

    def __post_init__(self) -> None:
        currencies = sorted({line.card.currency for line in self.lines})
        require(
            len(currencies) <= 1,
            field="prices",
            value=", ".join(currencies),
            rule="mix currencies in one bill",
            accepted="cards in one currency",
        )

    @property
    def usd_per_h(self) -> float:
        """Hourly price of all lines and extras."""
        return sum(line.usd_per_h for line in self.lines) + self.extra_usd_per_h

    @property
    def usd_per_month(self) -> float:
        """Price of 730 h."""
        return self.usd_per_h * HOURS_PER_MONTH

    @property
    def usd_per_year(self) -> float:
        """Price of 8,760 h."""
        return self.usd_per_h * HOURS_PER_YEAR

    @property
    def num_gpus(self) -> int:
        """GPUs used."""
        return sum(line.num_gpus for line in self.lines)

    @property
    def num_stranded(self) -> int:
        """GPUs paid for but not used."""
        return sum(line.num_stranded for line in self.lines)

    def usd_per_million_tokens(self, rate_req_s: float, tokens_per_request: float) -> float:
        """The whole bill over the input, or the output, tokens of `rate_req_s` requests per second; ∞ at none.

        Give the rate of requests that meet the SLO to price good tokens. Input and output prices each carry the whole
        bill: they are two ways to read one cost and must not be added.
        """
        return self._usd_per(rate_req_s * tokens_per_request, 1e6)

    def usd_per_thousand_requests(self, rate_req_s: float) -> float:
        """The whole bill per thousand requests; ∞ at none."""
        return self._usd_per(rate_req_s, 1e3)

    def _usd_per(self, per_s: float, unit: float) -> float:
        return self.usd_per_h / 3600.0 / per_s * unit if per_s > 0 else math.inf


def bill(num_gpus: Mapping[str, int], cards: Mapping[str, PriceCard], extra_usd_per_h: float = 0.0) -> Bill:
    """Bill of `num_gpus` GPUs per type, `cards` by GPU type. A type without a card raises `BestServeError`."""
    for gpu in num_gpus:
        if gpu not in cards:
            raise BestServeError(
                "prices", gpu, "has no price card", f"a card for it; priced: {', '.join(sorted(cards))}"
            )
    lines = tuple(BillLine(card=cards[gpu], num_gpus=count) for gpu, count in sorted(num_gpus.items()) if count > 0)
    return Bill(lines=lines, extra_usd_per_h=extra_usd_per_h)


def default_cards(cards: Iterable[PriceCard], kinds: tuple[str, ...] = DEFAULT_ORDER) -> dict[str, PriceCard]:
    """The card of each GPU type: the cheapest of the first kind in `kinds` that it has, ties by id.

    By default the cheapest on-demand list price, else the market survey. Spot, marketplace and commitments must be
    asked for, because they can be taken away or tie the buyer. A type with none of `kinds` gets no card.
    """
    chosen: dict[str, PriceCard] = {}
    by_price = sorted(cards, key=lambda card: (card.usd_per_gpu_h, card.id))
    for kind in kinds:
        for card in by_price:
            if card.kind == kind:
                taken = chosen.get(card.gpu)
                if taken is None:
                    chosen[card.gpu] = card
    return chosen
