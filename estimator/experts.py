"""Seconds of a fused expert layer on one GPU: how tokens spread over experts, and two grouped products.

    t = launch + Σ over both products ‖ min over tiles of waves·(k + k_half)·step, bytes/(bandwidth·η_m), k·τ ‖_p / gain
        + local + routing + experts·expert_s + pairs·pair_s + fill

| symbol | meaning |
|---|---|
| pairs | (token, expert) pairs of all ranks: tokens · top_k |
| touched | experts of this GPU with work, whose weights are read |
| rows | pairs that this GPU multiplies; that of the busiest rank, which the step waits for |
| tiles | Σ over touched experts of ⌈rows of the expert/rows of a tile⌉ |
| τ | k_step + k_wide·w: a step along k is longer in kernels for more rows; w = tokens/(tokens + experts) |
| gain | 1 + narrow_gain/(1 + (pairs per expert here/narrow_rows)^6): kernels for few rows are another build, or tile |
| fill | fill_bytes/bandwidth·w: what could have been moved while a kernel of many experts fills its pipelines |

Waves, tiles, step and the bounds' norm are those of `estimator.roofline`. Routing is one of

    dealt      every expert in turn, as benchmarks of "balanced" routing do
    uniform    every expert with the same chance: touched = E·(1 − (1 − k/E)^tokens)
    power law  loads drawn from density ∝ x^−skew, as aiconfigurator's collector draws them (August 2026)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np

from estimator.hardware import Gpu
from estimator.roofline import (
    ACTIVATION_BYTES,
    ACTIVATION_IN_BYTES,
    COMPUTE_DTYPE,
    WEIGHT_BYTES,
    Bounds,
    FloatArray,
    cached_frac,
    softmax_norm,
    step_s,
    waves_of,
)

Routing = Literal["dealt", "uniform", "power_law"]
SKEW = 1.01  # exponent of the power law that serving is taken to have; the measured ones are 1.01 and 1.2
PADDED_ROWS = 128.0  # DeepGEMM's alignment of a group of rows (get_mk_alignment_for_contiguous_layout)
EXPERT_BLOCK = 128  # columns of block-scaled fp8 that share a scale: no engine cuts one
TILE_ROWS = np.array([16.0, 32.0, 64.0, 128.0, 256.0])
TILE_COLUMNS = np.array([64.0, 128.0, 256.0])
QUANTILES = (np.arange(64) + 0.5) / 64
NORMAL_QUANTILES = np.array([NormalDist().inv_cdf(float(q)) for q in QUANTILES])
RANKS = 2.0 ** np.arange(13)
# expected maximum of r standard normals, Blom (1958): Φ⁻¹((r − 0.375)/(r + 0.25)); 0 for one
BUSIEST_SIGMAS = np.array([0.0] + [NormalDist().inv_cdf((r - 0.375) / (r + 0.25)) for r in RANKS[1:].tolist()])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayer:
    """Shape of a gated expert layer on one GPU: `intermediate` and `experts_per_gpu` are its share."""

    hidden: FloatArray | float
    intermediate: FloatArray | float
    num_experts: FloatArray | float
    experts_per_gpu: FloatArray | float
    top_k: FloatArray | float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertLoad:
    """Work of the busiest GPU: `touched`, `rows` and `tokens` (num_points,), `tiles` (num_points, num_tile_rows)."""

    tokens: FloatArray
    touched: FloatArray
    rows: FloatArray
    tiles: FloatArray


def expert_load(
    tokens: FloatArray, layer: ExpertLayer, routing: Routing, skew: FloatArray | float = SKEW
) -> ExpertLoad:
    """Expected load of the busiest GPU when `tokens` of all ranks choose their experts; shapes broadcast to 1-D."""
    columns = (tokens, layer.num_experts, layer.experts_per_gpu, layer.top_k, skew)
    tokens, num_experts, local, top_k, skew = (
        np.asarray(column, dtype=np.float64) for column in np.broadcast_arrays(*(np.atleast_1d(c) for c in columns))
    )
    even = tokens * top_k * local / num_experts
    sigmas = np.interp(np.log2(num_experts / local), np.log2(RANKS), BUSIEST_SIGMAS)
    most = tokens * np.minimum(local, top_k)
    if routing == "dealt":
        touched, rows = np.clip(even, 1.0, local), np.maximum(even, 1.0)
        return ExpertLoad(tokens=tokens, touched=touched, rows=rows, tiles=_tiles((rows / touched)[:, None], touched))
    if routing == "uniform":
        chosen = 1.0 - (1.0 - top_k / num_experts) ** tokens
        rows = np.minimum(even + sigmas * np.sqrt(even), most)
        touched = _busiest(chosen, local, sigmas)
        mean = (rows / touched)[:, None]
        spread = mean + np.sqrt(np.maximum(mean - 1.0, 0.0)) * NORMAL_QUANTILES
        return ExpertLoad(tokens=tokens, touched=touched, rows=rows, tiles=_tiles(np.maximum(spread, 1.0), touched))
    loads = power_law_loads(tokens, num_experts, top_k, skew)
    mean, deviation = loads.mean(axis=1), loads.std(axis=1)
    excess = 1.0 + sigmas * deviation / np.maximum(mean, 1e-9) / np.sqrt(local)
    rows = np.minimum(even * np.minimum(excess, num_experts / local), most)
    touched = _busiest((loads >= 0.5).mean(axis=1), local, sigmas)
    touched = np.maximum(touched, np.minimum(1.0, rows))
    busy = np.where(loads >= 0.5, np.minimum(loads * (rows / even)[:, None], tokens[:, None]), 0.0)
    tiles = local[:, None] * np.stack([np.ceil(busy / size - 1e-9).mean(axis=1) for size in TILE_ROWS], axis=1)
    tiles = np.maximum(tiles, np.maximum(touched[:, None], rows[:, None] / TILE_ROWS))
    return ExpertLoad(tokens=tokens, touched=touched, rows=rows, tiles=tiles)


def _busiest(chosen: FloatArray, local: FloatArray, sigmas: FloatArray) -> FloatArray:
    """Touched experts of the busiest rank: mean and `sigmas` standard deviations of `local` draws of that chance."""
    chosen = np.clip(chosen, 1e-9, 1.0)
    deviation = np.sqrt((1.0 - chosen) / (chosen * local))
    return np.asarray(np.minimum(local * chosen * (1.0 + sigmas * deviation), local))


def _tiles(rows_per_expert: FloatArray, touched: FloatArray) -> FloatArray:
    """Tiles of each height over quantiles of an expert's rows, (num_points, num_tile_rows)."""
    per_expert = [np.ceil(rows_per_expert / size - 1e-9).mean(axis=1) for size in TILE_ROWS]
    return np.asarray(touched[:, None] * np.maximum(np.stack(per_expert, axis=1), 1.0))


