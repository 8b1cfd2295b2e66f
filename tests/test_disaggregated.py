"""Two pools: traces by hand for each policy, queueing laws, conservation, determinism and adversarial input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.errors import BestServeError
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.kernels.calendar import EMPTY, State
from estimator.kernels.disaggregated import run_disaggregated
from estimator.kernels.pools import Loop, run_pools
from estimator.length_predictor import predicted_tokens
from estimator.parallelism import Parallelism
from estimator.requests import Requests
from estimator.simulate import simulate
from estimator.simulation import FINISHED, REJECTED, Simulation
from estimator.system import DISTSERVE, TETRIINFER, Disaggregated, DisaggregatedPolicy, KvLink


def pool_instance(max_tokens: int = 64, max_seqs: int = 8, **changes: object) -> Instance:
    """Flat tables: every prompt step 0.1 + 0.01 s, every decode step 0.02 s + 0.1 ms per cached token."""
    cost = StepCost(
        decode_s=np.full(max_seqs + 1, 0.02),
        mixed_s=np.full(max_tokens + 1, 0.1),
        head_s=np.full(max_seqs + 1, 0.01),
        kv_read_s_per_token=np.full(max_seqs + 1, 1e-4),
        window_read_s_per_token=np.zeros(max_seqs + 1),
        window_tokens=0,
        attention_s_per_pair=0.0,
        window_attention_s_per_pair=0.0,
    )
    instance = Instance(
        cost=cost,
        limits=EngineLimits(max_num_batched_tokens=max_tokens, max_num_seqs=max_seqs),
        parallelism=Parallelism(),
        gpu="g",
        num_kv_blocks=10_000,
        kv_bytes_per_token=1.0,
    )
    return replace(instance, **changes)  # type: ignore[arg-type]


def clock_instance(max_tokens: int, max_seqs: int, num_kv_blocks: int = 1000) -> Instance:
    """A step with prompts takes 1 s a token, a decode step 1 s."""
    cost = replace(
        pool_instance(max_tokens, max_seqs).cost,
        decode_s=np.ones(max_seqs + 1),
        mixed_s=np.arange(max_tokens + 1.0),
        head_s=np.zeros(max_seqs + 1),
        kv_read_s_per_token=np.zeros(max_seqs + 1),
    )
    return replace(pool_instance(max_tokens, max_seqs), cost=cost, num_kv_blocks=num_kv_blocks)


SLOW_LINK = KvLink(egress_bytes_per_s=100.0, ingress_bytes_per_s=100.0, latency_s=0.05)
FAST_LINK = KvLink(egress_bytes_per_s=1e18, ingress_bytes_per_s=1e18)


def system_of(prefill: Instance, decode: Instance | None = None, **changes: object) -> Disaggregated:
    """One prefill and one decode instance over a link of 100 tokens a second and 0.05 s, changed as told."""
    system = Disaggregated(
        prefill=prefill, num_prefill=1, decode=decode or pool_instance(), num_decode=1, link=SLOW_LINK
    )
    return replace(system, **changes)  # type: ignore[arg-type]


def requests_of(arrival_s: object, inputs: object, outputs: object) -> Requests:
    """Requests from anything that numpy takes."""
    arrival = np.asarray(arrival_s, dtype=np.float64)
    tokens = [np.broadcast_to(np.asarray(x, np.int64), arrival.shape).copy() for x in (inputs, outputs)]
    none = np.zeros(len(arrival), np.int64)
    return Requests(arrival_s=arrival, input_tokens=tokens[0], output_tokens=tokens[1], cached_tokens=none)


def poisson(rate: float, num: int, seed: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Arrival times of a Poisson process."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, num))


def test_a_hand_over_may_take_steps_of_its_receiver() -> None:
    """The first meets an idle instance; those that come later take 2.5 of the steps that decode it."""
    requests, link = requests_of([0.0, 1.0, 1.0], 10, 200), replace(FAST_LINK, latency_s=0.15)
    plain, late = (
        simulate(system_of(pool_instance(), link=replace(link, latency_steps=n)), requests) for n in (0.0, 2.5)
    )
    assert late.kv_arrival_s[0] == plain.kv_arrival_s[0]
    steps = (late.kv_arrival_s - plain.kv_arrival_s)[1:] / 0.0249
    assert steps == pytest.approx(2.5, rel=0.1)


def test_no_hand_over_overtakes_another() -> None:
    """One that waits for ten steps, the last of which the instance never takes, is ahead of one that waits for none."""
    system = system_of(pool_instance(), link=replace(FAST_LINK, latency_steps=10.0))
    alone = simulate(system, requests_of([0.0], 10, 50))
    end_s = alone.finish_s[0]
    run = simulate(system, requests_of([0.0, end_s - 0.12, end_s - 0.05], 10, 50))
    assert run.first_token_s[1] < end_s < run.first_token_s[2]
    assert run.kv_arrival_s[1] > run.first_token_s[2] + 0.05
    assert run.kv_arrival_s[2] == run.kv_arrival_s[1]


def test_one_request_by_hand() -> None:
    """Ten tokens: first token at 0.11 s, cache across 0.15 s later, then steps of 20 ms + 0.1 ms per cached token."""
    run = simulate(system_of(pool_instance()), requests_of([0.0], 10, 3))
    assert run.first_token_s[0] == pytest.approx(0.11, rel=1e-12)
    assert run.kv_arrival_s[0] == pytest.approx(0.26, rel=1e-12)
    assert run.finish_s[0] == pytest.approx(0.26 + 2 * 0.02 + 1e-4 * (10 + 11), rel=1e-12)
    held = simulate(system_of(pool_instance(), holds_first_token=True), requests_of([0.0], 10, 3))
    assert held.first_token_s[0] == pytest.approx(0.26, rel=1e-12)


def test_two_senders_take_turns_at_one_receiver() -> None:
    """Two prompts of 10 tokens end at 0.11 s on two instances: the second cache crosses after the first, at 0.36 s.

    A third, sent at 0.1 s, ends at 0.22 s on the first instance and is third in line at the decode instance: 0.46 s.
    """
    run = simulate(system_of(pool_instance(), num_prefill=2), requests_of([0.0, 0.0, 0.1], 10, 2))
    assert run.first_token_s == pytest.approx([0.11, 0.11, 0.22], rel=1e-12)
    assert run.kv_arrival_s == pytest.approx([0.26, 0.36, 0.46], rel=1e-12)


@pytest.mark.parametrize(
    ("policy", "first_s"),
    [
        # 0-3 the first alone; 3-11 the next two packed, 6 + 2 tokens; 11-16 the last
        (DISTSERVE, [3, 11, 11, 16]),
        # chunks of 4: 3; then 6 = 4 + 2 beside 2 of the third; then the last, 4 + 1
        (replace(DISTSERVE, chunk_tokens=4), [3, 11, 11, 16]),
        (replace(DISTSERVE, chunk_tokens=8), [3, 11, 11, 16]),
        # sorted in one batch of three: 2 + 5 tokens packed, then 6
        (replace(DISTSERVE, prefill_order="sjf", scheduling_batch=3), [3, 16, 10, 10]),
        # longest first: 6, then 5 + 2
        (replace(DISTSERVE, prefill_order="ljf", scheduling_batch=3), [3, 9, 16, 16]),
        # batches of two: {6, 2} then {5}
        (replace(DISTSERVE, prefill_order="sjf", scheduling_batch=2), [3, 11, 11, 16]),
    ],
)
def test_prefill_orders_by_hand(policy: DisaggregatedPolicy, first_s: list[float]) -> None:
    """Prompts of 3 at 0 s and of 6, 2 and 5 tokens at 1 s under a budget of 8, a second a token, end as on paper."""
    system = system_of(clock_instance(8, 4), policy=policy)
    run = simulate(system, requests_of([0, 1, 1, 1], [3, 6, 2, 5], 1))
    assert run.first_token_s.tolist() == first_s


def test_a_full_decode_pool_holds_prefill_back() -> None:
    """One seat, 5-token outputs, room for one prompt: each next prompt starts when the one before it has left.

    A computes 0-4, is handed over at once and decodes 4-8. B computes 4-8 and gets A's seat at 8. C starts when B's
    cache has left, 8-12, just in time for B's seat.
    """
    prefill = clock_instance(8, 8, num_kv_blocks=1)  # one prompt
    system = system_of(prefill, clock_instance(8, 1), link=FAST_LINK)
    run = simulate(system, requests_of([0, 0, 0], 4, 5))
    assert run.prefill_start_s.tolist() == [0, 4, 8]
    assert run.kv_arrival_s == pytest.approx([4, 8, 12], abs=1e-9)
    assert run.finish_s == pytest.approx([8, 12, 16], abs=1e-9)
    slow = simulate(system, requests_of([0, 0, 0], 4, 11))  # ten steps in the seat: now B waits for it, and C for B
    assert slow.prefill_start_s == pytest.approx([0, 4, 14], abs=1e-9)
    assert slow.kv_arrival_s == pytest.approx([4, 14, 24], abs=1e-9)


@pytest.mark.parametrize(
    ("admission", "arrivals"), [("greedy", [2, 4]), ("reserve_static", [2, 102]), ("reserve_dynamic", [2, 4])]
)
def test_admissions_by_hand(admission: str, arrivals: list[float]) -> None:
    """Two prompts of 2 tokens, 101 and 21 to come, predicted right to tens; 8 KV blocks.

    Greedy lets the second in at once. Static asks 7 blocks for 2 + 100 tokens and 2 for 2 + 20, and waits for the first
    to end. Dynamic asks what both hold when the first ends and the second has opened as many blocks, less the first's:
    it lets it in.
    """
    policy = replace(DISTSERVE, admission=admission, bucket_tokens=10, prediction_accuracy=1.0)  # type: ignore[arg-type]
    system = system_of(clock_instance(2, 4), clock_instance(8, 4, num_kv_blocks=8), link=FAST_LINK, policy=policy)
    run = simulate(system, requests_of([0, 0], 2, [101, 21]))
    assert run.kv_arrival_s == pytest.approx(arrivals, abs=1e-9)
    assert run.decode.num_preemptions == 0


def test_greedy_recomputes_what_no_longer_fits() -> None:
    """Three sequences that outgrow 64 tokens: the latest are evicted, all finish with every token."""
    system = system_of(clock_instance(4, 4), clock_instance(8, 4, num_kv_blocks=4), link=FAST_LINK)
    run = simulate(system, requests_of([0, 0, 0], 4, 20))
    assert run.decode.num_preemptions > 0
    assert (run.status == FINISHED).all()
    assert run.itl_weight.sum() == pytest.approx(3 * 19)


def test_heavy_decodes_are_dealt_in_turn() -> None:
    """Of two instances drawn the one with the lower heavy:light ratio is taken: eight heavy ones end up four on each.

    Steps of more than four sequences take 1,000 s, so that one too many on an instance would show.
    """
    policy = replace(TETRIINFER, prediction_accuracy=1.0, admission="greedy", chunk_tokens=0, prefill_order="fcfs")
    decode = clock_instance(8, 16)
    crowded = replace(decode.cost, decode_s=np.where(np.arange(17) <= 4, 1.0, 1000.0))
    system = system_of(clock_instance(1, 8), replace(decode, cost=crowded), num_decode=2, link=FAST_LINK, policy=policy)
    run = simulate(system, requests_of(np.zeros(8), 1, 1000))
    assert run.finish_s == pytest.approx(run.kv_arrival_s + 999, abs=1.01)
    blind = simulate(
        replace(system, policy=replace(policy, decode_placement="random")), requests_of(np.zeros(8), 1, 1000)
    )
    assert blind.finish_s.max() > 2000


def test_prediction_is_right_as_often_as_stated() -> None:
    """74.9 % of 40,000 lengths fall into the predicted bucket of 200, whose lower end is told."""
    lengths = np.random.default_rng(3).integers(1, 2000, 40_000)
    predicted = predicted_tokens(lengths, 200, 0.749, 0)
    assert float((predicted == lengths // 200 * 200).mean()) == pytest.approx(0.749, abs=4 * 0.0022)
    assert (predicted % 200 == 0).all()


def assert_mean_ttft(prefill: Instance, rate: float, law_s: float) -> None:
    """Prompts that fill a step alone and have one token to say: their mean TTFT is within 4 standard errors of the law.

    One standard error (100 batch means) is under 2 % of the wait that the law adds to an idle instance's time.
    """
    run = simulate(system_of(prefill), requests_of(poisson(rate, 1_000_000), 64, 1))
    means = run.ttft_s.reshape(100, -1).mean(axis=1)
    error = float(means.std(ddof=1)) / 10
    assert error < 0.02 * (law_s - float(run.ttft_s.min()))
    assert abs(float(means.mean()) - law_s) <= 4 * error


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_prefill_waits_as_distserve_says(load: float) -> None:
    """Prompts that fill a step alone are an M/D/1 queue: mean TTFT = D + RD²/(2(1 − RD)) (arXiv 2401.09670, 3.1)."""
    D, R = 0.11, load / 0.11
    assert_mean_ttft(pool_instance(), R, D + R * D**2 / (2 * (1 - R * D)))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_two_stages_wait_as_distserve_says(load: float) -> None:
    """Two pipeline stages of D/2: mean TTFT = D + RD²/(4(2 − RD)) (arXiv 2401.09670, 3.1)."""
    D, R = 0.22, 2 * load / 0.22
    assert_mean_ttft(pool_instance(parallelism=Parallelism(pp=2)), R, D + R * D**2 / (4 * (2 - R * D)))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_tensor_parallelism_waits_as_distserve_says(load: float) -> None:
    """A speed-up of K = 1.6: mean TTFT = D/K + RD²/(2K(K − RD)) (arXiv 2401.09670, 3.1)."""
    D, K, R = 0.11, 1.6, 1.6 * load / 0.11
    cost = pool_instance().cost
    fast = pool_instance(cost=replace(cost, mixed_s=cost.mixed_s / K, head_s=cost.head_s / K))
    assert_mean_ttft(fast, R, D / K + R * D**2 / (2 * K * (K - R * D)))


def test_prefill_and_one_seat_are_a_tandem_queue() -> None:
    """Exponential prompts and outputs, one seat, free link: mean sojourn 1/(μ₁ − λ) + 1/(μ₂ − λ) (Burke, 1956)."""
    num, mean, rate = 400_000, 300, 0.5 / 300
    rng = np.random.default_rng(5)
    inputs, outputs = rng.geometric(1 / mean, num), 1 + rng.geometric(1 / mean, num)
    most = int(inputs.max())
    prefill = replace(clock_instance(most, 1), num_kv_blocks=10**9)
    decode = replace(clock_instance(8, 1), num_kv_blocks=10**6)
    run = simulate(system_of(prefill, decode, link=FAST_LINK), requests_of(poisson(rate, num, 6), inputs, outputs))
    law = 2 / (1 / mean - rate)
    means = run.e2e_s.reshape(100, -1).mean(axis=1)
    error = float(means.std(ddof=1)) / 10
    assert error < 0.02 * law
    assert abs(float(means.mean()) - law) <= 4 * error


def busy_run(policy: DisaggregatedPolicy = TETRIINFER, concurrency: int | None = None, **more: object) -> Simulation:
    """500 requests of mixed lengths on two prefill and three decode instances short of KV cache."""
    rng = np.random.default_rng(2)
    requests = requests_of(poisson(12.0, 500), rng.integers(1, 60, 500), rng.integers(1, 300, 500))
    system = system_of(
        pool_instance(num_kv_blocks=12),
        pool_instance(num_kv_blocks=40),
        num_prefill=2,
        num_decode=3,
        link=replace(SLOW_LINK, egress_bytes_per_s=2000.0, ingress_bytes_per_s=2000.0),
        policy=policy,
    )
    return run_disaggregated(replace(system, **more), requests, concurrency, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("concurrency", [None, 30])
@pytest.mark.parametrize("policy", [DISTSERVE, TETRIINFER])
def test_phases_follow_one_another_and_nothing_is_lost(policy: DisaggregatedPolicy, concurrency: int | None) -> None:
    """Every request finishes with every token, and no phase of one begins before the phase ahead of it has ended."""
    run = busy_run(policy, concurrency)
    decoded = run.output_tokens > 1
    assert (run.status == FINISHED).all()
    assert (run.arrival_s <= run.prefill_start_s).all()
    assert (run.prefill_start_s < run.first_token_s).all()
    assert (run.first_token_s[decoded] < run.kv_arrival_s[decoded]).all()
    assert (run.kv_arrival_s[decoded] < run.finish_s[decoded]).all()
    assert run.itl_weight.sum() == pytest.approx((run.output_tokens - 1).sum())


@pytest.mark.parametrize("policy", [DISTSERVE, TETRIINFER])
def test_littles_law_is_exact(policy: DisaggregatedPolicy) -> None:
    """∫ requests in the system dt = Σ sojourns, and both pools' queues and batches add up to it."""
    run = busy_run(policy)
    times = np.concatenate((run.arrival_s, run.finish_s))
    order = np.argsort(times, kind="stable")
    present = np.cumsum(np.repeat([1, -1], len(run.arrival_s))[order])
    integral = float((present[:-1] * np.diff(times[order])).sum())
    assert run.prefill is not None
    parts = [pool.waiting_seq_s + pool.running_seq_s for pool in (run.prefill, run.decode)]
    assert float(run.e2e_s.sum()) == pytest.approx(integral, rel=1e-9)
    assert sum(parts) == pytest.approx(integral, rel=1e-9)


