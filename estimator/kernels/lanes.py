"""A pool of equal instances behind a router, packed for `estimator.kernels.collocated`.

An instance is dp × pp lanes: attention-dp ranks of pipeline micro-batches. Limits and KV blocks of `Instance` are per
rank; the pp micro-batches of a rank share them out in equal parts. Those of one stage run in
`estimator.kernels.collocated`, others in `estimator.kernels.pipelined`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.front_end import Sent
from estimator.instance import BLOCK_TOKENS, Instance
from estimator.kernels.batching import (
    ARRIVAL,
    BACKLOG,
    CHUNKED,
    FINISH,
    FIRST,
    FIRST_TOKEN,
    JOINED,
    LAST_WAITING,
    LEFT,
    MARK_S,
    NEVER,
    OWN,
    PHASE,
    SEEN,
    START,
    STOPPED,
    TODO,
    VISIBLE,
    WHOLE,
    Rules,
)
from estimator.kernels.calendar import new_marks, new_times
from estimator.kernels.collocated import run_instances
from estimator.kernels.micro_batches import CUT_LANE, ORDER, SHOWN_S, TAIL_SLOPE, Pipelines
from estimator.kernels.pipelined import run_pipelines
from estimator.kernels.routing import ROUND_ROBIN, router_draws
from estimator.kernels.spans import MANY
from estimator.requests import Requests
from estimator.simulation import PoolIntegrals

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Jobs:
    """What a pool is asked, (num,) each: when sent and visible, tokens to compute, cached tokens, decode steps."""

    sent: Sent
    prompt_tokens: IntArray
    cached_tokens: IntArray
    decode_steps: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolRun:
    """Times of the requests a pool has run, (num,) each, NaN where an event never happened."""

    arrival_s: FloatArray
    start_s: FloatArray
    first_s: FloatArray
    finish_s: FloatArray
    integrals: PoolIntegrals


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`num_instances` equal instances under one batching policy (a constant of `estimator.kernels.collocated`).

    `router` is a constant of `estimator.kernels.routing`; `seed` is that of its draws. `longest_jump` 1
    simulates every step alone.
    """

    instance: Instance
    num_instances: int
    policy: int
    max_num_batched_tokens: int
    router: int = ROUND_ROBIN
    seed: int = 0
    longest_jump: int = MANY

    @property
    def num_lanes(self) -> int:
        """Lanes of the pool."""
        return self.num_instances * self.instance.parallelism.dp * self.instance.parallelism.pp


def decode_steps(requests: Requests, instance: Instance) -> IntArray:
    """Steps after the first token, (num,): every step gains `accepted_tokens_per_step` tokens."""
    gained = instance.cost.accepted_tokens_per_step
    if gained == 1.0:
        return requests.output_tokens - 1
    return np.asarray(np.ceil((requests.output_tokens - 1) / gained), dtype=np.int64)


def run_pool(pool: Pool, jobs: Jobs, weights: FloatArray, *, concurrency: int | None = None) -> PoolRun:
    """Runs the pool on one stream of requests; adds token gaps to `weights`. `concurrency` in flight, or open loop."""
    num, lanes = len(jobs.prompt_tokens), pool.num_lanes
    rules = _rules(pool, concurrency or 0)
    num_marks = 1 if pool.policy == CHUNKED else rules.seats + 1
    lane = np.zeros((lanes, rules.mark_at + num_marks), np.int64)
    lane[:, FIRST : LAST_WAITING + 1] = -1  # no request
    work = np.zeros((lanes, MARK_S + num_marks))
    when, sums = np.full((num, VISIBLE + 1), np.nan), np.zeros(6)
    when[:, ARRIVAL], when[:, VISIBLE] = jobs.sent.sent_s, jobs.sent.visible_s
    draws = router_draws(pool.router, num, pool.seed)
    visible_s, delay_s = jobs.sent.visible_s.copy(), jobs.sent.delay_s
    flat = (lane, work, _columns(jobs), when, sums, weights, _tables(pool.instance), rules)
    if rules.pp > 1:
        run_pipelines(_pipelines(pool, flat), visible_s, delay_s, draws)
    else:
        run_instances(*flat, visible_s, delay_s, _fleet(pool.num_instances), draws)
    arrival, start, first, finish = (when[:, column].copy() for column in (ARRIVAL, START, FIRST_TOKEN, FINISH))
    integrals = _integrals(pool, arrival, start, finish, sums)
    return PoolRun(arrival_s=arrival, start_s=start, first_s=first, finish_s=finish, integrals=integrals)


