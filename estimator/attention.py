"""Seconds of attention as straight lines, because a step's cost must add up in O(1) (`estimator.iteration`).

    prefill:  t = launch + a·pairs + b·tokens        pairs = Σ new tokens · tokens they see
    decode:   t = launch(n) + c(n)·cached            n sequences holding `cached` tokens together

| symbol | from | unit |
|---|---|---|
| a | 2·(H + head_half)·(d·(padded/d)^dim_pad + softmax_dims)/(peak·η_c) | s per pair |
| b | a·pad_tokens + (io bytes + kv_passes·new keys and values)/(bandwidth·η_m) | s per token |
| c(n) | G·‖ (d + 2·key_dims)·bytes/(bandwidth·η_m(n·G)), rows·2d/(peak·η_c) ‖ | s per cached token |
| launch(n) | launch + (n·G/SMs − 1)⁺·block_s + n·io bytes/(bandwidth·η_m) | s |
| fill | ‖ fill_s·‖1, fill_bytes/bytes of the cache‖⁻¹, join_s ‖ | s |

Prefill with few (row block, head) pairs leaves SMs empty: a step of T tokens takes a·pairs·‖1, thin_tokens/T‖₂, where
thin_tokens = fill_waves·SMs·128/H. Where the cost must not depend on the pairs, the pairs of one prompt of T stand in.

H query heads, G key-value heads and their dims per GPU; d sums the dims of keys and values per head. η_m(x) falls where
few (sequence, head) blocks x share the GPU: η_m·‖1, split_half/x‖⁻¹. Heads of more than 128 dims are read, and in
prefill multiplied, at `wide_frac` of the rate, in prefill those of more than 192 at `widest_frac` of that; keys and
values cost as much as `key_dims` each besides their own.
Blocks beyond one per SM each take it block_s besides their keys. `peak` is always the bf16 peak: η_c passes 1 where an
engine multiplies in fp8.

The fill: blocks come to work one after another until the GPU is full; the parts into which sequences of more than
`JOIN_TOKENS` are split are joined, which takes join_s. It bends with the cache; a step takes the straight line nearest
to it over sequences of `STRAIGHT_TOKENS`, errors counting in share of 1 + bytes/fill_bytes, about the kernel's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from estimator.hardware import Gpu
from estimator.roofline import ACTIVATION_BYTES, Bounds, FloatArray, cached_frac, softmax_norm

ROW_BLOCK = 128.0  # query rows that one block of a prefill kernel takes
SHARPNESS = 4.0  # exponent where two bounds of a decode kernel meet
WIDE_DIMS, WIDEST_DIMS = 128.0, 192.0  # of a head; beyond either, kernels have other tiles
JOIN_TOKENS = 384.0  # of a sequence: kernels walk 256 in one part and split 512, as measured
STRAIGHT_TOKENS = 512.0 * 2.0 ** np.arange(7)  # contexts over which a straight line stands for a decode kernel's fill


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLine:
    """Prefill attention of one step: launch + s_per_pair · Σ new·seen + s_per_token · Σ new + thin_s, s."""

    launch_s: float
    s_per_pair: float
    s_per_token: float
    thin_tokens: float = 0.0

    def thin_s(self, tokens: FloatArray, window_tokens: int = 0) -> FloatArray:
        """What one prompt of `tokens` takes longer because its blocks do not fill the GPU."""
        seen = np.minimum(tokens / 2.0, window_tokens) if window_tokens else tokens / 2.0
        longer = np.sqrt(1.0 + (self.thin_tokens / np.maximum(tokens, 1.0)) ** 2) - 1.0
        return np.asarray(self.s_per_pair * tokens * seen * longer)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodeLine:
    """Decode attention of n sequences holding S cached tokens: launch[n] + s_per_cached_token[n] · S, s.

    With a window S counts the tokens inside, and every token outside costs `outside_frac` of one. `s_per_held_token`:
    of every cached token besides, inside or outside.
    """

    launch_s: FloatArray
    s_per_cached_token: FloatArray
    outside_frac: float = 0.0
    s_per_held_token: FloatArray | float = 0.0


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
    """Prefill attention; symbols in the module's docstring. `head_half`: heads that leave the GPU half empty.

    Benchmarks find queries, keys, values and outputs of up to `cache_bytes` in the L2 cache, at `cache_frac` of the
    memory bandwidth.
    """

    launch_s: float = 8e-6
    compute_frac: float = 0.55
    head_half: float = 0.0
    softmax_dims: float = 40.0
    pad_tokens: float = 64.0
    memory_frac: float = 0.6
    kv_passes: float = 0.0
    dim_pad: float = 0.0
    wide_frac: float = 1.0
    widest_frac: float = 1.0
    fill_waves: float = 0.0
    cache_bytes: float = 0.0
    cache_frac: float = 1.5

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (1e-6, 60e-6),
        "compute_frac": (0.03, 2.2),
        "head_half": (0.0, 256.0),
        "softmax_dims": (0.0, 600.0),
        "pad_tokens": (0.0, 1024.0),
        "memory_frac": (0.05, 1.5),
        "kv_passes": (0.0, 20.0),
        "dim_pad": (0.0, 2.0),
        "wide_frac": (0.2, 1.5),
        "widest_frac": (0.2, 1.5),
        "fill_waves": (0.0, 8.0),
        "cache_bytes": (0.0, 200e6),
        "cache_frac": (1.05, 8.0),
    }

    def coefficients(self, gpu: Gpu, shape: HeadShape) -> tuple[FloatArray, FloatArray]:
        """s per pair of a full GPU and s per token, broadcast shape of the heads."""
        dim = np.asarray(shape.dims, dtype=np.float64) / 2.0
        padded = 2.0 ** np.ceil(np.log2(dim))
        dims = shape.dims * (padded / dim) ** self.dim_pad + self.softmax_dims
        rate = np.where(dim > WIDE_DIMS, self.wide_frac, 1.0) * np.where(dim > WIDEST_DIMS, self.widest_frac, 1.0)
        dims = dims / rate
        flop = 2.0 * (shape.num_heads + self.head_half) * dims
        s_per_pair = np.asarray(flop / (gpu.peak_flop_per_s("bf16") * self.compute_frac))
        io_s = self._io_bytes(shape) / (gpu.bandwidth_bytes_per_s * self.memory_frac)
        return s_per_pair, np.asarray(self.pad_tokens * s_per_pair + io_s)

    def _io_bytes(self, shape: HeadShape) -> FloatArray:
        """Per token, with every pass over new keys and values."""
        kv_bytes = ACTIVATION_BYTES * shape.num_kv_heads * shape.dims
        return np.asarray(shape.io_bytes + self.kv_passes * kv_bytes)

    def measured_s(self, gpu: Gpu, tokens: FloatArray, pairs: FloatArray, shape: HeadShape) -> FloatArray:
        """Of `tokens` new tokens and all pairs they make, as a benchmark measures it: small steps stay in L2."""
        s_per_pair, s_per_token = self.coefficients(gpu, shape)
        thin = np.sqrt(1.0 + (self.thin_tokens(gpu, shape) / tokens) ** 2)
        io_bytes = tokens * self._io_bytes(shape)
        near = cached_frac(io_bytes, self.cache_bytes)
        spared = near * (1.0 / self.memory_frac - 1.0 / max(self.cache_frac, self.memory_frac))
        spared_s = io_bytes * spared / gpu.bandwidth_bytes_per_s
        return np.asarray(self.launch_s + s_per_pair * pairs * thin + s_per_token * tokens - spared_s)

    def thin_tokens(self, gpu: Gpu, shape: HeadShape) -> FloatArray:
        """Tokens of a step whose row blocks and heads leave the GPU half empty, broadcast shape of the heads."""
        return np.asarray(self.fill_waves * gpu.num_sms * ROW_BLOCK / shape.num_heads)

    def line(self, gpu: Gpu, shape: HeadShape) -> PrefillLine:
        """Of one shape."""
        s_per_pair, s_per_token = self.coefficients(gpu, shape)
        return PrefillLine(
            launch_s=self.launch_s,
            s_per_pair=float(s_per_pair),
            s_per_token=float(s_per_token),
            thin_tokens=float(self.thin_tokens(gpu, shape)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCurve:
    """Decode attention; symbols in the module's docstring. `row_tile`: query rows a block multiplies at least.

    `outside_frac`: what a cached token outside a window costs of one inside, in kernels that walk over them;
    `window_pad`: tokens read beside a window because it ends within blocks of keys. A query head alone with its keys
    and values may have a kernel of its own: `lone_s` more, at `lone_frac` of the rate.

    Benchmarks find a cache of up to `cache_bytes` in the L2 cache, at `cache_frac` of the memory bandwidth; serving,
    which reads other layers in between, does not.
    """

    launch_s: float = 6e-6
    memory_frac: float = 0.75
    split_half: float = 1.0
    compute_frac: float = 0.4
    row_tile: float = 16.0
    block_s: float = 0.5e-6
    outside_frac: float = 0.0
    window_pad: float = 0.0
    fill_s: float = 0.0
    fill_bytes: float = 40e6
    join_s: float = 0.0
    key_dims: float = 0.0
    wide_frac: float = 1.0
    lone_s: float = 0.0
    lone_frac: float = 1.0
    cache_bytes: float = 0.0
    cache_frac: float = 1.5

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (1e-6, 60e-6),
        "memory_frac": (0.1, 1.05),
        "split_half": (0.0, 200.0),
        "compute_frac": (0.02, 2.2),
        "row_tile": (1.0, 128.0),
        "block_s": (0.0, 6e-6),
        "outside_frac": (0.0, 1.0),
        "window_pad": (0.0, 256.0),
        "fill_s": (0.0, 60e-6),
        "fill_bytes": (1e6, 200e6),
        "join_s": (0.0, 20e-6),
        "key_dims": (0.0, 128.0),
        "wide_frac": (0.3, 1.5),
        "lone_s": (0.0, 30e-6),
        "lone_frac": (0.3, 2.0),
        "cache_bytes": (0.0, 200e6),
        "cache_frac": (1.05, 8.0),
    }

    def line(self, gpu: Gpu, num_seqs: FloatArray, shape: HeadShape) -> DecodeLine:
        """Arrays of the broadcast shape of num_seqs and the heads."""
        line = self._line(gpu, num_seqs, shape, self.memory_frac)
        beside = num_seqs * self.window_pad * (1.0 - self.outside_frac)
        line = replace(line, launch_s=line.launch_s + beside * line.s_per_cached_token)
        if self.fill_s == 0.0 and self.join_s == 0.0:
            return line
        cached = np.maximum(num_seqs, 1.0)[..., None] * STRAIGHT_TOKENS
        num_bytes = cached * np.asarray(shape.num_kv_heads * shape.kv_bytes)[..., None]
        filled_s = self._fill_s(num_bytes, self.join_s)
        weight = (1.0 + num_bytes / self.fill_bytes) ** -2.0
        weight = weight / weight.sum(axis=-1, keepdims=True)
        middle, filled = (weight * cached).sum(axis=-1), (weight * filled_s).sum(axis=-1)
        above = cached - middle[..., None]
        slope = (weight * above * filled_s).sum(axis=-1) / (weight * above**2).sum(axis=-1)
        return replace(line, launch_s=line.launch_s + filled - slope * middle, s_per_held_token=slope)

    def measured_s(
        self,
        gpu: Gpu,
        num_seqs: FloatArray,
        cached_tokens: FloatArray,
        shape: HeadShape,
        outside_tokens: FloatArray | float = 0.0,
    ) -> FloatArray:
        """Of num_seqs sequences that hold `cached_tokens` together, `outside_tokens` of them outside a window.

        As a benchmark measures it: small caches stay in L2, and the fill bends.
        """
        beside = np.minimum(outside_tokens, self.window_pad * num_seqs)
        read = cached_tokens - (1.0 - self.outside_frac) * (outside_tokens - beside)
        bytes_per_token = shape.num_kv_heads * shape.kv_bytes
        near = cached_frac(read * bytes_per_token, self.cache_bytes)
        cold = self._line(gpu, num_seqs, shape, self.memory_frac)
        warm = self._line(gpu, num_seqs, shape, self.cache_frac)
        cold_s = cold.launch_s + cold.s_per_cached_token * read
        warm_s = warm.launch_s + warm.s_per_cached_token * read
        join_s = np.where(cached_tokens > JOIN_TOKENS * num_seqs, self.join_s, 0.0)
        fill_s = self._fill_s(np.asarray(cached_tokens * bytes_per_token), join_s)
        return np.asarray(cold_s + near * (warm_s - cold_s) + fill_s)

    def _line(self, gpu: Gpu, num_seqs: FloatArray, shape: HeadShape, memory_frac: float) -> DecodeLine:
        """Launch and cached tokens, without the fill."""
        lone = np.asarray(shape.num_heads) == np.asarray(shape.num_kv_heads)
        dims = np.asarray(shape.dims) / 2.0
        rate = np.where(lone, self.lone_frac, 1.0) * np.where(dims > WIDE_DIMS, self.wide_frac, 1.0)
        bandwidth = gpu.bandwidth_bytes_per_s * memory_frac * rate
        rows = softmax_norm(SHARPNESS, np.asarray(shape.num_heads / shape.num_kv_heads), np.asarray(self.row_tile))
        blocks = np.maximum(num_seqs, 1.0) * shape.num_kv_heads
        spread = softmax_norm(SHARPNESS, np.ones_like(blocks), self.split_half / blocks)
        full_s = shape.num_kv_heads * shape.kv_bytes * (1.0 + self.key_dims / dims) / bandwidth
        peak = gpu.peak_flop_per_s("bf16") * self.compute_frac * rate
        compute_s = shape.num_kv_heads * 2.0 * rows * shape.dims / peak
        s_per_cached_token = softmax_norm(SHARPNESS, full_s * spread, compute_s + 0.0 * blocks)
        queued_s = self.block_s * np.maximum(num_seqs * shape.num_kv_heads / gpu.num_sms - 1.0, 0.0)
        return DecodeLine(
            launch_s=self.launch_s + lone * self.lone_s + queued_s + num_seqs * shape.io_bytes / bandwidth,
            s_per_cached_token=s_per_cached_token,
            outside_frac=self.outside_frac,
        )

    def _fill_s(self, num_bytes: FloatArray, join_s: FloatArray | float) -> FloatArray:
        filled = num_bytes / self.fill_bytes
        filled_s = self.fill_s * filled / softmax_norm(SHARPNESS, np.ones_like(filled), filled)
        return softmax_norm(SHARPNESS, filled_s, join_s + 0.0 * filled_s)
