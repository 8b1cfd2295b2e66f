"""The collocated kernel: traces by hand, a plain twin, queueing laws, conservation and adversarial input."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estimator.errors import BestServeError
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.kernels.calendar import SAME_S
from estimator.kernels.routing import ROUTERS, choose, router_draws
from estimator.parallelism import Parallelism
from estimator.queueing import mmc_wait_s, processor_sharing_s, shared_rate_mean_seqs
from estimator.requests import Requests
from estimator.simulate import simulate
from estimator.simulation import FINISHED, ITL_EDGES_S, REJECTED, Simulation
from estimator.system import Collocated, CollocatedPolicy
from tests.bench.bench_queueing import MEAN_STEPS, prompts, servers, traffic
from tests.twins import FleetTwin, InstanceTwin, Job, LaneTwin, MicroBatchTwin


def instance_of(cost: StepCost, max_tokens: int, max_seqs: int, num_kv_blocks: int = 1000) -> Instance:
    """One GPU with the given step cost and limits."""
    limits = EngineLimits(max_num_batched_tokens=max_tokens, max_num_seqs=max_seqs)
    return Instance(
        cost=cost,
        limits=limits,
        parallelism=Parallelism(),
        gpu="g",
        num_kv_blocks=num_kv_blocks,
        kv_bytes_per_token=1.0,
    )


def round_cost(max_tokens: int, max_seqs: int) -> StepCost:
    """A decode step takes 1 s, a step with prompts 1 s per token and 0.5 s for the head; attention is free."""
    return StepCost(
        decode_s=np.ones(max_seqs + 1),
        mixed_s=np.arange(max_tokens + 1.0),
        head_s=np.full(max_seqs + 1, 0.5),
        kv_read_s_per_token=np.zeros(max_seqs + 1),
        window_read_s_per_token=np.zeros(max_seqs + 1),
        window_tokens=0,
        attention_s_per_pair=0.0,
        window_attention_s_per_pair=0.0,
    )


def rough_cost(max_tokens: int, max_seqs: int) -> StepCost:
    """Every term of the step cost present, with no two times alike."""
    seqs, tokens = np.arange(max_seqs + 1.0), np.arange(max_tokens + 1.0)
    return StepCost(
        decode_s=0.0123457 + 0.00071 * np.sqrt(seqs),
        mixed_s=0.0171713 + 0.00093 * tokens,
        head_s=0.00113 * np.sqrt(seqs),
        kv_read_s_per_token=1.3e-5 / (1 + seqs),
        window_read_s_per_token=np.full(max_seqs + 1, 7.7e-6),
        window_tokens=20,
        attention_s_per_pair=1.7e-6,
        window_attention_s_per_pair=2.3e-6,
    )


def requests_of(arrival_s: object, inputs: object, outputs: object, cached: object = 0) -> Requests:
    """Requests from anything that numpy takes."""
    arrival = np.asarray(arrival_s, dtype=np.float64)
    tokens = [np.broadcast_to(np.asarray(x, np.int64), arrival.shape).copy() for x in (inputs, outputs, cached)]
    return Requests(arrival_s=arrival, input_tokens=tokens[0], output_tokens=tokens[1], cached_tokens=tokens[2])


def random_run(policy: CollocatedPolicy = "chunked", concurrency: int | None = None, stages: int = 1) -> Simulation:
    """400 requests of mixed lengths on an instance short of KV cache."""
    rng = np.random.default_rng(3)
    requests = requests_of(np.cumsum(rng.exponential(0.3, 400)), rng.integers(1, 200, 400), rng.integers(1, 60, 400))
    instance = instance_of(rough_cost(64, 16), 64, 16, num_kv_blocks=40)
    instance = replace(instance, parallelism=Parallelism(pp=stages))
    return simulate(Collocated(instance=instance, policy=policy), requests, concurrency=concurrency)


@pytest.mark.parametrize(
    ("policy", "start_s", "first_s", "finish_s"),
    [
        # 0-4.5 A; 4.5-11 A decodes, 5 of B; 11-17.5 A ends, 3 of B, C; 17.5-18.5 B decodes
        ("chunked", [0, 4.5, 11], [4.5, 17.5, 17.5], [17.5, 18.5, 17.5]),
        # 0-4.5 A; 4.5-11 6 of B; 11-15.5 2 of B, C; then A and B decode, B once, A twice
        ("prefill_first", [0, 4.5, 11], [4.5, 15.5, 15.5], [17.5, 16.5, 15.5]),
        # 0-4.5 A; 4.5-6.5 A decodes twice; 6.5-13 6 of B; 13-17.5 2 of B, C; 17.5-18.5 B decodes
        ("static", [0, 6.5, 13], [4.5, 17.5, 17.5], [6.5, 18.5, 17.5]),
    ],
)
def test_three_requests_by_hand(
    policy: CollocatedPolicy, start_s: list[float], first_s: list[float], finish_s: list[float]
) -> None:
    """A (4 in, 3 out) at 0 s, B (8, 2) and C (2, 1) at 1 s under a budget of 6 run as on paper."""
    system = Collocated(instance=instance_of(round_cost(6, 4), 6, 4), policy=policy)
    run = simulate(system, requests_of([0, 1, 1], [4, 8, 2], [3, 2, 1]))
    assert run.prefill_start_s.tolist() == start_s
    assert run.first_token_s.tolist() == first_s
    assert run.finish_s.tolist() == finish_s


LENGTHS = st.tuples(st.integers(0, 60), st.integers(1, 90), st.integers(1, 40), st.integers(0, 60))
ROUTER_NAMES = ("round_robin", "random", "least_outstanding", "power_of_two")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Collocated, Requests, int | None]:
    """A system short of something, requests, and the concurrency of a closed loop or None."""
    gaps, inputs, outputs, cached = np.array(draw(st.lists(LENGTHS, min_size=1, max_size=25))).T
    arrival_s = np.cumsum(gaps * 0.0101317)
    max_tokens, max_seqs = draw(st.integers(4, 80)), draw(st.integers(1, 8))
    degrees = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2), (1, 4)]))
    instance = replace(
        instance_of(rough_cost(max_tokens, max_seqs), max_tokens, max_seqs, draw(st.integers(5, 40))),
        parallelism=Parallelism(dp=degrees[0], pp=degrees[1]),
        stage_transfer_s=0.00371,
        output_s_per_token=draw(st.sampled_from([0.0, 0.0, 0.00291, 0.0153])),
        looks_ahead=draw(st.booleans()),
        reserves_output=draw(st.booleans()),
    )
    concurrency = draw(st.none() | st.integers(1, 30))
    system = Collocated(
        instance=instance,
        # several front ends may let a closed loop's requests go in another order than that of the steps
        num_instances=1 if concurrency and instance.output_s_per_token else draw(st.sampled_from([1, 1, 2, 3])),
        policy=draw(st.sampled_from(["chunked", "chunked", "prefill_first", "static"])),
        router=draw(st.sampled_from(ROUTER_NAMES)),
    )
    requests = requests_of(arrival_s, inputs, outputs, np.minimum(cached, inputs - 1))
    return system, requests, concurrency


def micro_batches(system: Collocated, seats: int) -> list[MicroBatchTwin]:
    """Those of one instance: a lane per rank in each; a rank's lanes share a queue."""
    degrees, queues = system.instance.parallelism, [[] for _ in range(system.instance.parallelism.dp)]  # type: ignore[var-annotated]
    return [
        MicroBatchTwin(
            lanes=[
                LaneTwin(
                    cost=system.instance.cost,
                    policy=system.policy,
                    max_tokens=system.instance.limits.max_num_batched_tokens,
                    max_seqs=seats,
                    capacity=system.instance.num_kv_blocks // degrees.pp,
                    reserves=system.instance.reserves_output,
                    waiting=queue,
                )
                for queue in queues
            ]
        )
        for _ in range(degrees.pp)
    ]