def _fleet(num: int) -> tuple[NDArray[Any], ...]:
    """Per instance: tree of step ends, start and steps of the running step, held, next lane, the idle, looks."""
    half = 1 << (num - 1).bit_length()
    none = np.zeros(num, np.int64)
    look = np.zeros((num, BACKLOG + 1))
    look[:, STOPPED] = -1.0  # never worked
    return (
        np.full(2 * half, NEVER),
        np.zeros(num),
        none,
        none.copy(),
        none.copy(),
        none.copy(),
        np.zeros(num, np.bool_),
        look,
    )


def _pipelines(pool: Pool, flat: tuple[Any, ...]) -> Pipelines:
    num, degrees = pool.num_instances, pool.instance.parallelism
    times = new_times(num)
    lane, work, job, when, sums, weights, tab, r = flat
    return Pipelines(
        lane=lane,
        work=work,
        job=job,
        when=when,
        sums=sums,
        weights=weights,
        tab=tab,
        r=r,
        unit=np.zeros((num * degrees.pp, TAIL_SLOPE + 1)),
        pipe=np.zeros((num, SHOWN_S + 1)),
        leap=np.zeros((num, ORDER + degrees.pp), np.int64),
        free_s=np.zeros((num, degrees.pp)),
        queue=np.full((num * degrees.dp, CUT_LANE + 1), -1, np.int64),
        times=times,
        outstanding=np.zeros(num, np.int64),
        turns=np.zeros(num, np.int64),
        wake=new_marks(num),
        found=np.zeros(len(times), np.int64),
    )


def _tables(instance: Instance) -> FloatArray:
    cost = instance.cost
    rows = np.column_stack((cost.decode_s, cost.head_s, cost.kv_read_s_per_token, cost.window_read_s_per_token))
    return np.concatenate((rows.ravel(), cost.mixed_s))


def _columns(jobs: Jobs) -> IntArray:
    job = np.zeros((len(jobs.prompt_tokens), WHOLE + 1), np.int64)
    job[:, TODO], job[:, LEFT] = jobs.prompt_tokens, jobs.decode_steps
    job[:, JOINED:OWN] = -1  # not decoding; no neighbours
    job[:, SEEN] = jobs.cached_tokens
    return job


def _rules(pool: Pool, concurrency: int) -> Rules:
    cost, limits, degrees = pool.instance.cost, pool.instance.limits, pool.instance.parallelism
    gain, q = float(cost.accepted_tokens_per_step), cost.decode_tokens_per_seq
    seats = max(1, limits.max_num_seqs // degrees.pp)
    if pool.policy == CHUNKED:  # every decoding sequence must find room in the step
        seats = max(1, min(seats, pool.max_num_batched_tokens // q))
    units = 1 if gain.is_integer() else BLOCK_TOKENS
    block = BLOCK_TOKENS * units
    return Rules(
        policy=pool.policy,
        max_tokens=pool.max_num_batched_tokens,
        seats=seats,
        capacity=pool.instance.capacity_tokens // BLOCK_TOKENS // degrees.pp,
        window=float(cost.window_tokens),
        c=float(cost.attention_s_per_pair),
        cw=float(cost.window_attention_s_per_pair),
        q=q,
        gain=gain,
        units=units,
        shift=block.bit_length() - 1,
        p=round(gain * units),
        frontend_s=float(pool.instance.frontend_s),
        output_s=float(pool.instance.output_s_per_token),
        dp=degrees.dp,
        pp=degrees.pp,
        hop_s=float(pool.instance.stage_transfer_s),
        router=pool.router,
        concurrency=concurrency,
        heap_at=PHASE + block,
        mark_at=PHASE + block + seats,
        num_rows=len(cost.decode_s),
        longest_jump=pool.longest_jump,
        poll_steps=pool.instance.poll_steps,
        wait_steps=pool.instance.wait_steps,
        looks_ahead=pool.instance.looks_ahead,
        reserves=pool.instance.reserves_output,
    )


def _integrals(
    pool: Pool, arrival: FloatArray, start: FloatArray, finish: FloatArray, sums: FloatArray
) -> PoolIntegrals:
    busy_s, held, steps, preemptions, evicted_s, end_s = (float(total) for total in sums)
    begin_s = float(np.nanmin(arrival)) if arrival.size else 0.0
    sojourn, wait = (finish - start).sum(), (start - arrival).sum()
    if np.isnan(sojourn):  # some were rejected
        sojourn, wait = np.nansum(finish - start), np.nansum(start - arrival)
    return PoolIntegrals(
        num_instances=pool.num_instances,
        duration_s=max(0.0, end_s - begin_s),
        busy_s=busy_s,
        running_seq_s=float(sojourn) - evicted_s,
        waiting_seq_s=float(wait) + evicted_s,
        kv_block_s=held,
        num_steps=int(steps),
        num_preemptions=int(preemptions),
    )
