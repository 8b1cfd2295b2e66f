"""When a scheduler notices a request: front end, overhead, looking ahead, polling, and waiting for full prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.front_end import through_s
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.parallelism import Parallelism
from estimator.requests import Requests
from estimator.simulate import simulate
from estimator.simulation import Simulation
from estimator.system import Collocated, Disaggregated, KvLink

DECODE_S, PROMPT_S = 0.010, 0.100


def instance(**changes: float) -> Instance:
    """Decode steps of 10 ms and steps with prompts of 100 ms, whatever they hold."""
    seqs, tokens = np.zeros(9), np.zeros(1001)
    plain = Instance(
        cost=StepCost(
            decode_s=seqs + DECODE_S,
            mixed_s=tokens + PROMPT_S,
            head_s=seqs,
            kv_read_s_per_token=seqs,
            window_read_s_per_token=seqs,
            window_tokens=0,
            attention_s_per_pair=0.0,
            window_attention_s_per_pair=0.0,
        ),
        limits=EngineLimits(max_num_batched_tokens=1000, max_num_seqs=8),
        parallelism=Parallelism(),
        gpu="h100_sxm",
        num_kv_blocks=1000,
        kv_bytes_per_token=1.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def first_tokens_s(one: Instance, arrivals: list[float], outputs: int = 40) -> list[float]:
    """First-token times of prompts of 10 tokens."""
    found: list[float] = short_run(one, arrivals, outputs).first_token_s.tolist()
    return found


def finishes_s(one: Instance, arrivals: list[float], outputs: int) -> list[float]:
    """When the same requests are finished."""
    found: list[float] = short_run(one, arrivals, outputs).finish_s.tolist()
    return found


def short_run(one: Instance, arrivals: list[float], outputs: int) -> Simulation:
    """Prompts of 10 tokens on one instance."""
    num = len(arrivals)
    requests = Requests(
        arrival_s=np.array(arrivals),
        input_tokens=np.full(num, 10),
        output_tokens=np.full(num, outputs),
        cached_tokens=np.zeros(num, dtype=np.int64),
    )
    return simulate(Collocated(instance=one), requests)


def test_a_request_joins_the_step_after_the_one_that_runs() -> None:
    """The first prompt takes 0-100 ms; a request of 125 ms waits for the step of 120-130 ms and ends its own at 230."""
    assert first_tokens_s(instance(), [0.0, 0.125]) == pytest.approx([0.100, 0.230])


def test_a_scheduler_that_looks_ahead_has_planned_the_next_step_already() -> None:
    """The step of 130-140 ms was put together while that of 120 ms ran: the request of 125 ms joins at 140."""
    assert first_tokens_s(instance(looks_ahead=True), [0.0, 0.125]) == pytest.approx([0.100, 0.240])


def test_an_idle_scheduler_that_looks_ahead_starts_at_once() -> None:
    """Nothing is planned when nothing runs."""
    assert first_tokens_s(instance(looks_ahead=True), [0.0, 5.0], outputs=1) == pytest.approx([0.100, 5.100])


def test_a_queue_polled_every_fourth_step_is_seen_then() -> None:
    """After the prompt's step at 100 ms the queue is looked at again four steps later, at 140 ms: requests of 105 and
    125 ms both begin there."""
    assert first_tokens_s(instance(poll_steps=4), [0.0, 0.105, 0.125]) == pytest.approx([0.100, 0.240, 0.240])


def test_a_prompt_too_short_to_fill_a_step_is_held_back() -> None:
    """Noticed at 110 ms beside a decoding sequence, ten tokens wait for five steps and begin at 160 ms."""
    assert first_tokens_s(instance(wait_steps=5), [0.0, 0.105]) == pytest.approx([0.100, 0.260], abs=0.0101)
    assert first_tokens_s(instance(wait_steps=5), [0.0, 0.105])[1] > first_tokens_s(instance(), [0.0, 0.105])[1] + 0.03


def test_the_front_end_takes_one_request_after_another() -> None:
    """Lindley by hand: requests at 0, 1 and 10 s of 3 s each leave the front end at 3, 6 and 13 s."""
    np.testing.assert_allclose(through_s(np.array([0.0, 1.0, 10.0]), 3.0), [3.0, 6.0, 13.0])


def test_overheads_add_before_the_first_step() -> None:
    """20 ms of front end, 5 ms of overhead and 1 ms for each of 10 tokens: the prompt runs from 35 to 135 ms."""
    slow = instance(frontend_s=0.020, request_overhead_s=0.005, overhead_s_per_token=0.001)
    assert first_tokens_s(slow, [0.0]) == pytest.approx([0.135])


def test_a_cold_server_delays_the_burst_alone() -> None:
    """In a closed loop of one request in flight the first waits two seconds more, the next none."""
    requests = Requests(
        arrival_s=np.zeros(2),
        input_tokens=np.full(2, 10),
        output_tokens=np.full(2, 1),
        cached_tokens=np.zeros(2, dtype=np.int64),
    )
    run = simulate(Collocated(instance=instance(cold_start_s=2.0)), requests, concurrency=1)
    np.testing.assert_allclose(run.ttft_s, [2.1, 0.1])


def test_two_pools_have_a_front_end_too() -> None:
    """20 ms of front end each, 5 ms of overhead: two prompts sent at 0 are visible at 25 and 45 ms, one step apart."""
    slow = instance(frontend_s=0.020, request_overhead_s=0.005)
    link = KvLink(egress_bytes_per_s=1e15, ingress_bytes_per_s=1e15)
    system = Disaggregated(prefill=slow, num_prefill=2, decode=instance(), num_decode=1, link=link)
    requests = Requests(
        arrival_s=np.zeros(2),
        input_tokens=np.full(2, 10),
        output_tokens=np.full(2, 1),
        cached_tokens=np.zeros(2, dtype=np.int64),
    )
    assert simulate(system, requests).first_token_s.tolist() == pytest.approx([0.125, 0.145])


def test_output_passes_the_front_end_token_by_token() -> None:
    """Two sequences, 8 ms a token, steps of 10 ms: each step's two tokens take 16 ms, so that 6 ms pile up per step.

    Both prompts end at 100 ms and are seen at 116; the n-th decode step ends at 100 + 10·n ms and its tokens are seen
    at 116 + 16·n.
    """
    slow = instance(output_s_per_token=0.008)
    assert first_tokens_s(slow, [0.0, 0.0]) == pytest.approx([0.116, 0.116])
    assert finishes_s(slow, [0.0, 0.0], outputs=11) == pytest.approx([0.276, 0.276])


def test_output_in_a_closed_loop_is_bounded_by_the_front_end() -> None:
    """Eight in flight with 50 ms a token: far above what steps allow, the front end passes 20 tokens a second."""
    requests = Requests(
        arrival_s=np.zeros(200),
        input_tokens=np.full(200, 10),
        output_tokens=np.full(200, 41),
        cached_tokens=np.zeros(200, dtype=np.int64),
    )
    run = simulate(Collocated(instance=instance(output_s_per_token=0.05)), requests, concurrency=8)
    assert 200 * 41 / float(run.finish_s.max()) == pytest.approx(20.0, rel=0.01)
    assert run.tpot_s.max() < 0.06 * 8
