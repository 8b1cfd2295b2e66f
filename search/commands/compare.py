"""`bestserve compare`: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: bestserve compare runs/quickstart runs/quickstart-2 --html comparison.html"


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Folders of finished runs.")],
    html: Annotated[Path | None, typer.Option(help="Also write one self-contained page to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Put finished runs side by side: what was asked differently, what each answered, which is cheapest."""
    from search.compare import compare_runs
    from search.console import print_json, standard_console
    from search.estimate import plain
    from search.report.compare_page import write_comparison
    from search.terminal_compare import print_comparison

    found = compare_runs(runs)
    page = None if html is None else write_comparison(found, html)
    if as_json:
        print_json(plain(found.as_json()) | {"page": None if page is None else str(page)})
        return
    console = standard_console()
    print_comparison(found, console)
    if page is not None:
        console.print(f"Page: {page}", highlight=False)
