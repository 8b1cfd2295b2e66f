"""Seconds of a matrix product and of an expert layer: a roofline with efficiencies that depend on shape.

    t = launch + quantise + ‖ FLOP/(peak·η_c), bytes/(bandwidth·η_m), k·τ ‖_p

| symbol | meaning |
|---|---|
| η_c, η_m | share of the data sheet's dense peak and bandwidth reached by large shapes |
| u | output tiles of 128 × 128 over SMs: waves of work, of which the last is not full |
| k_half | length of k at which prologue and epilogue cost as much as the loop itself |
| τ | time of one step along k where nothing else binds, s |
| p | how sharply the larger bound wins (p → ∞: maximum) |

A curve is a handful of bounded, physically named numbers, fitted per (GPU, engine, dtype) by `estimator.calibrate`;
its defaults are what a data sheet alone allows to say. Methods work on float arrays, broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from estimator.hardware import Gpu

FloatArray = NDArray[np.float64]
Bounds = Mapping[str, tuple[float, float]]

TILE = 128.0  # rows and columns of an output tile; kernels also use others, `wave_sharpness` blurs the difference
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmCurve:
    """C[m,n] = A[m,k]·B[k,n]; formula in the module's docstring.

    `tail_waves` of idle SMs follow the last full wave; `wave_sharpness` 0 = waves count as fractions, 1 = as whole
    numbers. Activations that reach the operator in bf16 are quantised at `quantise_frac` of the bandwidth, each row
    costing as much as `quantise_row` more elements.
    """

    launch_s: float = 3e-6
    compute_frac: float = 0.75
    memory_frac: float = 0.8
    exponent: float = 4.0
    k_half: float = 200.0
    tail_waves: float = 0.1
    wave_sharpness: float = 0.2
    k_step_s: float = 0.2e-9
    quantise_frac: float = 0.4
    quantise_row: float = 0.0

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (0.5e-6, 40e-6),
        "compute_frac": (0.15, 1.05),
        "memory_frac": (0.3, 1.05),
        "exponent": (1.0, 12.0),
        "k_half": (0.0, 4000.0),
        "tail_waves": (0.0, 4.0),
        "wave_sharpness": (0.0, 1.0),
        "k_step_s": (0.0, 20e-9),
        "quantise_frac": (0.02, 1.0),
        "quantise_row": (0.0, 8000.0),
    }

    def seconds(self, gpu: Gpu, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str) -> FloatArray:
        """Broadcast shape of m, n, k: s per call."""
        bandwidth = gpu.bandwidth_bytes_per_s
        waves = np.ceil(m / TILE) * np.ceil(n / TILE) / gpu.num_sms
        if self.wave_sharpness > 0:
            waves = waves * (np.ceil(waves) / np.maximum(waves, 1e-9)) ** self.wave_sharpness
        flop = 2.0 * TILE * TILE * gpu.num_sms * (waves + self.tail_waves) * (k + self.k_half)
        compute_s = flop / (gpu.peak_flop_per_s(COMPUTE_DTYPE[dtype]) * self.compute_frac)
        num_bytes = n * k * WEIGHT_BYTES[dtype] + m * k * ACTIVATION_IN_BYTES[dtype] + m * n * ACTIVATION_BYTES
        memory_s = num_bytes / (bandwidth * self.memory_frac)
        return np.asarray(
            self.launch_s
            + self._quantise_s(bandwidth, m, k, dtype)
            + softmax_norm(self.exponent, compute_s, memory_s, k * self.k_step_s + 0.0 * m)
        )

    def _quantise_s(self, bandwidth_bytes_per_s: float, m: FloatArray, k: FloatArray, dtype: str) -> FloatArray | float:
        bytes_in = ACTIVATION_IN_BYTES[dtype]
        if bytes_in == ACTIVATION_BYTES:
            return 0.0
        moved = m * (k + self.quantise_row) * (ACTIVATION_BYTES + bytes_in)
        return np.asarray(moved / (bandwidth_bytes_per_s * self.quantise_frac))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayer:
    """Shape of a gated expert layer on one GPU: `intermediate` and `experts_per_gpu` are its share."""

    hidden: FloatArray | float
    intermediate: FloatArray | float
    num_experts: FloatArray | float
    experts_per_gpu: FloatArray | float
    top_k: FloatArray | float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCurve:
    """Fused gated expert layer: t = launch + global + ‖ FLOP/(peak·η_c), bytes/(bandwidth·η_m) ‖_p.

    Of T tokens routed over all ranks, T·top_k·(experts_per_gpu/num_experts)·imbalance pairs reach this GPU, and touch
    E·(1 − e^(−spread·pairs/E)) of its E experts (1 = uniform at random, > 1 = dealt out evenly). `imbalance` is that
    of the busiest rank, 1 + imbalance_per_doubling·log2(ranks). Each touched expert pays `pad_rows` rows that hold no
    token, and `k_half` more steps along each of its reductions. `routing_frac`: pairs of *all* ranks pass through the
    layer's sorting and activation buffers at this share of the bandwidth. `fill_bytes`: what could have been moved
    while the kernel fills its pipelines.
    """

    launch_s: float = 15e-6
    compute_frac: float = 0.6
    memory_frac: float = 0.7
    exponent: float = 4.0
    pad_rows: float = 16.0
    k_half: float = 200.0
    spread: float = 1.0
    imbalance_per_doubling: float = 0.0
    routing_frac: float = 1.0
    fill_bytes: float = 1e6

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (2e-6, 80e-6),
        "compute_frac": (0.03, 1.05),
        "memory_frac": (0.1, 1.05),
        "exponent": (1.0, 12.0),
        "pad_rows": (0.0, 256.0),
        "k_half": (0.0, 4000.0),
        "spread": (0.2, 3.0),
        "imbalance_per_doubling": (0.0, 0.6),
        "routing_frac": (0.01, 100.0),
        "fill_bytes": (0.0, 1e8),
    }

    def seconds(self, gpu: Gpu, tokens: FloatArray, layer: ExpertLayer, dtype: str) -> FloatArray:
        """Broadcast shape of tokens and layer: s per call."""
        bandwidth = gpu.bandwidth_bytes_per_s
        ranks = layer.num_experts / layer.experts_per_gpu
        all_pairs = tokens * layer.top_k
        even = np.asarray(all_pairs / ranks)
        pairs = even * (1.0 + self.imbalance_per_doubling * np.log2(ranks))
        touched = np.minimum(layer.experts_per_gpu * -np.expm1(-self.spread * even / layer.experts_per_gpu), even)
        touched = np.maximum(touched, np.minimum(even, 1.0))
        weights = 3.0 * layer.hidden * layer.intermediate
        loop = (1.0 + self.k_half / layer.hidden + 0.5 * self.k_half / layer.intermediate) * weights
        flop = 2.0 * (pairs + self.pad_rows * touched) * loop
        compute_s = flop / (gpu.peak_flop_per_s(COMPUTE_DTYPE[dtype]) * self.compute_frac)
        io_bytes = ACTIVATION_BYTES * (2.0 * layer.hidden + 3.0 * layer.intermediate)
        num_bytes = touched * weights * WEIGHT_BYTES[dtype] + pairs * io_bytes + self.fill_bytes
        memory_s = num_bytes / (bandwidth * self.memory_frac)
        routing_s = all_pairs * io_bytes / (bandwidth * self.routing_frac)
        return np.asarray(self.launch_s + routing_s + softmax_norm(self.exponent, compute_s, memory_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwiseCurve:
    """A kernel that only moves bytes: t = launch + bytes/(bandwidth·η_m)."""

    launch_s: float = 2e-6
    memory_frac: float = 0.75

    BOUNDS: ClassVar[Bounds] = {"launch_s": (0.5e-6, 200e-6), "memory_frac": (0.005, 1.05)}

    def seconds(self, gpu: Gpu, num_bytes: FloatArray) -> FloatArray:
        """Shape of num_bytes: s per call."""
        return np.asarray(self.launch_s + num_bytes / (gpu.bandwidth_bytes_per_s * self.memory_frac))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentCurve:
    """Prefill of a recurrent layer: t = launch + tokens·(step + bytes per token/(bandwidth·η_m)).

    `step_s`: a token's share of the chain of chunk states, which no width of the GPU shortens.
    """

    launch_s: float = 20e-6
    step_s: float = 2e-9
    memory_frac: float = 0.4

    BOUNDS: ClassVar[Bounds] = {"launch_s": (1e-6, 200e-6), "step_s": (0.0, 1e-6), "memory_frac": (0.005, 1.05)}

    def s_per_token(self, gpu: Gpu, bytes_per_token: FloatArray) -> FloatArray:
        """Shape of bytes_per_token: s per token."""
        return np.asarray(self.step_s + bytes_per_token / (gpu.bandwidth_bytes_per_s * self.memory_frac))
