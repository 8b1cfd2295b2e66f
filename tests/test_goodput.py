"""Goodput against an exact law, and what must hold of it whatever the system."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from estimator.capacity import MeanRequest, decode_fixed_point, instance_rate_req_s, screen
from estimator.errors import BestServeError
from estimator.goodput import Effort, Goodput, equal_part, goodput
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.outcome import Unstable
from estimator.parallelism import Parallelism
from estimator.simulate import simulate
from estimator.slo import Slo, SloTarget
from estimator.system import Collocated, Disaggregated, KvLink
from estimator.workload import FixedLengths, LognormalLengths, LognormalTokens, PoissonArrivals, Workload

CHAT = Workload(
    lengths=LognormalLengths(
        input=LognormalTokens(median_tokens=780.0, sigma=0.7, max_tokens=8000),
        output=LognormalTokens(median_tokens=165.0, sigma=0.63, max_tokens=2000),
    ),
    arrivals=PoissonArrivals(),
)
SLO = Slo(targets=(SloTarget(metric="ttft", limit_s=0.8), SloTarget(metric="tpot", limit_s=0.03)))


def instance_of(*, num_kv_blocks: int = 30_000, limits: EngineLimits | None = None) -> Instance:
    """About an 8-billion-parameter model on one H100: 8 ms to read the weights, 20 µs per prompt token."""
    limits = limits or EngineLimits(max_num_batched_tokens=2048, max_num_seqs=256)
    num_seqs = np.arange(limits.max_num_seqs + 1, dtype=np.float64)
    tokens = np.arange(limits.max_num_batched_tokens + 1, dtype=np.float64)
    head_s = 4e-4 + 1e-6 * num_seqs
    return Instance(
        cost=StepCost(
            decode_s=8e-3 + 2e-5 * num_seqs + head_s,
            mixed_s=np.maximum(8e-3, 2e-5 * tokens),
            head_s=head_s,
            kv_read_s_per_token=np.full(limits.max_num_seqs + 1, 4e-8),
            window_read_s_per_token=np.zeros(limits.max_num_seqs + 1),
            window_tokens=0,
            attention_s_per_pair=1e-9,
            window_attention_s_per_pair=0.0,
        ),
        limits=limits,
        parallelism=Parallelism(),
        gpu="h100_sxm",
        num_kv_blocks=num_kv_blocks,
        kv_bytes_per_token=1.3e5,
    )


def pools_of(num_prefill: int, num_decode: int, bytes_per_s: float = 5e10) -> Disaggregated:
    """So many equal prefill and decode instances joined by a link of `bytes_per_s` per instance."""
    instance = instance_of()
    return Disaggregated(
        prefill=instance,
        num_prefill=num_prefill,
        decode=instance,
        num_decode=num_decode,
        link=KvLink(egress_bytes_per_s=bytes_per_s, ingress_bytes_per_s=bytes_per_s),
    )


def found(system: Collocated | Disaggregated, slo: Slo = SLO, workload: Workload = CHAT, seed: int = 0) -> Goodput:
    """The goodput, which must exist."""
    answer = goodput(system, workload, slo, seed=seed)
    assert isinstance(answer, Goodput), answer
    return answer


def md1_wait_cdf(load: float, wait_in_services: float) -> float:
    """P(W ≤ t) in M/D/1 with D = 1 (Crommelin 1932): (1 − ρ)·Σ_{k ≤ t} e^{−ρ(k−t)}·(ρ(k − t))^k/k!."""
    terms = [
        math.exp(-load * (k - wait_in_services)) * (load * (k - wait_in_services)) ** k / math.factorial(k)
        for k in range(int(wait_in_services) + 1)
    ]
    return (1.0 - load) * math.fsum(terms)


@pytest.mark.parametrize("limit_in_services", [3.0, 6.0])
def test_goodput_of_one_at_a_time_prefill_is_md1(limit_in_services: float) -> None:
    """Fixed prompts that fill the step's budget make M/D/1: p90 TTFT meets Crommelin's law at the goodput, to 2.5 %."""
    instance = instance_of(limits=EngineLimits(max_num_batched_tokens=1000, max_num_seqs=64))
    service_s = instance.cost.mixed_step_s(0, 0.0, [(1000, 0)], 1)
    workload = Workload(lengths=FixedLengths(input_tokens=1000, output_tokens=1), arrivals=PoissonArrivals())
    slo = Slo(targets=(SloTarget(metric="ttft", limit_s=limit_in_services * service_s),))
    law = brentq(lambda load: md1_wait_cdf(load, limit_in_services - 1.0) - 0.9, 0.01, 0.99) / service_s
    answers = [found(Collocated(instance=instance), slo, workload, seed).rate_req_s for seed in range(6)]
    error = float(np.std(answers, ddof=1)) / math.sqrt(len(answers))
    assert error < 0.01 * law
    assert abs(float(np.mean(answers)) - law) < max(4.0 * error, 0.01 * law)
    assert np.mean(answers) == pytest.approx(law, rel=0.025)


def test_slo_is_kept_at_the_goodput_and_missed_above() -> None:
    """Fresh requests keep the SLO 4 % below the answer's interval and miss it 4 % above."""
    system = Collocated(instance=instance_of())
    answer = found(system)
    below = simulate(system, CHAT.draw(0.96 * answer.low_req_s, 40_000, 99), seed=0)
    above = simulate(system, CHAT.draw(1.04 * answer.high_req_s, 40_000, 99), seed=0)
    assert SLO.met_by(below, slice(4_000, 38_000))
    assert not SLO.met_by(above, slice(4_000, 38_000))