def twin_of(system: Collocated, requests: Requests, concurrency: int | None) -> FleetTwin:
    """The same system and requests, step by step; already run."""
    instance, degrees, limits = system.instance, system.instance.parallelism, system.instance.limits
    seats = max(1, limits.max_num_seqs // degrees.pp)
    if system.policy == "chunked":
        seats = min(seats, limits.max_num_batched_tokens)
    instances = [
        InstanceTwin(
            batches=micro_batches(system, seats),
            hop_s=instance.stage_transfer_s,
            output_s=instance.output_s_per_token,
            looks_ahead=instance.looks_ahead,
            same_s=SAME_S if degrees.pp > 1 else 0.0,
        )
        for _ in range(system.num_instances)
    ]
    columns = (requests.arrival_s, requests.input_tokens, requests.cached_tokens, requests.output_tokens)
    jobs = [
        Job(arrival_s=float(a), prompt_tokens=int(p), seen_tokens=int(s), output_tokens=int(o))
        for a, p, s, o in zip(*columns, strict=True)
    ]
    router = ROUTERS[system.router]
    draws = router_draws(router, len(jobs), 0)
    twin = FleetTwin(
        instances=instances,
        jobs=jobs,
        choose=lambda turn, held: choose(router, turn, np.array(held), draws),
        concurrency=concurrency,
    )
    twin.run()
    return twin


def assert_equals_twin(system: Collocated, requests: Requests, concurrency: int | None) -> None:
    """Every time of every request to 1e-9, the KV integral to 1e-9, evictions and the number of gaps exactly."""
    twin = twin_of(system, requests, concurrency)
    run = simulate(system, requests, concurrency=concurrency)
    for name, times in (("start_s", run.prefill_start_s), ("first_s", run.first_token_s), ("finish_s", run.finish_s)):
        plain = [getattr(job, name) for job in twin.jobs]
        expected = np.array([np.nan if x is None else x for x in plain])
        np.testing.assert_allclose(times, expected, rtol=1e-9, err_msg=name)
    assert run.decode.kv_block_s == pytest.approx(sum(i.kv_block_s for i in twin.instances), rel=1e-9)
    assert run.decode.num_preemptions == sum(i.num_evicted for i in twin.instances)
    gaps = np.sort(np.concatenate([job.gaps_s for job in twin.jobs]))
    assert run.itl_weight.sum() == pytest.approx(len(gaps), rel=1e-9)
    if len(gaps) > 0:  # the longest gap, decode stalls included, lies in the last bin that is filled, or next to it
        last = int(np.flatnonzero(run.itl_weight > 0)[-1])
        assert abs(int(np.searchsorted(ITL_EDGES_S, gaps[-1])) - 1 - last) <= 1


def test_an_instance_that_reserves_admits_as_many_as_will_fit_in_the_end() -> None:
    """Six blocks, prompts of a block and outputs of two more each: two are served at a time. By hand: their 32 prompt
    tokens take 32 s and the head 0.5 s, the other 32 tokens a step each: 64.5 s; the next two wait until then."""
    instance = instance_of(round_cost(64, 8), 64, 8, num_kv_blocks=6)
    requests = requests_of(np.zeros(4), np.full(4, 16), np.full(4, 33))
    greedy, reserving = (
        simulate(Collocated(instance=replace(instance, reserves_output=on)), requests) for on in (False, True)
    )
    np.testing.assert_allclose(reserving.first_token_s, [32.5, 32.5, 97.0, 97.0])
    np.testing.assert_allclose(reserving.finish_s, [64.5, 64.5, 129.0, 129.0])
    assert reserving.decode.num_preemptions == 0
    assert greedy.first_token_s[3] < 97.0
    assert greedy.decode.num_preemptions > 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=cases())
