"""Packs a prefill pool, a KV link and a decode pool for `estimator.kernels.pools` and unpacks the times.

Instances are numbered; with pp > 1 a prefill instance is a pipeline, and a decode instance pp micro-batches that take
turns on the stages: each sees pp stage times a step and holds its share of sequences and KV blocks. That a longer one
holds the others up is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from estimator.front_end import send
from estimator.instance import BLOCK_TOKENS, Instance
from estimator.kernels.calendar import EMPTY, State, new_marks, new_times
from estimator.kernels.decode_pool import (
    DECODE_LANE,
    DECODE_UNIT,
    GREEDY,
    RESERVE_DYNAMIC,
    RESERVE_STATIC,
    DecodePool,
)
from estimator.kernels.job_columns import pack, unpack
from estimator.kernels.lanes import decode_steps
from estimator.kernels.pools import HEAVY_LIGHT, RELEASED, Link, Loop, run_pools
from estimator.kernels.prefill_pool import FCFS, JOB, LJF, PREFILL_LANE, SJF, Cost, PrefillPool
from estimator.kernels.routing import RANDOM, ROUTERS, router_draws
from estimator.kernels.spans import MANY
from estimator.length_predictor import predicted_tokens
from estimator.requests import Requests
from estimator.seeds import stream
from estimator.simulation import ITL_EDGES_S, PoolIntegrals, Simulation
from estimator.system import Disaggregated

FloatArray = NDArray[np.float64]
ORDERS = {"fcfs": FCFS, "sjf": SJF, "ljf": LJF}
ADMISSIONS = {"greedy": GREEDY, "reserve_static": RESERVE_STATIC, "reserve_dynamic": RESERVE_DYNAMIC}
PLACEMENTS = {**ROUTERS, "heavy_light": HEAVY_LIGHT}


def run_disaggregated(system: Disaggregated, requests: Requests, concurrency: int | None, seed: int) -> Simulation:
    """Times of every request; open loop, or closed with `concurrency` requests in flight."""
    num, prefill, decode = len(requests), system.prefill, system.decode
    jobs = _jobs(system, requests, concurrency, seed)
    num_units = (system.num_prefill, system.num_decode * decode.parallelism.pp)
    num_lanes = (num_units[0] * prefill.parallelism.dp, num_units[1] * decode.parallelism.dp)
    # lists: waiting per prefill lane, ends per instance; arrived, evicted, ready per decode lane; links; pending
    starts = np.cumsum([0, num_lanes[0], num_units[0], *(num_lanes[1],) * 3, system.num_decode]).tolist()
    lists = np.full((starts[-1] + 1, 2), EMPTY, np.int64)
    times = new_times(sum(num_units) + system.num_decode)
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    loop = _loop(system, jobs, seed, starts)
    loop = loop._replace(concurrency=concurrency or 0)
    released = loop.counts[RELEASED] = num if concurrency is None else min(concurrency, num)
    if released > 0:
        loop.front_free_s[0] = jobs["visible_s"][released - 1] - jobs["delay_s"][released - 1]
    after = np.full(num, EMPTY, np.int64)
    run_pools(State(jobs=jobs, lists=lists, after=after, times=times, weights=weights), loop)
    return _simulation(system, requests, jobs, weights, (loop.prefill, loop.decode))


def _jobs(system: Disaggregated, requests: Requests, concurrency: int | None, seed: int) -> NDArray[np.void]:
    policy, link = system.policy, system.link
    jobs = np.empty(len(requests), JOB)
    pack(
        jobs,
        tuple(send(system.prefill, requests, open_loop=concurrency is None)),
        (requests.input_tokens, requests.cached_tokens, decode_steps(requests, system.decode)),
        system.prefill.kv_bytes_per_token,
        min(link.egress_bytes_per_s, link.ingress_bytes_per_s),
    )
    if policy.admission != "greedy" or policy.decode_placement == "heavy_light":
        jobs["predicted"] = predicted_tokens(
            requests.output_tokens, policy.bucket_tokens, policy.prediction_accuracy, seed
        )
    return jobs


def _cost(instance: Instance, num_turns: int, hop_s: float) -> Cost:
    """Tables of one stage, or of a step in which `num_turns` stages take turns and hand over in `hop_s` altogether."""
    cost = instance.cost
    return Cost(
        D=cost.decode_s * num_turns + hop_s,
        M=cost.mixed_s * num_turns + hop_s,
        H=cost.head_s,
        B=cost.kv_read_s_per_token * num_turns,
        BW=cost.window_read_s_per_token * num_turns,
        window=float(cost.window_tokens),
        c=cost.attention_s_per_pair * num_turns,
        cw=cost.window_attention_s_per_pair * num_turns,
        q=cost.decode_tokens_per_seq,
        gain=float(cost.accepted_tokens_per_step),
        E=cost.pooled_s * num_turns,
    )


def _prefill_pool(system: Disaggregated, num: int, places: tuple[int, int]) -> PrefillPool:
    instance, policy = system.prefill, system.policy
    num_lanes, limits = system.num_prefill * instance.parallelism.dp, instance.limits
    batch = policy.scheduling_batch if policy.prefill_order != "fcfs" else 1
    lanes = np.zeros(num_lanes, PREFILL_LANE)
    lanes["unit"] = np.arange(num_lanes) // instance.parallelism.dp
    return PrefillPool(
        cost=_cost(instance, 1, 0.0),
        lanes=lanes,
        outstanding=np.zeros(num_lanes, np.int64),
        batch=np.zeros((num_lanes, batch), np.int64),
        prompts=np.zeros((num_lanes, min(limits.max_num_seqs, max(num, 1))), np.int64),
        ends_s=np.zeros(num),
        free_s=np.zeros((system.num_prefill, instance.parallelism.pp)),
        totals=np.zeros(2),
        queues=places[0],
        ends=places[1],
        ranks=instance.parallelism.dp,
        budget=min(policy.chunk_tokens or limits.max_num_batched_tokens, limits.max_num_batched_tokens),
        is_chunked=policy.chunk_tokens > 0,
        order=ORDERS[policy.prefill_order],
        max_seqs=min(limits.max_num_seqs, max(num, 1)),
        capacity=instance.capacity_tokens // BLOCK_TOKENS,
        hop_s=instance.stage_transfer_s,
        looks_ahead=instance.looks_ahead,
    )


def _decode_pool(system: Disaggregated, num_units: int, places: tuple[int, int, int]) -> DecodePool:
    instance, pp = system.decode, system.decode.parallelism.pp
    num_lanes, max_seqs = num_units * instance.parallelism.dp, max(1, instance.limits.max_num_seqs // pp)
    gain = instance.cost.accepted_tokens_per_step
    units = 1 if gain.is_integer() else BLOCK_TOKENS
    block = BLOCK_TOKENS * units
    lanes = np.zeros(num_lanes, DECODE_LANE)
    lanes["next_end"] = MANY
    lanes["unit"] = np.arange(num_lanes) // instance.parallelism.dp
    lanes["receiver"] = lanes["unit"] % system.num_decode
    return DecodePool(
        cost=_cost(instance, pp, (pp - 1) * instance.stage_transfer_s),
        lanes=lanes,
        units=np.zeros(num_units, DECODE_UNIT),
        phases=np.zeros((num_lanes, block), np.int64),
        seqs=np.zeros((num_lanes, max_seqs), np.int64),
        ends=np.zeros((num_lanes, max_seqs), np.int64),
        redo=np.zeros((num_lanes, max_seqs), np.int64),
        step_s=np.zeros(num_lanes),
        totals=np.zeros(3),
        arrived=places[0],
        evicted=places[1],
        leaf=places[2],
        ranks=instance.parallelism.dp,
        budget=instance.limits.max_num_batched_tokens,
        max_seqs=max_seqs,
        capacity=instance.capacity_tokens // BLOCK_TOKENS // pp,
        admission=ADMISSIONS[system.policy.admission],
        shift=block.bit_length() - 1,
        token_units=units,
        p=round(gain * units),
    )


def _loop(system: Disaggregated, jobs: NDArray[np.void], seed: int, starts: list[int]) -> Loop:
    policy, num, decode = system.policy, len(jobs), system.decode
    num_units = system.num_decode * decode.parallelism.pp
    num_lanes = num_units * decode.parallelism.dp
    router, placement = ROUTERS[system.router], PLACEMENTS[policy.decode_placement]
    num_placed = num if placement >= RANDOM and policy.decode_placement != "least_outstanding" else 0
    room = system.num_prefill * system.prefill.parallelism.dp + 2 * num_lanes + system.num_decode
    link = Link(
        sender_s=np.zeros(system.num_prefill),
        receiver_s=np.zeros(system.num_decode),
        flying=starts[5],
        leaf=system.num_prefill,
        latency_s=system.link.latency_s,
        latency_steps=system.link.latency_steps,
    )
    return Loop(
        prefill=_prefill_pool(system, num, (starts[0], starts[1])),
        decode=_decode_pool(system, num_units, (starts[2], starts[3], system.num_prefill + system.num_decode)),
        link=link,
        counts=np.zeros(4, np.int64),
        draws=router_draws(router, num, seed),
        placement_draws=stream(seed, "placement").random((num_placed, 2)) if num_placed else np.zeros((0, 2)),
        outstanding=np.zeros(num_lanes, np.int64),
        is_heavy=(jobs["predicted"] > policy.heavy_decode_tokens).astype(np.int64),
        heavy=np.zeros(num_lanes, np.int64),
        light=np.zeros(num_lanes, np.int64),
        wake_prefill=new_marks(system.num_prefill),
        wake_decode=new_marks(num_units),
        freed=new_marks(num_lanes),
        found=np.zeros(room + 1, np.int64),
        finished=np.zeros(max(decode.limits.max_num_seqs, num_lanes), np.int64),
        front_free_s=np.zeros(1),
        ready=starts[4],
        pending=starts[6],
        router=router,
        placement=placement,
        concurrency=0,
        frontend_s=float(system.prefill.frontend_s),
    )


def _simulation(
    system: Disaggregated,
    requests: Requests,
    jobs: NDArray[np.void],
    weights: FloatArray,
    pools: tuple[PrefillPool, DecodePool],
) -> Simulation:
    columns, status, sums = np.empty((5, len(jobs))), np.empty(len(jobs), np.int8), np.empty(6)
    unpack(jobs, system.holds_first_token, columns, status, sums)
    in_prefill_s, before_prefill_s, in_decode_s, before_decode_s, end_s, begin_s = sums.tolist()
    duration_s = max(0.0, end_s - begin_s)
    prefill, decode = pools
    return Simulation(
        arrival_s=columns[0],
        prefill_start_s=columns[1],
        first_token_s=columns[2],
        kv_arrival_s=columns[3],
        finish_s=columns[4],
        output_tokens=requests.output_tokens,
        status=status,
        itl_weight=weights,
        prefill=PoolIntegrals(
            num_instances=system.num_prefill,
            duration_s=duration_s,
            busy_s=float(prefill.totals[0]),
            running_seq_s=in_prefill_s,
            waiting_seq_s=before_prefill_s,
            kv_block_s=float(prefill.lanes["kv_block_s"].sum()),
            num_steps=int(prefill.totals[1]),
            num_preemptions=0,
        ),
        decode=PoolIntegrals(
            num_instances=system.num_decode,
            duration_s=duration_s,
            busy_s=float(decode.totals[0]) / system.decode.parallelism.pp,
            running_seq_s=in_decode_s,
            waiting_seq_s=before_decode_s,
            kv_block_s=float(decode.lanes["kv_block_s"].sum()),
            num_steps=int(decode.totals[1]),
            num_preemptions=int(decode.totals[2]),
        ),
    )
