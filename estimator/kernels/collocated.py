"""Event kernel of instances that do prefill and decode: continuous batching, fast-forwarded while no batch can change.

Every instance is a group of lanes that step together. A lane is one attention-dp rank of one pipeline micro-batch, with
a queue, seats and KV blocks of its own. A step of the group takes max(Σ_j x_j, pp·max_j x_j + hop) with x_j the longest
stage time over the ranks of micro-batch j: the cycle time of pp micro-batches in rotation through pp equal stages, the
stages full (Σ) or the longest batch waited for (bubbles); for pp = 1 the maximum over ranks, idle ranks stepping along.

Total order of events at one time:

1. Steps end, by index of instance; in each by lane: sequences finish, then prompts end in order of admission. In a
   closed loop every request that ends, in that order, sends the next one.
2. Requests that have become visible are routed one by one in order of arrival (`estimator.kernels.routing`), to the
   lanes of an instance in turns. One that can never fit its lane is rejected here.
3. Instances without a running step put the next one together (no instance sees another here: their order is no matter).

A lane puts a step together as vLLM V1 does: decoding sequences first, then the prompt under way, then waiting requests
in order of arrival, within the token budget, the seats and the KV blocks. Where blocks run out the latest admitted is
evicted, recomputes its prompt and tokens, and waits before all others; nobody is admitted in that step. Prefill-first
runs steps of prompts alone while any can be admitted, and admits whole prompts. Static batching admits, whole
prompts too, only while nothing decodes.

While every lane only decodes, step times are a piecewise straight line (`_segment`), so that the group jumps to the
next finish, to the step that runs out of blocks, or to the first step end after an arrival that can be admitted.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from estimator.kernels.blocks import blocks_of, held_time, new_blocks, steps_within
from estimator.kernels.routing import choose
from estimator.kernels.spans import (
    GAPS_PER_DECADE,
    decode_span_s,
    line_span_s,
    line_steps_until,
    record_gaps,
    steps_until,
)

__all__ = [
    "CHUNKED",
    "PREFILL_FIRST",
    "STATIC",
    "Rules",
    "decode_span_s",
    "record_gaps",
    "run_instances",
    "steps_until",
]

CHUNKED, PREFILL_FIRST, STATIC = 0, 1, 2
NEVER = 1e300
MANY = 1 << 40
# columns of State.lane
(
    CLOCK,
    NUM_RESIDENT,
    NUM_DECODING,
    USED,
    FIRST,
    LAST,
    PROMPT,
    NEXT_WAITING,
    LAST_WAITING,
    ACTIVE,
    TOKENS,
    STEPS,
    MARKS,
) = range(13)
# columns of State.job
TODO, HELD, LEFT, JOINED, BEFORE, AFTER, OWN, SEEN = range(8)


class Rules(NamedTuple):
    """Limits of one lane and shape of an instance. `capacity` in KV blocks; p, M, U of `blocks`; q, c of `iteration`."""

    policy: int
    max_tokens: int
    seats: int
    capacity: int
    window: float
    c: float
    cw: float
    q: int
    gain: float
    units: int
    p: int
    overhead_s: float
    dp: int
    pp: int
    hop_s: float
    router: int
    concurrency: int


class State(NamedTuple):
    """Arrays of a run. Per lane: counters, cached tokens, phases, heap of (last clock, request), stall marks, step time.

    Per request: counters, times of its last token and of its eviction, `out` (start, first token, finish, arrival).
    `totals`: busy s, KV block·s, steps, preemptions, evicted s, end s. -1 stands for no request in the linked lists.
    """

    lane: Any
    cached: Any
    phase: Any
    heap: Any
    mark_s: Any
    mark_num: Any
    line: Any
    job: Any
    job_s: Any
    out: Any
    totals: Any
    weights: Any


@njit(cache=True)
def _push(heap, size, key):
    place = size
    while place > 0:
        above = (place - 1) >> 1
        if heap[above] <= key:
            break
        heap[place] = heap[above]
        place = above
    heap[place] = key


@njit(cache=True)
def _remove(heap, size, place):
    """Takes out the entry at `place` of a heap of `size` entries."""
    key = heap[size - 1]
    size -= 1
    if place == size:
        return
    if place > 0 and heap[(place - 1) >> 1] > key:
        _push(heap, place, key)
        return
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= key:
            break
        heap[place] = heap[below]
        place = below
    heap[place] = key


@njit(cache=True)
def _link(s, l, i):
    """Makes request i the latest resident of lane l."""
    lane = s.lane[l]
    last = lane[LAST]
    s.job[i, BEFORE], s.job[i, AFTER] = last, -1
    if last >= 0:
        s.job[last, AFTER] = i
    else:
        lane[FIRST] = i
    lane[LAST] = i
    lane[NUM_RESIDENT] += 1


@njit(cache=True)
def _unlink(s, l, i):
    lane = s.lane[l]
    before, after = s.job[i, BEFORE], s.job[i, AFTER]
    if before >= 0:
        s.job[before, AFTER] = after
    else:
        lane[FIRST] = after
    if after >= 0:
        s.job[after, BEFORE] = before
    else:
        lane[LAST] = before
    lane[NUM_RESIDENT] -= 1


@njit(cache=True)
def _start_decoding(s, r, l, i):
    """Request i holds its whole prompt and decodes from the lane's present clock on."""
    lane, job = s.lane[l], s.job[i]
    clock = lane[CLOCK]
    job[JOINED] = clock
    _push(s.heap[l], lane[NUM_DECODING], ((clock + job[LEFT]) << 32) | i)
    lane[NUM_DECODING] += 1
    s.phase[l, (job[HELD] * r.units - r.p * clock) & (16 * r.units - 1)] += 1
    s.cached[l] += job[HELD] + job[SEEN]


