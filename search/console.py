"""Standard output: a terminal of its own width, a pipe of a fixed one, or one JSON object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160


def standard_console() -> Console:
    """As wide as the terminal; into a pipe wide enough for every table, without colour."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def print_json(value: dict[str, Any]) -> None:
    """One object and nothing else; NaN and ∞ must be gone."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
