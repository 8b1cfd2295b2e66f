"""Two pools in tandem: a hand trace, DistServe's prefill formula, conservation and the closed loop."""

from __future__ import annotations

import numpy as np
import pytest

from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.kernels.disaggregated import run_disaggregated
from estimator.parallelism import Parallelism
from estimator.requests import Requests
from estimator.simulation import FINISHED
from estimator.system import Disaggregated, KvLink


def pool_instance(max_tokens: int = 64, mixed_s: float = 0.1) -> Instance:
    """Instance with flat tables: every prompt step `mixed_s` + 0.01, every decode step 0.02 + 1e-4 per cached token."""
    cost = StepCost(
        decode_s=np.full(9, 0.02),
        mixed_s=np.full(max_tokens + 1, mixed_s),
        head_s=np.full(9, 0.01),
        kv_read_s_per_token=np.full(9, 1e-4),
        window_read_s_per_token=np.zeros(9),
        window_tokens=0,
        attention_s_per_pair=0.0,
        window_attention_s_per_pair=0.0,
    )
    limits = EngineLimits(max_num_batched_tokens=max_tokens, max_num_seqs=8)
    return Instance(
        cost=cost, limits=limits, parallelism=Parallelism(), gpu="g", num_kv_blocks=10_000, kv_bytes_per_token=1.0
    )


def system_of(prefill: Instance) -> Disaggregated:
    """One prefill and one decode instance over a link of 100 tokens a second and 0.05 s."""
    link = KvLink(egress_bytes_per_s=100.0, ingress_bytes_per_s=100.0, latency_s=0.05)
    return Disaggregated(prefill=prefill, num_prefill=1, decode=pool_instance(), num_decode=1, link=link)


def requests_of(arrival_s: list[float], input_tokens: int, output_tokens: int) -> Requests:
    """Equal requests at the given times."""
    num = len(arrival_s)
    return Requests(
        arrival_s=np.array(arrival_s, dtype=np.float64),
        input_tokens=np.full(num, input_tokens),
        output_tokens=np.full(num, output_tokens),
        cached_tokens=np.zeros(num, np.int64),
    )


def test_one_request_by_hand() -> None:
    """Ten tokens: first token at 0.11 s, cache across 0.15 s later, then steps of 20 ms + 0.1 ms per cached token."""
    run = run_disaggregated(system_of(pool_instance()), requests_of([0.0], 10, 3), None, 0)
    assert run.first_token_s[0] == pytest.approx(0.11, rel=1e-12)
    assert run.kv_arrival_s[0] == pytest.approx(0.26, rel=1e-12)
    assert run.finish_s[0] == pytest.approx(0.26 + 2 * 0.02 + 1e-4 * (10 + 11), rel=1e-12)


def test_prefill_waits_as_distserve_says() -> None:
    """Prompts that fill a step alone are an M/D/1 queue: mean TTFT = D + RD²/(2(1 − RD))."""
    service_s, rate = 0.11, 0.6 / 0.11
    arrival = np.cumsum(np.random.default_rng(1).exponential(1 / rate, 400_000))
    requests = requests_of(arrival.tolist(), 64, 1)
    run = run_disaggregated(system_of(pool_instance()), requests, None, 0)
    law = service_s + rate * service_s**2 / (2 * (1 - rate * service_s))
    assert float(run.ttft_s.mean()) == pytest.approx(law, rel=0.02)


def test_every_request_finishes_in_order_of_phases() -> None:
    """All requests finish, and no phase of one begins before the phase ahead of it has ended."""
    arrival = np.cumsum(np.random.default_rng(2).exponential(0.3, 300))
    run = run_disaggregated(system_of(pool_instance()), requests_of(arrival.tolist(), 10, 5), None, 0)
    assert (run.status == FINISHED).all()
    assert (run.arrival_s <= run.prefill_start_s).all()
    assert (run.prefill_start_s < run.first_token_s).all()
    assert (run.first_token_s < run.kv_arrival_s).all()
    assert (run.kv_arrival_s < run.finish_s).all()


def test_closed_loop_of_one_sends_at_each_completion() -> None:
    """With one request in flight each arrives when the one before it finishes."""
    run = run_disaggregated(system_of(pool_instance()), requests_of([0.0] * 5, 10, 3), 1, 0)
    assert run.arrival_s[1:] == pytest.approx(run.finish_s[:-1], rel=1e-9)