@njit(cache=True)
def _stop_decoding(s, r, l, i, place):
    """Takes request i, at `place` of the heap, and its KV cache out of the lane; returns the steps it has decoded."""
    lane, job = s.lane[l], s.job[i]
    done = lane[CLOCK] - job[JOINED]
    M = 16 * r.units
    _remove(s.heap[l], lane[NUM_DECODING], place)
    lane[NUM_DECODING] -= 1
    lane[USED] -= blocks_of(job[HELD] * r.units + r.p * done, M)
    s.phase[l, (job[HELD] * r.units - r.p * job[JOINED]) & (M - 1)] -= 1
    s.cached[l] = s.cached[l] - job[HELD] - job[SEEN] - r.gain * done if lane[NUM_DECODING] > 0 else 0.0
    job[JOINED] = -1
    _unlink(s, l, i)
    return done


@njit(cache=True)
def _evict(s, r, l, t):
    """The latest admitted gives up its blocks and waits, before all others, to compute its tokens again."""
    lane = s.lane[l]
    i = lane[LAST]
    job = s.job[i]
    if job[JOINED] >= 0:
        place = 0
        while s.heap[l, place] & 0xFFFFFFFF != i:
            place += 1
        marks, marked = lane[MARKS], 0
        for m in range(marks):
            marked += s.mark_num[l, m]
        s.job_s[i, 0] = t
        if marked == lane[NUM_DECODING]:  # it has waited for its next token since the latest mark
            s.job_s[i, 0] = s.mark_s[l, marks - 1]
            s.mark_num[l, marks - 1] -= 1
            lane[MARKS] -= s.mark_num[l, marks - 1] == 0
        done = _stop_decoding(s, r, l, i, place)
        job[TODO] = job[HELD] + int(r.gain * (done + 1))
        job[LEFT] -= done + 1
    else:
        lane[USED] -= job[OWN]
        job[TODO] += job[HELD]
        lane[PROMPT] = -1
        _unlink(s, l, i)
    job[HELD] = job[OWN] = 0
    s.job_s[i, 1] = t
    s.totals[3] += 1
    job[AFTER] = lane[NEXT_WAITING]
    lane[NEXT_WAITING] = i
    if job[AFTER] < 0:
        lane[LAST_WAITING] = i


