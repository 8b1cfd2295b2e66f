"""Runs of two pools: what their rows leave open, and how far the answers are from measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estimator.catalogue.engines import load_engine
from estimator.engine import EngineCosts
from estimator.instance import BLOCK_TOKENS, EngineLimits
from estimator.measured_runs import MeasuredRun, PoolLayout
from estimator.parallelism import Parallelism
from estimator.replay import answer, prepare
from estimator.replay_pools import decode_seats, fuses_norms, pool_blocks, pool_engine, pool_limits, pool_parallelism
from tests.small_run import small_run

SHARED = Path(__file__).parents[2] / "shared" / "measured" / "measurements.csv"


def two_pools(engine: str = "trtllm", num_decode: int = 4, dp: int = 1, **changes: Any) -> MeasuredRun:
    """A run of one prefill and some decode instances at concurrency 36, changed as told."""
    layouts = (
        PoolLayout(parallelism=Parallelism(dp=4, ep=4), num_instances=1),
        PoolLayout(parallelism=Parallelism(tp=8, dp=dp, ep=8), num_instances=num_decode),
    )
    run = small_run(
        source="silicon",
        model="deepseek-ai/DeepSeek-R1",
        gpu="gb300",
        engine=engine,
        pools=layouts,
        max_num_batched_tokens=None,
        max_num_seqs=None,
        starts_warm=False,
        concurrency=36,
        num_requests=360,
        input_bounds=(819, 1024),
        output_bounds=(6554, 8192),
        measured_ms={"ttft_mean_ms": 10433.0, "tpot_mean_ms": 11.3},
        highest_concurrency=192,
    )
    return replace(run, **changes)


SHORT_FP4: dict[str, Any] = {"weight_dtype": "fp4", "output_bounds": (819, 1024)}


@pytest.mark.parametrize(
    ("run", "seats"),
    [
        (two_pools(), 8),  # 36 on 4 instances: 9 each
        (two_pools(concurrency=4), 1),
        (two_pools(concurrency=24), 4),
        (two_pools(num_decode=1, dp=8), 4),
        (two_pools(num_decode=2, dp=8, concurrency=12288), 768),
        (two_pools(**SHORT_FP4), 32),  # one server, driven at up to 192
        (two_pools(weight_dtype="fp4"), 8),
        (two_pools(engine="vllm"), None),
    ],
)
def test_seats_are_a_batch_size_within_the_share(run: MeasuredRun, seats: int | None) -> None:
    """TensorRT-LLM holds the largest batch size within a rank's share of the concurrency its server is started for."""
    assert decode_seats(run) == seats


def test_deepep_layouts_of_sglang_divide_whole_balanced_experts() -> None:
    """SGLang's pools of 8 ranks and more in a rack have experts on every GPU, balanced; others what their row says."""
    wide = PoolLayout(parallelism=Parallelism(dp=8), num_instances=1)
    narrow = PoolLayout(parallelism=Parallelism(dp=4), num_instances=1)
    engine = load_engine("sglang")

    def started(gpu: str, pool: PoolLayout) -> tuple[int, bool, bool]:
        run = two_pools(engine="sglang", gpu=gpu, pools=(pool, wide))
        found = pool_engine(run, pool, engine)
        return pool_parallelism(run, pool).ep, found.deepep, found.power_law_routing

    assert started("gb200", wide) == (8, True, False)
    assert started("gb200", narrow) == (4, False, True)  # dep4 before a wide pool of decode
    assert started("b200_sxm", wide) == (1, False, True)


def test_trays_of_sglang_are_laid_out_as_its_recipes_say() -> None:
    """On GB200 low-latency pools are TP; before wide ones prefill is TP for long prompts, dep4 for short ones."""

    def layouts(num_decode_ranks: int, longest: int, gpu: str = "gb200") -> list[tuple[int, int, int]]:
        pools = tuple(PoolLayout(parallelism=Parallelism(dp=n), num_instances=1) for n in (4, num_decode_ranks))
        run = two_pools(engine="sglang", gpu=gpu, pools=pools, input_bounds=(longest - 1, longest))
        found = [pool_parallelism(run, pool) for pool in pools]
        return [(layout.tp, layout.dp, layout.ep) for layout in found]

    assert layouts(4, 1024) == [(4, 1, 1), (4, 1, 1)]
    assert layouts(32, 8192) == [(4, 1, 1), (1, 32, 32)]
    assert layouts(32, 1024) == [(1, 4, 4), (1, 32, 32)]
    assert layouts(4, 1024, "b200_sxm") == [(1, 4, 1), (1, 4, 1)]


@pytest.mark.parametrize(
    ("num_decode_ranks", "longest", "step", "held"),
    [(4, 1024, 8192, 8192), (4, 8192, 24_576, 32_768), (32, 1024, 16_384, 131_072), (32, 8192, 131_072, 131_072)],
)
def test_prefill_ranks_of_sglang_hold_what_its_recipes_say(
    num_decode_ranks: int, longest: int, step: int, held: int
) -> None:
    """Steps and caches of a tray on GB200; a rank never holds more than fits, and decode as much as fits."""
    pools = tuple(PoolLayout(parallelism=Parallelism(dp=n), num_instances=1) for n in (4, num_decode_ranks))
    run = two_pools(engine="sglang", gpu="gb200", pools=pools, input_bounds=(longest - 1, longest))
    assert pool_limits(run, pools[0], EngineLimits()).max_num_batched_tokens == step
    assert pool_blocks(run, pools[0], 10**6) * BLOCK_TOKENS == held
    assert pool_blocks(run, pools[0], 100) == 100
    assert pool_blocks(run, pools[1], 10**6) == 10**6


