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

EPILOG = "Example: bestserve fit ../shared/measured"


def fit(
    folder: Annotated[Path, typer.Argument(metavar="MEASURED", help="Folder with measurements.csv and op_*.parquet.")],
    operators: Annotated[bool, typer.Option("--operators", help="Fit the operator curves first (minutes).")] = False,
    held_out: Annotated[bool, typer.Option(help="Predict every group by a fit without it.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the bundled cards as they are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Fit engine costs on whole runs, rewrite their card, and print parameters, bounds and errors."""
    import json

    from search.fitting import Replayer, fitted, held_out_answers

    measurements = folder / "measurements.csv"
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
    from estimator.calibrate_runs import write_card
    from estimator.measured_runs import read_runs

    runs = read_runs(measurements)
    with Replayer(measurements) as replayer:
        problem, full = fitted(runs, replayer)
        found: dict[str, Any] = {"parameters": _parameters(problem, full), "fit": _errors(problem, full.predicted)}
        if held_out:
            found["held_out"] = _errors(problem, held_out_answers(runs, replayer, problem, full)[1])
    if not dry_run:
        write_card(problem, full)
    found["seconds"] = time.perf_counter() - started
    typer.echo(json.dumps(found) if as_json else _text(found))


def _parameters(problem: Problem, full: Fit) -> dict[str, dict[str, float]]:
    costs = problem.design.costs(full.shifts)
    return {" ".join(key): asdict(found) for key, found in costs.items()}


def _errors(problem: Problem, predicted: Any) -> dict[str, dict[str, float]]:
    """Absolute percentage errors of TPOT and TTFT over all collocated runs."""
    import numpy as np

    errors = np.abs(predicted / problem.measured - 1.0)
    return {
        name: {"median_frac": float(np.median(errors[:, column])), "mean_frac": float(errors[:, column].mean())}
        for column, name in enumerate(("tpot", "ttft"))
    }


def _text(found: dict[str, Any]) -> str:
    from estimator.engine import COST_BOUNDS

    names = list(found["parameters"])
    lines = ["| parameter | bounds | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for name, (low, high) in COST_BOUNDS.items():
        values = " | ".join(f"{found['parameters'][key][name]:.3g}" for key in names)
        lines.append(f"| {name} | {low:g} to {high:g} | {values} |")
    for part in ("fit", "held_out"):
        for metric, errors in found.get(part, {}).items():
            lines.append(f"{part} {metric}: median {errors['median_frac']:.1%}, mean {errors['mean_frac']:.1%}")
    lines.append(f"{found['seconds']:.0f} s")
    return "\n".join(lines)
