"""Seconds of a matrix product: a roofline over output tiles, with efficiencies that depend on shape.

    t = launch + quantise + ‖ min over tiles of  waves·(k/split + k_half)·step + split_s·log2 split,
                              bytes/(bandwidth·η_m),  k·τ ‖_p

| symbol | meaning |
|---|---|
| tile | rows × columns of the output that one SM makes at a time; a kernel has several and takes the fastest |
| split | parts of k that different SMs sum up, so that few tiles still fill the GPU; joining them costs split_s |
| least_tile | outputs of the smallest tile that a kernel without a choice takes for many rows, min(least_tile, 64·m) |
| waves | tiles over SMs, of which the last wave is not full |
| step | time of one SM per unit of k: the tile's FLOP at η_c of peak, or its bytes at `sm_share` of an even bandwidth |
| k_half | length of k at which prologue and epilogue cost as much as the loop itself |
| η_c, η_m | share of the data sheet's dense peak and bandwidth reached by large shapes |
| τ | time of one step along k where nothing else binds, s |
| p | how sharply the larger bound wins (p → ∞: maximum) |

A curve is a handful of bounded, physically named numbers, fitted per (GPU, engine, dtype) by `estimator.calibrate`;
its defaults are what a data sheet alone allows to say. Methods work on float arrays, broadcast. Expert layers, which
are products of the same kind, are in `estimator.experts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from estimator.hardware import Gpu

FloatArray = NDArray[np.float64]
Bounds = Mapping[str, tuple[float, float]]

TILE_ROWS = np.array([16.0, 64.0, 64.0, 128.0, 128.0, 64.0, 128.0, 256.0])
TILE_COLUMNS = np.array([64.0, 64.0, 128.0, 64.0, 128.0, 256.0, 256.0, 128.0])  # tiles that CUTLASS and cuBLAS ship
SPLITS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
PADDED_ROWS = 4.0  # engines pad a step's tokens to captured batch sizes; block-scaled kernels want multiples of four
LEAST_COLUMNS = 64.0  # of a tile
ROW_SHARPNESS = 4.0  # exponent where a row's elements and its fixed cost meet in quantisation
CACHE_SHARPNESS = 6.0  # exponent of the passage from cache to memory as a working set outgrows the cache
ACTIVATION_BYTES = 2.0
COMPUTE_DTYPE: Mapping[str, str] = {
    "bf16": "bf16",
    "int4": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "fp4": "fp4",
    "mxfp4": "fp4",
}  # arithmetic in which weights of a dtype are multiplied
WEIGHT_BYTES: Mapping[str, float] = {
    "bf16": 2.0,
    "int4": 0.5 + 2.5 / 128,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / 128**2,
    "fp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
}  # per parameter with its scales; per-tensor for fp8, one per 128 × 128, 128, 16 and 32 parameters for the others
ACTIVATION_IN_BYTES: Mapping[str, float] = {
    "bf16": 2.0,
    "int4": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "fp4": 0.5625,
    "mxfp4": 1.03125,
}  # per activation as the kernel reads it, after quantisation


def softmax_norm(exponent: float, *terms: FloatArray) -> FloatArray:
    """(Σ term^p)^(1/p) ≥ each term: the larger bound wins, softly where two are near. Scaled so as not to underflow."""
    largest = terms[0]
    for term in terms[1:]:
        largest = np.maximum(largest, term)
    largest = np.maximum(largest, 1e-12)
    total = np.zeros_like(largest)
    for term in terms:
        total = total + (term / largest) ** exponent
    return np.asarray(largest * total ** (1.0 / exponent))


def waves_of(tiles: FloatArray, num_sms: int, sharpness: float) -> FloatArray:
    """Waves that `tiles` take on `num_sms` SMs, one at least; sharpness 0 counts fractions, 1 whole waves."""
    waves = np.maximum(tiles / num_sms, 1.0)
    return np.asarray(waves * (np.ceil(waves) / waves) ** sharpness)


def cached_frac(num_bytes: FloatArray, cache_bytes: float) -> FloatArray:
    """Share of a working set that repeated runs find in a cache of `cache_bytes`: 1 far below, 0 far above."""
    return np.asarray(1.0 / (1.0 + (num_bytes / max(cache_bytes, 1.0)) ** CACHE_SHARPNESS))


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmCurve:
    """C[m,n] = A[m,k]·B[k,n]; formula in the module's docstring.

    `wave_sharpness` 0 = waves count as fractions, 1 = as whole numbers. `tile_half`: rows and columns by which a tile's
    arithmetic is longer than its size (shared memory). Activations that reach the operator in bf16 are quantised at
    `quantise_frac` of the bandwidth, a row costing no less than `quantise_row` elements.

    Two effects belong to the measurement and not to serving, where weights come from memory and rows are padded:
    repeated runs find weights of up to `cache_bytes` in the L2 cache, at `cache_frac` of the memory bandwidth; a number
    of rows that is no multiple of four costs `odd_s` and `odd_frac` of the product.
    """

    launch_s: float = 3e-6
    compute_frac: float = 0.75
    memory_frac: float = 0.8
    exponent: float = 3.0
    k_half: float = 150.0
    tile_half: float = 8.0
    sm_share: float = 3.0
    split_s: float = 1.5e-6
    wave_sharpness: float = 0.2
    least_tile: float = 0.0
    k_step_s: float = 0.2e-9
    quantise_frac: float = 0.4
    quantise_row: float = 0.0
    cache_bytes: float = 0.0
    cache_frac: float = 1.5
    odd_s: float = 0.0
    odd_frac: float = 0.0

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (0.5e-6, 40e-6),
        "compute_frac": (0.15, 1.05),
        "memory_frac": (0.3, 1.05),
        "exponent": (1.0, 12.0),
        "k_half": (0.0, 4000.0),
        "tile_half": (0.0, 200.0),
        "sm_share": (1.0, 12.0),
        "split_s": (0.0, 40e-6),
        "wave_sharpness": (0.0, 1.0),
        "least_tile": (0.0, 32768.0),
        "k_step_s": (0.0, 20e-9),
        "quantise_frac": (0.02, 1.0),
        "quantise_row": (0.0, 8000.0),
        "cache_bytes": (0.0, 60e6),
        "cache_frac": (1.05, 6.0),
        "odd_s": (0.0, 30e-6),
        "odd_frac": (0.0, 1.0),
    }

    def seconds(self, gpu: Gpu, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str) -> FloatArray:
        """Broadcast shape of m, n, k: s per call in serving, weights read from memory."""
        padded = np.ceil(m / PADDED_ROWS) * PADDED_ROWS
        return np.asarray(
            self.launch_s
            + self._quantise_s(gpu.bandwidth_bytes_per_s, m, k, dtype)
            + self._product_s(gpu, padded, n, k, dtype, self._bytes(m, n, k, dtype) / self.memory_frac)
        )

    def measured_s(self, gpu: Gpu, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str) -> FloatArray:
        """The same as a benchmark measures it, repeated on few buffers and with any number of rows."""
        cached = cached_frac(n * k * WEIGHT_BYTES[dtype], self.cache_bytes)
        per_frac = cached / max(self.cache_frac, self.memory_frac) + (1.0 - cached) / self.memory_frac
        product_s = self._product_s(gpu, m, n, k, dtype, self._bytes(m, n, k, dtype) * per_frac)
        odd = (m % PADDED_ROWS > 0).astype(np.float64)
        overhead_s = self.launch_s + self._quantise_s(gpu.bandwidth_bytes_per_s, m, k, dtype) + odd * self.odd_s
        return np.asarray(overhead_s + product_s * (1.0 + odd * self.odd_frac))

    def grouped_s(
        self, gpu: Gpu, rows: FloatArray, n: FloatArray, k: FloatArray, dtype: str, num_bytes: FloatArray
    ) -> FloatArray:
        """Broadcast shape of rows, n, k: s of one kernel over groups of rows, whole tiles with weights of their own.

        Without launch and quantisation; `num_bytes` are those of all groups.
        """
        return self._product_s(gpu, rows, n, k, dtype, num_bytes / self.memory_frac)

    def _bytes(self, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str) -> FloatArray:
        weights = n * k * WEIGHT_BYTES[dtype]
        return np.asarray(weights + m * k * ACTIVATION_IN_BYTES[dtype] + m * n * ACTIVATION_BYTES)

    def _product_s(
        self, gpu: Gpu, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str, bytes_over_frac: FloatArray
    ) -> FloatArray:
        shape = np.broadcast(m, n, k).shape
        m, n, k = (np.broadcast_to(values, shape)[..., None, None] for values in (m, n, k))
        rows, columns = TILE_ROWS[:, None], TILE_COLUMNS[:, None]
        step = step_s(gpu, dtype, self, rows, columns, np.minimum(rows, m))
        tiles = np.ceil(m / rows) * np.ceil(n / columns) * SPLITS
        loop = waves_of(tiles, gpu.num_sms, self.wave_sharpness) * (k / SPLITS + self.k_half) * step
        loop = (loop + self.split_s * np.log2(SPLITS)).min(axis=-1)
        built = (rows * columns)[:, 0] >= np.minimum(self.least_tile, LEAST_COLUMNS * m[..., 0])
        fastest = np.where(built, loop, np.inf).min(axis=-1)
        memory_s = bytes_over_frac / gpu.bandwidth_bytes_per_s
        return softmax_norm(self.exponent, fastest, memory_s, k[..., 0, 0] * self.k_step_s)

    def _quantise_s(self, bandwidth_bytes_per_s: float, m: FloatArray, k: FloatArray, dtype: str) -> FloatArray | float:
        bytes_in = ACTIVATION_IN_BYTES[dtype]
        if bytes_in == ACTIVATION_BYTES:
            return 0.0
        width = softmax_norm(ROW_SHARPNESS, np.asarray(k, dtype=np.float64), np.full(np.shape(k), self.quantise_row))
        moved = m * width * (ACTIVATION_BYTES + bytes_in)
        return np.asarray(moved / (bandwidth_bytes_per_s * self.quantise_frac))


class TileCosts(Protocol):
    """What a curve says about one SM working on one tile."""

    @property
    def compute_frac(self) -> float:
        """Share of the SM's peak."""

    @property
    def tile_half(self) -> float:
        """Rows and columns by which a tile's arithmetic is longer."""

    @property
    def sm_share(self) -> float:
        """Bandwidth of one SM alone over an even share of it."""


