"""A few seconds of simulated serving, ready to draw: who waits, who computes, how full the KV cache is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from estimator.requests import Requests
    from estimator.simulation import Simulation
    from estimator.system import System
    from spaces.problem import Problem

NUM_REQUESTS = 4_000
NUM_BINS = 240
LEAST_WINDOW_S = 20.0
LEAST_ARRIVALS = 40  # a slow service is watched until this many have arrived
MAX_SHOWN_REQUESTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """Means per moment over the pool's instances; `kv_frac` of the memory left for KV cache."""

    name: str
    waiting: tuple[float, ...]
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    kv_frac: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpan:
    """One request on its way, seconds from the start of the window; `kv_arrival_s` None in collocated serving.

    `first_token_s`: when it is computed; a client of two pools sees it when the cache has arrived.
    """

    arrival_s: float
    prefill_start_s: float
    first_token_s: float
    kv_arrival_s: float | None
    finish_s: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """`time_s`: middles of the moments, from the start of the window. `part`: what of the strategy is watched."""

    strategy: str
    part: str
    rate_req_s: float
    time_s: tuple[float, ...]
    pools: tuple[PoolLoad, ...]
    moving: tuple[float, ...]
    requests: tuple[RequestSpan, ...]
    num_preemptions: int


def serving_of(problem: Problem, strategy: str, rate_req_s: float) -> Serving:
    """The smallest part of `strategy` that behaves like the whole, at its share of `rate_req_s`, past its start-up."""
    import numpy as np

    from estimator.goodput import equal_part
    from estimator.simulate import simulate
    from estimator.system import Collocated
    from estimator.timeline import timeline
    from search.estimate import existing_system
    from spaces.strategy import Strategy

    system = existing_system(problem, Strategy.parse(strategy))
    part, workload, num_parts = equal_part(system, problem.workload)
    if not isinstance(part, Collocated):
        part = replace(part, holds_first_token=False)  # the same events; the end of the prompt is what is drawn
    requests = workload.draw(rate_req_s / num_parts, NUM_REQUESTS, 0)
    run = simulate(part, requests)
    start_s = float(requests.arrival_s[NUM_REQUESTS // 4])
    length_s = max(LEAST_WINDOW_S, LEAST_ARRIVALS * num_parts / rate_req_s)
    edge_s = start_s + np.linspace(0.0, length_s, NUM_BINS + 1)
    shown = timeline(part, requests, run, edge_s)
    lost = run.decode.num_preemptions + (run.prefill.num_preemptions if run.prefill is not None else 0)
    return Serving(
        strategy=strategy,
        part=_part(part, num_parts),
        rate_req_s=rate_req_s / num_parts,
        time_s=tuple((0.5 * (edge_s[:-1] + edge_s[1:]) - start_s).tolist()),
        pools=tuple(
            PoolLoad(
                name=pool.name,
                waiting=tuple(pool.waiting_seqs.tolist()),
                prefill=tuple(pool.prefill_seqs.tolist()),
                decode=tuple(pool.decode_seqs.tolist()),
                kv_frac=tuple((pool.kv_tokens / pool.kv_capacity_tokens).tolist()),
            )
            for pool in shown.pools
        ),
        moving=tuple(shown.moving_seqs.tolist()),
        requests=_spans(requests, run, start_s),
        num_preemptions=lost,
    )


def _part(part: System, num_parts: int) -> str:
    from estimator.system import Collocated

    if isinstance(part, Collocated):
        return "the one instance" if num_parts == 1 else f"one of {num_parts} equal instances"
    group = f"{part.num_prefill} prefill and {part.num_decode} decode instances"
    return group if num_parts == 1 else f"{group}, one of {num_parts} equal groups"


def _spans(requests: Requests, run: Simulation, start_s: float) -> tuple[RequestSpan, ...]:
    """The first requests that arrive in the window and finish."""
    import numpy as np

    chosen = np.flatnonzero((run.arrival_s >= start_s) & np.isfinite(run.finish_s))[:MAX_SHOWN_REQUESTS]

    def since(times_s: np.ndarray[tuple[int], np.dtype[np.float64]], place: int) -> float:
        return float(times_s[place]) - start_s

    return tuple(
        RequestSpan(
            arrival_s=since(run.arrival_s, i),
            prefill_start_s=since(run.prefill_start_s, i),
            first_token_s=since(run.first_token_s, i),
            kv_arrival_s=None if np.isnan(run.kv_arrival_s[i]) else since(run.kv_arrival_s, i),
            finish_s=since(run.finish_s, i),
            input_tokens=int(requests.input_tokens[i]),
            output_tokens=int(requests.output_tokens[i]),
        )
        for i in chosen
    )
