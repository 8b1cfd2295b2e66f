"""Operator timing of a GPU under an engine."""

from __future__ import annotations

from estimator.hardware import Gpu
from estimator.timing import OperatorTiming


def load_timing(gpu: Gpu, engine: str) -> OperatorTiming:
    """Timing of `gpu` under `engine`."""
    return OperatorTiming(gpu=gpu, engine=engine)
