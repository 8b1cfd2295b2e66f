"""Runs side by side in the terminal: a column per run, what was asked differently, which is cheapest."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from search.compare import Comparison


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The sentence first, then the differences of the questions, then the answers."""
    console.print(comparison.answer, style="bold", highlight=False, markup=False)
    labels = [run.label for run in comparison.runs]
    if comparison.differences:
        rows = [(row.field, *row.values) for row in comparison.differences]
        console.print(_table("Asked differently", labels, rows))
    answers = [tuple(row.values()) for row in comparison.rows()]
    console.print(_table("Answered", labels, answers))


def _table(title: str, labels: list[str], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", *labels):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
