"""Seconds per call of every operator on one GPU type under one engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from estimator.collectives import LinkCurve
from estimator.hardware import Gpu
from estimator.roofline import COMPUTE_DTYPE, KV_BYTES, WEIGHT_BYTES, DecodeLine, FloatArray, GemmCurve, PrefillLine

Tier = Literal["fitted", "borrowed", "data_sheet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTiming:
    """Operator times; every method returns seconds per call."""

    gpu: Gpu
    engine: str

    def tier(self, kind: str, dtype: str = "") -> Tier:
        """What `kind` (a method's name without `_s`) rests on; the worst dtype's where none is given."""
        return "data_sheet"

    def residual_frac(self, kind: str, dtype: str = "") -> float | None:
        """Median absolute relative error of the fit behind `kind`; None without a fit."""
        return None

    def gemm_s(self, m: ArrayLike, *, n: float, k: float, dtype: str) -> FloatArray:
        """C[m,n] = A[m,k]·B[k,n] with weights of `dtype` (bf16, fp8, fp8_block, fp4, mxfp4, int4)."""
        return GemmCurve().seconds(self.gpu, np.asarray(m, dtype=np.float64), n, k, dtype)

    def elementwise_s(self, num_bytes: ArrayLike) -> FloatArray:
        """A memory-bound kernel that reads and writes `num_bytes`."""
        return np.asarray(2e-6 + np.asarray(num_bytes, dtype=np.float64) / (0.8 * self.gpu.bandwidth_bytes_per_s))

    def moe_s(  # noqa: PLR0913  the shape of an expert layer has this many sides
        self,
        tokens: ArrayLike,
        *,
        hidden: int,
        intermediate: int,
        num_experts: int,
        experts_per_gpu: float,
        top_k: int,
        dtype: str,
        power_law: bool,
    ) -> FloatArray:
        """Fused gated expert layer on one GPU; `tokens` are routed over all ranks, `intermediate` is per GPU."""
        t = np.asarray(tokens, dtype=np.float64)
        share = experts_per_gpu / num_experts
        routed = t * top_k * share * (1.3 if power_law else 1.0)
        touched = experts_per_gpu * -np.expm1(t * np.log1p(-min(top_k / num_experts, 1 - 1e-9)))
        weights = 3.0 * hidden * intermediate
        flop_s = 2.0 * routed * weights / (0.6 * self.gpu.peak_flop_per_s(COMPUTE_DTYPE[dtype]))
        num_bytes = touched * weights * WEIGHT_BYTES[dtype] + 4.0 * routed * (hidden + intermediate)
        return np.asarray(8e-6 + np.maximum(flop_s, num_bytes / (0.7 * self.gpu.bandwidth_bytes_per_s)))

    def context_attention(
        self, *, num_heads: int, num_kv_heads: int, head_dim: int, window_tokens: int = 0, kv_dtype: str
    ) -> PrefillLine:
        """Prefill attention with heads per GPU; pairs count seen tokens within the window."""
        per_pair = 4.0 * num_heads * head_dim / (0.5 * self.gpu.peak_flop_per_s("bf16"))
        per_token = 4.0 * (num_heads + num_kv_heads) * head_dim / (0.7 * self.gpu.bandwidth_bytes_per_s)
        return PrefillLine(launch_s=5e-6, s_per_pair=per_pair, s_per_token=per_token + 64 * per_pair)

    def generation_attention(
        self,
        num_seqs: ArrayLike,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window_tokens: int = 0,
        kv_dtype: str,
    ) -> DecodeLine:
        """Decode attention with heads per GPU; cached tokens count within the window."""
        n = np.asarray(num_seqs, dtype=np.float64)
        per_token = 2.0 * num_kv_heads * head_dim * KV_BYTES[kv_dtype] / (0.7 * self.gpu.bandwidth_bytes_per_s)
        per_seq = 4.0 * num_heads * head_dim / (0.7 * self.gpu.bandwidth_bytes_per_s)
        return DecodeLine(launch_s=4e-6 + per_seq * n, s_per_cached_token=np.full_like(n, per_token))

    def latent_context_attention(
        self, *, num_heads: int, kv_lora_rank: int, qk_nope_dim: int, qk_rope_dim: int, v_dim: int, kv_dtype: str
    ) -> PrefillLine:
        """MLA prefill in its expanded form (keys of nope + rope, values of v); projections are gemms of their own."""
        dims = qk_nope_dim + qk_rope_dim + v_dim
        per_pair = 2.0 * num_heads * dims / (0.5 * self.gpu.peak_flop_per_s("bf16"))
        return PrefillLine(launch_s=5e-6, s_per_pair=per_pair, s_per_token=64 * per_pair)

    def latent_generation_attention(  # noqa: PLR0913  the shape of latent attention
        self,
        num_seqs: ArrayLike,
        *,
        num_heads: int,
        kv_lora_rank: int,
        qk_nope_dim: int,
        qk_rope_dim: int,
        v_dim: int,
        kv_dtype: str,
    ) -> DecodeLine:
        """MLA decode in its absorbed form: all heads read one latent vector of rank + rope per cached token."""
        n = np.asarray(num_seqs, dtype=np.float64)
        latent = kv_lora_rank + qk_rope_dim
        flop = 2.0 * num_heads * (latent + kv_lora_rank)
        read_s = latent * KV_BYTES[kv_dtype] / (0.7 * self.gpu.bandwidth_bytes_per_s)
        per_token = max(read_s, flop / (0.5 * self.gpu.peak_flop_per_s("bf16")))
        return DecodeLine(launch_s=np.full_like(n, 6e-6), s_per_cached_token=np.full_like(n, per_token))

    def sparse_context_attention(
        self, *, num_heads: int, kv_lora_rank: int, qk_rope_dim: int, index_topk: int, kv_dtype: str
    ) -> PrefillLine:
        """Sparse MLA over the chosen tokens: pairs count min(seen, index_topk)."""
        flop = 2.0 * num_heads * (2 * kv_lora_rank + qk_rope_dim)
        per_pair = flop / (0.4 * self.gpu.peak_flop_per_s("bf16"))
        return PrefillLine(launch_s=5e-6, s_per_pair=per_pair, s_per_token=0.0)

    def sparse_generation_attention(
        self,
        num_seqs: ArrayLike,
        *,
        num_heads: int,
        kv_lora_rank: int,
        qk_rope_dim: int,
        index_topk: int,
        kv_dtype: str,
    ) -> DecodeLine:
        """Sparse MLA decode: cached tokens count min(cached, index_topk) per sequence."""
        return self.latent_generation_attention(
            num_seqs,
            num_heads=num_heads,
            kv_lora_rank=kv_lora_rank,
            qk_nope_dim=0,
            qk_rope_dim=qk_rope_dim,
            v_dim=0,
            kv_dtype=kv_dtype,
        )

    def index_context(self, *, index_heads: int, index_head_dim: int) -> PrefillLine:
        """Indexer of sparse attention in prefill: scores every seen token, so pairs are not capped."""
        per_pair = 2.0 * index_heads * index_head_dim / (0.4 * self.gpu.peak_flop_per_s("fp8"))
        return PrefillLine(launch_s=5e-6, s_per_pair=per_pair, s_per_token=0.0)

    def index_generation(self, num_seqs: ArrayLike, *, index_heads: int, index_head_dim: int) -> DecodeLine:
        """Indexer of sparse attention in decode: reads one fp8 key per cached token."""
        n = np.asarray(num_seqs, dtype=np.float64)
        per_token = index_head_dim / (0.6 * self.gpu.bandwidth_bytes_per_s)
        return DecodeLine(launch_s=np.full_like(n, 8e-6), s_per_cached_token=np.full_like(n, per_token))

    def delta_net_context(
        self, *, num_key_heads: int, num_value_heads: int, key_dim: int, value_dim: int, conv_kernel: int
    ) -> PrefillLine:
        """Gated delta net in prefill (convolution and chunked recurrence): linear in tokens, heads per GPU."""
        num_bytes = 2.0 * (4 * num_key_heads * key_dim + 6 * num_value_heads * value_dim)
        per_token = num_bytes / (0.3 * self.gpu.bandwidth_bytes_per_s)
        return PrefillLine(launch_s=20e-6, s_per_pair=0.0, s_per_token=per_token)

    def delta_net_generation(
        self,
        num_seqs: ArrayLike,
        *,
        num_key_heads: int,
        num_value_heads: int,
        key_dim: int,
        value_dim: int,
        conv_kernel: int,
    ) -> DecodeLine:
        """Gated delta net in decode: reads and writes one float32 state per value head and sequence."""
        n = np.asarray(num_seqs, dtype=np.float64)
        state_bytes = 8.0 * num_value_heads * key_dim * value_dim
        launch = 8e-6 + n * state_bytes / (0.7 * self.gpu.bandwidth_bytes_per_s)
        return DecodeLine(launch_s=launch, s_per_cached_token=np.zeros_like(n))

    def all_reduce_s(self, num_bytes: ArrayLike, num_gpus: int) -> FloatArray:
        """Sum of `num_bytes` over `num_gpus`."""
        return self._link().all_reduce_s(np.asarray(num_bytes, dtype=np.float64), num_gpus)

    def all_gather_s(self, num_bytes: ArrayLike, num_gpus: int) -> FloatArray:
        """Gather (or reduce-scatter) of `num_bytes` in all over `num_gpus`."""
        return self._link().all_gather_s(np.asarray(num_bytes, dtype=np.float64), num_gpus)

    def all_to_all_s(self, num_bytes: ArrayLike, num_gpus: int) -> FloatArray:
        """Exchange in which each GPU sends `num_bytes` in all, an equal part to each peer."""
        return self._link().all_gather_s(np.asarray(num_bytes, dtype=np.float64), num_gpus)

    def point_to_point_s(self, num_bytes: ArrayLike, across_nodes: bool) -> FloatArray:
        """One GPU sends `num_bytes` to another."""
        return self._link().point_to_point_s(np.asarray(num_bytes, dtype=np.float64), across_nodes)

    def _link(self) -> LinkCurve:
        return LinkCurve(gpu=self.gpu)