@njit(cache=True)
def _make_room(s, r, l, t):
    """Evicts until one decode step's blocks fit, the first admitted never; returns those blocks, whether it evicted."""
    lane = s.lane[l]
    before = s.totals[3]
    opened = new_blocks(s.phase[l], lane[CLOCK], r.p)
    while lane[USED] + opened > r.capacity and lane[NUM_RESIDENT] > 1:
        _evict(s, r, l, t)
        opened = new_blocks(s.phase[l], lane[CLOCK], r.p)
    return opened, s.totals[3] > before


@njit(cache=True)
def _admit(s, l, i, t):
    """Moves the first waiting request i of lane l among the residents."""
    lane, job = s.lane[l], s.job[i]
    lane[NEXT_WAITING] = job[AFTER]
    if math.isnan(s.out[0, i]):
        s.out[0, i] = t
    else:
        s.totals[4] += t - s.job_s[i, 1]
    _link(s, l, i)


@njit(cache=True)
def _plan_lane(s, r, tables, l, t):
    """Puts the lane's next step together: its tokens, decoding sequences, stage time and how often it may repeat."""
    _, M, H, B, BW = tables
    lane, chunked = s.lane[l], r.policy == CHUNKED
    budget, taken, evicted = r.max_tokens, lane[USED], False
    if chunked and lane[NUM_DECODING] > 0:
        opened, evicted = _make_room(s, r, l, t)
        taken, budget = lane[USED] + opened, budget - r.q * lane[NUM_DECODING]
    tokens, ending, pairs, window_pairs = 0, 0, 0.0, 0.0
    i = lane[PROMPT]
    while budget > 0:
        fresh = i < 0
        if fresh:
            i = lane[NEXT_WAITING]
            if i < 0 or evicted or lane[NUM_RESIDENT] >= r.seats or (r.policy == STATIC and lane[NUM_DECODING] > 0):
                break
        job = s.job[i]
        new = min(job[TODO], budget)
        units = (job[HELD] + (new if chunked else job[TODO])) * r.units
        handed = job[TODO] == 0  # its KV cache was handed over: it decodes at once
        need = blocks_of(units + (r.p if handed else 0), 16 * r.units) - job[OWN]
        if taken + need > r.capacity:
            if not fresh:
                _evict(s, r, l, t)
                evicted = True
            break
        if fresh:
            _admit(s, l, i, t)
        taken += need
        if handed:
            lane[USED] += blocks_of(units, 16 * r.units)
            _start_decoding(s, r, l, i)
            budget -= r.q
        else:
            if lane[PROMPT] < 0:
                lane[PROMPT] = i
            sees = job[SEEN] + job[HELD] + (new + 1) / 2
            pairs, window_pairs = pairs + new * sees, window_pairs + new * min(sees, r.window)
            lane[USED], job[OWN] = lane[USED] + need, job[OWN] + need
            job[TODO], job[HELD] = job[TODO] - new, job[HELD] + new
            tokens, budget, ending = tokens + new, budget - new, ending + (job[TODO] == 0)
        i = -1
    if tokens == 0 and not chunked and lane[NUM_DECODING] > 0:
        _, evicted = _make_room(s, r, l, t)
    n = lane[NUM_DECODING] if tokens == 0 or chunked else 0
    lane[ACTIVE], lane[TOKENS] = n, tokens
    if tokens > 0:
        stage_s = M[min(tokens + r.q * n, len(M) - 1)] + H[min(n + ending, len(H) - 1)]
        stage_s += r.c * pairs + r.cw * window_pairs
        if n > 0:
            stage_s += B[n] * s.cached[l] + BW[n] * min(s.cached[l], n * r.window)
        s.line[0, l] = stage_s
    elif n > 0:
        next_finish = (s.heap[l, 0] >> 32) - lane[CLOCK]
        room = r.capacity - lane[USED]
        lane[STEPS] = 1 if evicted else steps_within(s.phase[l], lane[CLOCK], n, r.p, room, max(next_finish, 1))


