"""How long fresh servers compile kernels before their first prompts, by what layers they run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.engine import EngineCosts
from estimator.measured_runs import MeasuredRun, PoolLayout
from estimator.parallelism import Parallelism
from estimator.replay import prepare, replay

RUN = MeasuredRun(
    id="0",
    source="silicon/inferencemax",
    model="Qwen/Qwen3.5-397B-A17B",
    gpu="b200_sxm",
    engine="sglang",
    weight_dtype="fp8",
    pools=(PoolLayout(parallelism=Parallelism(tp=8), num_instances=1),),
    max_num_batched_tokens=8192,
    max_num_seqs=8,
    memory_utilisation_frac=None,
    unique_prompts=0,
    shared_prefix_tokens=0,
    starts_warm=True,
    concurrency=4,
    rate_req_s=None,
    num_requests=40,
    input_bounds=(256, 256),
    output_bounds=(8, 8),
    measured_ms={},
    note="",
)


@pytest.mark.parametrize(
    ("model", "source", "later_s"),
    [
        ("Qwen/Qwen3.5-397B-A17B", "silicon/inferencemax", 2.0),
        ("deepseek-ai/DeepSeek-R1", "silicon/inferencemax", 0.0),
        ("Qwen/Qwen3.5-397B-A17B", "sim2real", 0.0),
    ],
)
def test_kernels_of_delta_nets_hold_back_the_first_burst(model: str, source: str, later_s: float) -> None:
    """Two seconds for them delay the burst of a hybrid by two seconds, no other model's, and none of a warm server."""
    prepared = prepare(replace(RUN, model=model, source=source))
    plain, cold = (replay(prepared, EngineCosts(delta_cold_s=seconds)).first_token_s for seconds in (0.0, 2.0))
    assert np.sort(cold)[:4] - np.sort(plain)[:4] == pytest.approx(later_s, abs=1e-9)
