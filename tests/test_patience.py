"""What a measured run's client and server do beside a step: give up, tune kernels, share a prefix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.catalogue.engines import load_engine
from estimator.measured_runs import PoolLayout
from estimator.parallelism import Parallelism
from estimator.replay import PATIENCE_S, prepare, replay, without_given_up
from estimator.simulation import FINISHED, REJECTED, PoolIntegrals, Simulation
from tests.test_replay_pools import two_pools


def test_a_client_gives_up_after_five_minutes() -> None:
    """Of two requests of 299 and 301 s the second has no times and counts as rejected."""
    zeros = dict.fromkeys(("duration_s", "busy_s", "running_seq_s", "waiting_seq_s", "kv_block_s"), 0.0)
    simulation = Simulation(
        arrival_s=np.array([0.0, 10.0]),
        prefill_start_s=np.array([0.0, 200.0]),
        first_token_s=np.array([1.0, 201.0]),
        kv_arrival_s=np.full(2, np.nan),
        finish_s=np.array([299.0, 311.0]),
        output_tokens=np.array([5, 5]),
        status=np.full(2, FINISHED, np.int8),
        itl_weight=np.zeros(1),
        decode=PoolIntegrals(num_instances=1, num_steps=0, num_preemptions=0, **zeros),
    )
    found = without_given_up(simulation)
    assert found.status.tolist() == [FINISHED, REJECTED]
    np.testing.assert_array_equal(found.e2e_s, [299.0, np.nan])
    np.testing.assert_array_equal(found.ttft_s, [1.0, np.nan])
    assert PATIENCE_S == 300.0


@pytest.mark.parametrize(
    ("version", "concurrency", "waits"), [(None, 32, True), (None, 16, False), ((0, 5, 9), 32, False)]
)
def test_old_servers_tune_at_their_first_full_step(
    version: tuple[int, ...] | None, concurrency: int, waits: bool
) -> None:
    """32 prompts of some 920 tokens fill a step of 16,384: the burst waits 70 s where no version is stated."""
    run = two_pools(
        engine="sglang",
        source="silicon/inferencemax",
        gpu="b200_sxm",
        weight_dtype="fp4",
        pools=(PoolLayout(parallelism=Parallelism(tp=8), num_instances=1),),
        output_bounds=(819, 1024),
        concurrency=concurrency,
        num_requests=2 * concurrency,
    )
    simulation = replay(prepare(replace(run, engine_version=version)))
    assert bool(simulation.ttft_s[:concurrency].min() > 70.0) is waits
    assert simulation.ttft_s[concurrency:].max() < 10.0


def test_a_shared_prefix_is_read_once() -> None:
    """Half of what sequences hold on average shared: decode attention reads half as much, nothing else changes."""
    run = two_pools(
        engine="vllm",
        model="meta-llama/Llama-3.1-8B",
        gpu="h100_sxm",
        weight_dtype="bf16",
        pools=(PoolLayout(parallelism=Parallelism(), num_instances=1),),
        input_bounds=(600, 600),
        output_bounds=(80, 80),
        concurrency=32,
        num_requests=320,
        highest_concurrency=None,
    )
    alone, shared = (prepare(replace(run, shared_prefix_tokens=tokens)) for tokens in (0, 320))
    tpot_s = [float(np.nanmean(replay(prepared).tpot_s)) for prepared in (alone, shared)]
    read_s = alone.pools[0].kernels.read_s_per_token
    saved_s = 0.5 * 640 * 32 * float(np.interp(32, alone.pools[0].kernels.tokens, read_s))
    saved_s *= load_engine("vllm").costs_on("hopper").decode_attention_factor
    assert tpot_s[0] - tpot_s[1] == pytest.approx(saved_s, rel=0.1)
