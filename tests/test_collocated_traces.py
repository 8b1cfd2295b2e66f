"""The collocated kernel worked out on paper: ranks, stages, eviction, stalls, prefixes, routers, closed loop."""

from __future__ import annotations

import ast
import heapq
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from estimator.iteration import StepCost
from estimator.kernels.batching import NUM_RESIDENT, PHASE, USED
from estimator.kernels.collocated import run_instances
from estimator.kernels.lanes import _pipelines, run_pool
from estimator.kernels.micro_batches import Pipelines
from estimator.kernels.pipelined import run_pipelines
from estimator.kernels.spans import MANY
from estimator.parallelism import Parallelism
from estimator.simulate import collocated_jobs, collocated_pool, simulate
from estimator.simulation import ITL_EDGES_S
from estimator.system import Collocated, CollocatedPolicy, Router
from tests.test_collocated import instance_of, random_run, requests_of, rough_cost, round_cost


def test_ranks_step_together() -> None:
    """A (4 in, 3 out) and B (2, 2) on two ranks: 0-4.5 both prompts, as long as A's; then a decode step of 1 s each."""
    instance = replace(instance_of(round_cost(6, 4), 6, 4), parallelism=Parallelism(dp=2))
    run = simulate(Collocated(instance=instance), requests_of([0, 0], [4, 2], [3, 2]))
    assert run.first_token_s.tolist() == [4.5, 4.5]
    assert run.finish_s.tolist() == [6.5, 5.5]
    assert (run.decode.num_steps, run.decode.busy_s) == (3, 6.5)


def test_micro_batches_pass_through_stages() -> None:
    """A (4 in, 3 out) at 0 s and B (2, 2) at 1 s on two stages 0.25 s apart are two micro-batches.

    A: stage 1 0-4.5, stage 2 4.75-9.25. B: 4.5-7, behind A 9.25-11.75. A decodes: 9.25-10.25, behind B 11.75-12.75. B:
    11.75-12.75, 13-14. A: 12.75-13.75, 14-15.
    """
    instance = replace(instance_of(round_cost(6, 4), 6, 4), parallelism=Parallelism(pp=2), stage_transfer_s=0.25)
    run = simulate(Collocated(instance=instance), requests_of([0, 1], [4, 2], [3, 2]))
    assert run.prefill_start_s.tolist() == [0, 4.5]
    assert run.first_token_s.tolist() == [9.25, 11.75]
    assert run.finish_s.tolist() == [15.0, 14.0]
    assert (run.decode.num_steps, run.decode.busy_s) == (5, 15.0)


def test_a_request_joins_the_micro_batch_that_enters_next() -> None:
    """A and B as before; C (2 in, 1 out) comes at 8 s, when both are under way, and joins A, which is back first.

    A and C: stage 1 9.25 until 2 prompt tokens, a decoding one beside them (3 s) and the heads (0.5 s) are done at
    12.75; stage 2 13-16.5.
    """
    instance = replace(instance_of(round_cost(6, 4), 6, 4), parallelism=Parallelism(pp=2), stage_transfer_s=0.25)
    run = simulate(Collocated(instance=instance), requests_of([0, 1, 8], [4, 2, 2], [3, 2, 1]))
    assert run.prefill_start_s.tolist() == [0, 4.5, 9.25]
    assert run.first_token_s[2] == run.finish_s[2] == 16.5


def test_a_long_prompt_fills_the_stages() -> None:
    """18 tokens in three steps of 6.5 s on two stages 0.25 s apart, in two micro-batches: each behind the one before.

    Stage 1: 0-6.5, 6.5-13 and, when the first is back, 13.25-19.75; stage 2: 6.75-13.25, 13.25-19.75, 20-26.5. The
    last holds the prompt then: its second token takes 2·1 + 0.25 s.
    """
    instance = replace(instance_of(round_cost(6, 4), 6, 4), parallelism=Parallelism(pp=2), stage_transfer_s=0.25)
    run = simulate(Collocated(instance=instance), requests_of([0], 18, 2))
    assert run.first_token_s.tolist() == [26.5]
    assert run.finish_s.tolist() == [28.75]


