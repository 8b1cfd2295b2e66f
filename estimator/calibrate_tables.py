"""Measured operators as groups ready to fit: one group per (kind, GPU, engine, dtype), of the newest version.

Tables are `op_*.parquet` of ai-dynamo/aiconfigurator (Apache-2.0), August 2026; `message_size` counts elements of two
bytes, heads are per GPU, `step` + 1 tokens are cached. Rows outside of what serving does are left out: products with
n or k under 128, prefill of under 64 tokens, decode over under 128 cached tokens or with over 64 heads per GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from estimator.attention import DecodeCurve, HeadShape, PrefillCurve
from estimator.catalogue.gpus import load_gpu
from estimator.collectives import CollectiveKind, LinkCurve
from estimator.hardware import Gpu
from estimator.roofline import ElementwiseCurve, ExpertCurve, ExpertLayer, FloatArray, GemmCurve, RecurrentCurve
from estimator.shapes import (
    INDEX_KEY_BYTES,
    delta_net_bytes_per_seq,
    delta_net_bytes_per_token,
    grouped_heads,
    latent_heads,
)

MOST_ROWS = 6_000  # per group, drawn with a fixed seed
HOST_BOUND_S = {"gemm": 18e-6, "latent": 45e-6}  # fastest twentieth of a table that the host launched, not a graph

MOST_HEADS = 64
GPT_OSS_HIDDEN = 2880  # mxfp4 experts are fitted on the one model family that ships them

GEMM_DTYPES = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "fp4",
    "int4_wo": "int4",
}
MOE_DTYPES = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "fp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
    "w4a16_mxfp4": "mxfp4",
    "int4_wo": "int4",
}
KV_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
NUMBER_BYTES = {"bf16": 2.0, "fp8": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that one curve describes: `predict(curve)` gives seconds beside `latency_s`, shape (num_rows,)."""

    kind: str
    gpu: Gpu
    engine: str
    dtype: str
    version: str
    kernel: str
    curve: type[Any]
    latency_s: FloatArray
    predict: Callable[[Any], FloatArray]


Rows = Mapping[str, FloatArray]
Predict = Callable[[Any, Rows], FloatArray]


def version_key(version: str) -> tuple[int, ...]:
    """Sort key of a version: its numbers, a release candidate before its release."""
    numbers = [int(part) for part in re.findall(r"\d+", version)]
    return tuple(numbers[:3]) + ((-1, numbers[3]) if "rc" in version and len(numbers) > 3 else (0, 0))


def measured_groups(measured_dir: Path, kinds: frozenset[str] = frozenset()) -> Iterator[Group]:
    """All groups of all tables found in the folder, or those of `kinds`."""
    readers = {
        _gemms: {"gemm"},
        _experts: {"moe", "moe_power_law"},
        _context: {"context_attention", "context_attention_windowed"},
        _generation: {"generation_attention", "generation_attention_windowed"},
        _latent: {"latent_context_attention", "latent_generation_attention"},
        _index: {"index_generation"},
        _delta_nets: {"delta_net_context", "delta_net_generation"},
        _collectives: {"all_reduce"},
        _nccl: {"all_reduce", "all_gather", "all_to_all"},
    }
    for read, read_kinds in readers.items():
        if not kinds or kinds & read_kinds:
            yield from (group for group in read(measured_dir) if not kinds or group.kind in kinds)


def _newest(table: pd.DataFrame, host_bound_s: float = math.inf) -> pd.DataFrame:
    """Rows of the newest version and its commonest kernel; older versions where the newest was bound by the host."""
    for version in sorted(table["version"].unique(), key=version_key, reverse=True):
        rows = table[table["version"] == version]
        kernel = rows["kernel_source"].value_counts().index[0]
        commonest: pd.DataFrame = rows[rows["kernel_source"] == kernel]
        if commonest["latency_us"].quantile(0.05) * 1e-6 < host_bound_s:
            return commonest
    return table.iloc[:0]


