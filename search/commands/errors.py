"""`bestserve errors`: how far whole runs are from their prediction, by engine, GPU and kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: bestserve errors measurements.csv predictions.csv"


def errors(
    measurements: Annotated[Path, typer.Argument(metavar="MEASUREMENTS.csv", help="Measured runs, one a row.")],
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS.csv", help="What `validate --out` wrote.")],
    held_out: Annotated[bool, typer.Option("--held-out", help="The fit had not seen the runs it predicts.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Write the bundled card, which answers quote.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Tell the errors of whole runs by engine, GPU, way of serving and kind of model."""
    from dataclasses import asdict
    from importlib.resources import files

    from estimator.catalogue.run_errors import NAME, card_text
    from estimator.errors import require
    from search.console import print_json, standard_console
    from search.run_errors import run_error_card
    from search.terminal import print_rows

    for path in (measurements, predictions):
        require(path.is_file(), field="errors", value=str(path), rule="does not exist", accepted="a CSV file")
    found = run_error_card(measurements, predictions, is_held_out=held_out)
    if card:
        Path(str(files("estimator.catalogue").joinpath(NAME))).write_text(card_text(found), encoding="utf-8")
    if as_json:
        print_json(asdict(found))
        return
    rows = [
        {
            **{name: getattr(row.group, name) or "any" for name in ("engine", "gpu", "mode", "kind")},
            "metric": row.metric,
            "runs": row.num_runs,
            "median": f"{row.median_frac:.1%}",
            "P90": f"{row.p90_frac:.1%}",
            "bias": f"{row.bias_frac:+.1%}",
        }
        for row in found.rows
    ]
    print_rows(rows, standard_console())