def test_full_stages_have_no_bubbles() -> None:
    """Three equal prompts of 4.5 s on three stages without hops: the last stage works from 9 s to the end.

    Prompts leave at 13.5, 18 and 22.5; then a decode step of 1 s each, one behind the other.
    """
    instance = replace(instance_of(round_cost(4, 6), 4, 6), parallelism=Parallelism(pp=3))
    run = simulate(Collocated(instance=instance), requests_of([0, 0, 0], 4, 2))
    assert run.first_token_s.tolist() == [13.5, 18.0, 22.5]
    assert run.finish_s.tolist() == [23.5, 24.5, 25.5]


def test_the_latest_admitted_is_evicted_and_computed_again() -> None:
    """Three blocks, A and B of 16 + 20 tokens: the first decode step needs four, so B waits for A and starts again.

    0-32.5 both prompts; A decodes alone 19 steps to 51.5; B computes 17 tokens in 17.5 s, which gives its second token
    at 69, and decodes 18 steps to 87. Blocks: 2 in 32.5 s; A 2 in 16 steps and 3 in 3; B 2 in 17.5 s, in 15 steps 2
    and in 3 steps 3.
    """
    system = Collocated(instance=instance_of(round_cost(64, 4), 64, 4, num_kv_blocks=3))
    run = simulate(system, requests_of([0, 0], 16, 20))
    assert run.first_token_s.tolist() == [32.5, 32.5]
    assert run.finish_s.tolist() == [51.5, 87.0]
    assert run.decode.num_preemptions == 1
    assert run.decode.kv_block_s == 2 * 32.5 + 2 * 16 + 3 * 3 + 2 * 17.5 + 2 * 15 + 3 * 3
    assert run.decode.waiting_seq_s == 51.5 - 32.5
    longest = np.flatnonzero(run.itl_weight)[-1]
    assert ITL_EDGES_S[longest] <= 69 - 32.5 < ITL_EDGES_S[longest + 1]


def test_a_decode_stall_is_a_gap() -> None:
    """Prefill-first: A waits from 4.5 to 16.5 for its second token while B and C are prefilled; other gaps are 1 s."""
    system = Collocated(instance=instance_of(round_cost(6, 4), 6, 4), policy="prefill_first")
    run = simulate(system, requests_of([0, 1, 1], [4, 8, 2], [3, 2, 1]))
    bins = np.searchsorted(ITL_EDGES_S, [1.0, 12.0], side="right") - 1
    assert run.itl_weight[bins] == pytest.approx([2.0, 1.0])
    assert run.itl_weight.sum() == pytest.approx(3.0)


def test_prefix_hits_count_in_whole_blocks() -> None:
    """Of 20 cached tokens one block of 16 is found: 24 − 16 tokens take 8.5 s; with 15 cached nothing is found."""
    system = Collocated(instance=instance_of(round_cost(64, 4), 64, 4))
    assert simulate(system, requests_of([0], 24, 1, 20)).finish_s.tolist() == [8.5]
    assert simulate(system, requests_of([0], 24, 1, 15)).finish_s.tolist() == [24.5]


