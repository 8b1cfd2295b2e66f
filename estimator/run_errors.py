"""How far whole runs were from their prediction, by engine, GPU, way of serving and kind of model.

Groups are kept at several levels, from (engine, GPU, mode, kind) to (mode) alone; an empty field stands for any. A
question is answered by the finest level that holds at least `LEAST_RUNS` runs, and the answer says which that was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from estimator.errors import require

LEAST_RUNS = 8
METRICS = ("tpot_mean_ms", "ttft_mean_ms", "e2e_mean_ms")
LEVELS = (("engine", "gpu", "mode", "kind"), ("engine", "gpu", "mode"), ("engine", "mode"), ("mode",))  # finest first


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """What is alike in a group of runs: `mode` collocated or disaggregated, `kind` dense or experts; "" is any."""

    engine: str = ""
    gpu: str = ""
    mode: str = ""
    kind: str = ""

    def at(self, level: tuple[str, ...]) -> RunGroup:
        """The coarser group that keeps the fields of `level` alone."""
        return RunGroup(**{name: getattr(self, name) for name in level})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunErrors:
    """Of the runs of a group that measured `metric`: median, 90th percentile of |predicted/measured − 1|; median of it.

    `bias_frac` is the median of predicted/measured − 1, its sign kept.
    """

    group: RunGroup
    metric: str
    num_runs: int
    median_frac: float
    p90_frac: float
    bias_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunErrorCard:
    """Errors of all groups. `is_held_out`: the runs of a group were predicted by a fit that had not seen them."""

    rows: tuple[RunErrors, ...]
    is_held_out: bool
    source: str
    date: str

    def __post_init__(self) -> None:
        for name in ("source", "date"):
            value = getattr(self, name)
            require(bool(value), field=f"run errors {name}", value=value, rule="must be given", accepted="text")

    def find(self, group: RunGroup, metric: str) -> RunErrors | None:
        """Of the finest group around `group` with enough runs; None where nothing like it was measured."""
        known = {(row.group, row.metric): row for row in self.rows}
        for level in LEVELS:
            row = known.get((group.at(level), metric))
            if row is not None and row.num_runs >= LEAST_RUNS:
                return row
        return None


def group_errors(pairs: Iterable[tuple[RunGroup, str, float, float]]) -> tuple[RunErrors, ...]:
    """Errors at every level from (group, metric, predicted, measured) of each run; a NaN prediction is left out."""
    ratios: Mapping[tuple[RunGroup, str], list[float]] = defaultdict(list)
    for group, metric, predicted, measured in pairs:
        if np.isfinite(predicted):
            for level in LEVELS:
                ratios[group.at(level), metric].append(predicted / measured - 1.0)
    rows = [_errors(group, metric, np.array(signed)) for (group, metric), signed in ratios.items()]
    order = ("mode", "engine", "gpu", "kind")
    return tuple(sorted(rows, key=lambda row: (*(getattr(row.group, name) for name in order), row.metric)))


def _errors(group: RunGroup, metric: str, signed: np.ndarray[tuple[int], np.dtype[np.float64]]) -> RunErrors:
    size = np.abs(signed)
    return RunErrors(
        group=group,
        metric=metric,
        num_runs=len(signed),
        median_frac=round(float(np.median(size)), 4),
        p90_frac=round(float(np.percentile(size, 90)), 4),
        bias_frac=round(float(np.median(signed)), 4),
    )
