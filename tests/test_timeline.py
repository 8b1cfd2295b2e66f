"""The timeline of a run: a trace by hand, the kernels' exact integrals, re-binning."""

from __future__ import annotations

import numpy as np
import pytest

from estimator.errors import BestServeError
from estimator.requests import Requests
from estimator.simulate import simulate
from estimator.simulation import Simulation
from estimator.system import Collocated, Disaggregated, KvLink, System
from estimator.timeline import timeline
from tests.test_collocated import instance_of, requests_of, rough_cost, round_cost

LINK = KvLink(egress_bytes_per_s=1e5, ingress_bytes_per_s=1e5, latency_s=0.002)


def random_requests(num: int, rate_req_s: float) -> Requests:
    """Poisson arrivals of short prompts and answers."""
    rng = np.random.default_rng(3)
    arrival = np.cumsum(rng.exponential(1.0 / rate_req_s, num))
    return requests_of(arrival, rng.integers(5, 60, num), rng.integers(1, 40, num))


def pools_of_two() -> list[tuple[System, float]]:
    """A collocated and a disaggregated system of two instances a pool, each with a rate that makes a queue at times."""
    instance = instance_of(rough_cost(64, 8), 64, 8)
    apart = Disaggregated(prefill=instance, num_prefill=2, decode=instance, num_decode=2, link=LINK)
    return [(Collocated(instance=instance, num_instances=2), 15.0), (apart, 15.0)]


def whole_run(simulation: Simulation, num_bins: int) -> np.ndarray:
    """Edges from the first arrival to the last finish."""
    return np.linspace(simulation.arrival_s.min(), np.nanmax(simulation.finish_s), num_bins + 1)


def test_two_requests_by_hand() -> None:
    """A: prompt 0 to 2.5 s, tokens to 6 s; B arrives at 1, starts with A's second step at 2.5, first token at 5."""
    system = Collocated(instance=instance_of(round_cost(64, 8), 64, 8))
    requests = requests_of([0.0, 1.0], [2, 1], [3, 2])
    run = simulate(system, requests)
    np.testing.assert_allclose(run.finish_s, [6.0, 6.0])
    shown = timeline(system, requests, run, np.arange(7.0))
    (pool,) = shown.pools
    np.testing.assert_allclose(pool.waiting_seqs, [0, 1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(pool.prefill_seqs, [1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(pool.decode_seqs, [0, 0, 0.5, 1, 1, 2])
    grows = 2 / 3.5  # A holds 2 tokens at 2.5 s and 4 at 6 s; B 1 from 2.5 s, 1 to 2 in the last second
    last = 2 + grows * 3.0 + 1.5
    middle = 2 + grows * 0.5 * 0.5 * 0.5 + 0.5
    partly_filled = 7.5 * np.array([1, 1, 1.5, 2, 2, 2])  # half of the last block of 16 tokens, in the mean
    tokens = np.array([2, 2, middle, 3 + grows, 3 + 2 * grows, last])
    np.testing.assert_allclose(pool.kv_tokens, tokens + partly_filled)
    assert pool.kv_capacity_tokens == 16_000
    assert not shown.moving_seqs.any()


def test_bins_add_up_to_the_integrals_of_one_pool() -> None:
    """Σ mean · width of waiting and of what computes is the kernel's own ∫ count dt to rounding; KV use within 2 %."""
    system, rate = pools_of_two()[0]
    requests = random_requests(3_000, rate)
    run = simulate(system, requests)
    edges = whole_run(run, 500)
    (pool,), width = timeline(system, requests, run, edges).pools, np.diff(edges)
    assert run.decode.num_preemptions == 0
    assert run.decode.waiting_seq_s > 1.0
    assert width @ pool.waiting_seqs == pytest.approx(run.decode.waiting_seq_s, rel=1e-9)
    assert width @ (pool.prefill_seqs + pool.decode_seqs) == pytest.approx(run.decode.running_seq_s, rel=1e-9)
    assert width @ pool.kv_tokens == pytest.approx(16 * run.decode.kv_block_s, rel=0.02)


def test_bins_add_up_to_the_integrals_of_two_pools() -> None:
    """As above; what is on the link or in the decode pool is all that waits and runs there; prompts' KV is exact."""
    system, rate = pools_of_two()[1]
    requests = random_requests(3_000, rate)
    run = simulate(system, requests)
    edges = whole_run(run, 500)
    shown, width = timeline(system, requests, run, edges), np.diff(edges)
    (first, last), prefill = shown.pools, run.prefill
    assert prefill is not None
    assert run.decode.num_preemptions == 0
    assert prefill.waiting_seq_s > 1.0
    assert width @ first.waiting_seqs == pytest.approx(prefill.waiting_seq_s, rel=1e-9)
    assert width @ first.prefill_seqs == pytest.approx(prefill.running_seq_s, rel=1e-9)
    beyond = run.decode.waiting_seq_s + run.decode.running_seq_s
    assert width @ (shown.moving_seqs + last.decode_seqs) == pytest.approx(beyond, rel=1e-9)
    assert width @ first.kv_tokens == pytest.approx(16 * prefill.kv_block_s, rel=1e-9)
    assert width @ last.kv_tokens == pytest.approx(16 * run.decode.kv_block_s, rel=0.02)


@pytest.mark.parametrize("place", [0, 1])
def test_coarse_bins_are_means_of_fine_ones(place: int) -> None:
    """Halving the bins halves each into two whose mean it is, for every count and for KV use."""
    system, rate = pools_of_two()[place]
    requests = random_requests(400, rate)
    run = simulate(system, requests)
    edges = whole_run(run, 64)
    fine, coarse = timeline(system, requests, run, edges), timeline(system, requests, run, edges[::2])
    for one, two in zip(fine.pools, coarse.pools, strict=True):
        for name in ("waiting_seqs", "prefill_seqs", "decode_seqs", "kv_tokens"):
            pairs = getattr(one, name).reshape(-1, 2).mean(axis=1)
            np.testing.assert_allclose(getattr(two, name), pairs, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(coarse.moving_seqs, fine.moving_seqs.reshape(-1, 2).mean(axis=1), atol=1e-9)


def test_edges_must_increase() -> None:
    """Times that stand still are refused with what is accepted."""
    system, _ = pools_of_two()[0]
    requests = random_requests(5, 1.0)
    with pytest.raises(BestServeError, match=r"edge_s.*must increase.*increasing times in s"):
        timeline(system, requests, simulate(system, requests), np.array([0.0, 0.0]))
