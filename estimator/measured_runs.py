"""One measured serving run: its row of `measurements.csv` as a layout, a load and what was measured.

Three rules fill what a row leaves open:

- number of requests of a closed loop: fifteen times its concurrency (rows that state it have ten, but the TTFT of those
  that do not says that the start-up burst weighs less in them);
- a prefix-cached run cycles `unique_prompts` prompts: from the second round on all blocks but the last partial one are
  cached. The load generator runs a file's stages in rising order of rate, so that any but the lowest starts warm;
- lengths are uniform whole numbers between the row's bounds, drawn with the run's seed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from estimator.errors import require
from estimator.instance import BLOCK_TOKENS
from estimator.parallelism import Parallelism
from estimator.requests import Requests

UNSTATED_REQUESTS_PER_SLOT = 15
METRICS = tuple(
    f"{latency}_{statistic}_ms"
    for latency, statistics in (
        ("ttft", ("mean", "p50", "p90", "p99")),
        ("tpot", ("mean", "p50", "p90", "p99")),
        ("e2e", ("mean", "p90", "p99")),
    )
    for statistic in statistics
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLayout:
    """One pool of a run: how an instance is divided, how many there are."""

    parallelism: Parallelism
    num_instances: int

    @property
    def num_gpus(self) -> int:
        """GPUs of the pool."""
        return self.parallelism.num_gpus * self.num_instances


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """A run of `measurements.csv`; `pools` is (instances,) or (prefill, decode). None = not stated."""

    id: str
    source: str
    model: str
    gpu: str
    engine: str
    weight_dtype: str
    pools: tuple[PoolLayout, ...]
    max_num_batched_tokens: int | None
    max_num_seqs: int | None
    memory_utilisation_frac: float | None
    unique_prompts: int
    shared_prefix_tokens: int
    starts_warm: bool
    concurrency: int | None
    rate_req_s: float | None
    num_requests: int
    input_bounds: tuple[int, int]
    output_bounds: tuple[int, int]
    measured_ms: Mapping[str, float]
    note: str
    engine_version: tuple[int, ...] | None = None
    highest_concurrency: int | None = None  # of its deployment, two pools only

    @property
    def mode(self) -> str:
        """`collocated` or `disaggregated`."""
        return "collocated" if len(self.pools) == 1 else "disaggregated"

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole run."""
        return sum(pool.num_gpus for pool in self.pools)

    @property
    def group(self) -> tuple[str, str, str]:
        """What leave-one-group-out leaves out: model, GPU, engine."""
        return self.model, self.gpu, self.engine

    def requests(self, seed: int = 0) -> Requests:
        """The run's requests; arrival times are zero in a closed loop."""
        rng = np.random.default_rng(seed)
        num = self.num_requests
        inputs = rng.integers(self.input_bounds[0], self.input_bounds[1] + 1, num)
        outputs = rng.integers(self.output_bounds[0], self.output_bounds[1] + 1, num)
        arrival_s = np.zeros(num) if self.rate_req_s is None else np.cumsum(rng.exponential(1.0 / self.rate_req_s, num))
        return Requests(
            arrival_s=arrival_s,
            input_tokens=inputs.astype(np.int64),
            output_tokens=outputs.astype(np.int64),
            cached_tokens=self._cached_tokens(inputs.astype(np.int64)),
        )

    def _cached_tokens(self, inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.unique_prompts == 0:
            return np.zeros(len(inputs), dtype=np.int64)
        cached = (inputs - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if not self.starts_warm:
            cached[: self.unique_prompts] = self.shared_prefix_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        return cached


def read_runs(path: Path) -> list[MeasuredRun]:
    """All rows of a measurements file, in its order; `BestServeError` where a column is missing."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    require(bool(rows), field=str(path), value="no rows", rule="must hold measurements", accepted="at least one row")
    for column in ("id", "model", "gpu", "engine", "weight_dtype", "mode", "arrival", "isl_min", "osl_max"):
        require(column in rows[0], field=str(path), value=column, rule="is a missing column", accepted="its README")
    lowest: dict[tuple[str, ...], float] = {}
    for row in rows:
        if row["rate_req_s"]:
            key = _stage_key(row)
            lowest[key] = min(lowest.get(key, np.inf), float(row["rate_req_s"]))
    return _with_highest_concurrency([_run_of(row, lowest) for row in rows])


def _with_highest_concurrency(runs: list[MeasuredRun]) -> list[MeasuredRun]:
    """Two pools stay as they are built while they are driven at one concurrency after another."""
    highest: dict[tuple[object, ...], int] = {}
    for run in runs:
        key = _deployment_key(run)
        highest[key] = max(highest.get(key, 0), run.concurrency or 0)
    return [
        replace(run, highest_concurrency=highest[_deployment_key(run)] or None) if len(run.pools) == 2 else run
        for run in runs
    ]


def _deployment_key(run: MeasuredRun) -> tuple[object, ...]:
    return run.group, run.weight_dtype, run.pools, run.input_bounds, run.output_bounds


def _stage_key(row: Mapping[str, str]) -> tuple[str, ...]:
    columns = ("source", "model", "gpu", "tp", "max_num_batched_tokens", "max_num_seqs", "isl_max", "osl_max", "note")
    return tuple(row[column] for column in columns)


def _run_of(row: Mapping[str, str], lowest_rate: Mapping[tuple[str, ...], float]) -> MeasuredRun:
    rate = _number(row, "rate_req_s")
    concurrency = _whole(row, "concurrency")
    return MeasuredRun(
        id=row["id"],
        source=row["source"],
        model=row["model"],
        gpu=row["gpu"],
        engine=row["engine"],
        engine_version=_version(row.get("engine_version", "")),
        weight_dtype=row["weight_dtype"],
        pools=_pools(row),
        max_num_batched_tokens=_whole(row, "max_num_batched_tokens"),
        max_num_seqs=_whole(row, "max_num_seqs"),
        memory_utilisation_frac=_number(row, "gpu_mem_util"),
        unique_prompts=(_whole(row, "unique_prompts") or 0) if _number(row, "prefix_caching") else 0,
        shared_prefix_tokens=_whole(row, "shared_prefix_tokens") or 0,
        starts_warm=rate is not None and rate > lowest_rate[_stage_key(row)],
        concurrency=concurrency,
        rate_req_s=rate,
        num_requests=_num_requests(row, concurrency, rate),
        input_bounds=(int(float(row["isl_min"])), int(float(row["isl_max"]))),
        output_bounds=(int(float(row["osl_min"])), int(float(row["osl_max"]))),
        measured_ms={metric: float(row[metric]) for metric in METRICS if row.get(metric)},
        note=row["note"],
    )


def _num_requests(row: Mapping[str, str], concurrency: int | None, rate: float | None) -> int:
    stated = _whole(row, "num_requests")
    if stated is not None:
        return stated
    if concurrency is not None:
        return UNSTATED_REQUESTS_PER_SLOT * concurrency
    return max(1, round((rate or 0.0) * float(row["duration_s"])))


def _pools(row: Mapping[str, str]) -> tuple[PoolLayout, ...]:
    if row["mode"] == "disaggregated":
        return _pool(row, "prefill_", "prefill_workers"), _pool(row, "decode_", "decode_workers")
    return (_pool(row, "", "replicas"),)


def _pool(row: Mapping[str, str], prefix: str, count: str) -> PoolLayout:
    parallelism = Parallelism(
        tp=_whole(row, f"{prefix}tp") or 1,
        pp=_whole(row, f"{prefix}pp") or 1,
        dp=_whole(row, f"{prefix}attention_dp") or 1,
        ep=_whole(row, f"{prefix}moe_ep") or 1,
    )
    return PoolLayout(parallelism=parallelism, num_instances=_whole(row, count) or 1)


def _number(row: Mapping[str, str], column: str) -> float | None:
    text = row.get(column, "")
    if text in ("True", "False"):
        return float(text == "True")
    return float(text) if text else None


def _whole(row: Mapping[str, str], column: str) -> int | None:
    number = _number(row, column)
    return None if number is None else round(number)


def _version(text: str) -> tuple[int, ...] | None:
    """Leading numbers of a release, (0, 12, 0) of "0.12.0"; None for a nightly build or none stated."""
    found = re.match(r"(\d+)\.(\d+)\.?(\d+)?", text)
    return None if found is None else tuple(int(part) for part in found.groups(default="0"))
