"""Measured operators of one kind, GPU, engine and format as a group of rows that a curve can be fitted to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from estimator.catalogue.gpus import load_gpu
from estimator.dtypes import KvDtype
from estimator.hardware import Gpu
from estimator.roofline import FloatArray

MOST_ROWS = 6_000  # per group, drawn with a fixed seed
# fastest twentieth of a table that the host launched, not a graph; a whole sparse module in a graph takes 60 to 90 µs
HOST_BOUND_S = {"gemm": 18e-6, "latent": 45e-6, "sparse_module": 120e-6}
BEYOND_CACHE_BYTES = 300e6  # more than twice the L2 cache of any GPU here (126 MB)
KV_DTYPES: Mapping[str, KvDtype] = {"bfloat16": "bf16", "fp8": "fp8"}
NUMBER_BYTES = {"bf16": 2.0, "fp8": 1.0}

Rows = Mapping[str, FloatArray]
Predict = Callable[[Any, Gpu, Any], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that one curve describes: `predict(curve)` gives seconds beside `latency_s`, shape (num_rows,).

    `shape`: columns whose values make a shape; a held-out shape has no row in the fit. `fixed`: parameters that these
    rows say nothing about, at their defaults or, where `given`, at what other tables say.
    """

    kind: str
    gpu: Gpu
    engine: str
    dtype: str
    version: str
    kernel: str
    curve: type[Any]
    rows: Rows
    model: Predict
    shape: tuple[str, ...] = ()
    fixed: frozenset[str] = frozenset()
    given: Mapping[str, float] = field(default_factory=dict)

    @property
    def default(self) -> Any:
        """The curve that is known without these rows."""
        return self.curve(**self.given)

    @property
    def latency_s(self) -> FloatArray:
        """Measured seconds."""
        return np.asarray(self.rows["latency_us"] * 1e-6)

    def predict(self, curve: Any) -> FloatArray:
        """Seconds of a curve."""
        return self.model(curve, self.gpu, self.rows)

    def part(self, chosen: NDArray[np.bool_]) -> Group:
        """The group with the chosen rows alone."""
        return replace(self, rows={name: column[chosen] for name, column in self.rows.items()})


def version_key(version: str) -> tuple[int, ...]:
    """Sort key of a version: its numbers, a release candidate before its release."""
    numbers = [int(part) for part in re.findall(r"\d+", version)]
    return tuple(numbers[:3]) + ((-1, numbers[3]) if "rc" in version and len(numbers) > 3 else (0, 0))


def newest_rows(table: pd.DataFrame, host_bound_s: float = math.inf) -> pd.DataFrame:
    """Rows of the newest version and its commonest kernel; older versions where the newest was bound by the host."""
    for version in sorted(table["version"].unique(), key=version_key, reverse=True):
        rows = table[table["version"] == version]
        kernel = rows["kernel_source"].value_counts().index[0]
        commonest: pd.DataFrame = rows[rows["kernel_source"] == kernel]
        if commonest["latency_us"].quantile(0.05) * 1e-6 < host_bound_s:
            return commonest
    return table.iloc[:0]


def beyond_host(rows: pd.DataFrame, length: str) -> pd.DataFrame:
    """Rows of a table that the host launched which it does not bind: they and all longer ones take twice its fastest.

    Such rows say nothing about the kernel's launch.
    """
    longest_first = rows.sort_values(length, ascending=False)
    least = longest_first.groupby(["num_heads", "batch_size"], observed=True)["latency_us"].cummin()
    return longest_first[least >= 2.0 * rows["latency_us"].quantile(0.05)]


def group_of(  # noqa: PLR0913  a group has this many sides
    kind: str,
    dtype: str,
    table: pd.DataFrame,
    curve: type[Any],
    model: Predict,
    *,
    shape: tuple[str, ...] = (),
    prepare: Callable[[Rows], Rows] | None = None,
    fixed: frozenset[str] = frozenset(),
    given: Mapping[str, float] | None = None,
) -> Iterator[Group]:
    """The group of one (GPU, engine, dtype); nothing where too few rows are left. `prepare` adds columns once."""
    table = table[(table["latency_us"] > 0) & table.select_dtypes("number").notna().all(axis="columns")]
    if len(table) < 20:
        return
    first = table.iloc[0]
    numeric = table.sample(min(len(table), MOST_ROWS), random_state=0).select_dtypes("number")
    rows = {str(name): numeric[name].to_numpy(dtype=np.float64) for name in numeric.columns}
    yield Group(
        kind=kind,
        gpu=load_gpu(str(first["gpu"])),
        engine=str(first["backend"]),
        dtype=dtype,
        version=str(first["version"]),
        kernel=str(first["kernel_source"]) if "kernel_source" in table else "",
        curve=curve,
        rows={**rows, **prepare(rows)} if prepare else rows,
        model=model,
        shape=shape,
        fixed=fixed | frozenset(given or {}),
        given=given or {},
    )


def by_columns(table: pd.DataFrame, *names: str) -> Iterator[pd.DataFrame]:
    """Tables of equal values in the columns, sorted by them."""
    for _, rows in table.groupby(list(names), observed=True, sort=True):
        yield rows