@pytest.mark.parametrize("policy", ["chunked", "prefill_first", "static"])
@pytest.mark.parametrize("looks_ahead", [False, True])
def test_one_stage_is_a_pipeline(policy: CollocatedPolicy, looks_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of pipelines with one stage gives what that of one-stage instances gives, to 1e-9.

    Gaps of skipped steps are spread evenly over bins: a thousandth may lie in others where they skip other steps.
    """
    rng = np.random.default_rng(21)
    requests = requests_of(np.cumsum(rng.exponential(0.2, 400)), rng.integers(1, 200, 400), rng.integers(1, 60, 400))
    instance = replace(
        instance_of(rough_cost(64, 16), 64, 16, num_kv_blocks=40),
        parallelism=Parallelism(dp=2),
        looks_ahead=looks_ahead,
    )
    system = Collocated(instance=instance, num_instances=2, policy=policy, router="least_outstanding")
    run = simulate(system, requests)

    def as_pipelines(*flat: object) -> None:
        visible_s, delay_s, _, draws = flat[8:]
        run_pipelines(_pipelines(collocated_pool(system, 0), flat[:8]), visible_s, delay_s, draws)

    monkeypatch.setattr("estimator.kernels.lanes.run_instances", as_pipelines)
    other = simulate(system, requests)
    np.testing.assert_allclose(other.first_token_s, run.first_token_s, rtol=1e-9)
    np.testing.assert_allclose(other.finish_s, run.finish_s, rtol=1e-9)
    total = run.itl_weight.sum()
    np.testing.assert_allclose(other.itl_weight.cumsum(), run.itl_weight.cumsum(), atol=1e-3 * total)
    for name in ("busy_s", "kv_block_s", "num_steps", "num_preemptions"):
        assert getattr(other.decode, name) == pytest.approx(getattr(run.decode, name), rel=1e-9), name


@pytest.mark.parametrize(("router", "last_s"), [("round_robin", 12.0), ("least_outstanding", 10.5)])
def test_routers_see_one_stream(router: Router, last_s: float) -> None:
    """A runs on the first of two instances, B has left the other: C joins A at 6.5 by turn, else starts at 6."""
    system = Collocated(instance=instance_of(round_cost(6, 4), 6, 4), num_instances=2, router=router)
    run = simulate(system, requests_of([0, 1, 6], 4, [9, 1, 1]))
    assert run.finish_s[1:].tolist() == [5.5, last_s]


def test_a_closed_loop_is_one_over_all_instances() -> None:
    """Two in flight over two instances: A ends at 4.5 and sends C, whose end at 9 sends D to the other, behind B."""
    system = Collocated(instance=instance_of(round_cost(8, 4), 8, 4), num_instances=2)
    run = simulate(system, requests_of([0, 0, 0, 0], [4, 16, 4, 4], 1), concurrency=2)
    assert run.arrival_s.tolist() == [0, 0, 4.5, 9]
    assert run.finish_s.tolist() == [4.5, 17, 9, 21.5]


def one_second_steps(max_seqs: int) -> StepCost:
    """Every step takes 1 s, whatever is in it."""
    cost = round_cost(10_000, max_seqs)
    return replace(cost, mixed_s=np.full(10_001, 0.5))


@pytest.mark.parametrize("num_seats", [1, 3, 16])
def test_seats_are_servers_pathwise(num_seats: int) -> None:
    """At whole-second arrivals each request starts as Kiefer and Wolfowitz (1955) say, Lindley (1952) for one seat."""
    rng = np.random.default_rng(num_seats)
    outputs = rng.geometric(1 / 12, 20_000)
    arrival = np.floor(np.cumsum(rng.exponential(12 / 0.9 / num_seats, len(outputs))))
    run = simulate(
        Collocated(instance=instance_of(one_second_steps(num_seats), 10_000, num_seats, 100_000)),
        requests_of(arrival, 1, outputs),
    )
    free = [0.0] * num_seats  # when each server is free, a heap
    start = []
    for come, service in zip(arrival, outputs, strict=True):
        start.append(max(come, heapq.heappop(free)))
        heapq.heappush(free, start[-1] + service)
    assert (run.prefill_start_s == np.array(start)).all()
    assert (run.finish_s == np.array(start) + outputs).all()


@pytest.mark.parametrize("policy", ["chunked", "prefill_first", "static"])
@pytest.mark.parametrize("degrees", [(1, 1), (2, 1), (1, 2)])
def test_memory_is_empty_at_the_end(
    policy: CollocatedPolicy, degrees: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a run short of blocks no lane holds a request, block or phase; every token was one gap; nothing is lost."""
    kept = []

    def keep(lane: np.ndarray, *others: object) -> None:
        run_instances(lane, *others)
        kept.append(lane)

    def keep_stages(fleet: Pipelines, *others: object) -> None:
        run_pipelines(fleet, *others)
        kept.append(fleet.lane)

    monkeypatch.setattr("estimator.kernels.lanes.run_instances", keep)
    monkeypatch.setattr("estimator.kernels.lanes.run_pipelines", keep_stages)
    rng = np.random.default_rng(8)
    instance = replace(
        instance_of(rough_cost(64, 16), 64, 16, num_kv_blocks=40), parallelism=Parallelism(dp=degrees[0], pp=degrees[1])
    )
    system = Collocated(instance=instance, num_instances=3, policy=policy, router="power_of_two")
    requests = requests_of(
        np.cumsum(rng.exponential(0.05, 1_000)), rng.integers(1, 200, 1_000), rng.integers(1, 60, 1_000)
    )
    run = simulate(system, requests)
    assert run.decode.num_preemptions > 0 or policy == "static"  # whose batches are small under this budget
    assert np.isfinite(run.finish_s).all()
    assert run.itl_weight.sum() == pytest.approx((run.output_tokens - 1).sum(), rel=1e-9)
    assert (kept[0][:, [NUM_RESIDENT, USED]] == 0).all()
    assert (kept[0][:, PHASE : PHASE + 16] == 0).all()


@pytest.mark.parametrize("router", ["random", "power_of_two"])
def test_the_seed_fixes_everything(router: Router) -> None:
    """The same seed gives the same bytes, another seed other times."""
    rng = np.random.default_rng(9)
    requests = requests_of(np.cumsum(rng.exponential(0.05, 500)), rng.integers(1, 200, 500), rng.integers(1, 60, 500))
    system = Collocated(instance=instance_of(rough_cost(64, 16), 64, 16), num_instances=4, router=router)
    first, again, other = (simulate(system, requests, seed=seed) for seed in (1, 1, 2))
    assert first.finish_s.tobytes() == again.finish_s.tobytes()
    assert first.itl_weight.tobytes() == again.itl_weight.tobytes()
    assert first.finish_s.tobytes() != other.finish_s.tobytes()


def test_better_routers_wait_less() -> None:
    """Over 8 instances at high load mean TTFT falls from random to power of two choices to least outstanding."""
    rng = np.random.default_rng(10)
    num = 20_000
    requests = requests_of(
        np.cumsum(rng.exponential(0.108, num)), rng.integers(1, 100, num), rng.geometric(1 / 20, num)
    )
    names: tuple[Router, ...] = ("random", "power_of_two", "least_outstanding")
    instance = instance_of(rough_cost(64, 16), 64, 16)
    mean_s = [
        float(simulate(Collocated(instance=instance, num_instances=8, router=name), requests).ttft_s.mean())
        for name in names
    ]
    assert mean_s[0] > mean_s[1] > mean_s[2]


def tokens_by_drafts(max_tokens: int, max_seqs: int, accepted: float) -> StepCost:
    """The rough cost with two tokens tried and `accepted` gained per sequence and step."""
    return replace(rough_cost(max_tokens, max_seqs), decode_tokens_per_seq=2, accepted_tokens_per_step=accepted)


def test_accepted_drafts_by_hand() -> None:
    """16 tokens in, 7 out at 1.5 tokens a step: 16.5 s and 4 steps of 1 s; one block, then two (17.5 to 22 tokens)."""
    cost = replace(round_cost(64, 4), decode_tokens_per_seq=2, accepted_tokens_per_step=1.5)
    run = simulate(Collocated(instance=instance_of(cost, 64, 4)), requests_of([0], 16, 7))
    assert run.finish_s.tolist() == [20.5]
    assert run.decode.kv_block_s == 16.5 + 2 * 4
    assert run.itl_weight.sum() == pytest.approx(6.0)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("accepted", [1.0, 1.3, 1.5, 2.0])
@pytest.mark.parametrize("policy", ["chunked", "prefill_first", "static"])
def test_skipping_steps_changes_nothing_with_drafts(accepted: float, policy: CollocatedPolicy, stages: int) -> None:
    """With any number of accepted tokens a run short of blocks equals the same run with every step alone, to 1e-9."""
    rng = np.random.default_rng(18)
    num = 400
    requests = requests_of(np.cumsum(rng.exponential(0.2, num)), rng.integers(1, 150, num), rng.integers(1, 90, num))
    instance = instance_of(tokens_by_drafts(64, 16, accepted), 64, 16, num_kv_blocks=40 * stages)
    instance = replace(instance, parallelism=Parallelism(pp=stages), stage_transfer_s=0.001)
    system = Collocated(instance=instance, num_instances=2, policy=policy, router="least_outstanding")
    pool, jobs = collocated_pool(system, 0), collocated_jobs(system, requests)
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    fast, plain = (run_pool(replace(pool, longest_jump=k), jobs, weights) for k in (MANY, 1))
    np.testing.assert_allclose(fast.finish_s, plain.finish_s, rtol=1e-9)
    np.testing.assert_allclose(fast.first_s, plain.first_s, rtol=1e-9)
    assert fast.integrals.kv_block_s == pytest.approx(plain.integrals.kv_block_s, rel=1e-9)
    assert fast.integrals.num_preemptions == plain.integrals.num_preemptions
    assert fast.integrals.num_steps == plain.integrals.num_steps


@pytest.mark.parametrize("stages", [1, 2])
def test_interpreted_and_compiled_are_one(stages: int) -> None:
    """Python runs the kernel's source to the same times as the compiled kernel."""
    program = f"""
import numpy as np
from tests.test_collocated import random_run
print(repr(random_run("prefill_first", stages={stages}).finish_s.tolist()))
"""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, env=environment, text=True
    )
    expected = random_run("prefill_first", stages=stages).finish_s
    np.testing.assert_allclose(np.array(ast.literal_eval(printed.stdout)), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_skipping_steps_changes_nothing_where_schedulers_look_now_and_then(seed: int) -> None:
    """Polling every few steps, holding prompts back, looking a step ahead, a front end: as with every step alone."""
    rng = np.random.default_rng(seed)
    instance = replace(
        instance_of(rough_cost(64, 8), 64, 8, num_kv_blocks=40),
        poll_steps=int(rng.integers(1, 6)) if seed % 2 else 1,
        wait_steps=int(rng.integers(1, 6)) if seed % 3 else 0,
        looks_ahead=bool(rng.random() < 0.5),
        frontend_s=0.001 * rng.random(),
        overhead_s_per_token=1e-5 * rng.random(),
    )
    policies: tuple[CollocatedPolicy, ...] = ("chunked", "prefill_first")
    system = Collocated(instance=instance, num_instances=1 + seed % 2, policy=policies[seed // 2 % 2])
    concurrency = None if seed % 5 < 3 else int(rng.integers(1, 12))
    num = 80
    requests = requests_of(np.cumsum(rng.exponential(0.3, num)), rng.integers(1, 150, num), rng.integers(1, 60, num))
    pool, jobs = collocated_pool(system, 0), collocated_jobs(system, requests, open_loop=concurrency is None)
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    fast, plain = (run_pool(replace(pool, longest_jump=k), jobs, weights, concurrency=concurrency) for k in (MANY, 1))
    np.testing.assert_allclose(fast.first_s, plain.first_s, rtol=1e-9)
    np.testing.assert_allclose(fast.finish_s, plain.finish_s, rtol=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_skipping_rounds_of_micro_batches_changes_nothing(seed: int) -> None:
    """Two to five stages, long and short outputs, ranks, any policy, high and low load: as with every step alone."""
    rng = np.random.default_rng(seed)
    stages = 2 + seed % 4
    instance = replace(
        instance_of(rough_cost(64, 6 * stages), 64, 6 * stages, num_kv_blocks=60 * stages),
        parallelism=Parallelism(pp=stages, dp=1 + seed // 4 % 2),
        stage_transfer_s=0.0037 * (seed % 3),
        looks_ahead=seed % 2 == 1,
    )
    policies: tuple[CollocatedPolicy, ...] = ("chunked", "prefill_first", "static")
    system = Collocated(instance=instance, num_instances=1 + seed // 8 % 2, policy=policies[seed % 3], router="random")
    num, concurrency = 80, None if seed % 5 < 3 else int(rng.integers(1, 20))
    gaps_s = rng.exponential((0.05, 0.3, 1.0, 4.0)[seed // 10], num)
    requests = requests_of(np.cumsum(gaps_s), rng.integers(1, 150, num), rng.integers(1, 60 + 300 * (seed % 2), num))
    pool, jobs = collocated_pool(system, 0), collocated_jobs(system, requests, open_loop=concurrency is None)
    weights = np.zeros((2, len(ITL_EDGES_S) - 1))
    fast, plain = (
        run_pool(replace(pool, longest_jump=k), jobs, weights[row], concurrency=concurrency)
        for row, k in enumerate((MANY, 1))
    )
    np.testing.assert_allclose(fast.first_s, plain.first_s, rtol=1e-9)
    np.testing.assert_allclose(fast.finish_s, plain.finish_s, rtol=1e-9)
    np.testing.assert_allclose(weights[0].cumsum(), weights[1].cumsum(), atol=2e-3 * weights[1].sum())
    for name in ("busy_s", "kv_block_s", "running_seq_s", "waiting_seq_s", "num_steps", "num_preemptions"):
        assert getattr(fast.integrals, name) == pytest.approx(getattr(plain.integrals, name), rel=1e-9), name
