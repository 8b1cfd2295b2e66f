"""Runs of two pools: what their rows leave open, and how far the answers are from measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from estimator.catalogue.engines import load_engine
from estimator.engine import EngineCosts
from estimator.measured_runs import MeasuredRun, PoolLayout
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
    run, engine = replace(two_pools(), highest_concurrency=128), load_engine("trtllm")
    slow, fast = (
        answer(run, replace(engine, costs={"": EngineCosts(hand_over_s=s)})).latency_ms["ttft_mean_ms"]
        for s in (0.3, 0.1)
    )
    assert slow - fast == pytest.approx(200.0, rel=0.02)
