"""Packs a system and its requests for the event kernels, runs them and unpacks the times of every request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from estimator.instance import BLOCK_TOKENS
from estimator.kernels.collocated import CHUNKED, PREFILL_FIRST, STATIC
from estimator.kernels.disaggregated import run_disaggregated
from estimator.kernels.lanes import Jobs, Pool, decode_steps, run_pool
from estimator.kernels.routing import ROUTERS
from estimator.requests import Requests
from estimator.simulation import FINISHED, ITL_EDGES_S, REJECTED, Simulation
from estimator.system import Collocated, System

_POLICIES = {"chunked": CHUNKED, "prefill_first": PREFILL_FIRST, "static": STATIC}


def simulate(system: System, requests: Requests, *, concurrency: int | None = None, seed: int = 0) -> Simulation:
    """Times of every request under `system`.

    Open loop by the requests' own arrival times, or closed loop with `concurrency` requests in flight: all sent at 0,
    then one per completion. `seed` is that of the router's draws: the same input and seed give the same bytes. A cached
    prefix counts in whole KV blocks.
    """
    cached_tokens = requests.cached_tokens // BLOCK_TOKENS * BLOCK_TOKENS
    if not isinstance(system, Collocated):
        return run_disaggregated(system, replace(requests, cached_tokens=cached_tokens), concurrency, seed)
    instance = system.instance
    sent_s = requests.arrival_s if concurrency is None else np.zeros(len(requests))
    jobs = Jobs(
        visible_s=sent_s + instance.request_overhead_s,
        prompt_tokens=requests.input_tokens - cached_tokens,
        cached_tokens=cached_tokens,
        decode_steps=decode_steps(requests, instance),
        handed_tokens=np.zeros(len(requests)),
    )
    pool = Pool(
        instance=instance,
        num_instances=system.num_instances,
        policy=_POLICIES[system.policy],
        max_num_batched_tokens=instance.limits.max_num_batched_tokens,
        router=ROUTERS[system.router],
        seed=seed,
    )
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    run = run_pool(pool, jobs, weights, concurrency=concurrency)
    return Simulation(
        arrival_s=run.arrival_s,
        prefill_start_s=run.start_s,
        first_token_s=run.first_s,
        kv_arrival_s=np.full(len(requests), np.nan),
        finish_s=run.finish_s,
        output_tokens=requests.output_tokens,
        status=np.where(np.isfinite(run.finish_s), FINISHED, REJECTED).astype(np.int8),
        itl_weight=weights,
        decode=run.integrals,
    )
