"""Rounds of micro-batches through the stages of a pipeline that are one event. For `pipelined`.

While all micro-batches only decode and nobody can join, they go round in one order. A *head* finds every stage free: it
enters stage 1 when it comes back, S_{r+1} = S_r + pp·x(r) + (pp − 1)·hop, x its stage time. Others follow, back when
their turn comes, that are no longer in a stage than the head. With i ≤ j counting those behind head h

    j enters stage 1 at S_r + x_h(r) + Σ_{i<j} x_i(r) and leaves the last at S_{r+1} + Σ_{i≤j} x_i(r):

of all ways through stages and micro-batches, whose longest says when j leaves stage s, none beats following h to stage
s first (every stage time is at most x_h) and then the others through it; and stage times never shrink, so that j, which
left at S_r + Σ_{i≤j} x_i(r − 1), is back in time. A head stays one for as long as it reaches no stage before those
ahead of it have left. The time between is a parabola in r, and from the first stage to the last it changes evenly.

Until then rounds are one event. It is cut where somebody can join (`interrupt`): whole rounds, counted from entry to
entry of one head, are skipped, what is left of the last happens step by step.
"""

from __future__ import annotations

from numba import njit

from estimator.kernels.batching import (
    ACTIVE,
    BUSY,
    CACHED,
    CHUNKED,
    CLOCK,
    HELD_TIME,
    NUM_DECODING,
    NUM_STEPS,
    PHASE,
    PROMPT,
    STEPS,
    TODO,
    TOKENS,
    USED,
    has_seat,
    may_promise,
)
from estimator.kernels.blocks import blocks_of, held_time, steps_within
from estimator.kernels.calendar import SAME_S
from estimator.kernels.collocated import segment
from estimator.kernels.micro_batches import (
    BEGUN_S,
    BUSY_UNTIL_S,
    COUNT,
    END_S,
    FLIES,
    GROWTH_S,
    HEAD_OF_LINE,
    LAG_S,
    LAG_SLOPE,
    LATEST_S,
    LINE_S,
    ORDER,
    PREVIOUS_S,
    ROUND_S,
    ROUNDS,
    SINCE_S,
    SLOPE_S,
    START_S,
    TAIL_S,
    TAIL_SLOPE,
    end_unit,
    enter,
    give_tokens,
    is_empty,
    keep_blocks,
    lanes_of,
    next_event_s,
    next_leaving,
    open_blocks,
    units_of,
)
from estimator.kernels.spans import line_crossing, line_span_s, line_steps_until, record_gaps


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def plan_leap(fleet, g, c):
    """Whether rounds from the step of micro-batch c, just begun, can be skipped; notes them in `leap` and `unit`."""
    r, unit, leap = fleet.r, fleet.unit, fleet.leap[g]
    start_s = unit[c, START_S]
    grace_s = 1e-12 + 1e-14 * start_s  # rounding
    least_s = r.pp * unit[c, LINE_S] + (r.pp - 1) * r.hop_s
    if r.longest_jump == 1 or r.output_s > 0.0 or unit[c, END_S] - start_s > least_s + grace_s:
        return False
    rounds = straight_steps(fleet, c, 0)
    if rounds < 2:
        return False
    if not line_up(fleet, g, c):
        return False
    head(fleet, c, start_s)
    ahead = c
    for place in range(1, leap[COUNT]):
        u, last = leap[ORDER + place], leap[ORDER + place - 1]
        rounds = min(rounds, straight_steps(fleet, u, int(unit[u, FLIES] > 0)))
        if rounds < 2:
            return False
        if unit[u, END_S] <= entry_s(fleet, last, 0) + unit[last, LINE_S] + grace_s:
            if unit[u, LINE_S] > unit[ahead, LINE_S]:
                return False
            follow(unit, u, last, ahead)
            rounds = min(
                rounds,
                line_crossing(unit[ahead, LINE_S], unit[ahead, SLOPE_S], unit[u, LINE_S], unit[u, SLOPE_S]),
            )
        else:
            head(fleet, u, unit[u, END_S])
            rounds = rounds_apart(fleet, ahead, last, u, 0, grace_s, rounds)
            ahead = u
    last = leap[ORDER + leap[COUNT] - 1]
    rounds = min(rounds_apart(fleet, ahead, last, c, 1, grace_s, rounds), r.longest_jump)
    if rounds < 2 or can_join(fleet, g):
        return False
    leap[ROUNDS] = rounds
    return True


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_up(fleet, g, c):
    """Notes in `leap` the micro-batches with residents: c, then the others in the order in which they come back.

    False if one is under way that a prompt has left without residents.
    """
    leap, count = fleet.leap[g], 1
    leap[ORDER] = c
    for u in units_of(fleet, g):
        if is_empty(fleet, u):
            if fleet.unit[u, FLIES] > 0:
                return False
        elif u != c:
            place = count
            while place > 1 and fleet.unit[leap[ORDER + place - 1], END_S] > fleet.unit[u, END_S]:
                leap[ORDER + place] = leap[ORDER + place - 1]
                place -= 1
            leap[ORDER + place] = u
            count += 1
    leap[COUNT] = count
    return True


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def straight_steps(fleet, u, ahead):
    """Steps in which the micro-batch only decodes, on one line, before a sequence has finished or KV blocks run out.

    The first is the one in flight or, with `ahead` 1, the one after it. The line is written to `unit`.
    """
    r, lane, is_begun = fleet.r, fleet.lane, fleet.unit[u, FLIES] > 0
    for at in lanes_of(fleet, u):
        if lane[at, PROMPT] >= 0 or (is_begun and lane[at, TOKENS] > 0):
            return 0
        if not is_begun:
            lane[at, ACTIVE], lane[at, TOKENS] = lane[at, NUM_DECODING], 0
    fleet.unit[u, LINE_S], fleet.unit[u, SLOPE_S], steps = segment(lane, fleet.work, fleet.tab, r, u, ahead)
    for at in lanes_of(fleet, u):
        n, clock = lane[at, ACTIVE], lane[at, CLOCK] + ahead
        if is_begun and ahead == 0:
            steps = min(steps, lane[at, STEPS])
        elif n > 0:
            steps = min(steps, (lane[at, r.heap_at] >> 32) - clock)
            if steps < 1:
                return 0
            room = r.capacity - lane[at, USED]
            steps = steps_within(lane, at, PHASE, r.shift, clock, n, r.p, room, steps)
    return steps


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def can_join(fleet, g):
    """Whether the first of any rank's queue would find a seat and KV blocks in a micro-batch that only decodes."""
    r, lane = fleet.r, fleet.lane
    for rank in range(r.dp):
        i = fleet.queue[g * r.dp + rank, HEAD_OF_LINE]
        if i < 0:
            continue
        for u in units_of(fleet, g):
            at = u * r.dp + rank
            new = fleet.job[i, TODO]
            if r.policy == CHUNKED:
                new = min(new, r.max_tokens - r.q * lane[at, NUM_DECODING])
            fits = lane[at, USED] + blocks_of(new * r.units, r.shift) <= r.capacity
            if new > 0 and fits and has_seat(lane, r, at) and may_promise(lane, fleet.job, r, at, i):
                return True
    return False


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def head(fleet, u, begun_s):
    """Makes the micro-batch a head that enters at begun_s."""
    r, unit = fleet.r, fleet.unit[u]
    unit[BEGUN_S], unit[ROUND_S] = begun_s, r.pp * unit[LINE_S] + (r.pp - 1) * r.hop_s
    unit[GROWTH_S] = r.pp * unit[SLOPE_S]
    unit[LAG_S] = unit[LAG_SLOPE] = unit[TAIL_S] = unit[TAIL_SLOPE] = 0.0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def follow(unit, u, last, ahead):
    """Puts the micro-batch behind the `last` one of those that follow the head `ahead`."""
    for column in (BEGUN_S, ROUND_S, GROWTH_S):
        unit[u, column] = unit[ahead, column]
    unit[u, LAG_S] = unit[last, LAG_S] + unit[last, LINE_S]
    unit[u, LAG_SLOPE] = unit[last, LAG_SLOPE] + unit[last, SLOPE_S]
    unit[u, TAIL_S] = unit[u, LAG_S] + unit[u, LINE_S] - unit[ahead, LINE_S]
    unit[u, TAIL_SLOPE] = unit[u, LAG_SLOPE] + unit[u, SLOPE_S] - unit[ahead, SLOPE_S]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def entry_s(fleet, u, k):
    """When the micro-batch enters stage 1 in round k."""
    unit = fleet.unit[u]
    return unit[BEGUN_S] + line_span_s(unit[ROUND_S], unit[GROWTH_S], k) + unit[LAG_S] + k * unit[LAG_SLOPE]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def rounds_apart(fleet, ahead, last, u, later, grace_s, most):
    """Rounds, at most `most`, in which head u reaches no stage before the `last` behind head `ahead` has left it.

    With `later` 1 it is the round after. The time between at stage s, S_u + (s - 1)·x_u - S_h - s·x_h - tail, is a
    parabola A + B·r + C·r², at least A + r·(B + min(0, C)·most); both end stages are looked at.
    """
    pp, unit = fleet.r.pp, fleet.unit
    growth_s = unit[u, GROWTH_S] - unit[ahead, GROWTH_S]
    room_s = entry_s(fleet, u, later) - unit[ahead, BEGUN_S] - unit[ahead, LINE_S] - unit[last, TAIL_S]
    per_s = unit[u, ROUND_S] + later * unit[u, GROWTH_S] - unit[ahead, ROUND_S] - 0.5 * growth_s
    per_s -= unit[ahead, SLOPE_S] + unit[last, TAIL_SLOPE]
    more_s = (pp - 1) * (unit[u, LINE_S] + later * unit[u, SLOPE_S] - unit[ahead, LINE_S])
    more_slope = (pp - 1) * (unit[u, SLOPE_S] - unit[ahead, SLOPE_S])
    for end in range(2):
        least_s, fall_s = room_s + end * more_s + grace_s, -(per_s + end * more_slope + min(0.0, 0.5 * growth_s) * most)
        if least_s < 0.0:
            return 0
        if fall_s * most > least_s:
            most = int(least_s / fall_s)
    return most


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def skip_rounds(fleet, g, k):
    """Moves instance g k rounds on: every micro-batch is then in its step of the last of them."""
    r, unit, pipe, leap = fleet.r, fleet.unit, fleet.pipe[g], fleet.leap[g]
    leap[ROUNDS] = 0
    if k == 0:
        return
    for place in range(leap[COUNT]):
        skip_steps(fleet, leap[ORDER + place], k, place == 0)
    last = leap[ORDER + leap[COUNT] - 1]
    stage_s = (unit[last, ROUND_S] + (k - 1) * unit[last, GROWTH_S] + r.hop_s) / r.pp  # the head's, and a hop
    for stage in range(r.pp):
        fleet.free_s[g, stage] = unit[last, END_S] - (r.pp - 1 - stage) * stage_s
    pipe[PREVIOUS_S] = unit[last, START_S]
    fleet.sums[BUSY] += unit[last, END_S] - pipe[BUSY_UNTIL_S]
    pipe[BUSY_UNTIL_S] = unit[last, END_S]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def skip_steps(fleet, u, k, is_begun):
    """Moves the micro-batch on to its step of round k - 1; rounds 1 to k - 2 are one sum each for tokens and KV.

    Its step of round 0 `is_begun`, or the one before that is still to end.
    """
    unit = fleet.unit[u]
    if not is_begun:
        if unit[FLIES] > 0:
            give_tokens(fleet, u, unit[END_S])
        keep_blocks(fleet, u, entry_s(fleet, u, 0))
        open_blocks(fleet, u)
    round_s, growth_s, last_s = unit[ROUND_S], unit[GROWTH_S], entry_s(fleet, u, k - 1)
    if k > 1:
        give_tokens(fleet, u, unit[BEGUN_S] + round_s + unit[TAIL_S])
        keep_blocks(fleet, u, entry_s(fleet, u, 1))
        if k > 2:
            decode_on(fleet, u, k - 2)
            latest_s = unit[BEGUN_S] + line_span_s(round_s, growth_s, k - 1)
            unit[LATEST_S], unit[SINCE_S] = latest_s + unit[TAIL_S] + (k - 2) * unit[TAIL_SLOPE], last_s
        open_blocks(fleet, u)
    unit[START_S], unit[FLIES] = last_s, 1
    unit[END_S] = unit[BEGUN_S] + line_span_s(round_s, growth_s, k) + unit[TAIL_S] + (k - 1) * unit[TAIL_SLOPE]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def decode_on(fleet, u, k):
    """Adds k steps of decoding from round 1 on."""
    r, lane, sums, unit = fleet.r, fleet.lane, fleet.sums, fleet.unit[u]
    growth_s = unit[GROWTH_S]
    start_s = unit[ROUND_S] + growth_s + unit[LAG_SLOPE]
    end_s = unit[ROUND_S] + growth_s + unit[TAIL_SLOPE]
    for at in lanes_of(fleet, u):
        n, used = lane[at, ACTIVE], lane[at, USED]
        if n > 0:
            held_s, lane[at, USED] = held_time(
                lane, at, PHASE, r.shift, lane[at, CLOCK], n, r.p, used, start_s, growth_s, k
            )
            sums[HELD_TIME] += held_s
            record_gaps(fleet.weights, end_s / r.gain, (end_s + growth_s * (k - 1)) / r.gain, n * k * r.gain)
            lane[at, CLOCK] += k
            fleet.work[at, CACHED] += n * k * r.gain
    sums[NUM_STEPS] += k


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def interrupt(fleet, g, t):
    """Ends the skipping of rounds: what happens until t, before requests arrive then, happens step by step."""
    first = fleet.unit[fleet.leap[g, ORDER]]
    limit_s = t + SAME_S - first[BEGUN_S]
    k = line_steps_until(limit_s, first[ROUND_S], first[GROWTH_S])
    if line_span_s(first[ROUND_S], first[GROWTH_S], k) > limit_s:
        k -= 1
    skip_rounds(fleet, g, min(k, fleet.leap[g, ROUNDS] - 1))
    while True:
        next_s = next_event_s(fleet, g)
        limit = min(next_s, t) + SAME_S
        u = next_leaving(fleet, g, limit)
        while u >= 0:
            end_unit(fleet, g, u)
            u = next_leaving(fleet, g, limit)
        if next_s >= t - SAME_S:
            return
        enter(fleet, g, next_s)
