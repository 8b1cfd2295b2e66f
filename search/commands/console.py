"""Where commands print: the terminal, or 160 columns into a pipe."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 160


def console() -> Console:
    """A console as wide as the terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=PIPE_WIDTH)