def test_kernel_equals_the_plain_twin(case: tuple[Collocated, Requests, int | None]) -> None:
    """Fast-forwarding changes nothing under any policy, layout, router, shortage of blocks, open or closed loop."""
    assert_equals_twin(*case)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_kernel_equals_the_plain_twin_thousands_of_times(case: tuple[Collocated, Requests, int | None]) -> None:
    """The same over thousands of cases."""
    assert_equals_twin(*case)


def assert_mean(samples: np.ndarray, law: float) -> None:
    """The mean is within 4 standard errors (40 batch means) of the law, and one standard error is under 2 %."""
    batches = samples.reshape(40, -1).mean(axis=1)
    error = float(batches.std(ddof=1)) / 40**0.5
    assert error < 0.02 * law
    assert abs(float(batches.mean()) - law) <= 4 * error


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_lone_prompts_wait_as_in_m_d_1(load: float) -> None:
    """Prompts that fill a step wait ρD/(2(1 − ρ)) on average (Pollaczek-Khinchine with a constant service D)."""
    service_s = 4.5
    arrival = np.cumsum(np.random.default_rng(5).exponential(service_s / load, 1_000_000))
    run = simulate(Collocated(instance=instance_of(round_cost(4, 4), 4, 4)), requests_of(arrival, 4, 1))
    assert_mean(run.prefill_start_s - run.arrival_s, load * service_s / (2 * (1 - load)))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_two_stages_wait_as_distserve_says(load: float) -> None:
    """Prompts that fill a step of two stages have a mean TTFT of D + RD²/(4(2 − RD)) (arXiv 2401.09670, eq. 2)."""
    D, R = 1.0, 2 * load
    run = simulate(
        Collocated(instance=prompts(D, stages=2)), traffic(R, np.ones(1_000_000, np.int64), prompt_tokens=4_096)
    )
    assert_mean(run.ttft_s - D, R * D**2 / (4 * (2 - R * D)))


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_sequence_at_a_time_is_m_g_1(load: float) -> None:
    """With one sequence resident and geometric outputs, the mean sojourn is E[S] + λE[S²]/(2(1 − ρ))."""
    rng, p = np.random.default_rng(6), 1 / 20
    outputs = rng.geometric(p, 1_000_000)
    mean_s, second = 0.5 + 1 / p, (1 - p) / p**2 + (0.5 + 1 / p) ** 2  # 1.5 s for the prompt, 1 s per decode step
    rate = load / mean_s
    arrival = np.cumsum(rng.exponential(1 / rate, len(outputs)))
    run = simulate(Collocated(instance=instance_of(round_cost(4, 1), 4, 1)), requests_of(arrival, 1, outputs))
    assert_mean(run.e2e_s, mean_s + rate * second / (2 * (1 - load)))


