"""Whether GPUs sold in smaller units serve for less than the whole nodes that the chosen price cards sell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from estimator.cost import PriceCard, default_cards
from search.ledger import Ledger
from search.money_view import amount
from search.offer import Offer, best_offer
from search.prices import OWN, PriceBook

LEAST_SAVED_FRAC = 0.01


def card_hints(book: PriceBook, ledger: Ledger, best: Offer) -> Iterator[str]:
    """One sentence where a card of smaller units makes something evaluated cheaper than what is recommended.

    The study ranked by the chosen cards and may have left out what costs less still by the other one. Only strategies
    of one GPU type count, because two cards may be of two providers.
    """
    found: list[tuple[Offer, PriceCard]] = []
    for gpu, card in smaller_units(book).items():
        tariff = replace(ledger.tariff, cards={**ledger.tariff.cards, gpu: card})
        offers = ledger.at_prices(tariff).offers()
        other = best_offer((offer for offer in offers if set(offer.strategy.gpu_counts) == {gpu}), ledger.demand_req_s)
        if other is not None and other.usd_per_h < (1.0 - LEAST_SAVED_FRAC) * best.usd_per_h:
            found.append((other, card))
    if found:
        other, card = min(found, key=lambda each: each[0].order)
        node = book.chosen[card.gpu]
        yield (
            f"{node.id} sells {card.gpu} by {node.gpus_per_node}. By {card.id}, {_units(card)} for "
            f"{amount(card.usd_per_gpu_h, card.currency)}/h, {other.strategy} costs "
            f"{amount(other.usd_per_h, card.currency)}/h, {1.0 - other.usd_per_h / best.usd_per_h:.0%} less: plan with "
            f"`prices: {{{card.gpu}: {card.id}}}` for the least cost there."
        )


def smaller_units(book: PriceBook) -> dict[str, PriceCard]:
    """Per GPU type the cheapest card of the chosen one's kind that is sold in smaller units; none for prices given."""
    found: dict[str, PriceCard] = {}
    for gpu, chosen in book.chosen.items():
        if chosen.provider != OWN:
            alike = (card for card in book.cards.values() if card.gpu == gpu)
            smaller = (card for card in alike if card.gpus_per_node < chosen.gpus_per_node)
            found |= default_cards(smaller, (chosen.kind,))
    return found


def _units(card: PriceCard) -> str:
    return "each" if card.gpus_per_node == 1 else f"{card.gpus_per_node} at a time, each"
