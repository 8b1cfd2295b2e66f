"""Who waits, computes and holds KV cache at each moment of a simulated run, from the times of its requests.

A request that is in a state from a to b adds the length of [a, b) ∩ bin to that state's count·seconds in the bin. Bin
means are therefore exact, and over the whole run they add up to the kernel's own integrals. KV use is the prompt from
its start, then grows evenly from the first token to the last (steps differ in length, so within a request this is an
approximation). Blocks are whole: of a growing sequence's last one half is full in the mean; a prefill instance holds
the prompt's until its cache has arrived. A preempted request is shown as if it had kept its cache.

A run of two pools must not hold the first token back (`Disaggregated.holds_first_token`): it marks the prompt's end.

| state | from | to |
|---|---|---|
| waiting | arrival | prefill start |
| prefill | prefill start | first token |
| moving (disaggregated) | first token | arrival of the KV cache |
| decode | first token, or arrival of the KV cache | finish; in a decode pool this includes waiting for a seat |

Arrays: (num_bins,) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.errors import require
from estimator.instance import BLOCK_TOKENS, Instance
from estimator.requests import Requests
from estimator.simulation import Simulation
from estimator.system import Collocated, System

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolTimeline:
    """Means per bin, (num_bins,), summed over the pool's instances; `kv_capacity_tokens` of all of them together."""

    name: str
    waiting_seqs: FloatArray
    prefill_seqs: FloatArray
    decode_seqs: FloatArray
    kv_tokens: FloatArray
    kv_capacity_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """`edge_s` (num_bins + 1,); one pool `instances`, or `prefill` and `decode`; `moving_seqs`: caches on the link."""

    edge_s: FloatArray
    pools: tuple[PoolTimeline, ...]
    moving_seqs: FloatArray


def timeline(system: System, requests: Requests, simulation: Simulation, edge_s: FloatArray) -> Timeline:
    """Means between the times `edge_s` (num_bins + 1,) of `simulation`, which ran `requests` on `system`.

    Raises `BestServeError` for edges that do not increase.
    """
    require(
        len(edge_s) >= 2 and bool(np.all(np.diff(edge_s) > 0)),
        field="edge_s",
        value=f"{len(edge_s)} times",
        rule="must increase",
        accepted="at least two increasing times in s",
    )
    run, computed = simulation, (requests.input_tokens - requests.cached_tokens).astype(np.float64)
    grown = (requests.output_tokens - 1).astype(np.float64)
    has_left_s = np.where(np.isnan(run.kv_arrival_s), run.first_token_s, run.kv_arrival_s)
    waiting = _mean(edge_s, run.arrival_s, run.prefill_start_s)
    prefill = _mean(edge_s, run.prefill_start_s, run.first_token_s)
    none = np.zeros(len(edge_s) - 1)
    if isinstance(system, Collocated):
        held = computed + 0.5 * (BLOCK_TOKENS - 1)
        prompts = _mean(edge_s, run.prefill_start_s, run.first_token_s, held)
        whole = PoolTimeline(
            name="instances",
            waiting_seqs=waiting,
            prefill_seqs=prefill,
            decode_seqs=_mean(edge_s, run.first_token_s, run.finish_s),
            kv_tokens=prompts + _mean(edge_s, run.first_token_s, run.finish_s, held, grown),
            kv_capacity_tokens=_capacity_tokens(system.instance, system.num_instances),
        )
        return Timeline(edge_s=edge_s, pools=(whole,), moving_seqs=none)
    first = PoolTimeline(
        name="prefill",
        waiting_seqs=waiting,
        prefill_seqs=prefill,
        decode_seqs=none,
        kv_tokens=_mean(edge_s, run.prefill_start_s, has_left_s, np.ceil(computed / BLOCK_TOKENS) * BLOCK_TOKENS),
        kv_capacity_tokens=_capacity_tokens(system.prefill, system.num_prefill),
    )
    handed = requests.input_tokens.astype(np.float64) + 0.5 * (BLOCK_TOKENS - 1)
    second = PoolTimeline(
        name="decode",
        waiting_seqs=none,
        prefill_seqs=none,
        decode_seqs=_mean(edge_s, run.kv_arrival_s, run.finish_s),
        kv_tokens=_mean(edge_s, run.kv_arrival_s, run.finish_s, handed, grown),
        kv_capacity_tokens=_capacity_tokens(system.decode, system.num_decode),
    )
    return Timeline(
        edge_s=edge_s, pools=(first, second), moving_seqs=_mean(edge_s, run.first_token_s, run.kv_arrival_s)
    )


def _capacity_tokens(instance: Instance, num_instances: int) -> float:
    return float(instance.capacity_tokens * instance.parallelism.dp * num_instances)


def _mean(
    edge_s: FloatArray,
    enter_s: FloatArray,
    leave_s: FloatArray,
    weight: FloatArray | None = None,
    growth: FloatArray | None = None,
) -> FloatArray:
    """Mean per bin of Σ_i (weight_i + growth_i·(t − enter_i)/(leave_i − enter_i)) over enter_i ≤ t < leave_i.

    Weights are 1 and growths 0 if not given, all (num_requests,). NaN in either time: the request never was there.
    """
    inside = np.flatnonzero((leave_s > edge_s[0]) & (enter_s < edge_s[-1]) & (leave_s > enter_s))
    enter, leave = enter_s[inside], leave_s[inside]
    low = np.clip(edge_s[:-1, None], enter, leave) - enter  # (num_bins, num_inside): time in the state by each edge
    high = np.clip(edge_s[1:, None], enter, leave) - enter
    held = np.ones(len(inside)) if weight is None else weight[inside]
    area = (high - low) @ held
    if growth is not None:
        area += 0.5 * (high**2 - low**2) @ (growth[inside] / (leave - enter))
    return np.asarray(area / np.diff(edge_s), dtype=np.float64)