@njit(cache=True)
def _lane_line(s, r, tables, l, done):
    """(stage time, growth per step, steps for which it holds) of lane l after `done` decode steps of a jump."""
    D, _, _, B, BW = tables
    n = s.lane[l, ACTIVE]
    if s.lane[l, TOKENS] > 0:
        return s.line[0, l], 0.0, MANY
    if n == 0:
        return 0.0, 0.0, MANY
    grow = n * r.gain
    cached = s.cached[l] + done * grow
    first_s, slope_s = D[n] + B[n] * cached, B[n] * grow
    if BW[n] == 0.0:
        return first_s, slope_s, MANY
    cap = n * r.window
    if cached >= cap:
        return first_s + BW[n] * cap, slope_s, MANY
    return first_s + BW[n] * cached, slope_s + BW[n] * grow, math.ceil((cap - cached) / grow)


@njit(cache=True)
def _crossing(top_s, top_slope, value_s, slope):
    """Steps for which a line that is not above the top one stays so."""
    return int(min((top_s - value_s) / (slope - top_slope), 1e9)) + 1 if slope > top_slope else MANY


@njit(cache=True)
def _segment(s, r, tables, g, done):
    """(step time, growth per step, steps for which it holds) of instance g after `done` steps of a jump."""
    num = r.dp * r.pp
    if num == 1:
        return _lane_line(s, r, tables, g, done)
    holds, total_s, total_slope, top_s, top_slope = MANY, 0.0, 0.0, 0.0, 0.0
    for j in range(r.pp):
        best_s, best_slope = 0.0, 0.0
        first = g * num + j * r.dp
        for l in range(first, first + r.dp):
            s.line[0, l], s.line[1, l], steps = _lane_line(s, r, tables, l, done)
            holds = min(holds, steps)
            if s.line[0, l] > best_s or (s.line[0, l] == best_s and s.line[1, l] > best_slope):
                best_s, best_slope = s.line[0, l], s.line[1, l]
        for l in range(first, first + r.dp):
            holds = min(holds, _crossing(best_s, best_slope, s.line[0, l], s.line[1, l]))
        total_s, total_slope = total_s + best_s, total_slope + best_slope
        if best_s > top_s or (best_s == top_s and best_slope > top_slope):
            top_s, top_slope = best_s, best_slope
    if r.pp == 1:
        return total_s, total_slope, holds
    for l in range(g * num, (g + 1) * num):
        holds = min(holds, _crossing(top_s, top_slope, s.line[0, l], s.line[1, l]))
    wait_s, wait_slope = r.pp * top_s + r.hop_s, r.pp * top_slope
    if wait_s > total_s or (wait_s == total_s and wait_slope > total_slope):
        return wait_s, wait_slope, min(holds, _crossing(wait_s, wait_slope, total_s, total_slope))
    return total_s, total_slope, min(holds, _crossing(total_s, total_slope, wait_s, wait_slope))


@njit(cache=True)
def _jump(s, r, tables, g, k, limit_s):
    """(steps, seconds) of instance g: k steps, or fewer if their time reaches `limit_s` sooner."""
    total_s, done = 0.0, 0
    while done < k:
        first_s, slope_s, holds = _segment(s, r, tables, g, done)
        holds = min(holds, k - done)
        span_s = line_span_s(first_s, slope_s, holds)
        if total_s + span_s >= limit_s:
            holds = min(line_steps_until(limit_s - total_s, first_s, slope_s), holds)
            return done + holds, total_s + line_span_s(first_s, slope_s, holds)
        total_s, done = total_s + span_s, done + holds
    return k, total_s


@njit(cache=True)
def _plan(s, r, tables, g, t):
    """(steps, seconds) that instance g does next, from time t; no steps if it has nothing to do."""
    num = r.dp * r.pp
    k, mixed = MANY, False
    for l in range(g * num, (g + 1) * num):
        lane = s.lane[l]
        lane[STEPS], lane[ACTIVE], lane[TOKENS] = MANY, 0, 0
        if lane[NUM_RESIDENT] > 0 or lane[NEXT_WAITING] >= 0:
            _plan_lane(s, r, tables, l, t)
            mixed = mixed or lane[TOKENS] > 0
            k = min(k, lane[STEPS])
    if mixed:
        return 1, _segment(s, r, tables, g, 0)[0]
    return (0, 0.0) if k == MANY else _jump(s, r, tables, g, k, NEVER)


