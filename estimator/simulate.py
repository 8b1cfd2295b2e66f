"""Packs a system and its requests for the event kernels, runs them and unpacks the times of every request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from estimator.front_end import send
from estimator.instance import BLOCK_TOKENS
from estimator.kernels.batching import CHUNKED, PREFILL_FIRST, STATIC
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
    if not isinstance(system, Collocated):
        return run_disaggregated(system, replace(requests, cached_tokens=whole_blocks(requests)), concurrency, seed)
    weights = np.zeros(len(ITL_EDGES_S) - 1)
    jobs = collocated_jobs(system, requests, open_loop=concurrency is None)
    run = run_pool(collocated_pool(system, seed), jobs, weights, concurrency=concurrency)
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


def whole_blocks(requests: Requests) -> NDArray[np.int64]:
    """Tokens of each cached prefix that fill whole KV blocks, (num,): only these are found again."""
    return requests.cached_tokens // BLOCK_TOKENS * BLOCK_TOKENS


def collocated_pool(system: Collocated, seed: int) -> Pool:
    """The system's instances as the kernel takes them."""
    return Pool(
        instance=system.instance,
        num_instances=system.num_instances,
        policy=_POLICIES[system.policy],
        max_num_batched_tokens=system.instance.limits.max_num_batched_tokens,
        router=ROUTERS[system.router],
        seed=seed,
    )


def collocated_jobs(system: Collocated, requests: Requests, *, open_loop: bool = True) -> Jobs:
    """The requests as the kernel takes them; in a closed loop the first ones are sent at 0."""
    cached_tokens = whole_blocks(requests)
    return Jobs(
        sent=send(system.instance, requests, open_loop=open_loop),
        prompt_tokens=requests.input_tokens - cached_tokens,
        cached_tokens=cached_tokens,
        decode_steps=decode_steps(requests, system.instance),
    )
