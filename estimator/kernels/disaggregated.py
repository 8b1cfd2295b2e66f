"""Two pools in tandem: prompts are computed, their KV caches cross the link, tokens are decoded.

Events are causal from one pool to the next, so each pool is run whole: the prefill pool on the arrivals, the link on
the times the prompts end, the decode pool on the times the caches arrive. Ties are taken in the order of arrival. A
closed loop feeds completions back: its k-th arrival is completion k − concurrency, found by running the tandem until
the arrival times stand still, which causality makes exact after at most num / concurrency rounds.

Not modelled: prompts that wait in the prefill pool's memory for room in the decode pool (back-pressure).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from estimator.instance import BLOCK_TOKENS, Instance
from estimator.kernels.lane import CHUNKED, run_lane
from estimator.requests import Requests
from estimator.simulation import FINISHED, ITL_EDGES_S, REJECTED, PoolIntegrals, Simulation
from estimator.system import Disaggregated

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
MAX_ROUNDS = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pool:
    """Start, first token and finish of the requests a pool has run, (num,) each, NaN where it never happened."""

    start_s: FloatArray
    first_s: FloatArray
    finish_s: FloatArray
    totals: FloatArray
    num_lanes: int


def run_disaggregated(system: Disaggregated, requests: Requests, concurrency: int | None, seed: int) -> Simulation:
    """Times of every request; open loop, or closed with `concurrency` requests in flight."""
    if concurrency is None or len(requests) == 0:
        return _tandem(system, requests)
    arrival = np.zeros(len(requests))
    for _ in range(MAX_ROUNDS):
        simulation = _tandem(system, replace(requests, arrival_s=arrival))
        ends = np.sort(np.nan_to_num(simulation.finish_s, nan=np.inf))
        ends = np.where(np.isfinite(ends), ends, arrival.max())
        following = np.concatenate((np.zeros(min(concurrency, len(requests))), ends))[: len(requests)]
        following = np.maximum.accumulate(following)
        if np.allclose(following, arrival, rtol=1e-9, atol=1e-9):
            break
        arrival = following
    return simulation


def _tandem(system: Disaggregated, requests: Requests) -> Simulation:
    num = len(requests)
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    visible = requests.arrival_s + system.prefill.request_overhead_s
    zeros = np.zeros(num, np.int64)
    prompt = requests.input_tokens - requests.cached_tokens
    prefill = _run_pool(
        system.prefill,
        system.num_prefill,
        (visible, prompt, requests.cached_tokens, zeros, np.zeros(num)),
        np.zeros_like(weights),
    )
    ready = prefill.finish_s
    moving = np.flatnonzero(np.isfinite(ready) & (requests.output_tokens > 1))
    moving = moving[np.argsort(ready[moving], kind="stable")]
    kv_arrival = np.full(num, np.nan)
    kv_arrival[moving] = _cross_link(system, requests, ready, moving)
    order = moving[np.argsort(kv_arrival[moving], kind="stable")]
    gain = system.decode.cost.accepted_tokens_per_step
    steps = np.ceil((requests.output_tokens[order] - 1) / gain).astype(np.int64)
    none = np.zeros(len(order), np.int64)
    held = requests.input_tokens[order].astype(np.float64)
    decode = _run_pool(system.decode, system.num_decode, (kv_arrival[order], none, none, steps, held), weights)
    finish = np.where(requests.output_tokens > 1, np.nan, ready)
    finish[order] = decode.finish_s
    end = float(np.nanmax(finish, initial=0.0))
    begin = float(requests.arrival_s.min()) if num else 0.0
    return Simulation(
        arrival_s=requests.arrival_s,
        prefill_start_s=prefill.start_s,
        first_token_s=prefill.first_s,
        kv_arrival_s=kv_arrival,
        finish_s=finish,
        output_tokens=requests.output_tokens,
        status=np.where(np.isfinite(finish), FINISHED, REJECTED).astype(np.int8),
        itl_weight=weights,
        prefill=_integrals(prefill, system.num_prefill, requests.arrival_s, end - begin),
        decode=_integrals(decode, system.num_decode, kv_arrival[order], end - begin),
    )


def _cross_link(system: Disaggregated, requests: Requests, ready: FloatArray, moving: IntArray) -> FloatArray:
    """Arrival of each moving request's cache; senders and receivers take one at a time, as prompts end."""
    link = system.link
    seconds = link.latency_s + requests.input_tokens[moving] * system.prefill.kv_bytes_per_token / min(
        link.egress_bytes_per_s, link.ingress_bytes_per_s
    )
    sender = moving % system.num_prefill
    receiver = np.arange(len(moving)) % system.num_decode
    arrival: FloatArray = _transfers(ready[moving], seconds, sender, receiver, system.num_prefill, system.num_decode)
    return arrival