def test_norms_join_all_reduces_where_the_recipe_says_so() -> None:
    """SGLang's two pools do on B200 and not on GB200 before 0.5.9; what a collocated run's script says stands."""
    joined = {
        gpu: prepare(two_pools(engine="sglang", gpu=gpu, engine_version=(0, 5, 8))).engine.fusion.norm_tokens > 0
        for gpu in ("b200_sxm", "gb200")
    }
    assert joined == {"b200_sxm": True, "gb200": False}
    assert fuses_norms(two_pools(engine="vllm"), None) is None
    assert fuses_norms(replace(two_pools(engine="sglang"), pools=two_pools().pools[:1]), False) is False


def test_ranks_of_vllm_in_a_rack_are_those_of_its_recipes() -> None:
    """Rows of tp4 before tp16 or tp4, experts on every GPU, are dep4 before dep16 or tep4; elsewhere they stand."""

    def layouts(gpu: str, tp: int) -> list[tuple[int, int]]:
        pools = tuple(PoolLayout(parallelism=Parallelism(tp=n, ep=n), num_instances=1) for n in (4, tp))
        run = two_pools(engine="vllm", gpu=gpu, model="moonshotai/Kimi-K2.5", weight_dtype="fp4", pools=pools)
        found = [pool_parallelism(run, pool) for pool in pools]
        return [(layout.tp, layout.dp) for layout in found]

    assert layouts("gb200", 16) == [(1, 4), (1, 16)]
    assert layouts("gb200", 4) == [(1, 4), (4, 1)]
    assert layouts("b200_sxm", 8) == [(4, 1), (8, 1)]


@pytest.mark.parametrize(
    ("dtype", "concurrency", "balanced"), [("fp4", 4096, True), ("fp4", 2048, False), ("fp8", 8192, False)]
)
def test_many_seats_in_fp4_balance_experts(dtype: str, concurrency: int, balanced: bool) -> None:
    """TensorRT-LLM's recipes copy busy experts where a decode instance holds 4,096 sequences in fp4."""
    run = two_pools(num_decode=1, dp=32, weight_dtype=dtype, concurrency=concurrency)
    assert pool_engine(run, run.pools[1], load_engine("trtllm")).power_law_routing is not balanced
    assert pool_engine(run, run.pools[0], load_engine("trtllm")).power_law_routing


def test_prefill_steps_hold_what_the_recipes_say() -> None:
    """16,384 tokens of short prompts or one long prompt under TensorRT-LLM; decode pools keep the engine's limits."""
    run, limits = two_pools(), EngineLimits()
    assert pool_limits(run, run.pools[0], limits).max_num_batched_tokens == 16_384
    long = two_pools(input_bounds=(6554, 8192))
    assert pool_limits(long, long.pools[0], limits).max_num_batched_tokens == 8232
    assert pool_limits(run, run.pools[1], limits) == limits


def test_a_full_decode_pool_is_part_of_ttft() -> None:
    """36 requests on 32 seats: four wait, so that TTFT is 4/36 of E2E and no prefill speed changes it."""
    latency = answer(two_pools()).latency_ms
    assert latency["ttft_mean_ms"] / latency["e2e_mean_ms"] == pytest.approx(4 / 36, rel=0.15)
    free = answer(two_pools(**SHORT_FP4)).latency_ms
    assert free["ttft_mean_ms"] < 0.1 * latency["ttft_mean_ms"]


def test_a_longer_hand_over_delays_the_first_token_by_itself() -> None:
    """With seats for all the mean TTFT grows by what the hand-over takes longer."""
    run, engine = two_pools(**SHORT_FP4), load_engine("trtllm")
    slow, fast = (
        answer(run, replace(engine, costs={"": EngineCosts(hand_over_s=s)})).latency_ms["ttft_mean_ms"]
        for s in (0.3, 0.1)
    )
    assert slow - fast == pytest.approx(200.0, rel=0.02)


def test_steps_of_a_hand_over_are_as_long_as_those_under_way() -> None:
    """A burst meets an idle pool, whoever comes later waits for so many steps of decode."""
    run, engine = two_pools(**SHORT_FP4, num_requests=360), load_engine("trtllm")
    slow, fast = (
        answer(run, replace(engine, costs={"": EngineCosts(hand_over_steps=n)})).latency_ms for n in (12.0, 2.0)
    )
    late_steps = (slow["ttft_mean_ms"] - fast["ttft_mean_ms"]) / fast["tpot_mean_ms"]
    assert late_steps == pytest.approx(10.0 * 324 / 360, rel=0.1)


def test_a_burst_that_fills_a_step_waits_for_kernels_that_run_first() -> None:
    """SGLang's two pools start cold: a burst of full steps waits for the whole cold start, smaller ones for none."""

    def ttft_ms(concurrency: int, cold_start_s: float) -> float:
        run = two_pools(engine="sglang", gpu="gb200", concurrency=concurrency, num_requests=concurrency, **SHORT_FP4)
        run = replace(run, source="silicon/inferencemax", engine_version=(0, 5, 8))
        engine = replace(load_engine("sglang"), costs={"": EngineCosts(cold_start_s=cold_start_s)})
        return answer(run, engine).latency_ms["ttft_mean_ms"]

    assert ttft_ms(128, 2.0) - ttft_ms(128, 0.5) == pytest.approx(1500.0, rel=0.01)
    assert ttft_ms(4, 2.0) == ttft_ms(4, 0.5)
