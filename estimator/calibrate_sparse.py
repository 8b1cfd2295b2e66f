"""Sparse attention as groups ready to fit, out of modules measured whole.

`op_dsa_*_module.parquet` time a layer's attention with its projections and indexer (ai-dynamo/aiconfigurator,
Apache-2.0, August 2026; DeepSeek-V3.2, fp8 projections). What the cards of the other operators say is added to the
curve of the kernel that reads the picked tokens; products launch in `GRAPH_LAUNCH_S` at most, since a graph hides what
lone ones take longer (SGLang's block-scaled on Blackwell 14 µs). Contexts of 4,096 tokens and more: shorter ones leave
little out, and engines that launch from the host are bound by it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from estimator.attention import DecodeCurve, PrefillCurve
from estimator.calibrate_attention import ONE_LATENT, ONE_WIDTH
from estimator.calibrate_groups import (
    HOST_BOUND_S,
    KV_DTYPES,
    NUMBER_BYTES,
    Group,
    Rows,
    by_columns,
    group_of,
    newest_rows,
)
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.catalogue.timing import load_timing
from estimator.dtypes import WeightDtype
from estimator.hardware import Gpu
from estimator.model import LatentAttention, ModelShape
from estimator.operators import Operator, stage_operators
from estimator.parallelism import Parallelism
from estimator.roofline import FloatArray
from estimator.shapes import latent_heads
from estimator.stage import kernel_dtype, token_s
from estimator.timing import OperatorTiming
from estimator.work import Elementwise, Gemm, LatentAttentionOp, SparseAttentionOp

MODEL = "deepseek-ai/DeepSeek-V3.2"
TOP_K = 2048
SHORTEST_TOKENS = 4096
GRAPH_LAUNCH_S = 5e-6  # of a product with a quantising kernel: SGLang's and vLLM's curves of fp8 show 4.6 to 5.1 µs
NOT_MEASURED = ONE_LATENT | {
    "fill_s",
    "fill_bytes",
    "join_s",
    "cache_bytes",
    "cache_frac",
}  # one length of context
MODULE = frozenset(
    ["qkv_down", "latent_norm", "q_up", "kv_up", "rope", "kv_write", "index_query", "index_key", "attention_out"]
)  # the operators of the module beside the kernel fitted here


def sparse(folder: Path) -> Iterator[Group]:
    """Groups of `sparse_context_attention` and `sparse_generation_attention`, one per (GPU, engine, KV format)."""
    for phase, length in (("context", "isl"), ("generation", "step")):
        table = pd.read_parquet(folder / f"op_dsa_{phase}_module.parquet")
        table = table[(table["model"] == MODEL) & (table["gemm_type"] == "fp8_block")]
        table = table[(table[length] >= SHORTEST_TOKENS) & ~table["op_name"].astype(str).str.contains("skip")]
        if phase == "context":
            table = table[table["step"] == 0]
        for rows in by_columns(table, "gpu", "backend", "kv_cache_dtype"):
            yield from _group(phase, rows)


def _group(phase: str, rows: pd.DataFrame) -> Iterator[Group]:
    dtype = KV_DTYPES[str(rows["kv_cache_dtype"].iloc[0])]
    timing = load_timing(load_gpu(str(rows["gpu"].iloc[0])), str(rows["backend"].iloc[0]))

    def prefill_s(curve: PrefillCurve, gpu: Gpu, x: Rows) -> FloatArray:
        heads = latent_heads(x["num_heads"], (512, 0, 64, 0), NUMBER_BYTES[dtype], expanded=False)
        s_per_pair, s_per_token = curve.coefficients(gpu, heads)
        tokens = x["batch_size"] * x["isl"]
        pairs = x["batch_size"] * (x["isl"] * TOP_K - TOP_K * (TOP_K - 1.0) / 2.0)
        thin = np.sqrt(1.0 + (curve.thin_tokens(gpu, heads) / tokens) ** 2)
        return np.asarray(x["others_s"] + curve.launch_s + s_per_pair * pairs * thin + s_per_token * tokens)

    def decode_s(curve: DecodeCurve, gpu: Gpu, x: Rows) -> FloatArray:
        heads = latent_heads(x["num_heads"], (512, 0, 64, 0), NUMBER_BYTES[dtype], expanded=False)
        line = curve.line(gpu, x["batch_size"], heads)
        return np.asarray(x["others_s"] + line.launch_s + line.s_per_cached_token * x["batch_size"] * TOP_K)

    is_prefill = phase == "context"
    yield from group_of(
        f"sparse_{phase}_attention",
        dtype,
        newest_rows(rows) if is_prefill else newest_rows(rows, HOST_BOUND_S["sparse_module"]),
        PrefillCurve if is_prefill else DecodeCurve,
        prefill_s if is_prefill else decode_s,
        shape=("num_heads",),
        prepare=partial(_others, timing=timing, is_prefill=is_prefill),
        fixed=ONE_WIDTH if is_prefill else NOT_MEASURED,
    )


def _others(x: Rows, *, timing: OperatorTiming, is_prefill: bool) -> Rows:
    """Seconds of projections, norms, rotation, cache write and indexer, from the cards."""
    model = load_model(MODEL)
    seconds = np.zeros_like(x["batch_size"])
    tokens = x["batch_size"] * (x["isl"] if is_prefill else 1.0)
    for num_heads in np.unique(x["num_heads"]):
        mine = x["num_heads"] == num_heads
        parts, attention = module_operators(model, int(num_heads))
        seconds[mine] += parts_s(parts, timing, tokens[mine])
    assert isinstance(attention, SparseAttentionOp)  # of this model
    if is_prefill:
        index = timing.index_context(attention)
        pairs = x["batch_size"] * x["isl"] * (x["isl"] + 1.0) / 2.0
        return {"others_s": seconds + index.launch_s + index.s_per_pair * pairs}
    line = timing.index_generation(x["batch_size"], attention)
    cached = x["batch_size"] * (x["step"] + 1.0)
    return {"others_s": seconds + line.launch_s + line.s_per_cached_token * cached}


def parts_s(parts: list[Gemm | Elementwise], timing: OperatorTiming, tokens: FloatArray) -> FloatArray:
    """Σ of the operators beside attention, shape of tokens."""
    seconds = [op.count * (token_s(op, timing, tokens, block_scaled=True) - _hidden_s(op, timing)) for op in parts]
    return np.asarray(sum(seconds, start=np.zeros_like(tokens)))


def _hidden_s(op: Gemm | Elementwise, timing: OperatorTiming) -> float:
    if not isinstance(op, Gemm):
        return 0.0
    return max(timing.launch_s("gemm", kernel_dtype(op, block_scaled=True)) - GRAPH_LAUNCH_S, 0.0)


def module_operators(
    model: ModelShape, num_heads: int, weight_dtype: WeightDtype = "fp8"
) -> tuple[list[Gemm | Elementwise], LatentAttentionOp | SparseAttentionOp]:
    """The module's operators in one layer with that many heads, and attention itself."""
    last = model.layers[-1]
    assert isinstance(last.attention, LatentAttention)  # of the one model that is read here
    layer = replace(last, count=1, attention=replace(last.attention, num_heads=num_heads))
    operators: tuple[Operator, ...] = stage_operators(
        replace(model, layers=(layer,)), Parallelism(), weight_dtype, "bf16"
    )
    parts = [op for op in operators if op.name in MODULE and isinstance(op, Gemm | Elementwise)]
    return parts, next(op for op in operators if isinstance(op, LatentAttentionOp | SparseAttentionOp))
