"""Errors of whole runs from two files: what was measured, and what was predicted for the same ids."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from estimator.catalogue.models import load_model
from estimator.errors import require
from estimator.measured_runs import MeasuredRun, read_runs
from estimator.run_errors import METRICS, RunErrorCard, RunGroup, group_errors

WRITTEN = "one row a run, as `bestserve validate --out` writes them"
SOURCE = "measured runs of InferenceMAX and NVIDIA by way of ai-dynamo/aiconfigurator (Apache-2.0), sim2real, vllm_h100"


def run_error_card(measurements: Path, predictions: Path, *, is_held_out: bool) -> RunErrorCard:
    """The errors of `predictions` (columns `id` and metrics in ms) for the runs of `measurements`."""
    predicted = read_predictions(predictions)
    runs = [run for run in read_runs(measurements) if run.id in predicted]
    require(bool(runs), field="predictions", value=str(predictions), rule="share no id", accepted="ids of the runs")
    return RunErrorCard(
        rows=group_errors(_pairs(runs, predicted)),
        is_held_out=is_held_out,
        source=SOURCE,
        date=datetime.now(UTC).date().isoformat(),
    )


def read_predictions(path: Path) -> dict[str, dict[str, float]]:
    """Metric to ms, by run id. Raises `BestServeError` where one is predicted twice, as in a file of several tools."""
    predicted: dict[str, dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        require("id" in columns, field="predictions", value=str(path), rule="has no column id", accepted=WRITTEN)
        for row in rows:
            require(
                row["id"] not in predicted,
                field="predictions",
                value=str(path),
                rule=f"predicts run {row['id']} twice",
                accepted=WRITTEN,
            )
            predicted[row["id"]] = {metric: float(row[metric]) for metric in METRICS if row.get(metric)}
    return predicted


def _pairs(
    runs: list[MeasuredRun], predicted: Mapping[str, Mapping[str, float]]
) -> Iterator[tuple[RunGroup, str, float, float]]:
    for run in runs:
        group = RunGroup(engine=run.engine, gpu=run.gpu, mode=run.mode, kind=kind_of(run.model))
        for metric in METRICS:
            if metric in run.measured_ms and metric in predicted[run.id]:
                yield group, metric, predicted[run.id][metric], run.measured_ms[metric]


@cache
def kind_of(model: str) -> str:
    """`experts` for a mixture of experts, else `dense`."""
    return "experts" if load_model(model).is_moe else "dense"
