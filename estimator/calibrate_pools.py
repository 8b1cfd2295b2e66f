"""Fit of the hand-over on measured runs of two pools: `python -m estimator.calibrate_pools measurements.csv`.

One parameter per engine, the seconds a hand-over takes beside the transfer (`estimator.catalogue.hand_over`), on a grid
within its bound, by the mean of |ln(predicted/measured TTFT)|, cut at 1. Leave-one-group-out (group = model × GPU ×
engine): fitted on the engine's other groups, or, where it has no other, on all other engines together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from estimator.accuracy import Prediction, error_rows
from estimator.catalogue.hand_over import HAND_OVER_PATH
from estimator.measured_runs import MeasuredRun, read_runs
from estimator.replay import answer

GRID_S = (0.005, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3)
MOST_LOSS = 1.0  # runs beyond saturation, whose TTFT says nothing of a hand-over
SOURCE = "silicon rows of two pools in measurements.csv, estimator.calibrate_pools"
DATE = "2026-11-25"


def losses_of(runs: Sequence[MeasuredRun], predictions: Sequence[Sequence[Prediction]]) -> NDArray[np.float64]:
    """(num_runs, len(GRID_S)) of |ln(predicted/measured TTFT)|, cut at `MOST_LOSS`."""
    measured = np.array([[run.measured_ms["ttft_mean_ms"]] for run in runs])
    predicted = np.array([[latency["ttft_mean_ms"] for latency in row] for row in predictions])
    return np.asarray(np.minimum(np.abs(np.log(predicted / measured)), MOST_LOSS), dtype=np.float64)


def best(losses: NDArray[np.float64], chosen: Sequence[bool]) -> int:
    """Place in the grid of the least mean loss of the chosen runs."""
    return int(losses[np.asarray(chosen)].mean(axis=0).argmin())


def calibrate(measurements: Path, *, write: bool = True) -> dict[str, float]:
    """Fit every engine, print errors of the fit and held out, write the card; returns seconds by engine."""
    runs = [run for run in read_runs(measurements) if run.mode == "disaggregated"]
    predictions = [[answer(run, hand_over_s=seconds).latency_ms for seconds in GRID_S] for run in runs]
    losses = losses_of(runs, predictions)
    places = {engine: best(losses, [r.engine == engine for r in runs]) for engine in sorted({r.engine for r in runs})}
    _print_errors("fit", runs, {run.id: row[places[run.engine]] for run, row in zip(runs, predictions, strict=True)})
    held: dict[str, Prediction] = {}
    for group in sorted({run.group for run in runs}):
        others = [run.engine == group[2] and run.group != group for run in runs]
        place = best(losses, others if any(others) else [run.engine != group[2] for run in runs])
        held |= {run.id: row[place] for run, row in zip(runs, predictions, strict=True) if run.group == group}
    _print_errors("held out", runs, held)
    seconds = {engine: GRID_S[place] for engine, place in places.items()}
    if write:
        card = {"source": SOURCE, "date": DATE, "hand_over_s": seconds}
        HAND_OVER_PATH.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(seconds)
    return seconds


def _print_errors(name: str, runs: Sequence[MeasuredRun], predictions: dict[str, Prediction]) -> None:
    for engine in ("", *sorted({run.engine for run in runs})):
        mine = [run for run in runs if run.engine == engine or not engine]
        for row in error_rows(mine, predictions):
            print(
                f"{name:>8} {engine or 'all':>6} {row.metric}: median {row.median_frac:.1%}, mean {row.mean_frac:.1%}, "
                f"bias {row.bias_frac:+.1%} of {row.num_runs}",
                flush=True,
            )


if __name__ == "__main__":
    calibrate(Path(sys.argv[1]))
