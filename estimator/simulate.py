"""Packs a system and its requests for the event kernels, runs them and unpacks the times of every request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from estimator.errors import BestServeError
from estimator.instance import BLOCK_TOKENS
from estimator.kernels.collocated import CHUNKED, PREFILL_FIRST, STATIC, run_collocated
from estimator.requests import Requests
from estimator.simulation import FINISHED, ITL_EDGES_S, REJECTED, PoolIntegrals, Simulation
from estimator.system import Collocated, System

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_POLICIES = {"chunked": CHUNKED, "prefill_first": PREFILL_FIRST, "static": STATIC}


def simulate(system: System, requests: Requests, *, concurrency: int | None = None, seed: int = 0) -> Simulation:
    """Times of every request under `system`.

    Open loop by the requests' own arrival times, or closed loop with `concurrency` requests in flight: all sent at 0,
    then one per completion. The same input and seed give the same bytes.
    """
    if not isinstance(system, Collocated):
        from estimator.kernels.disaggregated import run_disaggregated

        return run_disaggregated(system, requests, concurrency, seed)
    if system.router != "round_robin":
        raise BestServeError(
            "router", system.router, "is not simulated in front of collocated instances", "round_robin"
        )
    return _run_lanes(system, requests, concurrency)


def _run_lanes(system: Collocated, requests: Requests, concurrency: int | None) -> Simulation:
    """Every m-th request to one of m lanes; a lane is one attention-dp rank or pipeline micro-batch of an instance.

    Lanes of one instance share its steps: each is charged the step of all ranks at its own size; pp lanes take turns
    on the stages, so that each sees pp stage times a step.
    """
    instance = system.instance
    num, num_lanes = len(requests), system.num_instances * instance.parallelism.dp * instance.parallelism.pp
    out = np.full((4, num), np.nan)
    out[3] = requests.arrival_s if concurrency is None else 0.0
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    totals = np.zeros(5)
    for lane in range(min(num_lanes, num)):
        mine = np.arange(lane, num, num_lanes)
        share = 0 if concurrency is None else concurrency // num_lanes + (lane < concurrency % num_lanes)
        if concurrency is not None and share == 0:
            continue
        lane_out = np.ascontiguousarray(out[:, mine])
        lane_totals = _run_lane(system, requests, mine, share, lane_out, weights)
        out[:, mine] = lane_out
        totals[:4] += lane_totals[:4]
        totals[4] = max(totals[4], lane_totals[4])
    return _simulation(system, requests, out, weights, totals)


def _run_lane(
    system: Collocated, requests: Requests, mine: IntArray, concurrency: int, out: FloatArray, weights: FloatArray
) -> FloatArray:
    instance = system.instance
    cost, pp = instance.cost, instance.parallelism.pp
    steps = np.ceil((requests.output_tokens[mine] - 1) / cost.accepted_tokens_per_step).astype(np.int64)
    prompt = requests.input_tokens[mine] - requests.cached_tokens[mine]
    packed = (out[3] + instance.request_overhead_s, prompt, requests.cached_tokens[mine], steps)
    hop = (pp - 1) * instance.stage_transfer_s
    tables = (
        cost.decode_s * pp + hop,
        cost.mixed_s * pp + hop,
        cost.head_s,
        cost.kv_read_s_per_token * pp,
        cost.window_read_s_per_token * pp,
    )
    totals: FloatArray = run_collocated(packed, tables, _settings(system), concurrency, out, weights)
    return totals


def _settings(system: Collocated) -> FloatArray:
    instance = system.instance
    cost, limits, pp = instance.cost, instance.limits, instance.parallelism.pp
    return np.array(
        [
            _POLICIES[system.policy],
            limits.max_num_batched_tokens,
            max(1, limits.max_num_seqs // pp),
            instance.capacity_tokens / pp,
            cost.window_tokens,
            cost.attention_s_per_pair * pp,
            cost.window_attention_s_per_pair * pp,
            cost.decode_tokens_per_seq,
            cost.accepted_tokens_per_step,
            instance.request_overhead_s,
        ],
        dtype=np.float64,
    )


def _simulation(
    system: Collocated, requests: Requests, out: FloatArray, weights: FloatArray, totals: FloatArray
) -> Simulation:
    start, first, finish, arrival = out
    status = np.where(np.isfinite(finish), FINISHED, REJECTED).astype(np.int8)
    done = status == FINISHED
    begin = float(arrival.min()) if len(requests) else 0.0
    lanes_per_instance = system.instance.parallelism.dp * system.instance.parallelism.pp
    pool = PoolIntegrals(
        num_instances=system.num_instances,
        duration_s=max(0.0, float(totals[4]) - begin),
        busy_s=float(totals[0]) / lanes_per_instance,
        running_seq_s=float(np.sum((finish - start)[done])),
        waiting_seq_s=float(np.sum((start - arrival)[done])),
        kv_block_s=float(totals[1]) / BLOCK_TOKENS,
        num_steps=int(totals[2]),
        num_preemptions=int(totals[3]),
    )
    return Simulation(
        arrival_s=arrival,
        prefill_start_s=start,
        first_token_s=first,
        kv_arrival_s=np.full(len(requests), np.nan),
        finish_s=finish,
        output_tokens=requests.output_tokens,
        status=status,
        itl_weight=weights,
        decode=pool,
    )
