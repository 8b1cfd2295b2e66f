"""Seconds of attention as straight lines, because a step's cost must add up in O(1) (`estimator.iteration`).

    prefill:  t = launch + a·pairs + b·tokens        pairs = Σ new tokens · tokens they see
    decode:   t = launch(n) + c(n)·cached            n sequences holding `cached` tokens together

| symbol | from | unit |
|---|---|---|
| a | 2·(H + head_half)·(d + softmax_dims)/(peak·η_c) | s per pair |
| b | a·pad_tokens + io bytes of a token/(bandwidth·η_m) | s per token |
| c(n) | G·‖ 2d·bytes/(bandwidth·η_m(n·G)), rows·2d/(peak·η_c) ‖ | s per cached token |
| launch(n) | launch + n·block_tokens·c(n) + n·io bytes/(bandwidth·η_m) | s |

H query heads, G key-value heads and their dims per GPU; d sums the dims of keys and values per head. η_m(x) falls where
few (sequence, head) blocks x share the GPU: η_m·‖1, split_half/x‖⁻¹. `peak` is always the bf16 peak: η_c
passes 1 where an engine multiplies in fp8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from estimator.hardware import Gpu
from estimator.roofline import Bounds, FloatArray, softmax_norm

SHARPNESS = 4.0  # exponent where two bounds of a decode kernel meet


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLine:
    """Prefill attention of one step: launch + s_per_pair · Σ new·seen + s_per_token · Σ new, s."""

    launch_s: float
    s_per_pair: float
    s_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodeLine:
    """Decode attention of n sequences holding S cached tokens: launch[n] + s_per_cached_token[n] · S, s."""

    launch_s: FloatArray
    s_per_cached_token: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """Heads of one GPU. `dims`: key plus value dims a query head multiplies; `kv_bytes`: read per token and kv head.

    `io_bytes`: queries, outputs and new keys and values of one token, all heads.
    """

    num_heads: FloatArray | float
    num_kv_heads: FloatArray | float
    dims: FloatArray | float
    kv_bytes: FloatArray | float
    io_bytes: FloatArray | float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillCurve:
    """Prefill attention; symbols in the module's docstring. `head_half`: heads that leave the GPU half empty."""

    launch_s: float = 8e-6
    compute_frac: float = 0.55
    head_half: float = 0.0
    softmax_dims: float = 40.0
    pad_tokens: float = 64.0
    memory_frac: float = 0.6

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (1e-6, 60e-6),
        "compute_frac": (0.03, 2.2),
        "head_half": (0.0, 16.0),
        "softmax_dims": (0.0, 600.0),
        "pad_tokens": (0.0, 1024.0),
        "memory_frac": (0.05, 1.05),
    }

    def coefficients(self, gpu: Gpu, shape: HeadShape) -> tuple[FloatArray, FloatArray]:
        """s per pair and s per token, broadcast shape of the heads."""
        flop = 2.0 * (shape.num_heads + self.head_half) * (shape.dims + self.softmax_dims)
        s_per_pair = np.asarray(flop / (gpu.peak_flop_per_s("bf16") * self.compute_frac))
        io_s = shape.io_bytes / (gpu.bandwidth_bytes_per_s * self.memory_frac)
        return s_per_pair, np.asarray(self.pad_tokens * s_per_pair + io_s)

    def line(self, gpu: Gpu, shape: HeadShape) -> PrefillLine:
        """Of one shape."""
        s_per_pair, s_per_token = self.coefficients(gpu, shape)
        return PrefillLine(launch_s=self.launch_s, s_per_pair=float(s_per_pair), s_per_token=float(s_per_token))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCurve:
    """Decode attention; symbols in the module's docstring. `row_tile`: query rows a block multiplies at least."""

    launch_s: float = 6e-6
    memory_frac: float = 0.75
    split_half: float = 1.0
    compute_frac: float = 0.4
    row_tile: float = 16.0
    block_tokens: float = 64.0

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (1e-6, 60e-6),
        "memory_frac": (0.1, 1.05),
        "split_half": (0.0, 200.0),
        "compute_frac": (0.02, 2.2),
        "row_tile": (1.0, 128.0),
        "block_tokens": (0.0, 1024.0),
    }

    def line(self, gpu: Gpu, num_seqs: FloatArray, shape: HeadShape) -> DecodeLine:
        """Arrays of the broadcast shape of num_seqs and the heads."""
        bandwidth = gpu.bandwidth_bytes_per_s * self.memory_frac
        rows = softmax_norm(SHARPNESS, np.asarray(shape.num_heads / shape.num_kv_heads), np.asarray(self.row_tile))
        blocks = np.maximum(num_seqs, 1.0) * shape.num_kv_heads
        spread = softmax_norm(SHARPNESS, np.ones_like(blocks), self.split_half / blocks)
        full_s = shape.num_kv_heads * shape.kv_bytes / bandwidth
        compute_s = shape.num_kv_heads * 2.0 * rows * shape.dims / (gpu.peak_flop_per_s("bf16") * self.compute_frac)
        s_per_cached_token = softmax_norm(SHARPNESS, full_s * spread, compute_s + 0.0 * blocks)
        per_seq_s = self.block_tokens * np.maximum(full_s, compute_s) + shape.io_bytes / bandwidth
        return DecodeLine(launch_s=self.launch_s + num_seqs * per_seq_s, s_per_cached_token=s_per_cached_token)
