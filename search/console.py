"""Standard output: a terminal of its own width, a pipe of a fixed one, or one JSON object."""

from __future__ import annotations

import json
import re
import sys
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 160


def standard_console() -> Console:
    """As wide as the terminal; into a pipe wide enough for every table, without colour."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH, file=cast("IO[str]", Trimmed(sys.stdout)))


class Trimmed:
    """A text stream that leaves out spaces at the ends of lines, with which tables fill their width."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write without spaces before line ends."""
        return self.stream.write(re.sub(r" +(?=\n)", "", text))

    def flush(self) -> None:
        """As the stream."""
        self.stream.flush()


def print_json(value: dict[str, Any]) -> None:
    """One object and nothing else; NaN and ∞ must be gone."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
