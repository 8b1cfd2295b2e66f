"""Prefill instances of a disaggregated system: queues, scheduling batches, steps of prompts through pipeline stages.

A step takes prompts in the lane's order: whole ones while they fit the token budget (one longer than the budget is cut
and takes the first place), or, chunked, as many tokens as the budget has. The next prompts come from a scheduling
batch: the first so many that wait, sorted by length (FCFS leaves them as they came), and a new one is formed when it is
used up. A prompt needs KV blocks from its start until its cache has left for the decode pool.

An instance that looks ahead puts a step together when the one before begins: who comes in between waits for one more,
unless no prompt was there for that one.

The attention-dp ranks of an instance are lanes that step together, as long as the longest, with experts in common. With
pp stages a step of stage time s that enters at t leaves stage j at e_j = max(e_{j−1} + hop, free_j) + s, and the next
may enter at free_1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from estimator.instance import BLOCK_TOKENS
from estimator.kernels.blocks import blocks_of
from estimator.kernels.calendar import EMPTY, NEVER, SAME_S, Array, pop, push, set_time

FCFS, SJF, LJF = 0, 1, -1
BLOCK_SHIFT = BLOCK_TOKENS.bit_length() - 1

JOB = np.dtype(
    [
        (name, np.float64)
        for name in (
            "visible_s",  # the router sees it
            "arrival_s",
            "delay_s",  # from the end of the front end until it is visible
            "known_s",  # the steps from here on may hold it
            "start_s",  # first tokens enter a step
            "first_s",  # the prompt ends
            "reserved_s",  # the decode instance has set room aside
            "kv_s",  # its KV cache has crossed the link
            "join_s",  # it begins to decode
            "finish_s",
            "token_s",  # the last token so far
            "wire_s",  # seconds of its transfer
            "predicted",  # output tokens, by the length predictor
        )
    ]
    + [
        (name, np.int64)
        for name in (
            "prompt",  # tokens to compute
            "seen",  # tokens found in the prefix cache
            "handed",  # tokens of the whole KV cache
            "todo",  # prompt tokens not yet in a step
            "held",  # KV tokens computed, or handed over when it joined
            "left",  # decode steps to go when it joined
            "source_place",  # the router's choice
            "place",  # the placement's choice
            "source",  # prefill lane
            "target",  # decode lane
        )
    ],
    align=True,
)
PREFILL_LANE = np.dtype(
    [(name, np.int64) for name in ("batch_at", "batch_size", "num_prompts", "num_held", "used", "unit")]
    + [(name, np.float64) for name in ("since_s", "kv_block_s")],
    align=True,
)


class Cost(NamedTuple):
    """Tables of `StepCost` as the kernels take them; D and the rest in its docstring."""

    D: Array
    M: Array
    H: Array
    B: Array
    BW: Array
    window: float
    c: float
    cw: float
    q: int
    gain: float
    E: Array


class PrefillPool(NamedTuple):
    """Arrays and settings of the pool; `queues` and `ends`: number of its first list. Its events are the first."""

    cost: Cost
    lanes: Array  # (num_units·ranks,) PREFILL_LANE
    outstanding: Array  # (num_units·ranks,) requests routed to the lane that have not left it
    batch: Array  # (num_lanes, scheduling batch)
    prompts: Array  # (num_lanes, max_num_seqs) prompts in the step
    ends_s: Array  # (num_requests,) when the prompt leaves the last stage
    free_s: Array  # (num_units, pp)
    totals: Array  # busy s, steps
    queues: int
    ends: int
    ranks: int
    budget: int
    is_chunked: bool
    order: int
    max_seqs: int
    capacity: int  # KV blocks
    hop_s: float
    looks_ahead: bool


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def prompt_blocks(tokens):
    """KV blocks of so many tokens."""
    return blocks_of(tokens, BLOCK_SHIFT)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def next_prompt(pool, state, lane):
    """The prompt that the lane would start next, or EMPTY."""
    at = pool.lanes[lane]
    if at["batch_at"] == at["batch_size"]:
        size = 0
        while size < pool.batch.shape[1] and state.lists[pool.queues + lane, 0] != EMPTY:
            i = pop(state, pool.queues + lane)
            place = size
            length = pool.order * state.jobs[i]["prompt"]
            while place > 0 and pool.order * state.jobs[pool.batch[lane, place - 1]]["prompt"] > length:
                pool.batch[lane, place] = pool.batch[lane, place - 1]
                place -= 1
            pool.batch[lane, place] = i
            size += 1
        at["batch_at"], at["batch_size"] = 0, size
        if size == 0:
            return EMPTY
    return pool.batch[lane, at["batch_at"]]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def start_prompt(pool, state, lane, t, room, known_s):
    """Seats the lane's next prompt, known by `known_s`, in the step at t; False if none may: `room` tokens are left."""
    at = pool.lanes[lane]
    i = next_prompt(pool, state, lane)
    if i == EMPTY or at["num_prompts"] == pool.max_seqs:
        return False
    job = state.jobs[i]
    if job["known_s"] > known_s:
        return False
    if not pool.is_chunked and room < pool.budget and job["todo"] > room:
        return False
    need = prompt_blocks(job["todo"])
    if at["num_held"] > 0 and at["used"] + need > pool.capacity:
        return False
    at["batch_at"] += 1
    at["kv_block_s"] += at["used"] * (t - at["since_s"])
    at["since_s"] = t
    at["used"] += need
    at["num_held"] += 1
    job["start_s"] = t
    pool.prompts[lane, at["num_prompts"]] = i
    at["num_prompts"] += 1
    return True


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def fill_step(pool, state, lane, t, known_s):
    """Puts prompts known by `known_s` into the lane's step at t; returns its tokens and seconds."""
    at, cost = pool.lanes[lane], pool.cost
    room, slot, ending, pairs, window_pairs = pool.budget, 0, 0, 0.0, 0.0
    while room > 0:
        if slot == at["num_prompts"] and not start_prompt(pool, state, lane, t, room, known_s):
            break
        job = state.jobs[pool.prompts[lane, slot]]
        new = min(job["todo"], room)
        sees = job["seen"] + job["held"] + (new + 1) / 2
        pairs, window_pairs = pairs + new * sees, window_pairs + new * min(sees, cost.window)
        job["todo"] -= new
        job["held"] += new
        ending += job["todo"] == 0
        room, slot = room - new, slot + 1
    tokens = pool.budget - room
    if tokens == 0:
        return 0, 0.0
    head_s = cost.H[min(ending, len(cost.H) - 1)]
    return tokens, cost.M[min(tokens, len(cost.M) - 1)] + head_s + cost.c * pairs + cost.cw * window_pairs


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def fill_instance(pool, state, lanes, t, known_s):
    """Puts prompts into the step of all ranks at t; returns its tokens and seconds."""
    tokens, span_s, pooled_s = 0, 0.0, pool.cost.E
    for lane in lanes:
        lane_tokens, lane_s = fill_step(pool, state, lane, t, known_s)
        if lane_tokens > 0:
            span_s = max(span_s, lane_s - pooled_s[min(lane_tokens, len(pooled_s) - 1)])
        tokens += lane_tokens
    return tokens, span_s + pooled_s[min(-(-tokens // pool.ranks), len(pooled_s) - 1)]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def start_prefill(pool, state, unit, t):
    """Starts a step of the instance at t if its first stage is free and a prompt can run."""
    if pool.free_s[unit, 0] <= t + SAME_S:
        lanes = range(unit * pool.ranks, (unit + 1) * pool.ranks)
        tokens, span_s = fill_instance(pool, state, lanes, t, t)
        if tokens == 0 and pool.looks_ahead:
            tokens, span_s = fill_instance(pool, state, lanes, t, NEVER)
        if tokens > 0:
            end_s = t - pool.hop_s
            for stage in range(pool.free_s.shape[1]):
                end_s = max(end_s + pool.hop_s, pool.free_s[unit, stage]) + span_s
                pool.free_s[unit, stage] = end_s
            pool.totals[0] += span_s
            pool.totals[1] += 1
            for lane in lanes:
                end_prompts(pool, state, lane, unit, end_s)
    next_s = pool.free_s[unit, 0] if pool.free_s[unit, 0] > t + SAME_S else NEVER
    first = state.lists[pool.ends + unit, 0]
    if first != EMPTY:
        next_s = min(next_s, pool.ends_s[first])
    set_time(state.times, unit, next_s)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def end_prompts(pool, state, lane, unit, end_s):
    """Lets the prompts that the step has finished leave the lane's step; they end at end_s."""
    at, kept = pool.lanes[lane], 0
    for slot in range(at["num_prompts"]):
        i = pool.prompts[lane, slot]
        if state.jobs[i]["todo"] > 0:
            pool.prompts[lane, kept] = i
            kept += 1
        else:
            pool.ends_s[i] = end_s
            push(state, pool.ends + unit, i)
    at["num_prompts"] = kept


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def leave_prefill(pool, job, t):
    """Gives the prompt's KV blocks free at t."""
    at = pool.lanes[job["source"]]
    at["kv_block_s"] += at["used"] * (t - at["since_s"])
    at["since_s"] = t
    at["used"] -= prompt_blocks(job["prompt"])
    at["num_held"] -= 1
    pool.outstanding[job["source_place"]] -= 1
