"""How long fresh servers compile kernels before their first prompts, by what layers they run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.engine import EngineCosts
from estimator.measured_runs import PoolLayout
from estimator.parallelism import Parallelism
from estimator.replay import prepare, replay
from tests.small_run import small_run

EIGHT = (PoolLayout(parallelism=Parallelism(tp=8), num_instances=1),)
RUN = small_run(gpu="b200_sxm", engine="sglang", pools=EIGHT, max_num_batched_tokens=8192, num_requests=40)


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