@pytest.mark.parametrize("policy", [replace(DISTSERVE, admission="greedy"), TETRIINFER])
def test_memory_is_empty_at_the_end(policy: DisaggregatedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run short of blocks no lane of either pool holds a request, a block, a cache on its way or a phase."""
    kept = []

    def keep(state: State, loop: Loop) -> None:
        run_pools(state, loop)
        kept.append((state, loop))

    monkeypatch.setattr("estimator.kernels.disaggregated.run_pools", keep)
    run = busy_run(policy, decode=pool_instance(num_kv_blocks=24))
    (state, loop) = kept[0]
    assert run.decode.num_preemptions > 0 or policy is TETRIINFER
    assert (run.status == FINISHED).all()
    for name in ("num_prompts", "num_held", "used"):
        assert (loop.prefill.lanes[name] == 0).all(), name
    for name in ("num_seqs", "num_redo", "num_waiting_redo", "num_coming", "used", "coming", "reserved", "cached"):
        assert (loop.decode.lanes[name] == 0).all(), name
    assert (loop.decode.phases == 0).all()
    assert (state.lists[:, 0] == EMPTY).all()


def test_closed_loop_of_one_sends_at_each_completion() -> None:
    """With one request in flight each arrives when the one before it finishes."""
    run = run_disaggregated(system_of(pool_instance()), requests_of([0.0] * 5, 10, 3), 1, 0)
    assert run.arrival_s[1:] == pytest.approx(run.finish_s[:-1], rel=1e-12)


def test_closed_loop_never_exceeds_its_concurrency() -> None:
    """At no time are more than 30 requests in flight, and 30 are until the last is sent."""
    run = busy_run(concurrency=30)
    times = np.concatenate((run.arrival_s, run.finish_s))
    order = np.lexsort((np.repeat([1, 0], 500), times))  # at one time the completion comes before what it sends
    present = np.cumsum(np.repeat([1, -1], 500)[order])
    assert present.max() == 30


def test_same_seed_same_bytes() -> None:
    """A run repeats to the last bit."""
    first, second = busy_run(), busy_run()
    assert first.finish_s.tobytes() == second.finish_s.tobytes()
    assert first.itl_weight.tobytes() == second.itl_weight.tobytes()


def test_zero_requests() -> None:
    """Nothing asked is nothing done."""
    run = simulate(system_of(pool_instance()), requests_of([], [], []))
    assert len(run.finish_s) == 0
    assert run.decode.num_steps == 0


def test_one_token_outputs_never_cross_the_link() -> None:
    """A request of one output token finishes with its prompt and leaves no gap."""
    run = simulate(system_of(pool_instance()), requests_of([0.0, 0.0], 10, 1))
    assert run.finish_s.tolist() == run.first_token_s.tolist()
    assert np.isnan(run.kv_arrival_s).all()
    assert run.itl_weight.sum() == 0


def test_a_prompt_above_the_budget_is_cut_and_runs_alone() -> None:
    """20 tokens under a budget of 8 take steps of 8, 8 and 4, the last of which another prompt may share."""
    run = simulate(system_of(clock_instance(8, 4)), requests_of([0, 0], [20, 4], 1))
    assert run.first_token_s.tolist() == [24, 24]


@pytest.mark.parametrize(("inputs", "outputs"), [(10_000, 5), (100, 5000)])
def test_what_can_never_fit_is_rejected_and_harms_nobody(inputs: int, outputs: int) -> None:
    """A prompt too long for prefill, or an answer too long for decode, is rejected; others go as without it."""
    system = system_of(pool_instance(num_kv_blocks=100), pool_instance(num_kv_blocks=100))
    run = simulate(system, requests_of([0, 1, 1], [4, inputs, 4], [9, outputs, 9]))
    alone = simulate(system, requests_of([0, 1], 4, 9))
    assert run.status.tolist() == [FINISHED, REJECTED, FINISHED]
    assert run.finish_s[[0, 2]].tolist() == alone.finish_s.tolist()
    closed = simulate(system, requests_of([0, 0, 0], [4, inputs, 4], [9, outputs, 9]), concurrency=1)
    assert closed.status.tolist() == [FINISHED, REJECTED, FINISHED]


def test_impossible_policies_are_refused() -> None:
    """A policy that means nothing is refused in a sentence that says what is accepted."""
    with pytest.raises(BestServeError, match=r"prediction_accuracy: 1\.5 must be a share; accepted: 0 to 1\."):
        DisaggregatedPolicy(prediction_accuracy=1.5)
    with pytest.raises(BestServeError, match="chunk_tokens: -1 must be at least 0"):
        DisaggregatedPolicy(chunk_tokens=-1)