@pytest.mark.parametrize("load", [0.7, 0.8])
def test_seats_are_m_m_c(load: float) -> None:
    """Eight seats under steps of fixed time and geometric outputs wait as Erlang says: C(c, a)·E[S]/(c(1 − ρ))."""
    rate = 8 * load / MEAN_STEPS
    steps = np.random.default_rng(15).geometric(1 / MEAN_STEPS, 1_000_000)
    run = simulate(Collocated(instance=servers(8)), traffic(rate, steps))
    law = mmc_wait_s(rate, MEAN_STEPS, 8)
    assert law > 200 * 0.5  # besides, an arrival waits half a step of 1 s for the running one to end
    assert_mean(run.prefill_start_s - run.arrival_s, law)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_short_steps_share_the_processor(load: float) -> None:
    """Where a step's time is proportional to its sequences the mean sojourn is E[S]/(1 − ρ), for any outputs."""
    rng = np.random.default_rng(16)
    instance = servers(512, step_s=0.0, per_seq_s=1.0)
    for steps in (rng.geometric(1 / 500, 400_000), rng.integers(1, 1_000, 400_000)):
        run = simulate(Collocated(instance=instance), traffic(load / 500, steps))
        assert_mean(run.e2e_s, processor_sharing_s(load / 500, 500.0))


def test_batch_dependent_rate_shares_as_cohen_says() -> None:
    """With a step of 0.8 s + 0.02 s per sequence the mean number in system is that of the insensitive closed form."""
    steps = np.random.default_rng(17).geometric(1 / 1_000, 400_000)
    n = np.arange(1, 257)
    speed = n * 0.82 / (0.8 + 0.02 * n)
    rate = 0.8 * float(speed[-1]) / 820.0
    run = simulate(Collocated(instance=servers(256, step_s=0.8, per_seq_s=0.02)), traffic(rate, steps))
    assert_mean(run.e2e_s, shared_rate_mean_seqs(rate * 820.0, tuple(speed)) / rate)


