"""Micro-batches of pipelines: what they hold, how one enters the stages and leaves them. For `pipelined`.

`unit` has a row per micro-batch, `pipe` and `leap` one per instance; `lane` and what follows it in `Pipelines` are the
arrays of `estimator.kernels.batching`.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from estimator.kernels.batching import (
    ACTIVE,
    BUSY,
    CACHED,
    CHUNKED,
    CLOCK,
    END,
    ENDING,
    HELD,
    HELD_TIME,
    LAST,
    LAST_WAITING,
    MARK_S,
    MARKS,
    NEXT_WAITING,
    NUM_DECODING,
    NUM_RESIDENT,
    NUM_STEPS,
    OWN,
    PHASE,
    PROMPT,
    STEPS,
    TODO,
    TOKENS,
    USED,
    Rules,
    end_lane,
    has_seat,
    link,
    may_promise,
    plan_lane,
    unlink,
)
from estimator.kernels.blocks import blocks_of, new_blocks
from estimator.kernels.calendar import NEVER, SAME_S, Array
from estimator.kernels.collocated import segment
from estimator.kernels.spans import MANY, record_gaps

START_S, END_S, LATEST_S, SINCE_S, FLIES, LINE_S, SLOPE_S = range(7)  # of `unit`; LATEST_S: its tokens appeared last
BEGUN_S, ROUND_S, GROWTH_S = range(7, 10)  # the head's S_0 and S_1 - S_0, by how much S_{r+1} - S_r grows
LAG_S, LAG_SLOPE, TAIL_S, TAIL_SLOPE = range(10, 14)  # behind its head on entering and leaving, growth per round
PREVIOUS_S, BUSY_UNTIL_S, SHOWN_S = range(3)  # of `pipe`
HEAD_OF_LINE, END_OF_LINE, CUT, CUT_LANE = range(4)  # of `queue`; CUT: a prompt with tokens left, resident in CUT_LANE
ROUNDS, COUNT, ORDER = range(3)  # of `leap`: rounds that are skipped (0: none), micro-batches, which ones, c first


class Pipelines(NamedTuple):
    """All that the instances hold; `free_s`: when each stage is free, `times`: each instance's next event."""

    lane: Array  # (num·pp·dp, ...)
    work: Array
    job: Array
    when: Array
    sums: Array
    weights: Array
    tab: Array
    r: Rules
    unit: Array  # (num·pp, 14)
    pipe: Array  # (num, 3)
    leap: Array  # (num, 2 + pp)
    free_s: Array  # (num, pp)
    queue: Array  # (num·dp, 4)
    times: Array
    outstanding: Array  # (num,)
    turns: Array  # (num,) rank of the next request
    wake: Array
    found: Array


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def lanes_of(fleet, u):
    """The lanes of a micro-batch."""
    return range(u * fleet.r.dp, (u + 1) * fleet.r.dp)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def units_of(fleet, g):
    """The micro-batches of an instance."""
    return range(g * fleet.r.pp, (g + 1) * fleet.r.pp)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def is_empty(fleet, u):
    """Whether nobody is resident in the micro-batch."""
    for at in lanes_of(fleet, u):  # noqa: SIM110 - numba knows no all()
        if fleet.lane[at, NUM_RESIDENT] > 0:
            return False
    return True


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def anybody_waits(fleet, g):
    """Whether any rank has a request waiting, or a prompt with tokens left."""
    for q in range(g * fleet.r.dp, (g + 1) * fleet.r.dp):
        if fleet.queue[q, HEAD_OF_LINE] >= 0 or fleet.queue[q, CUT] >= 0:
            return True
    return False


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def next_leaving(fleet, g, limit):
    """Of the micro-batches that leave the last stage until `limit` the first, or -1."""
    first = -1
    for u in units_of(fleet, g):
        end_s = fleet.unit[u, END_S]
        if fleet.unit[u, FLIES] > 0 and end_s <= limit and (first < 0 or end_s < fleet.unit[first, END_S]):
            first = u
    return first


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def next_event_s(fleet, g):
    """When the next micro-batch leaves, or can enter."""
    next_s, may_enter = NEVER, False
    for u in units_of(fleet, g):
        if fleet.unit[u, FLIES] > 0:
            next_s = min(next_s, fleet.unit[u, END_S])
        else:
            may_enter = may_enter or not is_empty(fleet, u) or anybody_waits(fleet, g)
    return min(next_s, fleet.free_s[g, 0]) if may_enter else next_s


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def keep_blocks(fleet, u, t):
    """Adds the KV blocks that the micro-batch has held until t."""
    for at in lanes_of(fleet, u):
        fleet.sums[HELD_TIME] += fleet.lane[at, USED] * (t - fleet.unit[u, SINCE_S])
    fleet.unit[u, SINCE_S] = t


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def open_blocks(fleet, u):
    """Takes the KV blocks that the decoding sequences of the step open."""
    r, lane = fleet.r, fleet.lane
    for at in lanes_of(fleet, u):
        if lane[at, ACTIVE] > 0:
            lane[at, USED] += new_blocks(lane, at, PHASE, r.shift, lane[at, CLOCK], r.p)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def enter(fleet, g, t):
    """Lets the next micro-batch of instance g into stage 1 at t, if that is free; returns it, or -1."""
    free_s, chosen, came_s = fleet.free_s[g, 0], -1, NEVER
    if free_s > t + SAME_S:
        return -1
    for u in units_of(fleet, g):
        if fleet.unit[u, FLIES] == 0 and fleet.unit[u, LATEST_S] < came_s and not is_empty(fleet, u):
            chosen, came_s = u, fleet.unit[u, LATEST_S]
    begin_s, horizon = max(t, free_s), t + SAME_S
    if chosen >= 0:
        begin_s = max(begin_s, came_s)
        if fleet.r.looks_ahead and free_s >= t - SAME_S:
            horizon = fleet.pipe[g, PREVIOUS_S] + SAME_S
    elif anybody_waits(fleet, g):
        for u in units_of(fleet, g):
            if fleet.unit[u, FLIES] == 0:
                chosen = u
                break
    if chosen >= 0:
        start_unit(fleet, g, chosen, begin_s, horizon)
    return chosen


