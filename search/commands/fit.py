"""`bestserve fit`: the cards of operators and engines rewritten from measurements."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from estimator.errors import require

if TYPE_CHECKING:
    from estimator.calibrate_runs import Fit, Problem
    from search.validate import Validation

EPILOG = "Example: bestserve fit ../shared/measured --write-table estimator/README.md"


def fit(  # noqa: PLR0913  (one parameter per option)
    folder: Annotated[Path, typer.Argument(metavar="MEASURED", help="Folder with measurements.csv and op_*.parquet.")],
    operators: Annotated[bool, typer.Option("--operators", help="Fit the operator curves first (minutes).")] = False,
    held_out: Annotated[bool, typer.Option(help="Predict every group by a fit without it.")] = True,
    write_table: Annotated[Path | None, typer.Option(help="README whose table between markers to replace.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the held-out predictions to this CSV.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the bundled cards as they are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Fit engine costs on whole runs, rewrite their card, and print parameters, bounds and errors."""
    import json

    from estimator.calibrate_runs import write_card
    from estimator.measured_runs import read_runs
    from search.estimate import plain
    from search.fitting import Replayer, fitted, fitted_answers, held_out_answers
    from search.validate import accuracy_table, by_id, validation_of, write_predictions
    from search.validate import write_table as replace_table

    measurements, peers = folder / "measurements.csv", folder / "peers.csv"
    require(
        measurements.is_file(),
        field="fit",
        value=str(measurements),
        rule="does not exist",
        accepted="a folder that holds measurements.csv",
    )
    started = time.perf_counter()
    if operators:
        from estimator.calibrate import fit_operators

        fit_operators(folder)
    runs = read_runs(measurements)
    tables: dict[str, Validation] = {}
    with Replayer(measurements) as replayer:
        problem, full = fitted(runs, replayer)
        tables["fit"] = validation_of(runs, fitted_answers(runs, replayer, problem, full))
        if held_out:
            answers = held_out_answers(runs, replayer, problem, full)
            tables["held out"] = validation_of(runs, answers, peers if peers.is_file() else None)
            if out is not None:
                write_predictions(out, by_id(runs, answers))
    if not dry_run:
        write_card(problem, full)
    if write_table is not None:
        replace_table(write_table, accuracy_table(tables["held out" if held_out else "fit"]))
    elapsed_s = time.perf_counter() - started
    if as_json:
        found = {name: plain(table) for name, table in tables.items()}
        typer.echo(json.dumps({"parameters": _parameters(problem, full), "seconds": elapsed_s, **found}))
        return
    typer.echo(_parameter_table(problem, full))
    for name, table in tables.items():
        typer.echo(f"\n{name}\n\n{accuracy_table(table)}")
    typer.echo(f"\n{elapsed_s:.0f} s")


def _parameters(problem: Problem, full: Fit) -> dict[str, dict[str, float]]:
    costs = problem.design.costs(full.shifts)
    return {" ".join(key): asdict(found) for key, found in costs.items()}


def _parameter_table(problem: Problem, full: Fit) -> str:
    """Markdown: every parameter, its bounds and its value by engine and architecture."""
    from estimator.engine import COST_BOUNDS

    found: dict[str, Any] = _parameters(problem, full)
    lines = ["| parameter | bounds | " + " | ".join(found) + " |", "|---" * (2 + len(found)) + "|"]
    for name, (low, high) in COST_BOUNDS.items():
        values = " | ".join(f"{costs[name]:.3g}" for costs in found.values())
        lines.append(f"| {name} | {low:g} to {high:g} | {values} |")
    return "\n".join(lines)
