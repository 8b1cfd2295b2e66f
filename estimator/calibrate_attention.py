"""Measured attention, indexer and delta nets as groups ready to fit; tables as in `estimator.calibrate_tables`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from estimator.attention import DecodeCurve, HeadShape, PrefillCurve
from estimator.calibrate_groups import (
    BEYOND_CACHE_BYTES,
    HOST_BOUND_S,
    KV_DTYPES,
    NUMBER_BYTES,
    Group,
    Rows,
    beyond_host,
    by_columns,
    group_of,
    newest_rows,
    version_key,
)
from estimator.catalogue.gpus import load_gpu
from estimator.hardware import Gpu
from estimator.roofline import ElementwiseCurve, FloatArray, RankingCurve, RecurrentCurve
from estimator.shapes import (
    delta_net_bytes_per_seq,
    delta_net_bytes_per_token,
    grouped_heads,
    latent_heads,
)
from estimator.work import INDEX_KEY_BYTES

MOST_HEADS = 64
MOST_GROUP = 16  # query heads per key/value head of grouped models (Llama-3.1-405B, Qwen3-235B)
HEADS = ("num_heads", "num_key_value_heads", "head_dim")
NO_WINDOW = frozenset(("outside_frac", "window_pad"))
LATENT_LAUNCH = {"launch_s": 14e-6}  # of latent kernels in the tables that a graph launched, where the host hides it
HOST_HIDES = LATENT_LAUNCH | {
    "block_s": 0.5e-6,
    "fill_s": 0.0,
    "fill_bytes": 40e6,
    "join_s": 0.0,
    "cache_bytes": 0.0,
    "cache_frac": 1.5,
}
ONE_WIDTH = frozenset(("wide_frac", "widest_frac"))
ONE_LATENT = NO_WINDOW | {"wide_frac", "lone_s", "lone_frac", "key_dims"}  # all heads share it


def _windowed(table: pd.DataFrame) -> pd.DataFrame:
    window = table["window_size"].fillna(0.0)
    return table.assign(window_size=window, windowed=np.where(window > 0, "_windowed", ""))


def _whole_groups(table: pd.DataFrame) -> pd.Series:
    """Rows whose key/value heads each serve equally many query heads."""
    return table["num_heads"] % table["num_key_value_heads"] == 0


def context(folder: Path) -> Iterator[Group]:
    table = _windowed(pd.read_parquet(folder / "op_context_attention.parquet"))
    table = table[table["isl"] * table["batch_size"] >= 64]
    table = table[(table["isl"] >= 64) & _whole_groups(table)]
    for rows in by_columns(table, "gpu", "backend", "kv_cache_dtype", "windowed"):
        fp8 = rows[rows["attn_dtype"] == "fp8"]
        newest = rows["version"] == max(rows["version"].unique(), key=version_key)
        fp8 = fp8[fp8["version"].isin(rows["version"][newest].unique())]
        rows = fp8 if len(fp8) else rows[rows["attn_dtype"] == "bfloat16"]
        if not len(rows):
            continue
        dtype = KV_DTYPES[str(rows["kv_cache_dtype"].iloc[0])]

        def predict(curve: PrefillCurve, gpu: Gpu, x: Rows, dtype: str = dtype) -> FloatArray:
            heads = grouped_heads(x["num_heads"], x["num_key_value_heads"], x["head_dim"], NUMBER_BYTES[dtype])
            return _prefill_s(curve, gpu, x, heads)

        kind = "context_attention" + str(rows["windowed"].iloc[0])
        newest = newest_rows(rows)
        if _is_physical(newest):
            yield from group_of(kind, dtype, newest, PrefillCurve, predict, shape=HEADS)


def _is_physical(rows: pd.DataFrame) -> bool:
    """Whether no more than 1 % of prefill rows multiply faster than the data sheet's peak of their arithmetic.

    More means rows mislabelled: some kernels ran with a window that the table does not state.
    """
    gpu = load_gpu(str(rows["gpu"].iloc[0]))
    peak = gpu.peak_flop_per_s("fp8" if rows["attn_dtype"].iloc[0] == "fp8" else "bf16")
    isl = rows["isl"].astype(float)
    window = isl.where(rows["window_size"] == 0, np.minimum(isl, rows["window_size"]))
    pairs = rows["batch_size"] * (isl * window - window * (window - 1.0) / 2.0)
    flop = 4.0 * rows["num_heads"] * rows["head_dim"] * pairs
    return bool((flop / (rows["latency_us"] * 1e-6) > peak).mean() <= 0.01)


def _prefill_s(curve: PrefillCurve, gpu: Gpu, x: Rows, heads: HeadShape) -> FloatArray:
    isl = x["isl"]
    window = np.minimum(np.where(x.get("window_size", 0.0 * isl) > 0, x.get("window_size", isl), isl), isl)
    pairs = x["batch_size"] * (isl * window - window * (window - 1.0) / 2.0)
    return curve.measured_s(gpu, x["batch_size"] * isl, pairs, heads)


def generation(folder: Path) -> Iterator[Group]:
    table = _windowed(pd.read_parquet(folder / "op_generation_attention.parquet"))
    table = table[(table["step"] >= 127) & (table["num_heads"] <= MOST_HEADS)]
    table = table[(table["num_heads"] <= MOST_GROUP * table["num_key_value_heads"]) & _whole_groups(table)]
    for rows in by_columns(table, "gpu", "backend", "kv_cache_dtype", "windowed"):
        dtype = KV_DTYPES[str(rows["kv_cache_dtype"].iloc[0])]

        def predict(curve: DecodeCurve, gpu: Gpu, x: Rows, dtype: str = dtype) -> FloatArray:
            heads = grouped_heads(x["num_heads"], x["num_key_value_heads"], x["head_dim"], NUMBER_BYTES[dtype])
            return _decode_s(curve, gpu, x, heads)

        rows = within_bandwidth(rows, NUMBER_BYTES[dtype])
        kind = "generation_attention" + str(rows["windowed"].iloc[0])
        fixed = frozenset[str]() if rows["windowed"].iloc[0] else NO_WINDOW
        yield from group_of(kind, dtype, newest_rows(rows), DecodeCurve, predict, shape=HEADS, fixed=fixed)


def within_bandwidth(rows: pd.DataFrame, number_bytes: float) -> pd.DataFrame:
    """Rows without those that read caches beyond the L2 faster than the data sheet's bandwidth.

    TensorRT-LLM's on A100 and L40S do, up to 1.7 times, where query heads share keys: less is read than they state.
    """
    cached = (rows["step"] + 1.0).where(rows["window_size"] == 0, np.minimum(rows["step"] + 1.0, rows["window_size"]))
    num_bytes = 2.0 * number_bytes * rows["batch_size"] * cached * rows["num_key_value_heads"] * rows["head_dim"]
    bytes_per_s = num_bytes / (rows["latency_us"] * 1e-6)
    bandwidth = load_gpu(str(rows["gpu"].iloc[0])).bandwidth_bytes_per_s
    return rows[(num_bytes <= BEYOND_CACHE_BYTES) | (bytes_per_s <= bandwidth)]


def _decode_s(curve: DecodeCurve, gpu: Gpu, x: Rows, heads: HeadShape) -> FloatArray:
    cached = x["step"] + 1.0
    window = x.get("window_size", 0.0 * cached)
    outside = np.where(window > 0, np.maximum(cached - window, 0.0), 0.0)
    num_seqs = x["batch_size"]
    return curve.measured_s(gpu, num_seqs, num_seqs * cached, heads, num_seqs * outside)


def latent(folder: Path) -> Iterator[Group]:
    """DeepSeek-V3's latent attention without its projections: rank 512, rope 64, nope and value dims 128.

    Where the host bound the table of a decode kernel, the rows of whole modules stand in, where there are any.
    """
    prefill = pd.read_parquet(folder / "op_context_mla.parquet")
    decode = pd.read_parquet(folder / "op_generation_mla.parquet")
    modules = _growing_modules(folder)
    tables = {
        "latent_context_attention": prefill[prefill["isl"] >= 64],
        "latent_generation_attention": decode[decode["step"] >= 127],
    }
    key = ["gpu", "backend", "kv_cache_dtype"]
    for kind, table in tables.items():
        for rows in by_columns(table, *key):
            dtype = KV_DTYPES[str(rows["kv_cache_dtype"].iloc[0])]
            expanded = kind == "latent_context_attention"

            def predict(curve: Any, gpu: Gpu, x: Rows, dtype: str = dtype, expanded: bool = expanded) -> FloatArray:
                heads = latent_heads(x["num_heads"], (512, 128, 64, 128), NUMBER_BYTES[dtype], expanded=expanded)
                if expanded:
                    return _prefill_s(curve, gpu, x, heads)
                shorter_s = _decode_s(curve, gpu, {**x, "step": x["shorter"]}, heads) if "shorter" in x else 0.0
                return _decode_s(curve, gpu, x, heads) - shorter_s

            newest = newest_rows(rows, HOST_BOUND_S["latent"])
            given: dict[str, float] = {}
            if newest.empty:
                whole = modules[(modules[key] == rows[key].iloc[0]).all(axis="columns")]
                if expanded or whole.empty:
                    newest = beyond_host(newest_rows(rows), "isl" if expanded else "step")
                else:
                    newest = newest_rows(whole)
                given = LATENT_LAUNCH if expanded else HOST_HIDES
            curve, fixed = (PrefillCurve, ONE_WIDTH) if expanded else (DecodeCurve, ONE_LATENT)
            yield from group_of(kind, dtype, newest, curve, predict, shape=("num_heads",), fixed=fixed, given=given)


def _growing_modules(folder: Path) -> pd.DataFrame:
    """By how much a whole decode module takes longer than at the next `shorter` step: its attention alone grows.

    Rows in which the shorter step takes half as long again as the host's floor, and the longer a tenth more.
    """
    table = pd.read_parquet(folder / "op_mla_generation_module.parquet")
    table = table[(table["model"] == "deepseek-ai/DeepSeek-V3") & (table["step"] >= 127)]
    shape = ["gpu", "backend", "version", "kernel_source", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size"]
    table = table.assign(latency_us=table["latency_us"].astype(float)).sort_values([*shape, "step"])
    before = table.groupby(shape, observed=True)[["step", "latency_us"]].shift()
    table = table.assign(shorter=before["step"], shorter_us=before["latency_us"]).dropna(subset=["shorter"])
    floor = table.groupby(["gpu", "backend", "kv_cache_dtype"], observed=True)["latency_us"].transform("quantile", 0.05)
    grows = (table["shorter_us"] > 1.5 * floor) & (table["latency_us"] > 1.1 * table["shorter_us"])
    return table.assign(latency_us=table["latency_us"] - table["shorter_us"])[grows]


def index(folder: Path) -> Iterator[Group]:
    """Indexer of DeepSeek-V3.2's sparse attention: what its decode module takes beyond 2,048 cached tokens.

    Up to there every token is picked and none is scored; beyond, attention reads 2,048 and only the indexer grows.
    Rows where that difference is a tenth of the module, out of its own scatter.
    """
    table = pd.read_parquet(folder / "op_dsa_generation_module.parquet")
    whole = ~table["op_name"].astype(str).str.contains("skip")
    table = table[(table["model"] == "deepseek-ai/DeepSeek-V3.2") & whole]
    shape = ["gpu", "backend", "version", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size"]
    table = table.assign(latency_us=table["latency_us"].astype(float))
    picked = table[table["step"] == 2048].set_index(shape)["latency_us"].groupby(level=shape, observed=True).median()
    longer = table[table["step"].isin([8192, 16384, 32768, 65536, 131072])].join(picked.rename("picked_us"), on=shape)
    longer = longer.assign(latency_us=longer["latency_us"] - longer["picked_us"])
    longer = longer[longer["latency_us"] > 0.1 * longer["picked_us"]]
    for rows in by_columns(longer, "gpu", "backend"):

        def predict(curve: RankingCurve, gpu: Gpu, x: Rows) -> FloatArray:
            per_token = curve.s_per_token(gpu, x["batch_size"], INDEX_KEY_BYTES)
            return curve.launch_s + x["batch_size"] * (x["step"] + 1.0) * per_token

        yield from group_of("index_generation", "fp8", newest_rows(rows), RankingCurve, predict)


def delta_nets(folder: Path) -> Iterator[Group]:
    """Gated delta nets of Qwen3.5 (128 dims a head, convolution over 4): its two kernels' times added."""
    table = pd.read_parquet(folder / "op_gdn.parquet")
    few = (table["seq_len"] >= 64) & (table["batch_size"] <= 8) & (table["num_tokens"] <= 65_536)
    table = table[(table["phase"] == "generation") | few]
    shape = ["gpu", "backend", "phase", "version", "batch_size", "seq_len", "num_k_heads", "num_v_heads"]
    newest = pd.concat(
        rows[rows["version"] == max(rows["version"].unique(), key=version_key)]
        for rows in by_columns(table, "gpu", "backend", "phase")
    )
    newest = newest.assign(conv=newest["kernel_source"].astype(str).str.startswith("causal"))
    medians = newest.groupby([*shape, "conv"], observed=True)["latency_us"].median().unstack("conv").dropna()
    both = medians.sum(axis=1).rename("latency_us").reset_index()
    for rows in by_columns(both, "gpu", "backend", "phase"):
        phase = str(rows["phase"].iloc[0])

        def predict(curve: ElementwiseCurve | RecurrentCurve, gpu: Gpu, x: Rows) -> FloatArray:
            heads = (x["num_k_heads"], x["num_v_heads"], 128.0, 128.0, 4.0)
            if isinstance(curve, RecurrentCurve):
                return curve.measured_s(gpu, x["batch_size"], x["seq_len"], delta_net_bytes_per_token(*heads))
            return curve.measured_s(gpu, x["batch_size"] * delta_net_bytes_per_seq(*heads))

        curve = RecurrentCurve if phase == "context" else ElementwiseCurve
        yield from group_of(f"delta_net_{phase}", "bf16", rows, curve, predict, shape=("num_k_heads", "num_v_heads"))
