"""Two pools in tandem: prompts are computed, their KV caches cross the link, tokens are decoded.

Events are causal from one pool to the next, so each pool is run whole: the prefill pool on the arrivals, the link on
the times the prompts end, the decode pool on the times the caches arrive. Ties are taken in the order of arrival. A
closed loop feeds completions back: its k-th arrival is completion k − concurrency, found by running the tandem until
the arrival times stand still, which causality makes exact after at most num / concurrency rounds.

Not modelled: prompts that wait in the prefill pool's memory for room in the decode pool (back-pressure); placement by
load, TetriInfer's ordering, chunks and admission (refused with an error, never run under another's name).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from estimator.errors import BestServeError
from estimator.kernels.collocated import CHUNKED
from estimator.kernels.lanes import Jobs, Pool, decode_steps, run_pool
from estimator.requests import Requests
from estimator.simulation import FINISHED, ITL_EDGES_S, REJECTED, PoolIntegrals, Simulation
from estimator.system import DISTSERVE, Disaggregated

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def run_disaggregated(system: Disaggregated, requests: Requests, concurrency: int | None, seed: int) -> Simulation:
    """Times of every request; open loop, or closed with `concurrency` requests in flight.

    Raises `BestServeError` for a policy other than DistServe's.
    """
    if system.policy != DISTSERVE:
        raise BestServeError("policy", system.policy.name, "is not simulated yet", "distserve")
    num = len(requests)
    if concurrency is None or num == 0:
        return _tandem(system, requests)
    arrival = np.zeros(num)
    for _ in range(num // concurrency + 2):  # causality fixes `concurrency` more arrivals a round
        simulation = _tandem(system, replace(requests, arrival_s=arrival))
        ends = np.sort(simulation.finish_s[simulation.status == FINISHED])
        sent = np.concatenate((np.zeros(min(concurrency, num)), ends))[:num]
        following = np.concatenate((sent, np.full(num - len(sent), sent[-1])))
        if np.array_equal(following, arrival):
            break
        arrival = following
    return simulation


def _tandem(system: Disaggregated, requests: Requests) -> Simulation:
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    prefill = run_pool(_pool(system, "prefill"), _prompts(system, requests), np.zeros_like(weights))
    ready = prefill.finish_s
    moving = np.flatnonzero(np.isfinite(ready) & (requests.output_tokens > 1))
    moving = moving[np.argsort(ready[moving], kind="stable")]
    kv_arrival = np.full(len(requests), np.nan)
    kv_arrival[moving] = _cross_link(system, requests, ready, moving)
    order = moving[np.argsort(kv_arrival[moving], kind="stable")]
    decode = run_pool(_pool(system, "decode"), _handed(system, requests, kv_arrival, order), weights)
    finish = np.where(requests.output_tokens > 1, np.nan, ready)
    finish[order] = decode.finish_s
    duration_s = float(np.nanmax(finish, initial=0.0)) - float(np.min(requests.arrival_s, initial=np.inf))
    return Simulation(
        arrival_s=requests.arrival_s,
        prefill_start_s=prefill.start_s,
        first_token_s=prefill.first_s,
        kv_arrival_s=kv_arrival,
        finish_s=finish,
        output_tokens=requests.output_tokens,
        status=np.where(np.isfinite(finish), FINISHED, REJECTED).astype(np.int8),
        itl_weight=weights,
        prefill=_over(prefill.integrals, duration_s),
        decode=_over(decode.integrals, duration_s),
    )


def _over(integrals: PoolIntegrals, duration_s: float) -> PoolIntegrals:
    """Both pools' integrals over the run of the whole system."""
    return replace(integrals, duration_s=max(0.0, duration_s))


def _pool(system: Disaggregated, phase: str) -> Pool:
    instance, num = (system.prefill, system.num_prefill) if phase == "prefill" else (system.decode, system.num_decode)
    if phase == "decode":  # the overhead of a request is paid before its prompt
        instance = replace(instance, request_overhead_s=0.0)
    return Pool(
        instance=instance,
        num_instances=num,
        policy=CHUNKED,
        max_num_batched_tokens=instance.limits.max_num_batched_tokens,
    )


def _prompts(system: Disaggregated, requests: Requests) -> Jobs:
    return Jobs(
        visible_s=requests.arrival_s + system.prefill.request_overhead_s,
        prompt_tokens=requests.input_tokens - requests.cached_tokens,
        cached_tokens=requests.cached_tokens,
        decode_steps=np.zeros(len(requests), np.int64),
        handed_tokens=np.zeros(len(requests)),
    )


def _handed(system: Disaggregated, requests: Requests, kv_arrival: FloatArray, order: IntArray) -> Jobs:
    none = np.zeros(len(order), np.int64)
    return Jobs(
        visible_s=kv_arrival[order],
        prompt_tokens=none,
        cached_tokens=none,
        decode_steps=decode_steps(requests, system.decode)[order],
        handed_tokens=requests.input_tokens[order].astype(np.float64),
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
