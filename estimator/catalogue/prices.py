"""Reads price cards, servers and links: the bundled ones, and a user's price file in the same form.

A price file is TOML: one `[[price]]` table per card. Two keys may stand above them: `complete = true` (no other card is
looked at) and `[chosen]` (the card's id by GPU type).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from estimator.cost import PriceCard
from estimator.errors import BestServeError
from estimator.network import BITS_PER_BYTE, LinkCard

OPTIONAL = {"currency", "region"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceFile:
    """Cards by id; `chosen`: id by GPU type; `complete`: nothing beside them counts."""

    cards: Mapping[str, PriceCard]
    chosen: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False


def load_prices(path: Path | None = None) -> dict[str, PriceCard]:
    """Cards by id: the bundled `prices.toml`, overridden and extended by the user's file at `path`."""
    cards = parse_prices(_bundled("prices.toml"))
    return cards if path is None else cards | parse_prices(path.read_text(encoding="utf-8"))


def read_price_file(path: Path) -> PriceFile:
    """A user's price file; raises `BestServeError` if it is missing, not TOML, or a card lacks date or source."""
    if not path.is_file():
        raise BestServeError("prices", str(path), "does not exist", "a TOML file with [[price]] tables")
    table = _toml(path.read_text(encoding="utf-8"), "prices")
    unknown = sorted(set(table) - {"price", "chosen", "complete"})
    if unknown:
        raise BestServeError(f"prices.{unknown[0]}", table[unknown[0]], "is unknown", "price, chosen, complete")
    file = PriceFile(
        cards=_cards(table.get("price", [])),
        chosen=dict(table.get("chosen", {})),
        complete=bool(table.get("complete", False)),
    )
    for gpu, card in file.chosen.items():
        if card not in file.cards or file.cards[card].gpu != gpu:
            accepted = ", ".join(c.id for c in file.cards.values() if c.gpu == gpu) or "a [[price]] of that GPU"
            raise BestServeError(f"chosen.{gpu}", card, f"is no card of {gpu} in {path}", accepted)
    return file


def price_file_text(cards: Iterable[PriceCard], chosen: Mapping[str, str]) -> str:
    """A complete price file as TOML; `read_price_file` gives the same cards back."""
    lines = ["# Price cards as they were when the run was planned.", "complete = true", "", "[chosen]"]
    lines += [f"{gpu} = {json.dumps(card)}" for gpu, card in chosen.items()]
    for card in cards:
        lines += ["", "[[price]]"]
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in asdict(card).items()]
    return "\n".join(lines) + "\n"


def parse_prices(text: str) -> dict[str, PriceCard]:
    """Cards by id from TOML with one `[[price]]` table per card; every field but currency and region must be given."""
    return _cards(_toml(text, "prices").get("price", []))


def load_links() -> dict[str, LinkCard]:
    """The bundled networks by id."""
    rows: list[dict[str, Any]] = _toml(_bundled("links.toml"), "links")["link"]
    return {
        row["id"]: LinkCard(
            id=row["id"],
            kind=row["kind"],
            bytes_per_s=row["gbit_s_per_gpu"] * 1e9 / BITS_PER_BYTE,
            usd_per_gpu_h=row["usd_per_gpu_h"],
            source=row["source"],
            date=row["date"],
        )
        for row in rows
    }


def load_servers() -> dict[str, dict[str, Any]]:
    """Estimated servers by GPU type: fields of `estimator.ownership.Ownership`."""
    return _toml(_bundled("servers.toml"), "servers")


def _bundled(name: str) -> str:
    return resources.files("estimator.catalogue").joinpath(name).read_text(encoding="utf-8")


def _toml(text: str, field: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BestServeError(field, str(error), "is not TOML", "[[price]] tables") from error


def _cards(rows: list[dict[str, Any]]) -> dict[str, PriceCard]:
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
    missing = [field for field in known if field not in row and field not in OPTIONAL]
    if missing:
        needed = ", ".join(field for field in known if field not in OPTIONAL)
        accepted = f"all of {needed}; {' and '.join(sorted(OPTIONAL))} as wanted"
        raise BestServeError(f"price {name}.{missing[0]}", None, "is missing", accepted)
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise BestServeError(f"price {name}.{unknown[0]}", row[unknown[0]], "is unknown", ", ".join(known))
    for field_name, kinds in (("usd_per_gpu_h", int | float), ("gpus_per_node", int)):
        if not isinstance(row[field_name], kinds) or isinstance(row[field_name], bool):
            raise BestServeError(f"price {name}.{field_name}", row[field_name], "has the wrong type", "a number")
    given = {"region": "", **row}
    for field_name in ("id", "provider", "gpu", "kind", "region", "source", "date"):
        given[field_name] = str(given[field_name])  # TOML reads 2026-11-09 without quotes as a date
    return PriceCard(**given)