def test_same_seed_same_answer() -> None:
    """Two searches with one seed return the same numbers to the last bit."""
    first, second = (found(pools_of(1, 2), seed=5) for _ in range(2))
    assert first.rate_req_s == second.rate_req_s
    assert first.summary == second.summary


def test_equal_instances_cost_one() -> None:
    """512 instances simulate as many requests as one, and carry at least 512 times as much (regular arrivals help)."""
    one, many = found(Collocated(instance=instance_of())), found(Collocated(instance=instance_of(), num_instances=512))
    assert many.num_simulated_requests <= 1.5 * one.num_simulated_requests
    assert 0.99 * 512 * one.rate_req_s <= many.rate_req_s <= 1.3 * 512 * one.rate_req_s


def test_few_probes_are_enough() -> None:
    """The median search over 11 seeds simulates at most 100,000 requests collocated and 130,000 in two pools."""
    for system, most in ((Collocated(instance=instance_of()), 100_000), (pools_of(1, 1), 130_000)):
        answers = [found(system, seed=seed) for seed in range(11)]
        assert np.median([answer.num_simulated_requests for answer in answers]) <= most
        assert max(answer.high_req_s / answer.low_req_s for answer in answers) < 1.3


def test_equal_part_of_pools() -> None:
    """6 prefill and 4 decode instances are two of 3 and 2; 3 and 2 are one; a joined router keeps the whole."""
    part, _, num_parts = equal_part(pools_of(6, 4), CHAT)
    assert isinstance(part, Disaggregated)
    assert (part.num_prefill, part.num_decode, num_parts) == (3, 2, 2)
    assert equal_part(pools_of(3, 2), CHAT)[2] == 1
    assert equal_part(replace(pools_of(6, 4), router="least_outstanding"), CHAT)[2] == 1


@settings(max_examples=12, deadline=None)
@given(ttft_s=st.floats(0.2, 2.0), tpot_s=st.floats(0.015, 0.06), factor=st.floats(1.0, 2.0), pools=st.booleans())
def test_looser_slo_never_lowers_goodput(ttft_s: float, tpot_s: float, factor: float, pools: bool) -> None:
    """Both limits times a factor ≥ 1: the goodput does not fall by more than the precision of the search."""
    system = pools_of(1, 1) if pools else Collocated(instance=instance_of())
    tight, loose = (
        Slo(targets=(SloTarget(metric="ttft", limit_s=k * ttft_s), SloTarget(metric="tpot", limit_s=k * tpot_s)))
        for k in (1.0, factor)
    )
    before, after = goodput(system, CHAT, tight), goodput(system, CHAT, loose)
    if isinstance(before, Goodput):
        assert isinstance(after, Goodput)
        assert after.rate_req_s >= before.rate_req_s * 0.985


