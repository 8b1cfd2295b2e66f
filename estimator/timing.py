"""Seconds per call of every operator on one GPU type under one engine.

| tier | the curve was fitted on |
|---|---|
| `fitted` | this GPU under this engine (collectives of NCCL count for every engine) |
| `borrowed` | another engine, a sister number format, or another GPU of the architecture, scaled by its data sheet |
| `data_sheet` | nothing: the data sheet and customary efficiencies |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from estimator.attention import DecodeCurve, DecodeLine, HeadShape, PrefillCurve, PrefillLine
from estimator.collectives import CollectiveKind, ExchangeWay, LinkCurve, link_bytes_per_s, network_seconds
from estimator.experts import ExpertCurve, ExpertLayer, expert_load
from estimator.grouped_experts import grouped_experts_s
from estimator.hardware import Gpu
from estimator.roofline import (
    ElementwiseCurve,
    FloatArray,
    GemmCurve,
    RankingCurve,
    RecurrentCurve,
)
from estimator.shapes import delta_net_bytes_per_seq, delta_net_bytes_per_token, grouped_heads, latent_heads
from estimator.work import DeltaNetOp, GroupedAttention, LatentAttentionOp, SparseAttentionOp

Tier = Literal["fitted", "borrowed", "data_sheet"]
ExpertKernel = Literal["of_layout", "divided", "grouped"]
TIERS: tuple[Tier, ...] = ("fitted", "borrowed", "data_sheet")  # best first
KV_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp8": 1.0}
Curve = TypeVar("Curve")


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCurve:
    """A curve, what it rests on, and the median absolute relative error of its fit."""

    curve: Any
    tier: Tier
    median_error_frac: float
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorTiming:
    """Operator times; methods return seconds per call. `curves` by (kind, dtype); collectives by (kind, GPUs)."""

    gpu: Gpu
    engine: str
    curves: Mapping[tuple[str, str], FittedCurve] = field(default_factory=dict)

    def tier(self, kind: str, dtype: str = "") -> Tier:
        """What `kind` rests on: a method's name without `_s`; its best dtype's where none is given."""
        found = {fitted.tier for (k, d), fitted in self.curves.items() if k == kind and dtype in ("", d)}
        return min(found, key=TIERS.index, default="data_sheet")

    def residual_frac(self, kind: str, dtype: str = "") -> float | None:
        """Median absolute relative error of the fit behind `kind` (median over its dtypes); None without a fit."""
        found = [f.median_error_frac for (k, d), f in self.curves.items() if k == kind and dtype in ("", d)]
        return float(np.median(found)) if found else None

    def gemm_s(self, m: ArrayLike, *, n: float, k: float, dtype: str) -> FloatArray:
        """C[m,n] = A[m,k]·B[k,n] with weights of `dtype` (bf16, fp8, fp8_block, fp4, mxfp4, int4)."""
        shape = (_array(n), _array(k))
        return self._curve("gemm", dtype, GemmCurve).seconds(self.gpu, _array(m), *shape, dtype)

    def launch_s(self, kind: Literal["gemm", "elementwise"], dtype: str) -> float:
        """The part of every call that no shape changes."""
        if kind == "gemm":
            return self._curve("gemm", dtype, GemmCurve).launch_s
        return ElementwiseCurve().launch_s

    def elementwise_s(self, num_bytes: ArrayLike) -> FloatArray:
        """A memory-bound kernel that reads and writes `num_bytes`."""
        return ElementwiseCurve().seconds(self.gpu, _array(num_bytes))

    def moe_s(
        self,
        tokens: ArrayLike,
        layer: ExpertLayer,
        *,
        dtype: str,
        power_law: bool,
        kernel: ExpertKernel = "of_layout",
    ) -> FloatArray:
        """Fused gated expert layer on one GPU; `tokens` are routed over all ranks.

        `kernel`: of_layout, the engine's own for GPUs that hold a slice of every expert where it has one; divided, for
        all that of GPUs with whole experts; grouped, a library's plain products (`estimator.grouped_experts`).
        """
        counts = np.atleast_1d(_array(tokens))
        load = expert_load(counts, layer, "power_law" if power_law else "uniform")
        if kernel == "grouped":
            seconds = grouped_experts_s(self.gpu, self._curve("gemm", dtype, GemmCurve), load, layer, dtype)
        else:
            whole_layer = layer.experts_per_gpu == layer.num_experts
            sliced = kernel == "of_layout" and whole_layer and ("moe_sliced", dtype) in self.curves
            curve = self._curve("moe_sliced" if sliced else "moe", dtype, ExpertCurve)
            seconds = curve.seconds(self.gpu, load, layer, dtype)
        # whole experts make small steps down where the power law changes its range: more tokens never cost less
        order = np.argsort(counts)
        seconds[order] = np.maximum.accumulate(seconds[order])
        return np.asarray(seconds.reshape(np.shape(tokens)))

    def context_attention(self, op: GroupedAttention) -> PrefillLine:
        """Prefill attention; pairs count seen tokens within the window."""
        kind = "context_attention_windowed" if op.window_tokens else "context_attention"
        return self._curve(kind, op.kv_dtype, PrefillCurve).line(self.gpu, _grouped(op))

    def generation_attention(self, num_seqs: ArrayLike, op: GroupedAttention) -> DecodeLine:
        """Decode attention; cached tokens count within the window."""
        kind = "generation_attention_windowed" if op.window_tokens else "generation_attention"
        return self._curve(kind, op.kv_dtype, DecodeCurve).line(self.gpu, _array(num_seqs), _grouped(op))

    def latent_context_attention(self, op: LatentAttentionOp) -> PrefillLine:
        """MLA prefill in its expanded form; projections are gemms of their own."""
        curve = self._curve("latent_context_attention", op.kv_dtype, PrefillCurve)
        return curve.line(self.gpu, _latent(op, expanded=True))

    def latent_generation_attention(self, num_seqs: ArrayLike, op: LatentAttentionOp) -> DecodeLine:
        """MLA decode in its absorbed form: all heads read one latent vector of rank + rope per cached token."""
        curve = self._curve("latent_generation_attention", op.kv_dtype, DecodeCurve)
        return curve.line(self.gpu, _array(num_seqs), _latent(op, expanded=False))

    def sparse_context_attention(self, op: SparseAttentionOp) -> PrefillLine:
        """Sparse MLA, absorbed, over the chosen tokens: pairs count min(seen, index_topk)."""
        curve = self._curve("sparse_context_attention", op.kv_dtype, PrefillCurve)
        return curve.line(self.gpu, _latent(op, expanded=False))

    def sparse_generation_attention(self, num_seqs: ArrayLike, op: SparseAttentionOp) -> DecodeLine:
        """Sparse MLA decode: cached tokens count min(cached, index_topk) per sequence."""
        curve = self._curve("sparse_generation_attention", op.kv_dtype, DecodeCurve)
        return curve.line(self.gpu, _array(num_seqs), _latent(op, expanded=False))

    def index_context(self, op: SparseAttentionOp) -> PrefillLine:
        """Indexer of sparse attention in prefill: scores every seen token, so pairs are not capped."""
        per_pair = float(op.index_flop(1.0)) / (0.4 * self.gpu.peak_flop_per_s("fp8"))
        return PrefillLine(launch_s=5e-6, s_per_pair=per_pair, s_per_token=0.0)

    def index_generation(self, num_seqs: ArrayLike, op: SparseAttentionOp) -> DecodeLine:
        """Indexer of sparse attention in decode: reads an fp8 key and its float32 scale per cached token, ranks all."""
        n = _array(num_seqs)
        curve = self._curve("index_generation", "fp8", RankingCurve)
        per_token = curve.s_per_token(self.gpu, n, float(op.index_bytes(1.0)))
        return DecodeLine(launch_s=np.full_like(n, curve.launch_s), s_per_cached_token=per_token)

    def delta_net_context(self, op: DeltaNetOp) -> PrefillLine:
        """Gated delta net in prefill (convolution and chunked recurrence): linear in tokens."""
        num_bytes = delta_net_bytes_per_token(*_delta(op))
        curve = self._curve("delta_net_context", "bf16", RecurrentCurve)
        per_token = float(curve.s_per_token(self.gpu, num_bytes))
        return PrefillLine(launch_s=curve.launch_s, s_per_pair=0.0, s_per_token=per_token)

    def delta_net_generation(self, num_seqs: ArrayLike, op: DeltaNetOp) -> DecodeLine:
        """Gated delta net in decode: reads and writes one float32 state per value head and sequence."""
        n = _array(num_seqs)
        curve = self._curve("delta_net_generation", "bf16", ElementwiseCurve)
        launch_s = curve.seconds(self.gpu, n * delta_net_bytes_per_seq(*_delta(op)))
        return DecodeLine(launch_s=launch_s, s_per_cached_token=np.zeros_like(n))

    def all_reduce_s(self, num_bytes: ArrayLike, num_gpus: int) -> FloatArray:
        """Sum over `num_gpus` of a message of `num_bytes` on each: the engine's own kernel or NCCL, the faster."""
        own = self._collective("all_reduce", num_bytes, num_gpus)
        return np.minimum(own, self._collective("all_reduce", num_bytes, num_gpus, library="nccl:"))

    def all_gather_s(self, num_bytes: ArrayLike, num_gpus: int) -> FloatArray:
        """Gather to all of `num_gpus` of the `num_bytes` that each brings; reduce-scatter costs the same."""
        return self._collective("all_gather", num_bytes, num_gpus)

    def exchange_s(self, num_bytes: ArrayLike, num_gpus: int, way: ExchangeWay) -> FloatArray:
        """Exchange in which each GPU sends `num_bytes` in all, an equal part to each peer: DeepEP or NCCL."""
        has_own = any(kind == way for kind, _ in self.curves)
        return self._collective(way if has_own else "all_to_all", num_bytes, num_gpus)

    def point_to_point_s(self, num_bytes: ArrayLike, across_nodes: bool) -> FloatArray:
        """One GPU sends `num_bytes` to another, in its node or across nodes."""
        if across_nodes:
            return network_seconds(self.gpu, "all_to_all", 2.0 * _array(num_bytes), 2)
        return np.asarray(5e-6 + _array(num_bytes) / (0.8 * link_bytes_per_s(self.gpu, 2)))

    def _collective(self, kind: CollectiveKind, num_bytes: ArrayLike, num_gpus: int, library: str = "") -> FloatArray:
        num_bytes = _array(num_bytes)
        if num_gpus == 1:
            return np.zeros_like(num_bytes)
        inside = self.gpu.nvlink_domain_gpus if self.gpu.nvlink_bytes_per_s > 0 else self.gpu.gpus_per_node
        if num_gpus > inside:
            return network_seconds(self.gpu, kind, num_bytes, num_gpus)
        measured = sorted(int(dtype) for (k, dtype) in self.curves if k == library + kind)
        nearest = min(measured, key=lambda g: abs(np.log2(g / num_gpus)), default=0)
        curve = self._curve(library + kind, str(nearest), LinkCurve)
        return curve.seconds(self.gpu, kind, num_bytes, num_gpus)

    def _curve(self, kind: str, dtype: str, default: type[Curve]) -> Curve:
        fitted = self.curves.get((kind, dtype))
        if fitted is None:
            return default()
        curve: Curve = fitted.curve
        return curve


def _grouped(op: GroupedAttention) -> HeadShape:
    return grouped_heads(op.num_heads, op.num_kv_heads, op.head_dim, KV_BYTES[op.kv_dtype])


def _latent(op: LatentAttentionOp | SparseAttentionOp, *, expanded: bool) -> HeadShape:
    dims = (float(op.kv_lora_rank), float(op.qk_nope_dim), float(op.qk_rope_dim), float(op.v_dim))
    return latent_heads(op.num_heads, dims, KV_BYTES[op.kv_dtype], expanded=expanded)


def _delta(op: DeltaNetOp) -> tuple[int, int, int, int, int]:
    return op.num_key_heads, op.num_value_heads, op.key_dim, op.value_dim, op.conv_kernel


def _array(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)
