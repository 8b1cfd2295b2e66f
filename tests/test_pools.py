"""The two-pool event loop against its plain twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.kernels.disaggregated import run_disaggregated
from estimator.parallelism import Parallelism
from estimator.requests import Requests
from estimator.simulation import REJECTED
from estimator.system import Disaggregated, DisaggregatedPolicy, KvLink
from tests.pool_twin import PoolTwin


def rough_cost(max_tokens: int, max_seqs: int, scale: float = 1.0, gain: float = 1.0, window: int = 20) -> StepCost:
    """Every term of the step cost present, with no two times alike."""
    q = 1 if gain == 1.0 else 3
    seqs, tokens = np.arange(max_seqs + 1.0), np.arange(max_tokens + q * max_seqs + 1.0)
    return StepCost(
        decode_s=scale * (0.0123457 + 0.00071 * np.sqrt(seqs)),
        mixed_s=scale * (0.0171713 + 0.00093 * tokens),
        head_s=scale * 0.00113 * np.sqrt(seqs),
        kv_read_s_per_token=scale * 1.3e-5 / (1 + seqs),
        window_read_s_per_token=np.full(max_seqs + 1, scale * 7.7e-6 if window else 0.0),
        window_tokens=window,
        attention_s_per_pair=scale * 1.7e-6,
        window_attention_s_per_pair=scale * 2.3e-6,
        decode_tokens_per_seq=q,
        accepted_tokens_per_step=gain,
        pooled_s=scale * 0.00041 * np.sqrt(tokens),
    )


@st.composite
def instances(draw: st.DrawFn, scale: float) -> Instance:
    """A small instance, often short of seats or KV blocks."""
    max_tokens, max_seqs = draw(st.integers(12, 90)), draw(st.integers(1, 7))
    gain, window = draw(st.sampled_from([1.0, 1.0, 1.5])), draw(st.sampled_from([0, 20]))
    return Instance(
        cost=rough_cost(max_tokens, max_seqs, scale, gain, window),
        limits=EngineLimits(max_num_batched_tokens=max_tokens, max_num_seqs=max_seqs),
        parallelism=Parallelism(pp=draw(st.sampled_from([1, 1, 2])), dp=draw(st.sampled_from([1, 1, 2]))),
        gpu="g",
        num_kv_blocks=draw(st.sampled_from([6, 8, 10, 14, 20, 40])),
        kv_bytes_per_token=1.0,
        request_overhead_s=draw(st.sampled_from([0.0, 0.00137])),
        frontend_s=draw(st.sampled_from([0.0, 0.00219])),
        overhead_s_per_token=draw(st.sampled_from([0.0, 0.0000113])),
        cold_start_s=draw(st.sampled_from([0.0, 0.317])),
        stage_transfer_s=0.00231,
        looks_ahead=draw(st.booleans()),
    )


@st.composite
def policies(draw: st.DrawFn) -> DisaggregatedPolicy:
    """Any policy that can be written down."""
    return DisaggregatedPolicy(
        name="drawn",
        prefill_order=draw(st.sampled_from(["fcfs", "sjf", "ljf"])),
        scheduling_batch=draw(st.integers(1, 5)),
        chunk_tokens=draw(st.sampled_from([0, 0, 7, 64])),
        decode_placement=draw(
            st.sampled_from(["round_robin", "random", "least_outstanding", "power_of_two", "heavy_light"])
        ),
        admission=draw(st.sampled_from(["greedy", "reserve_static", "reserve_dynamic"])),
        bucket_tokens=draw(st.integers(3, 20)),
        prediction_accuracy=draw(st.sampled_from([0.0, 0.7, 1.0])),
        heavy_decode_tokens=8,
    )


@st.composite
def systems(draw: st.DrawFn) -> Disaggregated:
    """One to three instances in each pool, with a link that is sometimes the bottleneck."""
    return Disaggregated(
        prefill=draw(instances(1.0)),
        num_prefill=draw(st.integers(1, 3)),
        decode=draw(instances(1.0917)),
        num_decode=draw(st.integers(1, 3)),
        link=KvLink(
            egress_bytes_per_s=draw(st.sampled_from([313.7, 9713.0])),
            ingress_bytes_per_s=draw(st.sampled_from([517.3, 8191.0])),
            latency_s=draw(st.sampled_from([0.0, 0.00311])),
            latency_steps=draw(st.sampled_from([0.0, 2.37])),
        ),
        policy=draw(policies()),
        router=draw(st.sampled_from(["round_robin", "random", "least_outstanding", "power_of_two"])),
    )


@st.composite
def loads(draw: st.DrawFn) -> Requests:
    """Up to 25 requests, bunched or spread."""
    lengths = draw(
        st.lists(st.tuples(st.integers(0, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 30)), max_size=25)
    )
    gaps, inputs, outputs, cached = np.array(lengths, dtype=np.int64).reshape(-1, 4).T
    return Requests(
        arrival_s=np.cumsum(gaps * draw(st.sampled_from([0.0, 0.000713, 0.0079]))),
        input_tokens=inputs,
        output_tokens=outputs,
        cached_tokens=np.minimum(cached, inputs - 1),
    )


TIMES = {
    "arrival_s": "arrival_s",
    "prefill_start_s": "start_s",
    "first_token_s": "first_s",
    "kv_arrival_s": "kv_s",
    "finish_s": "finish_s",
}


def assert_equal(system: Disaggregated, requests: Requests, concurrency: int | None, seed: int) -> None:
    """Kernel and twin agree on every time of every request, on rejections, preemptions and KV use."""
    run = run_disaggregated(system, requests, concurrency, seed)
    twin = PoolTwin(system, requests, concurrency, seed)
    twin.run()
    for name, of_twin in TIMES.items():
        expected = np.array([getattr(job, of_twin) for job in twin.jobs])
        np.testing.assert_allclose(getattr(run, name), expected, rtol=1e-9, atol=1e-9, err_msg=name)
    assert run.decode.num_preemptions == twin.num_evicted
    assert (run.status == REJECTED).tolist() == [job.is_rejected for job in twin.jobs]
    assert run.prefill is not None
    assert run.prefill.kv_block_s == pytest.approx(twin.kv_block_s[0], rel=1e-9, abs=1e-9)
    assert run.decode.kv_block_s == pytest.approx(twin.kv_block_s[1], rel=1e-9, abs=1e-9)


CASES = {
    "system": systems(),
    "requests": loads(),
    "concurrency": st.sampled_from([None, None, 1, 3, 20]),
    "seed": st.integers(0, 9),
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(**CASES)
def test_kernel_equals_the_plain_twin(
    system: Disaggregated, requests: Requests, concurrency: int | None, seed: int
) -> None:
    """Fast-forwarding changes no time of any request and no integral by more than 1e-9 of it, whatever the policy.

    The twin checks as it goes that no lane holds more KV blocks than it has.
    """
    assert_equal(system, requests, concurrency, seed)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(**CASES)
def test_kernel_equals_the_plain_twin_in_thousands_of_cases(
    system: Disaggregated, requests: Requests, concurrency: int | None, seed: int
) -> None:
    """The same on 3,000 cases drawn anew."""
    assert_equal(system, requests, concurrency, seed)
