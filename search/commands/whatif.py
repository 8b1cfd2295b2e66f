"""`bestserve whatif`: a finished run with something changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def whatif(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    sets: Annotated[
        list[str],
        typer.Option("--set", help="path=value, for example traffic.rate=2x, slo.tpot=30ms, prices.h100_sxm=+20%."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what a change of prices, demand, targets, lengths or link does to the answer of a finished run."""
    from search.console import print_json, standard_console
    from search.whatif import whatif as run_whatif

    found = run_whatif(run, sets)
    if as_json:
        print_json(found.as_json())
        return
    from search.terminal_change import print_whatif

    print_whatif(found, standard_console())