@njit(cache=True)
def _pass_time(s, r, tables, g, k, start_s):
    """Advances clocks, KV caches, integrals and gaps of instance g by its k steps."""
    num, done = r.dp * r.pp, 0
    while done < k:
        first_s, slope_s, holds = _segment(s, r, tables, g, done)
        holds = min(holds, k - done)
        num_gaps = 0
        for l in range(g * num, (g + 1) * num):
            lane = s.lane[l]
            n = lane[ACTIVE]
            if n == 0:
                s.totals[1] += lane[USED] * line_span_s(first_s, slope_s, holds)
                continue
            total, used = held_time(s.phase[l], lane[CLOCK] + done, n, r.p, lane[USED], first_s, slope_s, holds)
            s.totals[1], lane[USED] = s.totals[1] + total, used
            num_gaps += n * holds
            if lane[MARKS] > 0:  # the first gap of those who waited for prompts
                for m in range(lane[MARKS]):
                    gap_s = (start_s + first_s - s.mark_s[l, m]) / r.gain
                    record_gaps(s.weights, GAPS_PER_DECADE, gap_s, gap_s, s.mark_num[l, m] * r.gain)
                    num_gaps -= s.mark_num[l, m]
                lane[MARKS] = 0
        if num_gaps > 0:
            last_s = first_s + slope_s * (holds - 1)
            record_gaps(s.weights, GAPS_PER_DECADE, first_s / r.gain, last_s / r.gain, num_gaps * r.gain)
        done += holds
    for l in range(g * num, (g + 1) * num):
        lane = s.lane[l]
        if lane[ACTIVE] > 0:
            lane[CLOCK] += k
            s.cached[l] += lane[ACTIVE] * k * r.gain
        elif lane[NUM_DECODING] > 0:  # decoding sequences stood by: they wait since the start of this step
            unmarked = lane[NUM_DECODING]
            for m in range(lane[MARKS]):
                unmarked -= s.mark_num[l, m]
            if unmarked > 0:
                s.mark_s[l, lane[MARKS]], s.mark_num[l, lane[MARKS]] = start_s, unmarked
                lane[MARKS] += 1


@njit(cache=True)
def _end_lane(s, r, l, t):
    """Lets finished sequences go and finished prompts decode; returns the requests that finished."""
    lane, ended = s.lane[l], 0
    if lane[ACTIVE] > 0:
        while lane[NUM_DECODING] > 0 and s.heap[l, 0] >> 32 <= lane[CLOCK]:
            i = s.heap[l, 0] & 0xFFFFFFFF
            s.out[2, i] = t
            _stop_decoding(s, r, l, i, 0)
            ended += 1
    i = lane[PROMPT]
    lane[PROMPT] = -1
    while i >= 0:
        job = s.job[i]
        after = job[AFTER]
        if job[JOINED] < 0:
            if job[TODO] > 0:
                lane[PROMPT] = i
            else:
                if math.isnan(s.out[1, i]):
                    s.out[1, i] = t
                else:
                    gap_s = (t - s.job_s[i, 0]) / r.gain
                    record_gaps(s.weights, GAPS_PER_DECADE, gap_s, gap_s, r.gain)
                if job[LEFT] == 0:
                    s.out[2, i] = t
                    lane[USED] -= job[OWN]
                    _unlink(s, l, i)
                    ended += 1
                else:
                    _start_decoding(s, r, l, i)
        i = after
    return ended


