"""Measured collectives as groups ready to fit; tables as in `estimator.calibrate_tables`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from estimator.calibrate_groups import Group, Rows, by_columns, group_of, version_key
from estimator.catalogue.gpus import load_gpu
from estimator.collectives import CollectiveKind, ExchangeWay, LinkCurve
from estimator.hardware import Gpu
from estimator.roofline import ACTIVATION_BYTES, FloatArray

DEEPEP_GPUS = 8
SERVED_TOP_K = (4, 10)


def collectives(folder: Path) -> Iterator[Group]:
    table = pd.read_parquet(folder / "op_custom_allreduce.parquet")
    table = table[~table["kernel_source"].astype(str).str.contains("eager")]
    for rows in by_columns(table, "gpu", "backend", "num_gpus"):
        newest = rows[rows["version"] == max(rows["version"].unique(), key=version_key)]
        yield from _link("all_reduce", newest)


def nccl(folder: Path) -> Iterator[Group]:
    kinds: dict[str, CollectiveKind] = {
        "all_reduce": "all_reduce",
        "all_gather": "all_gather",
        "alltoall": "all_to_all",
    }
    table = pd.read_parquet(folder / "op_nccl.parquet")
    table = table[(table["nccl_dtype"] == "half") & table["op_name"].isin(list(kinds))]
    for rows in by_columns(table, "gpu", "op_name", "num_gpus"):
        newest = rows[rows["version"] == max(rows["version"].unique(), key=version_key)]
        yield from _link(kinds[str(newest["op_name"].iloc[0])], newest.assign(backend="nccl"))


def _link(kind: CollectiveKind, rows: pd.DataFrame, num_gpus: int = 0) -> Iterator[Group]:
    num_gpus = num_gpus or int(rows["num_gpus"].iloc[0])
    parts = num_gpus if kind == "all_gather" else 1  # NCCL counts what a gather ends with, we what each GPU brings

    def predict(curve: LinkCurve, gpu: Gpu, x: Rows) -> FloatArray:
        return curve.seconds(gpu, kind, 2.0 * x["message_size"] / parts, num_gpus)

    yield from group_of(kind, str(num_gpus), rows, LinkCurve, predict)


def deepep(folder: Path) -> Iterator[Group]:
    """Exchange of tokens with their experts by DeepEP inside a node, the faster of its two modes at each size.

    Low-latency kernels send a copy per expert, the others one per GPU; bytes are those that GPUs must receive whatever
    the mode: distinct GPUs of top_k experts, fp8 on the way out, bf16 on the way back. Four to ten experts a token, as
    served models choose: the curve has no term for copies to experts of one GPU.
    """
    fast = pd.read_parquet(folder / "op_wideep_deepep_ll.parquet")
    bulk = pd.read_parquet(folder / "op_wideep_deepep_normal.parquet")
    shape = ["gpu", "version", "kernel_source", "hidden_size", "num_token", "num_topk", "num_experts"]
    in_both = bulk["num_token"].isin(fast["num_token"].unique()) | (bulk["num_token"] > fast["num_token"].max())
    ways: tuple[tuple[ExchangeWay, float], ...] = (("dispatch", 1.0), ("combine", ACTIVATION_BYTES))
    for way, width in ways:
        columns = {f"{way}_avg_t_us": "latency_us", f"{way}_transmit_us": "latency_us"}
        modes = (mode.rename(columns=columns)[[*shape, "latency_us"]] for mode in (fast, bulk[in_both]))
        table = pd.concat(modes).groupby(shape, observed=True)["latency_us"].min().reset_index()
        table = table[(table["num_experts"] >= DEEPEP_GPUS) & table["num_topk"].between(*SERVED_TOP_K)]
        for rows in by_columns(table, "gpu"):
            num_gpus = min(DEEPEP_GPUS, load_gpu(str(rows["gpu"].iloc[0])).gpus_per_node)
            distinct = num_gpus * (1.0 - (1.0 - 1.0 / num_gpus) ** rows["num_topk"].astype(float))
            sent = rows["num_token"] * rows["hidden_size"] * width * distinct
            yield from _link(way, rows.assign(backend="deepep", message_size=sent / 2.0), num_gpus)
