"""A measured run of one small load, for tests of how runs are replayed."""

from __future__ import annotations

from typing import Any

from estimator.measured_runs import MeasuredRun, PoolLayout
from estimator.parallelism import Parallelism


def small_run(**changes: Any) -> MeasuredRun:
    """Qwen3-235B in fp8 on four H200 under vLLM, 8 requests, 4 in flight; changed as told."""
    values: dict[str, Any] = {
        "id": "0",
        "source": "inferencemax",
        "model": "Qwen/Qwen3-235B-A22B",
        "gpu": "h200_sxm",
        "engine": "vllm",
        "weight_dtype": "fp8",
        "pools": (PoolLayout(parallelism=Parallelism(tp=4), num_instances=1),),
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 8,
        "memory_utilisation_frac": None,
        "unique_prompts": 0,
        "shared_prefix_tokens": 0,
        "starts_warm": True,
        "concurrency": 4,
        "rate_req_s": None,
        "num_requests": 8,
        "input_bounds": (128, 128),
        "output_bounds": (8, 8),
        "measured_ms": {},
        "note": "",
    }
    return MeasuredRun(**(values | changes))