def test_more_bandwidth_never_lowers_goodput() -> None:
    """From 1 to 50 GB/s the goodput of a 2p1d system rises, and the narrow link is what holds it at first."""
    rates = [found(pools_of(2, 1, bytes_per_s)).rate_req_s for bytes_per_s in (1e9, 2e9, 5e9, 5e10)]
    assert all(later >= 0.985 * earlier for earlier, later in itertools.pairwise(rates))
    assert rates[0] < 0.8 * rates[-1]


def test_share_of_one_target_is_its_percentile() -> None:
    """90 % of the requests within a TTFT limit, and a p90 TTFT within it, are one SLO."""
    target = (SloTarget(metric="ttft", limit_s=0.5),)
    system = Collocated(instance=instance_of())
    by_share, by_percentile = found(system, Slo(targets=target, share=0.9)), found(system, Slo(targets=target))
    assert by_share.rate_req_s == by_percentile.rate_req_s


def test_share_of_both_is_no_easier_than_each() -> None:
    """90 % within both limits at once admits no more load than 90 % within each."""
    system = Collocated(instance=instance_of())
    assert found(system, replace(SLO, share=0.9)).rate_req_s <= found(system).rate_req_s * 1.01


@pytest.mark.parametrize(
    ("slo", "reason"),
    [
        (
            Slo(targets=(SloTarget(metric="ttft", limit_s=0.005),)),
            r"ttft p90 of lone requests is [\d.]+ times its limit",
        ),
        (
            Slo(targets=(SloTarget(metric="tpot", limit_s=0.004),)),
            r"tpot p90 of lone requests is [\d.]+ times its limit",
        ),
    ],
)
def test_hopeless_slo_is_named(slo: Slo, reason: str) -> None:
    """Where a lone request misses the SLO the answer is Unstable, names the target and sizes the violation."""
    for system in (Collocated(instance=instance_of()), pools_of(1, 1)):
        answer = goodput(system, CHAT, slo)
        assert isinstance(answer, Unstable)
        assert answer.violation > 0.5
        assert re.search(reason, answer.reason), answer.reason


def test_requests_that_never_fit_are_named() -> None:
    """With KV blocks for 500 tokens most requests are rejected, and the reason says so."""
    answer = goodput(Collocated(instance=instance_of(num_kv_blocks=31)), CHAT, SLO)
    assert isinstance(answer, Unstable)
    assert "never fit the instance" in answer.reason


def test_binding_limits_are_named() -> None:
    """A tight TPOT binds as TPOT, few seats as max_num_seqs, few KV blocks as kv capacity."""
    long_wait = SloTarget(metric="ttft", limit_s=3.0)
    loose = Slo(targets=(long_wait, SloTarget(metric="tpot", limit_s=0.5)))
    tight = Slo(targets=(long_wait, SloTarget(metric="tpot", limit_s=0.014)))
    few_seats = EngineLimits(max_num_batched_tokens=2048, max_num_seqs=8)
    assert found(Collocated(instance=instance_of()), tight).binding_limit == "tpot p90"
    assert found(Collocated(instance=instance_of(limits=few_seats)), loose).binding_limit == "max_num_seqs"
    assert found(Collocated(instance=instance_of(num_kv_blocks=1500)), loose).binding_limit == "kv capacity"


def test_unreachable_limits_leave_throughput() -> None:
    """An SLO of hours is not a licence to build a backlog: the goodput stays at what the instance carries."""
    slo = Slo(targets=(SloTarget(metric="e2e", limit_s=36_000.0),))
    answer = found(Collocated(instance=instance_of()), slo)
    assert answer.binding_limit == "throughput"
    sample = CHAT.draw(1.0, 20_000, 0)
    assert answer.rate_req_s <= 1.03 * screen(Collocated(instance=instance_of()), sample)


@pytest.mark.parametrize(
    "system",
    [
        Collocated(instance=instance_of(), num_instances=3),
        Collocated(instance=replace(instance_of(), parallelism=Parallelism(pp=2))),
        pools_of(1, 1),
        pools_of(1, 3),
    ],
)
def test_screen_is_above_goodput(system: Collocated | Disaggregated) -> None:
    """The capacity estimate, with and without the TPOT limit, is not below the goodput, and within a factor of 3."""
    sample = CHAT.draw(1.0, 20_000, 0)
    rate = found(system).rate_req_s
    assert rate <= 1.02 * screen(system, sample, SLO) <= 1.03 * screen(system, sample)
    assert screen(system, sample, SLO) < 3.0 * rate


