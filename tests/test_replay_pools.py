"""Runs of two pools: what their rows leave open, and how far the answers are from measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from estimator.calibrate_pools import best, losses_of
from estimator.catalogue.hand_over import hand_over_s
from estimator.measured_runs import MeasuredRun, PoolLayout, read_runs
from estimator.parallelism import Parallelism
from estimator.replay import answer
from estimator.replay_pools import decode_seats

SHARED = Path(__file__).parents[2] / "shared" / "measured" / "measurements.csv"


def two_pools(engine: str = "trtllm", num_decode: int = 4, dp: int = 1, highest: int | None = 36) -> MeasuredRun:
    """A run of one prefill and some decode instances at concurrency 36."""
    layouts = (
        PoolLayout(parallelism=Parallelism(dp=4, ep=4), num_instances=1),
        PoolLayout(parallelism=Parallelism(tp=8, dp=dp, ep=8), num_instances=num_decode),
    )
    return MeasuredRun(
        id="a",
        source="silicon",
        model="deepseek-ai/DeepSeek-R1",
        gpu="gb300",
        engine=engine,
        weight_dtype="fp8",
        pools=layouts,
        max_num_batched_tokens=None,
        max_num_seqs=None,
        memory_utilisation_frac=None,
        unique_prompts=0,
        shared_prefix_tokens=0,
        starts_warm=False,
        concurrency=36,
        rate_req_s=None,
        num_requests=360,
        input_bounds=(819, 1024),
        output_bounds=(6554, 8192),
        measured_ms={"ttft_mean_ms": 10433.0, "tpot_mean_ms": 11.3},
        note="",
        highest_concurrency=highest,
    )


@pytest.mark.parametrize(
    ("run", "seats"),
    [
        (two_pools(), 8),  # 36 on 4 instances: 9 each
        (two_pools(highest=192), 32),
        (two_pools(num_decode=1, dp=8, highest=36), 4),
        (two_pools(highest=None), 8),
        (two_pools(highest=3), 1),
        (two_pools(engine="vllm"), None),
    ],
)
def test_seats_are_a_power_of_two_within_the_share(run: MeasuredRun, seats: int | None) -> None:
    """TensorRT-LLM holds the largest power of two within a rank's share of the top concurrency; others their own."""
    assert decode_seats(run) == seats


def test_a_full_decode_pool_is_part_of_ttft() -> None:
    """36 requests on 32 seats: four wait, so that TTFT is 4/36 of E2E and no prefill speed changes it."""
    latency = answer(two_pools()).latency_ms
    assert latency["ttft_mean_ms"] / latency["e2e_mean_ms"] == pytest.approx(4 / 36, rel=0.15)
    free = answer(replace(two_pools(), highest_concurrency=64)).latency_ms
    assert free["ttft_mean_ms"] < 0.1 * latency["ttft_mean_ms"]


def test_a_longer_hand_over_delays_the_first_token_by_itself() -> None:
    """With seats for all the mean TTFT grows by what the hand-over takes longer."""
    run = replace(two_pools(), highest_concurrency=128)
    slow, fast = (answer(run, hand_over_s=seconds).latency_ms["ttft_mean_ms"] for seconds in (0.3, 0.1))
    assert slow - fast == pytest.approx(200.0, rel=0.02)


def test_another_engine_takes_the_mean() -> None:
    """An engine without runs of two pools hands over in the mean of those with."""
    known = [hand_over_s(name) for name in ("sglang", "trtllm", "vllm")]
    assert hand_over_s("another") == pytest.approx(np.mean(known))


def test_best_is_the_least_mean_loss() -> None:
    """The grid point whose predictions are nearest in log ratio wins, whatever one run beyond saturation says."""
    run = two_pools()
    near = [{"ttft_mean_ms": 10433.0 * factor} for factor in (0.5, 1.0, 2.0)]
    losses = losses_of([run, run, run], [near, near, [{"ttft_mean_ms": 1.0}] * 3])
    assert best(losses, [True, True, True]) == 1


@pytest.mark.skipif(not SHARED.is_file(), reason="no shared measurements beside the checkout")
def test_measured_runs_of_two_pools() -> None:
    """Every eighth silicon run of two pools: TPOT within 20 % and TTFT within 40 % in the median."""
    runs = [run for run in read_runs(SHARED) if run.mode == "disaggregated"][::8]
    latency = [answer(run).latency_ms for run in runs]
    for metric, limit in (("tpot_mean_ms", 0.20), ("ttft_mean_ms", 0.40)):
        errors = [abs(a[metric] / run.measured_ms[metric] - 1) for a, run in zip(latency, runs, strict=True)]
        assert float(np.median(errors)) < limit