def _group(kind: str, dtype: str, table: pd.DataFrame, curve: type[Any], predict: Predict) -> Iterator[Group]:
    """The group of one (GPU, engine, dtype); nothing where too few rows are left."""
    table = table[(table["latency_us"] > 0) & table.select_dtypes("number").notna().all(axis="columns")]
    if len(table) < 20:
        return
    first = table.iloc[0]
    gpu = load_gpu(str(first["gpu"]))
    sample = table.sample(min(len(table), MOST_ROWS), random_state=0)
    numeric = sample.select_dtypes("number")
    rows = {str(name): numeric[name].to_numpy(dtype=np.float64) for name in numeric.columns}
    yield Group(
        kind=kind,
        gpu=gpu,
        engine=str(first["backend"]),
        dtype=dtype,
        version=str(first["version"]),
        kernel=str(first["kernel_source"]) if "kernel_source" in table else "",
        curve=curve,
        latency_s=rows["latency_us"] * 1e-6,
        predict=lambda fitted: predict(fitted, {**rows, "gpu": gpu}),  # type: ignore[dict-item]
    )


def _by(table: pd.DataFrame, *names: str) -> Iterator[pd.DataFrame]:
    for _, rows in table.groupby(list(names), observed=True, sort=True):
        yield rows


def _gemms(folder: Path) -> Iterator[Group]:
    table = pd.read_parquet(folder / "op_gemm.parquet")
    table = table[
        table["gemm_dtype"].isin(list(GEMM_DTYPES)) & (table["m"] >= 1) & (table["n"] >= 128) & (table["k"] >= 128)
    ]
    for rows in _by(table, "gpu", "backend", "gemm_dtype"):
        dtype = GEMM_DTYPES[str(rows["gemm_dtype"].iloc[0])]

        def predict(curve: GemmCurve, x: Any, dtype: str = dtype) -> FloatArray:
            return curve.seconds(x["gpu"], x["m"], x["n"], x["k"], dtype)

        yield from _group("gemm", dtype, _newest(rows, HOST_BOUND_S["gemm"]), GemmCurve, predict)


def _experts(folder: Path) -> Iterator[Group]:
    table = pd.read_parquet(folder / "op_moe.parquet")
    kernels = table["kernel_source"].astype(str)
    table = table[~kernels.str.contains("min_latency|nongated|situ_as_silu")]
    table = table.assign(dtype=table["moe_dtype"].astype(str).map(MOE_DTYPES))
    table = table.assign(power_law=table["distribution"].astype(str) != "balanced")
    for rows in _by(table, "gpu", "backend", "dtype", "power_law"):
        dtype = str(rows["dtype"].iloc[0])
        kind = "moe_power_law" if rows["power_law"].iloc[0] else "moe"

        def predict(curve: ExpertCurve, x: Any, dtype: str = dtype) -> FloatArray:
            layer = ExpertLayer(
                hidden=x["hidden_size"],
                intermediate=x["inter_size"] / x["moe_tp_size"],
                num_experts=x["num_experts"],
                experts_per_gpu=x["num_experts"] / x["moe_ep_size"],
                top_k=x["topk"],
            )
            return curve.seconds(x["gpu"], x["num_tokens"], layer, dtype)

        served = rows[rows["hidden_size"] == GPT_OSS_HIDDEN] if dtype == "mxfp4" else rows
        if len(served):  # where both are measured the engine serves with 8-bit activations (Blackwell's own kernels)
            rows = served[served["moe_dtype"] == min(served["moe_dtype"].unique(), key=_activation_bits)]
        yield from _group(kind, dtype, _newest(rows), ExpertCurve, predict)


def _activation_bits(moe_dtype: str) -> int:
    """Bits in which a kernel multiplies activations, 16 where its name does not say: 8 in `w4a8_mxfp4_mxfp8`."""
    found = re.match(r"w\d+a(\d+)_", moe_dtype)
    return int(found.group(1)) if found else 16


def _windowed(table: pd.DataFrame) -> pd.DataFrame:
    window = table["window_size"].fillna(0.0)
    return table.assign(window_size=window, windowed=np.where(window > 0, "_windowed", ""))