def test_decode_fixed_point_against_the_kernel() -> None:
    """Batch and step time of a decode pool by Little's law are within 5 % of the simulated ones at moderate load."""
    system = pools_of(4, 1)
    requests = CHAT.draw(12.0, 40_000, 3)
    mean = MeanRequest.of(requests, 0)
    fixed_point = decode_fixed_point(system.decode, mean, 12.0)
    assert fixed_point is not None
    run = simulate(system, requests, seed=0)
    batch = run.decode.running_seq_s / run.decode.duration_s
    assert batch == pytest.approx(fixed_point[0], rel=0.05)
    assert run.decode.busy_s / run.decode.num_steps == pytest.approx(fixed_point[1], rel=0.05)
    assert decode_fixed_point(system.decode, mean, 1e4) is None


def test_instance_rate_by_hand() -> None:
    """Prefill alone: 1,000 prompt tokens at 20 µs and 500,500 pairs at 1 ns are 20.5 ms, so 48.8 requests/s."""
    requests = Workload(lengths=FixedLengths(input_tokens=1000, output_tokens=101), arrivals=PoissonArrivals()).draw(
        1.0, 10, 0
    )
    mean = MeanRequest.of(requests, 0)
    assert instance_rate_req_s(instance_of(), mean, decode=False) == pytest.approx(1.0 / (0.02 + 500_500e-9))
    # decode alone at batch 256: 100 steps of 8 ms + 256·(21 µs + 40 ns·1,050) + 0.4 ms, shared by 256
    step_s = 8.4e-3 + 256 * (21e-6 + 4e-8 * 1050)
    assert instance_rate_req_s(instance_of(), mean, prefill=False) == pytest.approx(256 / (100 * step_s))


def test_prompts_add_what_their_share_of_a_step_costs() -> None:
    """One seat, 100 steps of 10 ms and 1,000 prompt tokens, 16 of which fill a step: 8 go unnoticed, 1 ms each beyond.

    62.5 of the steps have 16 prompt tokens and take 8 ms more.
    """
    tokens = np.arange(18)
    cost = replace(
        instance_of().cost,
        decode_s=np.full(2, 0.010),
        mixed_s=0.010 + 0.001 * np.maximum(tokens - 9, 0),
        head_s=np.zeros(2),
        kv_read_s_per_token=np.zeros(2),
        window_read_s_per_token=np.zeros(2),
        attention_s_per_pair=0.0,
    )
    one = replace(instance_of(), cost=cost, limits=EngineLimits(max_num_batched_tokens=17, max_num_seqs=1))
    requests = Workload(lengths=FixedLengths(input_tokens=1000, output_tokens=101), arrivals=PoissonArrivals()).draw(
        1.0, 10, 0
    )
    assert instance_rate_req_s(one, MeanRequest.of(requests, 0)) == pytest.approx(1.0 / (100 * 0.010 + 62.5 * 0.008))


@pytest.mark.slow
def test_interval_covers_the_long_run() -> None:
    """The 95 % intervals of 24 seeds cover the answer of the pooled seeds at least 20 times."""
    system = Collocated(instance=instance_of())
    answers = [found(system, seed=seed) for seed in range(24)]
    truth = float(np.mean([answer.rate_req_s for answer in answers]))
    assert sum(answer.low_req_s <= truth <= answer.high_req_s for answer in answers) >= 20
    assert np.median([answer.high_req_s / answer.low_req_s for answer in answers]) < 1.2


def test_precision_is_checked() -> None:
    """A precision of 0 is refused by name."""
    with pytest.raises(BestServeError, match=r"precision: 0.0 must lie in \[0.001, 0.2\]"):
        goodput(Collocated(instance=instance_of()), CHAT, SLO, effort=Effort(precision=0.0))


def test_throughput_has_an_interval() -> None:
    """Where every request keeps the SLO at the goodput and a queue builds up above it, sampling still leaves doubt."""
    loose = Slo(targets=(SloTarget(metric="ttft", limit_s=20.0), SloTarget(metric="tpot", limit_s=1.0)))
    answer = found(Collocated(instance=instance_of()), loose)
    assert answer.binding_limit == "throughput"
    assert answer.low_req_s < answer.rate_req_s < answer.high_req_s
