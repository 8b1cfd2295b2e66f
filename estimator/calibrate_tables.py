"""Measured operators as groups ready to fit: one group per (kind, GPU, engine, dtype), of the newest version.

Tables are `op_*.parquet` of ai-dynamo/aiconfigurator (Apache-2.0), August 2026; `message_size` counts elements of two
bytes, heads are per GPU, `step` + 1 tokens are cached. Rows outside of what serving does are left out: products with
n or k under 128 or k over 32,768, prefill of under 64 tokens, decode over under 128 cached tokens, with over 64 heads
per GPU or over 16 query heads per key/value head, query heads that key/value heads do not divide. Products and experts
are read here, the rest in `calibrate_attention` and `calibrate_links`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from estimator.calibrate_attention import context, delta_nets, generation, index, latent
from estimator.calibrate_groups import BEYOND_CACHE_BYTES, HOST_BOUND_S, Group, Rows, by_columns, group_of, newest_rows
from estimator.calibrate_links import collectives, deepep, nccl
from estimator.calibrate_sparse import sparse
from estimator.catalogue.gpus import load_gpu
from estimator.experts import EXPERT_BLOCK, ExpertCurve, ExpertLayer, ExpertLoad, expert_load
from estimator.hardware import Gpu
from estimator.roofline import ACTIVATION_BYTES, ACTIVATION_IN_BYTES, WEIGHT_BYTES, FloatArray, GemmCurve

NOT_QUANTISED = frozenset(("quantise_frac", "quantise_row", "odd_s", "odd_frac"))  # activations stay as they come
NEMOTRON_TOP_K, NEMOTRON_HIDDEN = 22, 2688  # its experts have two matrices instead of three, whatever the table says
GPT_OSS_HIDDEN = 2880  # mxfp4 experts are fitted on the one model family that ships them
LEAST_READ_FRAC = 0.7  # of the time that reading the weights takes: less is no reading
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


def measured_groups(measured_dir: Path, kinds: frozenset[str] = frozenset()) -> Iterator[Group]:
    """All groups of all tables found in the folder, or those of `kinds`."""
    readers = {
        _gemms: {"gemm"},
        _experts: {"moe", "moe_sliced"},
        context: {"context_attention", "context_attention_windowed"},
        generation: {"generation_attention", "generation_attention_windowed"},
        latent: {"latent_context_attention", "latent_generation_attention"},
        index: {"index_generation"},
        sparse: {"sparse_context_attention", "sparse_generation_attention"},
        delta_nets: {"delta_net_context", "delta_net_generation"},
        collectives: {"all_reduce"},
        nccl: {"all_reduce", "all_gather", "all_to_all"},
        deepep: {"dispatch", "combine"},
    }
    for read, read_kinds in readers.items():
        if not kinds or kinds & read_kinds:
            yield from (group for group in read(measured_dir) if not kinds or group.kind in kinds)


def _gemms(folder: Path) -> Iterator[Group]:
    table = pd.read_parquet(folder / "op_gemm.parquet")
    table = table[table["gemm_dtype"].isin(list(GEMM_DTYPES)) & (table["m"] >= 1)]
    table = table[(table["n"] >= 128) & table["k"].between(128, 32_768)]
    for rows in by_columns(table, "gpu", "backend", "gemm_dtype"):
        dtype = GEMM_DTYPES[str(rows["gemm_dtype"].iloc[0])]

        def predict(curve: GemmCurve, gpu: Gpu, x: Rows, dtype: str = dtype) -> FloatArray:
            return curve.measured_s(gpu, x["m"], x["n"], x["k"], dtype)

        fixed = NOT_QUANTISED if ACTIVATION_IN_BYTES[dtype] == ACTIVATION_BYTES else frozenset[str]()
        newest = newest_rows(rows, HOST_BOUND_S["gemm"])
        yield from group_of("gemm", dtype, newest, GemmCurve, predict, shape=("n", "k"), fixed=fixed)


def _experts(folder: Path) -> Iterator[Group]:
    table = pd.read_parquet(folder / "op_moe.parquet")
    kernels = table["kernel_source"].astype(str)
    table = table[~kernels.str.contains("min_latency|nongated|situ_as_silu")]
    table = table[(table["topk"] != NEMOTRON_TOP_K) & (table["hidden_size"] != NEMOTRON_HIDDEN)]
    table = table.assign(dtype=table["moe_dtype"].astype(str).map(MOE_DTYPES))
    skews = table["distribution"].astype(str).str.removeprefix("power_law_").replace("balanced", "0")
    table = table.assign(skew=skews.astype(float))
    cut = (table["inter_size"] / table["moe_tp_size"]) % EXPERT_BLOCK != 0
    table = table[~(cut & (table["dtype"] == "fp8_block"))]
    for rows in by_columns(table, "gpu", "backend", "dtype"):
        dtype = str(rows["dtype"].iloc[0])
        served = rows[rows["hidden_size"] == GPT_OSS_HIDDEN] if dtype == "mxfp4" else rows
        if len(served):  # where both are measured the engine serves with 8-bit activations (Blackwell's own kernels)
            rows = served[served["moe_dtype"] == min(served["moe_dtype"].unique(), key=_activation_bits)]

        def predict(curve: ExpertCurve, gpu: Gpu, x: Rows, dtype: str = dtype) -> FloatArray:
            load = ExpertLoad(tokens=x["num_tokens"], touched=x["touched"], rows=x["busy_rows"], tiles=x["tiles"])
            return curve.measured_s(gpu, load, _expert_layer(x), dtype)

        shape = ("hidden_size", "inter_size", "num_experts")
        newest = _of_known_load(newest_rows(rows), dtype)
        for kind, table_of_kind in (("moe", newest), ("moe_sliced", _of_known_load(_sliced(rows, newest), dtype))):
            yield from group_of(kind, dtype, table_of_kind, ExpertCurve, predict, shape=shape, prepare=_expert_loads)


def _sliced(rows: pd.DataFrame, newest: pd.DataFrame) -> pd.DataFrame:
    """Rows of the newest version whose GPUs hold a slice of every expert, where another kernel runs all of those."""
    if newest.empty or (newest["moe_ep_size"] == 1).any():
        return rows.iloc[:0]
    same = rows[(rows["version"] == newest["version"].iloc[0]) & (rows["moe_ep_size"] == 1)]
    return newest_rows(same) if len(same) else same


def _of_known_load(rows: pd.DataFrame, dtype: str) -> pd.DataFrame:
    """Rows without the shapes of which some are faster than the weights of their experts can be read from memory.

    7,168 × 2,048 with 8 of 256 experts alone, at 0.56 to 0.63 of that time: engines route it within 4 of 8 groups, as
    DeepSeek-V3 does, so that tokens meant for every expert in turn reach fewer, how many the table does not say.
    """
    if rows.empty:
        return rows
    local = rows["num_experts"] / rows["moe_ep_size"]
    touched = (rows["num_tokens"] * rows["topk"] / rows["moe_ep_size"]).clip(upper=local)
    weights = 3.0 * touched * rows["hidden_size"] * rows["inter_size"] / rows["moe_tp_size"] * WEIGHT_BYTES[dtype]
    read_s = weights / load_gpu(str(rows["gpu"].iloc[0])).bandwidth_bytes_per_s
    dealt_from_memory = (rows["skew"] == 0) & (weights > BEYOND_CACHE_BYTES)
    hidden_load = dealt_from_memory & (rows["latency_us"] * 1e-6 < LEAST_READ_FRAC * read_s)
    shape = ["hidden_size", "inter_size", "num_experts", "topk"]
    return rows[~hidden_load.groupby([rows[name] for name in shape]).transform("any")]


def _activation_bits(moe_dtype: str) -> int:
    """Bits in which a kernel multiplies activations, 16 where its name does not say: 8 in `w4a8_mxfp4_mxfp8`."""
    found = re.match(r"w\d+a(\d+)_", moe_dtype)
    return int(found.group(1)) if found else 16


def _expert_layer(x: Rows) -> ExpertLayer:
    return ExpertLayer(
        hidden=x["hidden_size"],
        intermediate=x["inter_size"] / x["moe_tp_size"],
        num_experts=x["num_experts"],
        experts_per_gpu=x["num_experts"] / x["moe_ep_size"],
        top_k=x["topk"],
    )


def _expert_loads(x: Rows) -> Rows:
    load = measured_load(x["num_tokens"], _expert_layer(x), x["skew"])
    return {"touched": load.touched, "busy_rows": load.rows, "tiles": load.tiles}


def measured_load(tokens: FloatArray, layer: ExpertLayer, skew: FloatArray) -> ExpertLoad:
    """Load of rows of which those with skew 0 were dealt out and the others drawn from a power law."""
    dealt, drawn = expert_load(tokens, layer, "dealt"), expert_load(tokens, layer, "power_law", np.maximum(skew, 1.01))
    balanced = skew == 0
    return ExpertLoad(
        tokens=tokens,
        touched=np.where(balanced, dealt.touched, drawn.touched),
        rows=np.where(balanced, dealt.rows, drawn.rows),
        tiles=np.where(balanced[:, None], dealt.tiles, drawn.tiles),
    )