def _context(folder: Path) -> Iterator[Group]:
    table = _windowed(pd.read_parquet(folder / "op_context_attention.parquet"))
    table = table[table["isl"] * table["batch_size"] >= 64]
    table = table[table["isl"] >= 64]
    for rows in _by(table, "gpu", "backend", "kv_cache_dtype", "windowed"):
        fp8 = rows[rows["attn_dtype"] == "fp8"]
        newest = rows["version"] == max(rows["version"].unique(), key=version_key)
        fp8 = fp8[fp8["version"].isin(rows["version"][newest].unique())]
        rows = fp8 if len(fp8) else rows[rows["attn_dtype"] == "bfloat16"]
        if not len(rows):
            continue
        dtype = KV_DTYPES[str(rows["kv_cache_dtype"].iloc[0])]

        def predict(curve: PrefillCurve, x: Any, dtype: str = dtype) -> FloatArray:
            heads = grouped_heads(x["num_heads"], x["num_key_value_heads"], x["head_dim"], NUMBER_BYTES[dtype])
            return _prefill_s(curve, x, heads)

        kind = "context_attention" + str(rows["windowed"].iloc[0])
        newest_rows = _newest(rows)
        if _is_physical(newest_rows):
            yield from _group(kind, dtype, newest_rows, PrefillCurve, predict)


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


def _prefill_s(curve: PrefillCurve, x: Any, heads: HeadShape) -> FloatArray:
    isl = x["isl"]
    window = np.minimum(np.where(x.get("window_size", 0.0 * isl) > 0, x.get("window_size", isl), isl), isl)
    pairs = x["batch_size"] * (isl * window - window * (window - 1.0) / 2.0)
    s_per_pair, s_per_token = curve.coefficients(x["gpu"], heads)
    return np.asarray(curve.launch_s + s_per_pair * pairs + s_per_token * x["batch_size"] * isl)


def _generation(folder: Path) -> Iterator[Group]:
    table = _windowed(pd.read_parquet(folder / "op_generation_attention.parquet"))
    table = table[(table["step"] >= 127) & (table["num_heads"] <= MOST_HEADS)]
    for rows in _by(table, "gpu", "backend", "kv_cache_dtype", "windowed"):
        dtype = KV_DTYPES[str(rows["kv_cache_dtype"].iloc[0])]

        def predict(curve: DecodeCurve, x: Any, dtype: str = dtype) -> FloatArray:
            heads = grouped_heads(x["num_heads"], x["num_key_value_heads"], x["head_dim"], NUMBER_BYTES[dtype])
            return _decode_s(curve, x, heads)

        kind = "generation_attention" + str(rows["windowed"].iloc[0])
        yield from _group(kind, dtype, _newest(rows), DecodeCurve, predict)


def _decode_s(curve: DecodeCurve, x: Any, heads: HeadShape) -> FloatArray:
    cached = x["step"] + 1.0
    window = x.get("window_size", 0.0 * cached)
    cached = np.where(window > 0, np.minimum(cached, window), cached)
    line = curve.line(x["gpu"], x["batch_size"], heads)
    return np.asarray(line.launch_s + line.s_per_cached_token * x["batch_size"] * cached)


def _latent(folder: Path) -> Iterator[Group]:
    """DeepSeek-V3's latent attention without its projections: rank 512, rope 64, nope and value dims 128."""
    prefill = pd.read_parquet(folder / "op_context_mla.parquet")
    decode = pd.read_parquet(folder / "op_generation_mla.parquet")
    tables = {
        "latent_context_attention": prefill[prefill["isl"] >= 64],
        "latent_generation_attention": decode[decode["step"] >= 127],
    }
    for kind, table in tables.items():
        for rows in _by(table, "gpu", "backend", "kv_cache_dtype"):
            dtype = KV_DTYPES[str(rows["kv_cache_dtype"].iloc[0])]
            expanded = kind == "latent_context_attention"

            def predict(curve: Any, x: Any, dtype: str = dtype, expanded: bool = expanded) -> FloatArray:
                heads = latent_heads(x["num_heads"], (512, 128, 64, 128), NUMBER_BYTES[dtype], expanded=expanded)
                return _prefill_s(curve, x, heads) if expanded else _decode_s(curve, x, heads)

            curve = PrefillCurve if expanded else DecodeCurve
            yield from _group(kind, dtype, _newest(rows, HOST_BOUND_S["latent"]), curve, predict)


