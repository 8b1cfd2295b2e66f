"""Which price cards a run pays with: the spec's own, its price file's, or the bundled ones; all in one currency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from estimator.catalogue.gpus import gpu_names
from estimator.catalogue.prices import PriceFile, load_prices, price_file_text, read_price_file
from estimator.cost import DEFAULT_ORDER, PRICE_KINDS, PriceCard, default_cards
from estimator.errors import BestServeError
from search.edge import nearest_names
from search.owning import ownership_of
from search.spec_money import OwnershipSpec, PriceSpec

if TYPE_CHECKING:
    from search.spec import Spec

OWN = "own"  # provider of the user's own price cards: they go with any other
FROZEN = "prices.toml"  # in a run's folder
MAX_AGE_DAYS = 60
ANY_KIND = (*DEFAULT_ORDER, *(kind for kind in PRICE_KINDS if kind not in DEFAULT_ORDER))


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBook:
    """Every card that counts for a run, the one chosen for each GPU, in one currency."""

    currency: str
    cards: Mapping[str, PriceCard]
    chosen: Mapping[str, PriceCard]

    def card(self, gpu: str, asked: str) -> PriceCard:
        """The card of that id, or the cheapest of a kind such as `reserved_1y`; `BestServeError` if there is none."""
        return _named_card(gpu, asked, self.cards, self.currency)

    def text(self) -> str:
        """The book as a price file."""
        gpus = {gpu: card.id for gpu, card in self.chosen.items()}
        return price_file_text((c for c in self.cards.values() if c.gpu in gpus), gpus)


def price_book(spec: Spec) -> PriceBook:
    """Cards of the spec's GPUs. Raises `BestServeError` where there is no such GPU or card, or where currencies mix."""
    for name in (gpu for gpu in spec.gpus if isinstance(gpu, str)):
        if name not in gpu_names():
            raise BestServeError("gpus", name, "is not a known GPU", nearest_names(name, gpu_names()))
    file = PriceFile(cards={}) if spec.price_file is None else read_price_file(Path(spec.price_file))
    known = ({} if file.complete else load_prices()) | dict(file.cards)
    chosen = {gpu: _choose(gpu, spec, file, known) for gpu in spec.gpu_names}
    for gpu, card in chosen.items():
        if card.currency != spec.currency:
            raise _mixed(f"prices.{gpu}", card, spec.currency)
    cards = {card.id: card for card in (*known.values(), *chosen.values()) if card.gpu in chosen}
    return PriceBook(
        currency=spec.currency,
        cards={name: card for name, card in cards.items() if card.currency == spec.currency},
        chosen=chosen,
    )


def cards_of(spec: Spec) -> dict[str, PriceCard]:
    """The price card of each of the spec's GPUs: the one asked for, else the file's, else the catalogue's default."""
    return dict(price_book(spec).chosen)


def _choose(gpu: str, spec: Spec, file: PriceFile, known: Mapping[str, PriceCard]) -> PriceCard:
    """What the spec asks for; then the file's choice or its cheapest card; then the catalogue's default."""
    asked = spec.prices.get(gpu)
    if isinstance(asked, PriceSpec):
        return _own_card(gpu, asked, spec.currency)
    if asked == "owned" and (owned := ownership_of(spec, gpu)) is not None:
        terms = spec.ownership or OwnershipSpec()
        return owned[0].card(terms.utilisation)
    if isinstance(asked, str):
        return _named_card(gpu, asked, known, spec.currency)
    if gpu in file.chosen:
        return file.cards[file.chosen[gpu]]
    of_file = default_cards((card for card in file.cards.values() if card.gpu == gpu), ANY_KIND)
    if gpu in of_file:
        return of_file[gpu]
    of_gpu = [card for card in known.values() if card.gpu == gpu]
    defaults = default_cards(card for card in of_gpu if card.currency == spec.currency)
    if gpu not in defaults:
        others = sorted({card.currency for card in of_gpu} - {spec.currency})
        has = f"the known prices are in {', '.join(others)}" if others else "the catalogue has no list price"
        accepted = "{per_gpu_h: …, source: …, date: …}"
        raise BestServeError(f"prices.{gpu}", None, f"must be given in {spec.currency}, {has}", accepted)
    return defaults[gpu]


def _own_card(gpu: str, price: PriceSpec, currency: str) -> PriceCard:
    in_usd = price.usd_per_gpu_h is not None
    per_gpu_h = price.usd_per_gpu_h if price.usd_per_gpu_h is not None else price.per_gpu_h
    assert per_gpu_h is not None  # PriceSpec has one of the two
    return PriceCard(
        id=f"own-{gpu}",
        provider=OWN,
        gpu=gpu,
        gpus_per_node=price.gpus_per_node,
        kind="on_demand",
        usd_per_gpu_h=per_gpu_h,
        region="",
        source=price.source,
        date=price.date,
        currency="USD" if in_usd else currency,
    )


def _named_card(gpu: str, asked: str, cards: Mapping[str, PriceCard], currency: str) -> PriceCard:
    """By id, or the cheapest of a kind such as `spot`."""
    if asked in PRICE_KINDS:
        of_kind = default_cards(
            (card for card in cards.values() if card.gpu == gpu and card.currency == currency), (asked,)
        )
        if gpu in of_kind:
            return of_kind[gpu]
    elif asked in cards and cards[asked].gpu == gpu:
        return cards[asked]
    fitting = [card.id for card in cards.values() if card.gpu == gpu]
    kinds = sorted({card.kind for card in cards.values() if card.gpu == gpu})
    raise BestServeError(f"prices.{gpu}", asked, f"is no price card of {gpu}", nearest_names(asked, [*fitting, *kinds]))


def _mixed(field: str, card: PriceCard, currency: str) -> BestServeError:
    return BestServeError(
        field,
        f"{card.id} in {card.currency}",
        f"is not in the run's currency {currency}, and currencies are not converted",
        f"a price in {currency}, or `currency: {card.currency}` with every price in it",
    )


def age_days(day: str, today: date) -> int | None:
    """Days since `day` (YYYY-MM-DD, or the last day of YYYY-MM or YYYY); None if it is no date."""
    parts = day.split("-")
    try:
        numbers = [int(part) for part in parts]
        match numbers:
            case [year, month, of_month]:
                when = date(year, month, of_month)
            case [year, month]:
                when = date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)
            case [year]:
                when = date(year, 12, 31)
            case _:
                return None
    except ValueError:
        return None
    return max(0, (today - when).days)


def old_card_warnings(cards: Iterable[PriceCard], today: date) -> list[str]:
    """One sentence per card that is older than `MAX_AGE_DAYS` or whose date is no date."""
    found = []
    for card in cards:
        age = age_days(card.date, today)
        if age is None:
            found.append(f"price {card.id}: its date {card.date!r} is no date, so its age is unknown.")
        elif age > MAX_AGE_DAYS:
            found.append(f"price {card.id} is {age} days old ({card.date}): check it before you decide.")
    return found
