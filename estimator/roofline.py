"""Seconds of one operator: t = launch + ‖FLOP/(peak·η_c(shape)), bytes/(bandwidth·η_m(shape))‖.

Each curve is a handful of bounded, physically named numbers, fitted per (GPU, engine, dtype) by `estimator.calibrate`;
the defaults are what a data sheet alone allows to say. All methods work on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.hardware import Gpu

FloatArray = NDArray[np.float64]

COMPUTE_DTYPE = {"bf16": "bf16", "int4": "bf16", "fp8": "fp8", "fp8_block": "fp8", "fp4": "fp4", "mxfp4": "fp4"}
WEIGHT_BYTES = {"bf16": 2.0, "int4": 0.53, "fp8": 1.0, "fp8_block": 1.0, "fp4": 0.5625, "mxfp4": 0.53125}
KV_BYTES = {"bf16": 2.0, "fp8": 1.0}


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
class GemmCurve:
    """C[m,n] = A[m,k]·B[k,n]."""

    launch_s: float = 3e-6
    compute_frac: float = 0.7
    memory_frac: float = 0.8

    def seconds(self, gpu: Gpu, m: FloatArray, n: float, k: float, dtype: str) -> FloatArray:
        """(…,) s per call."""
        compute_s = 2.0 * m * n * k / (gpu.peak_flop_per_s(COMPUTE_DTYPE[dtype]) * self.compute_frac)
        num_bytes = n * k * WEIGHT_BYTES[dtype] + 2.0 * m * (n + k)
        memory_s = num_bytes / (gpu.bandwidth_bytes_per_s * self.memory_frac)
        return np.asarray(self.launch_s + np.maximum(compute_s, memory_s))