@njit(cache=True)
def _transfers(ready, seconds, sender, receiver, num_senders, num_receivers):  # type: ignore[no-untyped-def]
    sender_free, receiver_free = np.zeros(num_senders), np.zeros(num_receivers)
    arrival = np.empty(len(ready))
    for i in range(len(ready)):
        start = max(ready[i], sender_free[sender[i]], receiver_free[receiver[i]])
        arrival[i] = start + seconds[i]
        sender_free[sender[i]] = receiver_free[receiver[i]] = arrival[i]
    return arrival


def _run_pool(
    instance: Instance, num_instances: int, columns: tuple[NDArray[np.generic], ...], weights: FloatArray
) -> _Pool:
    """Every m-th request to one of m lanes: an instance, an attention-dp rank of it or a pipeline micro-batch."""
    num, num_lanes = len(columns[0]), num_instances * instance.parallelism.dp * instance.parallelism.pp
    out, totals = np.full((4, num), np.nan), np.zeros(5)
    for lane in range(min(num_lanes, num)):
        mine = np.arange(lane, num, num_lanes)
        lane_out = np.full((4, len(mine)), np.nan)
        packed = tuple(np.ascontiguousarray(column[mine]) for column in columns)
        totals += run_lane(packed, _tables(instance), _settings(instance), 0, lane_out, weights)
        out[:, mine] = lane_out
    return _Pool(start_s=out[0], first_s=out[1], finish_s=out[2], totals=totals, num_lanes=num_lanes)


def _tables(instance: Instance) -> tuple[FloatArray, ...]:
    cost, pp = instance.cost, instance.parallelism.pp
    hop = (pp - 1) * instance.stage_transfer_s
    return (
        cost.decode_s * pp + hop,
        cost.mixed_s * pp + hop,
        cost.head_s,
        cost.kv_read_s_per_token * pp,
        cost.window_read_s_per_token * pp,
    )


def _settings(instance: Instance) -> FloatArray:
    cost, limits, pp = instance.cost, instance.limits, instance.parallelism.pp
    return np.array(
        [
            CHUNKED,
            limits.max_num_batched_tokens,
            max(1, limits.max_num_seqs // pp),
            instance.capacity_tokens / pp,
            cost.window_tokens,
            cost.attention_s_per_pair * pp,
            cost.window_attention_s_per_pair * pp,
            cost.decode_tokens_per_seq,
            cost.accepted_tokens_per_step,
            0.0,
        ],
        dtype=np.float64,
    )


def _integrals(pool: _Pool, num_instances: int, arrival_s: FloatArray, duration_s: float) -> PoolIntegrals:
    return PoolIntegrals(
        num_instances=num_instances,
        duration_s=duration_s,
        busy_s=float(pool.totals[0]) * num_instances / pool.num_lanes,
        running_seq_s=float(np.nansum(pool.finish_s - pool.start_s)),
        waiting_seq_s=float(np.nansum(pool.start_s - arrival_s)),
        kv_block_s=float(pool.totals[1]) / BLOCK_TOKENS,
        num_steps=int(pool.totals[2]),
        num_preemptions=int(pool.totals[3]),
    )
