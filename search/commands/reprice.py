"""`bestserve reprice`: a finished run at other prices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reprice(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    prices: Annotated[Path, typer.Option("--prices", help="TOML, one table per card, like prices.toml in a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Rank a finished run again at the prices of a file, without simulating."""
    from search.console import print_json, standard_console
    from search.reprice import reprice as run_reprice

    found = run_reprice(run, prices)
    if as_json:
        print_json(found.as_json())
        return
    from search.terminal_change import print_repriced

    print_repriced(found, standard_console())