@njit(cache=True)
def _enqueue(s, r, l, i):
    """Puts request i at the end of lane l's queue; False if it can never fit the lane."""
    lane, job = s.lane[l], s.job[i]
    units = (job[TODO] + job[HELD]) * r.units + r.p * job[LEFT]
    if blocks_of(units, 16 * r.units) > r.capacity:
        return False
    job[AFTER] = -1
    if lane[NEXT_WAITING] < 0:
        lane[NEXT_WAITING] = i
    else:
        s.job[lane[LAST_WAITING], AFTER] = i
    lane[LAST_WAITING] = i
    return True


@njit(cache=True)
def _set_end(tree, g, end_s):
    """Sets the end of instance g's step in the tournament tree (leaves from len(tree)/2, smaller child above)."""
    place = len(tree) // 2 + g
    tree[place] = end_s
    place >>= 1
    while place > 0:
        tree[place] = min(tree[2 * place], tree[2 * place + 1])
        place >>= 1


@njit(cache=True)
def _first_end(tree):
    """Instance whose step ends first, of equals the lowest index."""
    place, half = 1, len(tree) // 2
    while place < half:
        place = 2 * place if tree[2 * place] <= tree[2 * place + 1] else 2 * place + 1
    return place - half


@njit(cache=True)
def run_instances(s, r, tables, visible, num_instances, draws):
    """Runs all requests, visible at `visible` (num,) s, to their end; fills `s.out` and `s.totals`.

    tables: (D, M, H, b, b_w) of one stage; draws: of `routing.router_draws`. In a closed loop `visible` is rewritten.
    """
    num, num_lanes = len(visible), r.dp * r.pp
    half = 1
    while half < num_instances:
        half *= 2
    tree = np.full(2 * half, NEVER)
    start_s, steps = np.zeros(num_instances), np.zeros(num_instances, np.int64)
    outstanding, turns = np.zeros(num_instances, np.int64), np.zeros(num_instances, np.int64)
    idle, num_idle = np.empty(num_instances, np.int64), 0
    is_listed = np.zeros(num_instances, np.bool_)
    released = num if r.concurrency == 0 else min(r.concurrency, num)
    come = 0
    while True:
        t = min(tree[1], visible[come] if come < released else NEVER)
        if t == NEVER:
            break
        while tree[1] <= t:  # 1. steps end
            g = _first_end(tree)
            _set_end(tree, g, NEVER)
            _pass_time(s, r, tables, g, steps[g], start_s[g])
            ended = 0
            for l in range(g * num_lanes, (g + 1) * num_lanes):
                ended += _end_lane(s, r, l, t)
            outstanding[g] -= ended
            s.totals[0], s.totals[2], s.totals[5] = s.totals[0] + t - start_s[g], s.totals[2] + steps[g], t
            steps[g] = 0
            if r.concurrency > 0:
                for _ in range(min(ended, num - released)):
                    s.out[3, released], visible[released] = t, t + r.overhead_s
                    released += 1
            idle[num_idle], is_listed[g] = g, True
            num_idle += 1
        while come < released and visible[come] <= t:  # 2. requests arrive
            g = choose(r.router, come, outstanding, draws)
            l = g * num_lanes + turns[g] % num_lanes
            lane = s.lane[l]
            is_behind = lane[NEXT_WAITING] >= 0
            if _enqueue(s, r, l, come):
                outstanding[g] += 1
                turns[g] += 1
                if steps[g] == 0 and not is_listed[g]:
                    idle[num_idle], is_listed[g] = g, True
                    num_idle += 1
                elif steps[g] > 1 and not is_behind and lane[NUM_RESIDENT] < r.seats:
                    if r.policy != STATIC or lane[NUM_DECODING] == 0:
                        steps[g], span_s = _jump(s, r, tables, g, steps[g], t - start_s[g])
                        _set_end(tree, g, start_s[g] + span_s)
            elif r.concurrency > 0 and released < num:
                s.out[3, released], visible[released] = t, t + r.overhead_s
                released += 1
            come += 1
        for m in range(num_idle):  # 3. steps begin
            g = idle[m]
            is_listed[g] = False
            steps[g], span_s = _plan(s, r, tables, g, t)
            if steps[g] > 0:
                start_s[g] = t
                _set_end(tree, g, t + span_s)
        num_idle = 0