def power_law_loads(tokens: FloatArray, num_experts: FloatArray, top_k: FloatArray, skew: FloatArray) -> FloatArray:
    """Tokens of an expert at 64 quantiles of the power law, whole numbers with mean tokens·k/E, (num_points, 64).

    Loads run over [1, 0.8·tokens] where there are more pairs than experts, else over [0.01, 2]; then they are scaled to
    the pairs, rounded, and what rounding took goes to experts without a token, one each, beyond that to the busiest.
    """
    many = (tokens * top_k > num_experts)[:, None]
    low = np.where(many, 1.0, 0.01)
    high = np.where(many, np.maximum(0.8 * tokens[:, None], 1.01), 2.0)
    power = 1.0 - skew[:, None]
    drawn = ((high**power - low**power) * QUANTILES + low**power) ** (1.0 / power)
    mean = (tokens * top_k / num_experts)[:, None]
    loads = np.minimum(np.round(drawn / drawn.mean(axis=1, keepdims=True) * mean), tokens[:, None])
    missing = np.maximum(mean - loads.mean(axis=1, keepdims=True), 0.0)
    empty = (loads < 0.5).mean(axis=1, keepdims=True)
    spread = np.minimum(missing, empty)
    loads = loads + ((empty - spread < QUANTILES) & (empty > QUANTILES))
    filled = loads + (1.0 - (missing - spread) <= QUANTILES) * np.maximum(missing - spread, 1.0)
    return np.asarray(np.minimum(filled, tokens[:, None]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCurve:
    """Fused gated expert layer; formula in the module's docstring.

    `local_frac`, `routing_frac`: share of the bandwidth at which this GPU's rows pass through the layer's buffers, and
    the pairs of *all* ranks through its sorting, `token_frac`: their tokens through quantisation and sums, which each
    rank does for all. `pad_rows`: rows without a token that each touched expert multiplies.
    `most_rows`: no tile is higher (Marlin builds up to 64 rows; steps of 64 in TensorRT-LLM's block-scaled kernels).
    `narrow_rows`, `narrow_gain`: with fewer pairs an expert its products are that much faster; TensorRT-LLM's kernels
    choose tiles of 8 to 64 rows by this mean (FlashInfer's `computeSelectedTileN`), Marlin's too (fused_marlin_moe.py).
    Benchmarks find layers of up to `cache_bytes` in the L2 cache, `cache_gain` times as fast as memory.
    """

    launch_s: float = 20e-6
    compute_frac: float = 0.7
    memory_frac: float = 0.8
    exponent: float = 2.0
    k_half: float = 200.0
    tile_half: float = 8.0
    sm_share: float = 2.5
    most_rows: float = 256.0
    wave_sharpness: float = 0.5
    k_step_s: float = 0.5e-9
    k_wide_s: float = 0.5e-9
    routing_frac: float = 2.0
    token_frac: float = 20.0
    local_frac: float = 0.6
    expert_s: float = 20e-9
    pair_s: float = 0.1e-9
    fill_bytes: float = 1e6
    pad_rows: float = 2.0
    narrow_rows: float = 8.0
    narrow_gain: float = 0.0
    cache_bytes: float = 0.0
    cache_gain: float = 1.5

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (2e-6, 120e-6),
        "compute_frac": (0.03, 1.05),
        "memory_frac": (0.1, 1.05),
        "exponent": (1.0, 12.0),
        "k_half": (0.0, 4000.0),
        "tile_half": (0.0, 200.0),
        "sm_share": (0.3, 12.0),
        "most_rows": (16.0, 256.0),
        "wave_sharpness": (0.0, 1.0),
        "k_step_s": (0.0, 20e-9),
        "k_wide_s": (0.0, 20e-9),
        "routing_frac": (0.01, 20.0),
        "token_frac": (0.01, 20.0),
        "local_frac": (0.02, 5.0),
        "expert_s": (0.0, 1e-6),
        "pair_s": (0.0, 20e-9),
        "fill_bytes": (0.0, 100e6),
        "pad_rows": (0.0, 64.0),
        "narrow_rows": (1.0, 32.0),
        "narrow_gain": (0.0, 1.0),
        "cache_bytes": (0.0, 200e6),
        "cache_gain": (1.0, 6.0),
    }

    def seconds(self, gpu: Gpu, load: ExpertLoad, layer: ExpertLayer, dtype: str) -> FloatArray:
        """Shape of the load: s per call in serving."""
        return self._seconds(gpu, load, layer, dtype, self._loops_s(gpu, load, layer, dtype))

    def measured_s(self, gpu: Gpu, load: ExpertLoad, layer: ExpertLayer, dtype: str) -> FloatArray:
        """The same as a benchmark measures it: small layers stay in the L2 cache between repeats."""
        weights = 3.0 * load.touched * layer.hidden * layer.intermediate * WEIGHT_BYTES[dtype]
        near = cached_frac(weights + load.tokens * layer.top_k * ACTIVATION_BYTES * layer.hidden, self.cache_bytes)
        fracs = (self.memory_frac, self.local_frac, self.routing_frac)
        memory, local, routing = (self.cache_gain * frac for frac in fracs)
        warm = replace(self, memory_frac=memory, local_frac=local, routing_frac=routing)
        loops_s = self._loops_s(gpu, load, layer, dtype)
        seconds = self._seconds(gpu, load, layer, dtype, loops_s)
        return np.asarray(seconds + near * (warm._seconds(gpu, load, layer, dtype, loops_s) - seconds))

    def _seconds(
        self, gpu: Gpu, load: ExpertLoad, layer: ExpertLayer, dtype: str, loops_s: tuple[FloatArray, FloatArray]
    ) -> FloatArray:
        """Given what the SMs take for both products."""
        wide = load.tokens / (load.tokens + layer.experts_per_gpu)
        products_s = np.zeros_like(load.rows)
        for (n, k), loop_s in zip(_products(load, layer), loops_s, strict=True):
            weights = load.touched * n * k * WEIGHT_BYTES[dtype]
            num_bytes = weights + load.rows * (k * ACTIVATION_IN_BYTES[dtype] + n * ACTIVATION_BYTES)
            memory_s = num_bytes / (gpu.bandwidth_bytes_per_s * self.memory_frac)
            chain_s = k * (self.k_step_s + self.k_wide_s * wide)
            products_s = products_s + softmax_norm(self.exponent, loop_s, memory_s, np.asarray(chain_s))
        pairs = load.tokens * layer.top_k
        narrow = cached_frac(np.asarray(pairs / layer.experts_per_gpu), self.narrow_rows)
        products_s = products_s / (1.0 + self.narrow_gain * narrow)
        local_bytes = load.rows * ACTIVATION_BYTES * (2.0 * layer.hidden + 3.0 * layer.intermediate)
        moved_s = local_bytes / self.local_frac + pairs * ACTIVATION_BYTES * layer.hidden / self.routing_frac
        moved_s = moved_s + 2.0 * load.tokens * ACTIVATION_BYTES * layer.hidden / self.token_frac
        moved_s = (moved_s + self.fill_bytes * wide) / gpu.bandwidth_bytes_per_s
        fixed_s = self.launch_s + self.expert_s * layer.experts_per_gpu + self.pair_s * pairs
        return np.asarray(fixed_s + moved_s + products_s)

    def _loops_s(self, gpu: Gpu, load: ExpertLoad, layer: ExpertLayer, dtype: str) -> tuple[FloatArray, FloatArray]:
        """What the SMs take for both grouped products, shape of the load each."""
        first, second = (self._loop_s(gpu, load, n, k, dtype) for n, k in _products(load, layer))
        return first, second

    def _loop_s(self, gpu: Gpu, load: ExpertLoad, n: FloatArray, k: FloatArray, dtype: str) -> FloatArray:
        built = self.most_rows + 0.5 >= TILE_ROWS
        rows, columns = TILE_ROWS[built, None], TILE_COLUMNS
        step = step_s(gpu, dtype, self, rows, columns, rows)
        tiles = load.tiles[:, built, None] * np.ceil(n[:, None, None] / columns)
        loop = waves_of(tiles, gpu.num_sms, self.wave_sharpness) * (k[:, None, None] + self.k_half) * step
        peak = gpu.peak_flop_per_s(COMPUTE_DTYPE[dtype]) * self.compute_frac
        return np.asarray(loop.min(axis=(1, 2)) + 2.0 * self.pad_rows * load.touched * n * k / peak)


def _products(
    load: ExpertLoad, layer: ExpertLayer
) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    """(columns per expert, length) of both grouped products, shape of the load each."""
    hidden = np.broadcast_to(layer.hidden, load.rows.shape)
    intermediate = np.broadcast_to(layer.intermediate, load.rows.shape)
    return (2.0 * intermediate, hidden), (hidden, intermediate)