@pytest.mark.parametrize("policy", ["chunked", "prefill_first", "static"])
@pytest.mark.parametrize("concurrency", [None, 5])
@pytest.mark.parametrize("stages", [1, 2])
def test_nothing_is_lost(policy: CollocatedPolicy, concurrency: int | None, stages: int) -> None:
    """Every request finishes after its first token after its start, and each token after the first is one gap."""
    run = random_run(policy, concurrency, stages)
    assert (run.status == FINISHED).all()
    assert (run.arrival_s <= run.prefill_start_s).all()
    assert (run.prefill_start_s < run.first_token_s).all()
    assert (run.first_token_s <= run.finish_s).all()
    assert run.itl_weight.sum() == pytest.approx((run.output_tokens - 1).sum(), rel=1e-9)


@pytest.mark.parametrize("stages", [1, 2])
def test_littles_law_is_exact(stages: int) -> None:
    """Σ sojourn = ∫ number in system dt, counted from the events, = waiting and running integrals together."""
    run = random_run(stages=stages)
    times = np.concatenate((run.arrival_s, run.finish_s))
    order = np.argsort(times, kind="stable")
    present = np.cumsum(np.repeat([1, -1], len(run.arrival_s))[order])
    integral = float((present[:-1] * np.diff(times[order])).sum())
    assert float(run.e2e_s.sum()) == pytest.approx(integral, rel=1e-9)
    assert run.decode.waiting_seq_s + run.decode.running_seq_s == pytest.approx(integral, rel=1e-9)
    assert run.decode.num_preemptions > 0


@pytest.mark.parametrize("stages", [1, 2])
def test_zero_requests(stages: int) -> None:
    """Nothing asked is nothing done."""
    instance = replace(instance_of(round_cost(4, 4), 4, 4), parallelism=Parallelism(pp=stages))
    run = simulate(Collocated(instance=instance), requests_of([], [], []))
    assert len(run.finish_s) == 0
    assert run.decode.num_steps == 0


def test_one_token_outputs_end_with_their_prompt() -> None:
    """A request of one output token finishes at its first token and leaves no gap; arriving together is no error."""
    run = simulate(Collocated(instance=instance_of(round_cost(4, 2), 4, 2)), requests_of([0, 0, 0], 2, 1))
    assert run.finish_s.tolist() == run.first_token_s.tolist() == [4.5, 4.5, 7.0]
    assert run.itl_weight.sum() == 0


def test_a_prompt_above_the_budget_is_cut() -> None:
    """Ten tokens under a budget of four take steps of 4, 4 and 2 tokens."""
    run = simulate(Collocated(instance=instance_of(round_cost(4, 2), 4, 2)), requests_of([0], 10, 1))
    assert run.finish_s.tolist() == [4.5 + 4.5 + 2.5]


@pytest.mark.parametrize("stages", [1, 2])
def test_what_can_never_fit_is_rejected_and_harms_nobody(stages: int) -> None:
    """A request larger than the KV cache is rejected; the others' times are those of a run without it."""
    instance = instance_of(round_cost(8, 4), 8, 4, num_kv_blocks=4 * stages)
    system = Collocated(instance=replace(instance, parallelism=Parallelism(pp=stages)))
    run = simulate(system, requests_of([0, 1, 1], [4, 100, 4], [9, 5, 9]))
    alone = simulate(system, requests_of([0, 1], 4, 9))
    assert run.status.tolist() == [FINISHED, REJECTED, FINISHED]
    assert np.isnan(run.finish_s[1])
    assert run.finish_s[[0, 2]].tolist() == alone.finish_s.tolist()
    closed = simulate(system, requests_of([0, 0, 0], [4, 100, 4], [9, 5, 9]), concurrency=1)
    assert closed.status.tolist() == [FINISHED, REJECTED, FINISHED]


@pytest.mark.parametrize(
    ("arrival_s", "message"),
    [
        ([1.0, 0.5], "arrival_s: 'decreasing times' must never decrease; accepted: times sorted by arrival."),
        ([0.0, float("nan")], "arrival_s: 'a NaN or infinity' must be finite; accepted: seconds."),
    ],
)
def test_impossible_times_are_refused(arrival_s: list[float], message: str) -> None:
    """Times that decrease or are not numbers are refused in a sentence that says what is accepted."""
    with pytest.raises(BestServeError, match=re.escape(message)):
        requests_of(arrival_s, 1, 1)