def step_s(
    gpu: Gpu, dtype: str, costs: TileCosts, rows: FloatArray, columns: FloatArray, filled_rows: FloatArray
) -> FloatArray:
    """Seconds of one SM per unit of k on a tile of rows × columns, `filled_rows` of which hold tokens."""
    flop = 2.0 * (rows * columns + costs.tile_half * (rows + columns))
    compute_s = flop * gpu.num_sms / (gpu.peak_flop_per_s(COMPUTE_DTYPE[dtype]) * costs.compute_frac)
    num_bytes = columns * WEIGHT_BYTES[dtype] + filled_rows * ACTIVATION_IN_BYTES[dtype]
    return np.maximum(compute_s, num_bytes * gpu.num_sms / (gpu.bandwidth_bytes_per_s * costs.sm_share))


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwiseCurve:
    """A kernel that only moves bytes: t = launch + bytes/(bandwidth·η_m).

    Benchmarks find up to `cache_bytes` in the L2 cache, at `cache_frac` of the memory bandwidth.
    """

    launch_s: float = 2e-6
    memory_frac: float = 0.75
    cache_bytes: float = 0.0
    cache_frac: float = 1.5

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (0.5e-6, 200e-6),
        "memory_frac": (0.005, 1.05),
        "cache_bytes": (0.0, 200e6),
        "cache_frac": (1.05, 8.0),
    }

    def seconds(self, gpu: Gpu, num_bytes: FloatArray) -> FloatArray:
        """Shape of num_bytes: s per call."""
        return np.asarray(self.launch_s + num_bytes / (gpu.bandwidth_bytes_per_s * self.memory_frac))

    def measured_s(self, gpu: Gpu, num_bytes: FloatArray) -> FloatArray:
        """The same as a benchmark measures it, repeated on the same bytes."""
        near = cached_frac(num_bytes, self.cache_bytes)
        warm_s = self.launch_s + num_bytes / (gpu.bandwidth_bytes_per_s * self.cache_frac)
        return np.asarray(near * warm_s + (1.0 - near) * self.seconds(gpu, num_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingCurve:
    """Scores and their ranking: t = launch + ‖ tokens·step, bytes/(bandwidth·η_m) ‖₂.

    `step_s`: a token's share of ranking its own sequence, which one SM does alone, each sequence on another.
    """

    launch_s: float = 10e-6
    step_s: float = 0.4e-9
    memory_frac: float = 0.7

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (1e-6, 200e-6),
        "step_s": (0.0, 20e-9),
        "memory_frac": (0.05, 1.05),
    }

    def s_per_token(self, gpu: Gpu, num_seqs: FloatArray, bytes_per_token: float) -> FloatArray:
        """Shape of num_seqs: s per token that `num_seqs` equally long sequences hold together."""
        memory_s = np.full_like(num_seqs, bytes_per_token / (gpu.bandwidth_bytes_per_s * self.memory_frac))
        return softmax_norm(2.0, self.step_s / np.maximum(num_seqs, 1.0), memory_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentCurve:
    """Prefill of a recurrent layer: t = launch + ‖ length·step, bytes/(bandwidth·η_m) ‖_p.

    `step_s`: a token's share of the chain of chunk states, which sequences and heads walk side by side and no width of
    the GPU shortens. `solved_frac`: share of what its kernels hand each other that passes through memory, less in
    kernels that do several steps in one. Benchmarks find up to `cache_bytes` in the L2 cache, at `cache_frac` of the
    memory bandwidth. Bytes are those of `delta_net_bytes_per_token`.
    """

    launch_s: float = 20e-6
    step_s: float = 20e-9
    memory_frac: float = 0.4
    solved_frac: float = 0.7
    exponent: float = 2.0
    cache_bytes: float = 0.0
    cache_frac: float = 0.5

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (1e-6, 200e-6),
        "step_s": (0.0, 1e-6),
        "memory_frac": (0.005, 1.05),
        "solved_frac": (0.0, 3.0),
        "exponent": (1.0, 8.0),
        "cache_bytes": (0.0, 200e6),
        "cache_frac": (0.005, 8.0),
    }

    def s_per_token(self, gpu: Gpu, bytes_per_token: tuple[FloatArray | float, FloatArray | float]) -> FloatArray:
        """Shape of bytes_per_token: s per token of one long prompt, which reads from memory."""
        memory_s = self._bytes(bytes_per_token) / (gpu.bandwidth_bytes_per_s * self.memory_frac)
        return softmax_norm(self.exponent, np.full_like(memory_s, self.step_s), memory_s)

    def measured_s(
        self,
        gpu: Gpu,
        num_seqs: FloatArray,
        length: FloatArray,
        bytes_per_token: tuple[FloatArray | float, FloatArray | float],
    ) -> FloatArray:
        """`num_seqs` prompts of `length` tokens, as a benchmark measures them: s per call."""
        num_bytes = num_seqs * length * self._bytes(bytes_per_token)
        near = cached_frac(num_bytes, self.cache_bytes)
        per_frac = near / max(self.cache_frac, self.memory_frac) + (1.0 - near) / self.memory_frac
        memory_s = num_bytes * per_frac / gpu.bandwidth_bytes_per_s
        return np.asarray(self.launch_s + softmax_norm(self.exponent, length * self.step_s, memory_s))

    def _bytes(self, bytes_per_token: tuple[FloatArray | float, FloatArray | float]) -> FloatArray:
        streamed, solved = bytes_per_token
        return np.asarray(streamed + self.solved_frac * solved, dtype=np.float64)
