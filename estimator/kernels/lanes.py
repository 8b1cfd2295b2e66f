"""A pool of equal instances as independent lanes: every m-th request to one of m lanes.

A lane is an instance, one attention-dp rank of it or one of its pipeline micro-batches. Ranks step together in a real
engine: a lane is charged the whole step at its own size, which under round robin is that of its neighbours too. The pp
micro-batches of an instance take turns on the stages, so that each sees pp stage times a step and holds its share of
sequences and KV blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.instance import BLOCK_TOKENS, Instance
from estimator.kernels.collocated import run_lane
from estimator.requests import Requests
from estimator.simulation import PoolIntegrals

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Jobs:
    """What a pool is asked, (num,) each: when visible, tokens to compute, cached, decode steps, tokens handed over."""

    visible_s: FloatArray
    prompt_tokens: IntArray
    cached_tokens: IntArray
    decode_steps: IntArray
    handed_tokens: FloatArray


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
    """`num_instances` equal instances under one batching policy (a constant of `estimator.kernels.collocated`)."""

    instance: Instance
    num_instances: int
    policy: int
    max_num_batched_tokens: int

    @property
    def num_lanes(self) -> int:
        """Independent lanes of the pool."""
        return self.num_instances * self.instance.parallelism.dp * self.instance.parallelism.pp


def decode_steps(requests: Requests, instance: Instance) -> IntArray:
    """Steps after the first token, (num,): every step gains `accepted_tokens_per_step` tokens."""
    gained = instance.cost.accepted_tokens_per_step
    return np.asarray(np.ceil((requests.output_tokens - 1) / gained), dtype=np.int64)


def run_pool(pool: Pool, jobs: Jobs, weights: FloatArray, *, concurrency: int | None = None) -> PoolRun:
    """Runs the lanes one by one; adds token gaps to `weights`. `concurrency` in flight over all lanes, or open loop.

    A closed loop with fewer requests in flight than lanes uses that many lanes.
    """
    num = len(jobs.visible_s)
    num_lanes = min(pool.num_lanes, max(num, 1), concurrency or pool.num_lanes)
    out, totals, end_s = np.full((4, num), np.nan), np.zeros(5), 0.0
    overhead_s = pool.instance.request_overhead_s
    out[3] = jobs.visible_s - overhead_s
    tables, settings = _tables(pool.instance), _settings(pool)
    columns = (jobs.visible_s, jobs.prompt_tokens, jobs.cached_tokens, jobs.decode_steps, jobs.handed_tokens)
    for lane in range(num_lanes):
        mine = slice(lane, None, num_lanes)
        share = 0 if concurrency is None else concurrency // num_lanes + (lane < concurrency % num_lanes)
        packed = tuple(column[mine].copy() for column in columns)
        lane_out = np.ascontiguousarray(out[:, mine])
        lane_totals = run_lane(packed, tables, settings, share, lane_out, weights)
        out[:, mine] = lane_out
        totals += lane_totals
        end_s = max(end_s, float(lane_totals[4]))
    return PoolRun(
        arrival_s=out[3],
        start_s=out[0],
        first_s=out[1],
        finish_s=out[2],
        integrals=_integrals(pool, out, totals, end_s),
    )


def _tables(instance: Instance) -> tuple[FloatArray, ...]:
    cost, pp = instance.cost, instance.parallelism.pp
    hop_s = (pp - 1) * instance.stage_transfer_s
    return (
        cost.decode_s * pp + hop_s,
        cost.mixed_s * pp + hop_s,
        cost.head_s,
        cost.kv_read_s_per_token * pp,
        cost.window_read_s_per_token * pp,
    )


def _settings(pool: Pool) -> FloatArray:
    cost, pp = pool.instance.cost, pool.instance.parallelism.pp
    return np.array(
        [
            pool.policy,
            pool.max_num_batched_tokens,
            max(1, pool.instance.limits.max_num_seqs // pp),
            pool.instance.capacity_tokens / pp,
            cost.window_tokens,
            cost.attention_s_per_pair * pp,
            cost.window_attention_s_per_pair * pp,
            cost.decode_tokens_per_seq,
            cost.accepted_tokens_per_step,
            pool.instance.request_overhead_s,
        ],
        dtype=np.float64,
    )


def _integrals(pool: Pool, out: FloatArray, totals: FloatArray, end_s: float) -> PoolIntegrals:
    start, _, finish, arrival = out
    begin_s = float(np.nanmin(arrival)) if arrival.size else 0.0
    return PoolIntegrals(
        num_instances=pool.num_instances,
        duration_s=max(0.0, end_s - begin_s),
        busy_s=float(totals[0]) * pool.num_instances / pool.num_lanes,
        running_seq_s=float(np.nansum(finish - start)),
        waiting_seq_s=float(np.nansum(start - arrival)),
        kv_block_s=float(totals[1]) / BLOCK_TOKENS,
        num_steps=int(totals[2]),
        num_preemptions=int(totals[3]),
    )
