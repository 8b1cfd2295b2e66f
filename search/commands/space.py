"""`bestserve space`: how large a spec's space is, what each rule takes, and examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def space(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Run spec in YAML.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Count the strategies of a spec's space, say what each rule takes, and show examples."""
    from dataclasses import asdict

    from search.console import print_json, standard_console
    from search.space_view import space_view
    from search.spec import load_spec
    from search.terminal import print_rows
    from spaces.space import Space

    view = space_view(Space(load_spec(spec).problem()))
    if as_json:
        print_json(asdict(view))
        return
    console = standard_console()
    named = ", ".join(f"{count:,} {kind}" for kind, count in view.shapes.items())
    console.print(f"{view.size:,} strategies from {named} shapes.", style="bold", highlight=False)
    print_rows([asdict(rule) for rule in view.rules], console)
    console.print("For example", style="bold")
    for example in view.examples:
        console.print(f"  {example}", highlight=False, markup=False)
