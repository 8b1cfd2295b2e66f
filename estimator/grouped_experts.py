"""Seconds of an expert layer made of grouped products of DeepGEMM, over rows laid out one expert after another.

    t = launch + Σ over both products ‖ waves·(k + k_half)·step, bytes/(bandwidth·η_m), k·τ ‖_p + moved/(bandwidth·η)
    rows = PADDED_ROWS · (Σ over touched experts of ⌈rows of the expert/PADDED_ROWS⌉ + experts without a token)

Tile, step, η_m, p and τ are those of the same library's plain product (`GemmCurve`), nothing fitted: it is one kernel.
A block of rows belongs to one expert; the layout is allocated for a block of every expert, chosen or not, and blocks
without a token take their turn on the SMs and read weights as others do, but store nothing (vllm 0.12.0, fused_moe:
`compute_aligned_M`, `ep_scatter` and `ep_gather` of deep_gemm_utils.py; deep_gemm_moe.py).
"""

from __future__ import annotations

import numpy as np

from estimator.experts import PADDED_ROWS, TILE_ROWS, ExpertCurve, ExpertLayer, ExpertLoad
from estimator.hardware import Gpu
from estimator.roofline import (
    ACTIVATION_BYTES,
    ACTIVATION_IN_BYTES,
    WEIGHT_BYTES,
    ElementwiseCurve,
    FloatArray,
    GemmCurve,
)


def grouped_experts_s(gpu: Gpu, curve: GemmCurve, load: ExpertLoad, layer: ExpertLayer, dtype: str) -> FloatArray:
    """Shape of the load: s per call in serving."""
    local = np.broadcast_to(np.asarray(layer.experts_per_gpu, dtype=np.float64), load.rows.shape)
    hidden, width = (np.asarray(size, dtype=np.float64) for size in (layer.hidden, layer.intermediate))
    stored = PADDED_ROWS * load.tiles[:, TILE_ROWS == PADDED_ROWS][:, 0]
    rows = stored + PADDED_ROWS * np.maximum(local - load.touched, 0.0)
    products_s = np.zeros_like(rows)
    for n, k in ((2.0 * width, hidden), (hidden, width)):
        num_bytes = (
            local * n * k * WEIGHT_BYTES[dtype] + rows * k * ACTIVATION_IN_BYTES[dtype] + stored * n * ACTIVATION_BYTES
        )
        products_s = products_s + curve.grouped_s(gpu, rows, n, k, dtype, num_bytes)
    moved_s = _moved_bytes(load, layer, dtype) / (gpu.bandwidth_bytes_per_s * ElementwiseCurve().memory_frac)
    return np.asarray(ExpertCurve().launch_s + products_s + moved_s)


def _moved_bytes(load: ExpertLoad, layer: ExpertLayer, dtype: str) -> FloatArray:
    """Around the products: tokens quantised, copied to their experts' rows, gated there, and summed up in bf16.

    The gate passes over all rows allocated: those of the pairs of every rank, and a block's rest of each expert here.
    """
    quantised = ACTIVATION_IN_BYTES[dtype]
    allocated = load.tokens * layer.top_k + layer.experts_per_gpu * (PADDED_ROWS - 1.0)
    of_tokens = load.tokens * layer.hidden * (ACTIVATION_BYTES + quantised + ACTIVATION_BYTES)
    of_rows = load.rows * layer.hidden * (2.0 * quantised + ACTIVATION_BYTES)
    return np.asarray(of_tokens + of_rows + allocated * layer.intermediate * (2.0 * ACTIVATION_BYTES + quantised))
