"""Reads price cards: the bundled ones, and a user's file in the same form."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from estimator.cost import PriceCard
from estimator.errors import BestServeError


def load_prices(path: Path | None = None) -> dict[str, PriceCard]:
    """Cards by id: the bundled `prices.toml`, overridden and extended by the user's file at `path`."""
    bundled = resources.files("estimator.catalogue").joinpath("prices.toml").read_text(encoding="utf-8")
    cards = parse_prices(bundled)
    return cards if path is None else cards | parse_prices(path.read_text(encoding="utf-8"))


def parse_prices(text: str) -> dict[str, PriceCard]:
    """Cards by id from TOML with one `[[price]]` table per card; every field but `currency` must be given."""
    try:
        rows: list[dict[str, Any]] = tomllib.loads(text).get("price", [])
    except tomllib.TOMLDecodeError as error:
        raise BestServeError("prices", str(error), "is not TOML", "[[price]] tables") from error
    cards: dict[str, PriceCard] = {}
    for row in rows:
        card = _card_of(row)
        if card.id in cards:
            raise BestServeError("price id", card.id, "is given twice", "one card per id")
        cards[card.id] = card
    return cards


def _card_of(row: dict[str, Any]) -> PriceCard:
    known = [field.name for field in fields(PriceCard)]
    name = row.get("id", "without id")
    missing = [field for field in known if field not in row and field != "currency"]
    if missing:
        raise BestServeError(f"price {name}.{missing[0]}", None, "is missing", f"all of {', '.join(known)}")
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise BestServeError(f"price {name}.{unknown[0]}", row[unknown[0]], "is unknown", ", ".join(known))
    return PriceCard(**row)