def _index(folder: Path) -> Iterator[Group]:
    """Indexer of DeepSeek-V3.2's sparse attention: what its decode module takes beyond 2,048 cached tokens.

    Up to there every token is picked and none is scored; beyond, attention reads 2,048 and only the indexer grows.
    vLLM's tables alone hold the batches and lengths in which that difference stands out of the module's own scatter.
    """
    table = pd.read_parquet(folder / "op_dsa_generation_module.parquet")
    table = table[(table["model"] == "deepseek-ai/DeepSeek-V3.2") & (table["backend"] == "vllm")]
    shape = ["gpu", "backend", "version", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size"]
    table = table.assign(latency_us=table["latency_us"].astype(float))
    picked = table[table["step"] == 2048].set_index(shape)["latency_us"].groupby(level=shape, observed=True).median()
    longer = table[table["step"].isin([8192, 16384, 32768, 65536, 131072])].join(picked.rename("picked_us"), on=shape)
    longer = longer.assign(latency_us=longer["latency_us"] - longer["picked_us"])
    for rows in _by(longer, "gpu", "backend"):

        def predict(curve: ElementwiseCurve, x: Any) -> FloatArray:
            return curve.seconds(x["gpu"], x["batch_size"] * (x["step"] + 1.0) * INDEX_KEY_BYTES)

        yield from _group("index_generation", "fp8", _newest(rows), ElementwiseCurve, predict)


def _delta_nets(folder: Path) -> Iterator[Group]:
    """Gated delta nets of Qwen3.5 (128 dims a head, convolution over 4): its two kernels' times added."""
    table = pd.read_parquet(folder / "op_gdn.parquet")
    few = (table["seq_len"] >= 64) & (table["batch_size"] <= 8) & (table["num_tokens"] <= 65_536)
    table = table[(table["phase"] == "generation") | few]
    shape = ["gpu", "backend", "phase", "version", "batch_size", "seq_len", "num_k_heads", "num_v_heads"]
    newest = pd.concat(
        rows[rows["version"] == max(rows["version"].unique(), key=version_key)]
        for rows in _by(table, "gpu", "backend", "phase")
    )
    newest = newest.assign(conv=newest["kernel_source"].astype(str).str.startswith("causal"))
    medians = newest.groupby([*shape, "conv"], observed=True)["latency_us"].median().unstack("conv").dropna()
    both = medians.sum(axis=1).rename("latency_us").reset_index()
    for rows in _by(both, "gpu", "backend", "phase"):
        phase = str(rows["phase"].iloc[0])

        def predict(curve: ElementwiseCurve | RecurrentCurve, x: Any) -> FloatArray:
            heads = (x["num_k_heads"], x["num_v_heads"], 128.0, 128.0, 4.0)
            if isinstance(curve, RecurrentCurve):
                per_token = curve.s_per_token(x["gpu"], np.asarray(delta_net_bytes_per_token(*heads)))
                return np.asarray(curve.launch_s + x["batch_size"] * x["seq_len"] * per_token)
            return curve.seconds(x["gpu"], x["batch_size"] * delta_net_bytes_per_seq(*heads))

        curve = RecurrentCurve if phase == "context" else ElementwiseCurve
        yield from _group(f"delta_net_{phase}", "bf16", rows, curve, predict)


def _collectives(folder: Path) -> Iterator[Group]:
    table = pd.read_parquet(folder / "op_custom_allreduce.parquet")
    table = table[~table["kernel_source"].astype(str).str.contains("eager")]
    for rows in _by(table, "gpu", "backend", "num_gpus"):
        newest = rows[rows["version"] == max(rows["version"].unique(), key=version_key)]
        yield from _link("all_reduce", newest)


def _nccl(folder: Path) -> Iterator[Group]:
    kinds: dict[str, CollectiveKind] = {
        "all_reduce": "all_reduce",
        "all_gather": "all_gather",
        "alltoall": "all_to_all",
    }
    table = pd.read_parquet(folder / "op_nccl.parquet")
    table = table[(table["nccl_dtype"] == "half") & table["op_name"].isin(list(kinds))]
    for rows in _by(table, "gpu", "op_name", "num_gpus"):
        newest = rows[rows["version"] == max(rows["version"].unique(), key=version_key)]
        yield from _link(kinds[str(newest["op_name"].iloc[0])], newest.assign(backend="nccl"))


def _link(kind: CollectiveKind, rows: pd.DataFrame) -> Iterator[Group]:
    num_gpus = int(rows["num_gpus"].iloc[0])
    parts = num_gpus if kind == "all_gather" else 1  # NCCL counts what a gather ends with, we what each GPU brings

    def predict(curve: LinkCurve, x: Any) -> FloatArray:
        return curve.seconds(x["gpu"], kind, 2.0 * x["message_size"] / parts, num_gpus)

    yield from _group(kind, str(num_gpus), rows, LinkCurve, predict)
