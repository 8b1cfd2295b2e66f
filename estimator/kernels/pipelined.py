"""Event kernel of collocated instances with several pipeline stages: up to pp micro-batches in flight, each its own.

A micro-batch is one lane per attention-dp rank, with seats and KV blocks of its own; the micro-batches of an instance
share one queue per rank. Its step has stage time x, the longest of its lanes. It enters stage 1 at t, leaves stage s at
e_s = max(e_{s−1} + hop, free_s) + x, and its tokens appear when it leaves the last. Whenever stage 1 is free the next
one enters: of those with residents that have come back the one that came back first, with whom of the queue it can
seat; where none has, an empty one, if somebody waits. A scheduler that looks ahead has put a step that follows another
without a pause together when that one entered.

Events within `SAME_S` are at one time, and happen in this order, each kind by index of instance:

1. micro-batches leave the last stage, in the order in which they entered: sequences finish, then prompts end in order
   of admission, lane by lane; in a closed loop every request that ends sends the next one;
2. requests that have become visible are routed, in order of arrival, to the ranks of an instance in turns;
3. micro-batches enter stage 1.

**Skipped rounds.** While all micro-batches only decode and nobody can join, they go round in one order. Let c be the
one with the longest stage time, at S_r in stage 1 for the r-th time, and i ≤ j count those behind it. If c finds every
stage free, and the others are back when their turn comes, then for as long as c stays the longest

    S_{r+1} = S_r + pp·x_c(r) + (pp − 1)·hop
    j enters stage 1 at S_r + x_c(r) + Σ_{i<j} x_i(r) and leaves the last at S_{r+1} + Σ_{i≤j} x_i(r),

because of all ways through stages and micro-batches, whose longest says when j leaves stage s, none beats following c
to stage s first (every stage time is at most x_c) and then the others through it, and because stage times never
shrink, so that j, which left at S_r + Σ_{i≤j} x_i(r − 1), is back in time. Rounds are then one event, cut where
somebody can join (`interrupt`): whole rounds are skipped, what is left of the last one happens step by step.

`unit` has a row per micro-batch, `pipe` one per instance; the other arrays are those of `estimator.kernels.batching`.
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
    HELD_TIME,
    LAST_WAITING,
    MARK_S,
    MARKS,
    NEXT_WAITING,
    NUM_DECODING,
    NUM_RESIDENT,
    NUM_STEPS,
    PHASE,
    PROMPT,
    STEPS,
    TODO,
    TOKENS,
    USED,
    Rules,
    end_lane,
    enqueue,
    has_seat,
    plan_lane,
)
from estimator.kernels.blocks import blocks_of, held_time, new_blocks, steps_within
from estimator.kernels.calendar import NEVER, SAME_S, Array, due, mark, set_time, take_marks
from estimator.kernels.collocated import release, segment
from estimator.kernels.routing import choose
from estimator.kernels.spans import MANY, line_crossing, line_span_s, line_steps_until, record_gaps

START_S, END_S, LATEST_S, SINCE_S, FLIES, LINE_S, SLOPE_S = range(7)  # of `unit`; LATEST_S: its tokens appeared last
PREVIOUS_S, BUSY_UNTIL_S, SHOWN_S, BEGUN_S, ROUND_S, GROWTH_S = range(6)  # of `pipe`; the last three: skipped rounds
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
    unit: Array  # (num·pp, 7)
    pipe: Array  # (num, 6)
    leap: Array  # (num, 2 + pp)
    free_s: Array  # (num, pp)
    queue: Array  # (num·dp, 2) first and last waiting request
    times: Array
    outstanding: Array  # (num,)
    turns: Array  # (num,) rank of the next request
    wake: Array
    found: Array


@njit(cache=True, error_model="numpy", _nrt=False, nogil=True)
def run_pipelines(fleet, visible, delay, draws):
    """Runs all requests to their end; `visible`, `delay` and `draws` as in `collocated.run_instances`."""
    r, num, when = fleet.r, len(visible), fleet.when
    released = num if r.concurrency == 0 else min(r.concurrency, num)
    come = 0
    front_s = visible[released - 1] - delay[released - 1] if released > 0 else 0.0
    while True:
        t = min(fleet.times[1], visible[come] if come < released else NEVER)
        if t == NEVER:
            break
        limit = t + SAME_S
        for place in range(due(fleet.times, limit, fleet.found)):  # 1. micro-batches leave
            g = fleet.found[place]
            if fleet.leap[g, ROUNDS] > 0:
                skip_rounds(fleet, g, fleet.leap[g, ROUNDS])
            u = next_leaving(fleet, g, limit)
            while u >= 0:
                ended = end_unit(fleet, g, u)
                fleet.outstanding[g] -= ended
                if r.concurrency > 0:
                    for _ in range(min(ended, num - released)):
                        front_s = release(when, visible, delay, released, front_s, fleet.pipe[g, SHOWN_S], r.frontend_s)
                        released += 1
                u = next_leaving(fleet, g, limit)
            mark(fleet.wake, g)
        while come < released and visible[come] <= limit:  # 2. requests arrive
            g = choose(r.router, come, fleet.outstanding, draws)
            mark(fleet.wake, g)
            if offer(fleet, g, come, t):
                fleet.outstanding[g] += 1
            elif r.concurrency > 0 and released < num:
                front_s = release(when, visible, delay, released, front_s, t, r.frontend_s)
                released += 1
            come += 1
        for place in range(take_marks(fleet.wake, fleet.found)):  # 3. micro-batches enter
            g = fleet.found[place]
            if fleet.leap[g, ROUNDS] > 0:
                continue
            u = enter(fleet, g, t)
            if u >= 0 and plan_leap(fleet, g, u):
                pipe = fleet.pipe[g]
                span_s = line_span_s(pipe[ROUND_S], pipe[GROWTH_S], fleet.leap[g, ROUNDS])
                set_time(fleet.times, g, pipe[BEGUN_S] + span_s)
            else:
                set_time(fleet.times, g, next_event_s(fleet, g))


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
    resident = 0
    for at in lanes_of(fleet, u):
        resident += fleet.lane[at, NUM_RESIDENT]
    return resident == 0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def anybody_waits(fleet, g):
    """Whether any rank's queue holds a request."""
    first = -1
    for q in range(g * fleet.r.dp, (g + 1) * fleet.r.dp):
        first = max(first, fleet.queue[q, 0])
    return first >= 0


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
def offer(fleet, g, i, t):
    """Puts request i at the end of its rank's queue at t, where it may end skipped rounds; False if it never fits."""
    r, lane, rank = fleet.r, fleet.lane, fleet.turns[g]
    queue, at = fleet.queue[g * r.dp + rank], g * r.pp * r.dp + rank
    if fleet.leap[g, ROUNDS] > 0 and queue[0] < 0:
        for u in units_of(fleet, g):
            if has_seat(lane, r, u * r.dp + rank):
                interrupt(fleet, g, t)
                break
    lane[at, NEXT_WAITING], lane[at, LAST_WAITING] = queue[0], queue[1]
    if not enqueue(lane, fleet.job, r, at, i):
        return False
    queue[0], queue[1] = lane[at, NEXT_WAITING], lane[at, LAST_WAITING]
    fleet.turns[g] = rank + 1 if rank + 1 < r.dp else 0
    return True


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


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def start_unit(fleet, g, u, t, horizon):
    """Puts the micro-batch's step together at t, with arrivals up to `horizon`, and sends it through the stages."""
    r, lane, work, unit, pipe = fleet.r, fleet.lane, fleet.work, fleet.unit[u], fleet.pipe[g]
    keep_blocks(fleet, u, t)
    for rank in range(r.dp):
        at, queue = u * r.dp + rank, fleet.queue[g * r.dp + rank]
        lane[at, STEPS], lane[at, ACTIVE], lane[at, TOKENS] = MANY, 0, 0
        lane[at, NEXT_WAITING], lane[at, LAST_WAITING] = queue[0], queue[1]
        if lane[at, NUM_RESIDENT] > 0 or queue[0] >= 0:
            plan_lane(lane, work, fleet.job, fleet.when, fleet.sums, fleet.tab, r, at, t, unit[LATEST_S], horizon)
        queue[0], queue[1] = lane[at, NEXT_WAITING], lane[at, LAST_WAITING]
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


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def plan_leap(fleet, g, c):
    """Whether rounds from the step of micro-batch c, just begun, can be skipped; notes them in `leap` and `pipe`."""
    r, unit, pipe, leap = fleet.r, fleet.unit, fleet.pipe[g], fleet.leap[g]
    start_s, top_s = unit[c, START_S], unit[c, LINE_S]
    grace_s, round_s = 1e-12 + 1e-14 * start_s, r.pp * top_s + (r.pp - 1) * r.hop_s  # grace: rounding
    if r.longest_jump == 1 or r.output_s > 0.0 or unit[c, END_S] > start_s + round_s + grace_s:
        return False
    for u in units_of(fleet, g):  # mostly somebody is at a prompt, or slower
        if unit[u, LINE_S] > top_s and not is_empty(fleet, u):
            return False
    line_up(fleet, g, c)
    rounds, turn_s = r.longest_jump, start_s
    for place in range(leap[COUNT]):
        u = leap[ORDER + place]
        rounds = min(rounds, straight_steps(fleet, u, int(place > 0 and unit[u, FLIES] > 0)))
        if rounds < 2 or unit[u, LINE_S] > top_s or (place > 0 and unit[u, END_S] > turn_s + grace_s):
            return False
        rounds = min(rounds, line_crossing(top_s, unit[c, SLOPE_S], unit[u, LINE_S], unit[u, SLOPE_S]))
        turn_s += unit[u, LINE_S]
    if rounds < 2 or can_join(fleet, g):
        return False
    leap[ROUNDS], pipe[BEGUN_S], pipe[ROUND_S], pipe[GROWTH_S] = rounds, start_s, round_s, r.pp * unit[c, SLOPE_S]
    return True


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_up(fleet, g, c):
    """Notes in `leap` the micro-batches with residents: c, then the others in the order in which they come back."""
    leap, count = fleet.leap[g], 1
    leap[ORDER] = c
    for u in units_of(fleet, g):
        if u != c and not is_empty(fleet, u):
            place = count
            while place > 1 and fleet.unit[leap[ORDER + place - 1], END_S] > fleet.unit[u, END_S]:
                leap[ORDER + place] = leap[ORDER + place - 1]
                place -= 1
            leap[ORDER + place] = u
            count += 1
    leap[COUNT] = count


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def straight_steps(fleet, u, ahead):
    """Steps of the micro-batch in which it only decodes, on the line that is written to `unit`, and nobody finishes

    before the last; 0 if there are none. They begin with the step in flight, or, `ahead` 1, with the one after it.
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
        i = fleet.queue[g * r.dp + rank, 0]
        if i < 0:
            continue
        for u in units_of(fleet, g):
            at = u * r.dp + rank
            new = fleet.job[i, TODO]
            if r.policy == CHUNKED:
                new = min(new, r.max_tokens - r.q * lane[at, NUM_DECODING])
            fits = lane[at, USED] + blocks_of(new * r.units, r.shift) <= r.capacity
            if new > 0 and fits and has_seat(lane, r, at):
                return True
    return False


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def skip_rounds(fleet, g, k):
    """Moves instance g k rounds on: every micro-batch is then in its step of the last of them."""
    r, unit, pipe, leap = fleet.r, fleet.unit, fleet.pipe[g], fleet.leap[g]
    leap[ROUNDS] = 0
    if k == 0:
        return
    top_s = unit[leap[ORDER], LINE_S] + (k - 1) * unit[leap[ORDER], SLOPE_S]
    lag_s = lag_slope = 0.0
    for place in range(leap[COUNT]):
        u = leap[ORDER + place]
        skip_steps(fleet, g, u, k, lag_s, lag_slope)
        lag_s, lag_slope = lag_s + unit[u, LINE_S], lag_slope + unit[u, SLOPE_S]
    begun_s = pipe[BEGUN_S] + line_span_s(pipe[ROUND_S], pipe[GROWTH_S], k - 1)
    behind_s = lag_s + (k - 1) * lag_slope - top_s
    for stage in range(r.pp):
        fleet.free_s[g, stage] = begun_s + (stage + 1) * top_s + stage * r.hop_s + behind_s
    last = leap[ORDER + leap[COUNT] - 1]
    pipe[PREVIOUS_S] = unit[last, START_S]
    fleet.sums[BUSY] += unit[last, END_S] - pipe[BUSY_UNTIL_S]
    pipe[BUSY_UNTIL_S] = unit[last, END_S]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def skip_steps(fleet, g, u, k, lag_s, lag_slope):
    """Moves the micro-batch on: it enters stage 1 at S_r + lag_s + r·lag_slope, in its step of round k - 1 at the end.

    It leaves the last stage at S_{r+1} + tail_s + r·tail_slope. Rounds 1 to k - 2 are one sum each for tokens and KV.
    """
    unit, pipe, c = fleet.unit[u], fleet.pipe[g], fleet.leap[g, ORDER]
    round_s, growth_s, begun_s = pipe[ROUND_S], pipe[GROWTH_S], pipe[BEGUN_S]
    tail_s = lag_s + unit[LINE_S] - fleet.unit[c, LINE_S]
    tail_slope = lag_slope + unit[SLOPE_S] - fleet.unit[c, SLOPE_S]
    if u != c:
        if unit[FLIES] > 0:
            give_tokens(fleet, u, unit[END_S])
        keep_blocks(fleet, u, begun_s + lag_s)
        open_blocks(fleet, u)
    last_s = begun_s + line_span_s(round_s, growth_s, k - 1)
    if k > 1:
        give_tokens(fleet, u, begun_s + round_s + tail_s)
        keep_blocks(fleet, u, begun_s + round_s + lag_s + lag_slope)
        if k > 2:
            decode_on(fleet, u, k - 2, round_s + growth_s, growth_s, (lag_slope, tail_slope))
            unit[LATEST_S] = last_s + tail_s + (k - 2) * tail_slope
            unit[SINCE_S] = last_s + lag_s + (k - 1) * lag_slope
        open_blocks(fleet, u)
    unit[START_S], unit[FLIES] = last_s + lag_s + (k - 1) * lag_slope, 1
    unit[END_S] = begun_s + line_span_s(round_s, growth_s, k) + tail_s + (k - 1) * tail_slope


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def decode_on(fleet, u, k, first_s, growth_s, slopes):
    """Adds k steps of decoding, whose starts are first_s + slopes[0], ... apart and whose ends first_s + slopes[1]."""
    r, lane, sums = fleet.r, fleet.lane, fleet.sums
    for at in lanes_of(fleet, u):
        n, used = lane[at, ACTIVE], lane[at, USED]
        if n > 0:
            start_s, end_s = first_s + slopes[0], first_s + slopes[1]
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
    pipe = fleet.pipe[g]
    limit_s = t + SAME_S - pipe[BEGUN_S]
    k = line_steps_until(limit_s, pipe[ROUND_S], pipe[GROWTH_S])
    if k > 0 and line_span_s(pipe[ROUND_S], pipe[GROWTH_S], k) > limit_s:
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
