"""The card of whole-run errors, `run_errors.json`, written by `bestserve errors --card`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from estimator.run_errors import RunErrorCard, RunErrors, RunGroup

NAME = "run_errors.json"


@cache
def load_run_errors() -> RunErrorCard:
    """The bundled card; `BestServeError` without source or date."""
    return read_card(json.loads(files("estimator.catalogue").joinpath(NAME).read_text(encoding="utf-8")))


def read_card(card: Mapping[str, Any]) -> RunErrorCard:
    """A card from what its JSON holds."""
    rows = tuple(RunErrors(**{**row, "group": RunGroup(**row["group"])}) for row in card["rows"])
    return RunErrorCard(rows=rows, is_held_out=card["is_held_out"], source=card["source"], date=card["date"])


def card_text(card: RunErrorCard) -> str:
    """The card as JSON, one row a line; empty fields of groups are left out."""
    lines = []
    for row in card.rows:
        values = asdict(row)
        values["group"] = {name: value for name, value in values["group"].items() if value}
        lines.append("  " + json.dumps(values))
    head = json.dumps({"date": card.date, "source": card.source, "is_held_out": card.is_held_out}, indent=1)
    return head[:-2] + ',\n "rows": [\n' + ",\n".join(lines) + "\n ]\n}\n"