@njit(cache=True, error_model="numpy", _nrt=False)
def take_over(lane, job, queue, r, at):
    """Moves the rank's prompt with tokens left, whose last chunk another micro-batch holds, to the lane that enters.

    It needs a seat, and KV blocks for its next chunk (chunked) or all of it.
    """
    i, old = queue[CUT], queue[CUT_LANE]
    if lane[at, PROMPT] >= 0 or not has_seat(lane, r, at) or not may_promise(lane, job, r, at, i):
        return
    new, opened, n = job[i, TODO], 0, lane[at, NUM_DECODING]
    if r.policy == CHUNKED:
        new = min(new, r.max_tokens - r.q * n)
        if n > 0:
            opened = new_blocks(lane, at, PHASE, r.shift, lane[at, CLOCK], r.p)
    need = blocks_of((job[i, HELD] + new) * r.units, r.shift)
    if new <= 0 or lane[at, USED] + opened + need > r.capacity:
        return
    lane[old, USED] -= job[i, OWN]
    unlink(lane, job, old, i)
    if lane[old, PROMPT] == i:
        lane[old, PROMPT] = -1
    lane[at, USED] += job[i, OWN]
    link(lane, job, at, i)
    lane[at, PROMPT] = i
    queue[CUT_LANE] = at


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def start_unit(fleet, g, u, t, horizon):
    """Puts the micro-batch's step together at t, with arrivals up to `horizon`, and sends it through the stages."""
    r, lane, work, unit, pipe = fleet.r, fleet.lane, fleet.work, fleet.unit[u], fleet.pipe[g]
    keep_blocks(fleet, u, t)
    for rank in range(r.dp):
        at, queue = u * r.dp + rank, fleet.queue[g * r.dp + rank]
        lane[at, STEPS], lane[at, ACTIVE], lane[at, TOKENS] = MANY, 0, 0
        if queue[CUT] >= 0 and queue[CUT_LANE] != at:
            keep_blocks(fleet, queue[CUT_LANE] // r.dp, t)
            take_over(lane, fleet.job, queue, r, at)
        lane[at, NEXT_WAITING], lane[at, LAST_WAITING] = queue[HEAD_OF_LINE], queue[END_OF_LINE]
        if lane[at, NUM_RESIDENT] > 0 or queue[HEAD_OF_LINE] >= 0:
            plan_lane(lane, work, fleet.job, fleet.when, fleet.sums, fleet.tab, r, at, t, unit[LATEST_S], horizon)
        queue[HEAD_OF_LINE], queue[END_OF_LINE] = lane[at, NEXT_WAITING], lane[at, LAST_WAITING]
        if lane[at, TOKENS] > 0 or queue[CUT_LANE] == at:
            latest = lane[at, LAST]
            is_cut = latest >= 0 and fleet.job[latest, TODO] > 0
            if is_cut:
                queue[CUT], queue[CUT_LANE] = latest, at
            elif queue[CUT_LANE] == at:
                queue[CUT] = queue[CUT_LANE] = -1
    stage_s = segment(lane, work, fleet.tab, r, u, 0)[0]
    open_blocks(fleet, u)
    end_s = t - r.hop_s
    for stage in range(r.pp):
        end_s = max(end_s + r.hop_s, fleet.free_s[g, stage]) + stage_s
        fleet.free_s[g, stage] = end_s
    unit[START_S], unit[END_S], unit[FLIES], unit[LINE_S] = t, end_s, 1, stage_s
    pipe[PREVIOUS_S] = t
    fleet.sums[BUSY] += end_s - max(t, pipe[BUSY_UNTIL_S])
    pipe[BUSY_UNTIL_S] = end_s


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def give_tokens(fleet, u, t):
    """The decoding sequences of the step have their tokens at t; where they stood by they wait on."""
    r, lane, work = fleet.r, fleet.lane, fleet.work
    for at in lanes_of(fleet, u):
        marks, rest = lane[at, MARKS], lane[at, NUM_DECODING]
        for m in range(marks):
            rest -= lane[at, r.mark_at + m]
        if lane[at, ACTIVE] > 0:
            for m in range(marks):
                gap_s = (t - work[at, MARK_S + m]) / r.gain
                record_gaps(fleet.weights, gap_s, gap_s, lane[at, r.mark_at + m] * r.gain)
            if rest > 0:
                gap_s = (t - fleet.unit[u, LATEST_S]) / r.gain
                record_gaps(fleet.weights, gap_s, gap_s, rest * r.gain)
            lane[at, MARKS] = 0
            lane[at, CLOCK] += 1
            work[at, CACHED] += lane[at, ACTIVE] * r.gain
        elif rest > 0:
            work[at, MARK_S + marks], lane[at, r.mark_at + marks] = fleet.unit[u, LATEST_S], rest
            lane[at, MARKS] += 1
    fleet.unit[u, LATEST_S] = t
    fleet.sums[NUM_STEPS] += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def end_unit(fleet, g, u):
    """The micro-batch leaves the last stage; returns how many requests finished."""
    r, lane, t, tokens, ended = fleet.r, fleet.lane, fleet.unit[u, END_S], 0.0, 0
    keep_blocks(fleet, u, t)
    give_tokens(fleet, u, t)
    for at in lanes_of(fleet, u):
        tokens += r.gain * lane[at, ACTIVE] + (lane[at, ENDING] if lane[at, TOKENS] > 0 else 0)
    shown_s = max(fleet.pipe[g, SHOWN_S], t) + r.output_s * tokens
    for at in lanes_of(fleet, u):
        ended += end_lane(lane, fleet.work, fleet.job, fleet.when, fleet.weights, r, at, t, shown_s)
    fleet.unit[u, FLIES], fleet.pipe[g, SHOWN_S] = 0, shown_s
    fleet.sums[END] = max(fleet.sums[END], t)
    return ended
