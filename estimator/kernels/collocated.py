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
3. Instances without a running step put the next one together; none sees another, so that their order is no matter.

A lane puts a step together as vLLM V1 does: decoding sequences first, then the prompt under way, then waiting requests
in order of arrival, within the token budget, the seats and the KV blocks. Where blocks run out the latest admitted is
evicted, recomputes its prompt and tokens, and waits before all others; nobody is admitted in that step. Prefill-first
runs steps of prompts alone while any can be admitted, and admits whole prompts. Static batching admits, whole
prompts too, only while nothing decodes.

While every lane only decodes, step times are a piecewise straight line (`_segment`), so that the group jumps to the
next finish, to the step that runs out of blocks, or to the first step end after an arrival that can be admitted.

Arrays, which every function takes in this order (flat, because a compiled call pays for each array it touches):

| array | columns |
|---|---|
| lane (lanes, ...) int | counters, M phases (`blocks`), heap of (last clock << 32) + request, sequences per mark |
| work (lanes, ...) | cached tokens S, stage time and its growth per step, time of each mark |
| job (num, 8) int | tokens to do and held, steps left, clock of joining or -1, neighbours, own blocks, cached prefix |
| when (num, 7) | start, first token, finish, arrival, last token before an eviction, eviction, visible, s |
| look (instances, 4) | arrivals noticed until, steps since, steps that waiting prompts were held back, end of work |
| sums (6,) | busy s, KV block·s, steps, evictions, evicted s, end s |
| weights | histogram of token gaps |
| tab | the tables D, H, b, b_w and M of `estimator.iteration`, one after the other |

Residents of a lane are a linked list in order of admission, waiting requests another; -1 is no request. A mark is a
time since which so many decoding sequences have waited for a token, while steps of prompts ran.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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
CLOCK, NUM_RESIDENT, NUM_DECODING, USED, FIRST, LAST, PROMPT, NEXT_WAITING, LAST_WAITING = range(9)
ACTIVE, TOKENS, STEPS, MARKS, PHASE = range(9, 14)
CACHED, LINE, SLOPE, MARK_S = range(4)
TODO, HELD, LEFT, JOINED, BEFORE, AFTER, OWN, SEEN = range(8)
START, FIRST_TOKEN, FINISH, ARRIVAL, LAST_TOKEN, EVICTED, VISIBLE = range(7)
HORIZON, SINCE_LOOK, HELD_STEPS, STOPPED = range(4)
FULL_ENOUGH = 0.9  # of the token budget: batch_wait_max_tokens_ratio of the recipes that wait
BUSY, HELD_TIME, NUM_STEPS, PREEMPTIONS, EVICTED_TIME, END = range(6)


class Rules(NamedTuple):
    """Limits of a lane, shape of an instance. `capacity` in blocks; shift, U, p of `blocks`; q, c, c_w of `iteration`.

    `heap_at`, `mark_at`: first columns of the heap and of the marks in `lane`; `num_rows`: entries of D, H, b and b_w.
    `longest_jump`: steps skipped at most; 1 makes the plain twin that the benchmark compares with.
    """

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
    shift: int
    p: int
    overhead_s: float
    dp: int
    pp: int
    hop_s: float
    router: int
    concurrency: int
    heap_at: int
    mark_at: int
    num_rows: int
    longest_jump: int
    poll_steps: int
    wait_steps: int
    looks_ahead: bool


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _push(lane, at, first, size, key):
    place = size
    while place > 0:
        above = (place - 1) >> 1
        if lane[at, first + above] <= key:
            break
        lane[at, first + place] = lane[at, first + above]
        place = above
    lane[at, first + place] = key


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _remove(lane, at, first, size, place):
    """Takes out the entry at `place` of a heap of `size` entries."""
    key = lane[at, first + size - 1]
    size -= 1
    if place == size:
        return
    if place > 0 and lane[at, first + ((place - 1) >> 1)] > key:
        _push(lane, at, first, place, key)
        return
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and lane[at, first + below + 1] < lane[at, first + below]:
            below += 1
        if lane[at, first + below] >= key:
            break
        lane[at, first + place] = lane[at, first + below]
        place = below
    lane[at, first + place] = key


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _link(lane, job, at, i):
    """Makes request i the latest resident."""
    last = lane[at, LAST]
    job[i, BEFORE], job[i, AFTER] = last, -1
    if last >= 0:
        job[last, AFTER] = i
    else:
        lane[at, FIRST] = i
    lane[at, LAST] = i
    lane[at, NUM_RESIDENT] += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _unlink(lane, job, at, i):
    before, after = job[i, BEFORE], job[i, AFTER]
    if before >= 0:
        job[before, AFTER] = after
    else:
        lane[at, FIRST] = after
    if after >= 0:
        job[after, BEFORE] = before
    else:
        lane[at, LAST] = before
    lane[at, NUM_RESIDENT] -= 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _start_decoding(lane, work, job, r, at, i):
    """Request i holds its whole prompt and decodes from the lane's present clock on."""
    clock = lane[at, CLOCK]
    job[i, JOINED] = clock
    _push(lane, at, r.heap_at, lane[at, NUM_DECODING], ((clock + job[i, LEFT]) << 32) | i)
    lane[at, NUM_DECODING] += 1
    lane[at, PHASE + ((job[i, HELD] * r.units - r.p * clock) & ((1 << r.shift) - 1))] += 1
    work[at, CACHED] += job[i, HELD] + job[i, SEEN]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _stop_decoding(lane, work, job, r, at, i, place):
    """Takes request i, at `place` of the heap, and its KV cache out of the lane; returns the steps it has decoded."""
    done = lane[at, CLOCK] - job[i, JOINED]
    _remove(lane, at, r.heap_at, lane[at, NUM_DECODING], place)
    lane[at, NUM_DECODING] -= 1
    lane[at, USED] -= blocks_of(job[i, HELD] * r.units + r.p * done, r.shift)
    lane[at, PHASE + ((job[i, HELD] * r.units - r.p * job[i, JOINED]) & ((1 << r.shift) - 1))] -= 1
    work[at, CACHED] = (
        work[at, CACHED] - job[i, HELD] - job[i, SEEN] - r.gain * done if lane[at, NUM_DECODING] > 0 else 0.0
    )
    job[i, JOINED] = -1
    _unlink(lane, job, at, i)
    return done


@njit(cache=True, error_model="numpy", _nrt=False)
def _evict(lane, work, job, when, sums, r, at, t):
    """The latest admitted gives up its blocks and waits, before all others, to compute its tokens again."""
    i = lane[at, LAST]
    if job[i, JOINED] >= 0:
        place = 0
        while lane[at, r.heap_at + place] & 0xFFFFFFFF != i:
            place += 1
        marks, marked = lane[at, MARKS], 0
        for m in range(marks):
            marked += lane[at, r.mark_at + m]
        when[i, LAST_TOKEN] = t
        if marked == lane[at, NUM_DECODING]:  # it has waited for its next token since the latest mark
            when[i, LAST_TOKEN] = work[at, MARK_S + marks - 1]
            lane[at, r.mark_at + marks - 1] -= 1
            lane[at, MARKS] -= lane[at, r.mark_at + marks - 1] == 0
        done = _stop_decoding(lane, work, job, r, at, i, place)
        job[i, TODO] = job[i, HELD] + int(r.gain * (done + 1))
        job[i, LEFT] -= done + 1
    else:
        lane[at, USED] -= job[i, OWN]
        job[i, TODO] += job[i, HELD]
        lane[at, PROMPT] = -1
        _unlink(lane, job, at, i)
    job[i, HELD] = job[i, OWN] = 0
    when[i, EVICTED] = t
    sums[PREEMPTIONS] += 1
    job[i, AFTER] = lane[at, NEXT_WAITING]
    lane[at, NEXT_WAITING] = i
    if job[i, AFTER] < 0:
        lane[at, LAST_WAITING] = i


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _make_room(lane, work, job, when, sums, r, at, t):
    """Evicts until one decode step's blocks fit, the first admitted never; returns those blocks, whether it evicted."""
    before = sums[PREEMPTIONS]
    opened = new_blocks(lane, at, PHASE, r.shift, lane[at, CLOCK], r.p)
    while lane[at, USED] + opened > r.capacity and lane[at, NUM_RESIDENT] > 1:
        _evict(lane, work, job, when, sums, r, at, t)
        opened = new_blocks(lane, at, PHASE, r.shift, lane[at, CLOCK], r.p)
    return opened, sums[PREEMPTIONS] > before


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _has_seat(lane, r, at):
    return lane[at, NUM_RESIDENT] < r.seats and (r.policy != STATIC or lane[at, NUM_DECODING] == 0)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _admit(lane, job, when, sums, at, i, t):
    """Moves the first waiting request i among the residents."""
    lane[at, NEXT_WAITING] = job[i, AFTER]
    if math.isnan(when[i, START]):
        when[i, START] = t
    else:
        sums[EVICTED_TIME] += t - when[i, EVICTED]
    _link(lane, job, at, i)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _plan_lane(lane, work, job, when, sums, tab, r, at, t, horizon):
    """Puts the lane's next step together: its tokens, decoding sequences, stage time and how often it may repeat."""
    chunked = r.policy == CHUNKED
    budget, taken, evicted = r.max_tokens, lane[at, USED], False
    if chunked and lane[at, NUM_DECODING] > 0:
        opened, evicted = _make_room(lane, work, job, when, sums, r, at, t)
        taken, budget = lane[at, USED] + opened, budget - r.q * lane[at, NUM_DECODING]
    tokens, ending, pairs, window_pairs = 0, 0, 0.0, 0.0
    i = lane[at, PROMPT]
    while budget > 0:
        fresh = i < 0
        if fresh:
            i = lane[at, NEXT_WAITING]
            if i < 0 or evicted or when[i, VISIBLE] > horizon or not _has_seat(lane, r, at):
                break
        new = min(job[i, TODO], budget)
        units = (job[i, HELD] + (new if chunked else job[i, TODO])) * r.units
        need = blocks_of(units, r.shift) - job[i, OWN]
        if taken + need > r.capacity:
            if not fresh:
                _evict(lane, work, job, when, sums, r, at, t)
                evicted = True
            break
        if fresh:
            _admit(lane, job, when, sums, at, i, t)
        taken += need
        if lane[at, PROMPT] < 0:
            lane[at, PROMPT] = i
        sees = job[i, SEEN] + job[i, HELD] + (new + 1) / 2
        pairs, window_pairs = pairs + new * sees, window_pairs + new * min(sees, r.window)
        lane[at, USED], job[i, OWN] = lane[at, USED] + need, job[i, OWN] + need
        job[i, TODO], job[i, HELD] = job[i, TODO] - new, job[i, HELD] + new
        tokens, budget, ending = tokens + new, budget - new, ending + (job[i, TODO] == 0)
        i = -1
    if tokens == 0 and not chunked and lane[at, NUM_DECODING] > 0:
        _, evicted = _make_room(lane, work, job, when, sums, r, at, t)
    n = lane[at, NUM_DECODING] if tokens == 0 or chunked else 0
    lane[at, ACTIVE], lane[at, TOKENS] = n, tokens
    if tokens > 0:
        stage_s = tab[min(4 * r.num_rows + tokens + r.q * n, len(tab) - 1)]
        stage_s += tab[r.num_rows + min(n + ending, r.num_rows - 1)]
        stage_s += r.c * pairs + r.cw * window_pairs
        if n > 0:
            stage_s += tab[2 * r.num_rows + n] * work[at, CACHED] + tab[3 * r.num_rows + n] * min(
                work[at, CACHED], n * r.window
            )
        work[at, LINE] = stage_s
    elif n > 0:
        next_finish = (lane[at, r.heap_at] >> 32) - lane[at, CLOCK]
        room = r.capacity - lane[at, USED]
        lane[at, STEPS] = (
            1 if evicted else steps_within(lane, at, PHASE, r.shift, lane[at, CLOCK], n, r.p, room, max(next_finish, 1))
        )


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _lane_line(lane, work, tab, r, at, done):
    """(stage time, growth per step, steps for which it holds) of a lane after `done` decode steps of a jump."""
    n = lane[at, ACTIVE]
    if lane[at, TOKENS] > 0:
        return work[at, LINE], 0.0, MANY
    if n == 0:
        return 0.0, 0.0, MANY
    grow = n * r.gain
    cached = work[at, CACHED] + done * grow
    first_s, slope_s = tab[n] + tab[2 * r.num_rows + n] * cached, tab[2 * r.num_rows + n] * grow
    if tab[3 * r.num_rows + n] == 0.0:
        return first_s, slope_s, MANY
    cap = n * r.window
    if cached >= cap:
        return first_s + tab[3 * r.num_rows + n] * cap, slope_s, MANY
    return (
        first_s + tab[3 * r.num_rows + n] * cached,
        slope_s + tab[3 * r.num_rows + n] * grow,
        math.ceil((cap - cached) / grow),
    )


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _crossing(top_s, top_slope, value_s, slope):
    """Steps for which a line that is not above the top one stays so."""
    return int(min((top_s - value_s) / (slope - top_slope), 1e9)) + 1 if slope > top_slope else MANY


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _segment(lane, work, tab, r, g, done):
    """(step time, growth per step, steps for which it holds) of instance g after `done` steps of a jump."""
    num = r.dp * r.pp
    if num == 1:
        return _lane_line(lane, work, tab, r, g, done)
    holds, total_s, total_slope, top_s, top_slope = MANY, 0.0, 0.0, 0.0, 0.0
    for j in range(r.pp):
        best_s, best_slope = 0.0, 0.0
        first = g * num + j * r.dp
        for at in range(first, first + r.dp):
            work[at, LINE], work[at, SLOPE], steps = _lane_line(lane, work, tab, r, at, done)
            holds = min(holds, steps)
            if work[at, LINE] > best_s or (work[at, LINE] == best_s and work[at, SLOPE] > best_slope):
                best_s, best_slope = work[at, LINE], work[at, SLOPE]
        for at in range(first, first + r.dp):
            holds = min(holds, _crossing(best_s, best_slope, work[at, LINE], work[at, SLOPE]))
        total_s, total_slope = total_s + best_s, total_slope + best_slope
        if best_s > top_s or (best_s == top_s and best_slope > top_slope):
            top_s, top_slope = best_s, best_slope
    if r.pp == 1:
        return total_s, total_slope, holds
    for at in range(g * num, (g + 1) * num):
        holds = min(holds, _crossing(top_s, top_slope, work[at, LINE], work[at, SLOPE]))
    wait_s, wait_slope = r.pp * top_s + r.hop_s, r.pp * top_slope
    if wait_s > total_s or (wait_s == total_s and wait_slope > total_slope):
        return wait_s, wait_slope, min(holds, _crossing(wait_s, wait_slope, total_s, total_slope))
    return total_s, total_slope, min(holds, _crossing(total_s, total_slope, wait_s, wait_slope))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _jump(lane, work, tab, r, g, k, limit_s):
    """(steps, seconds) of instance g: k steps, or fewer if their time reaches `limit_s` sooner."""
    total_s, done = 0.0, 0
    while done < k:
        first_s, slope_s, holds = _segment(lane, work, tab, r, g, done)
        holds = min(holds, k - done)
        span_s = line_span_s(first_s, slope_s, holds)
        if total_s + span_s >= limit_s:
            holds = min(line_steps_until(limit_s - total_s, first_s, slope_s), holds)
            return done + holds, total_s + line_span_s(first_s, slope_s, holds)
        total_s, done = total_s + span_s, done + holds
    return k, total_s


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _notice(lane, job, when, look, r, g, t):
    """(time up to which arrivals take part in the next step of instance g, most decode steps before the next look)."""
    first, num = g * r.dp * r.pp, r.dp * r.pp
    resident = 0
    for at in range(first, first + num):
        resident += lane[at, NUM_RESIDENT]
    if resident == 0 or look[g, STOPPED] < t:
        look[g, HORIZON], look[g, SINCE_LOOK] = t, 0
    horizon, most = look[g, HORIZON], MANY
    if r.poll_steps > 1:
        most = int(r.poll_steps - look[g, SINCE_LOOK])
    if r.wait_steps > 0 and resident > 0 and look[g, HELD_STEPS] < r.wait_steps:
        waiting = 0
        for at in range(first, first + num):
            i = lane[at, NEXT_WAITING]
            while i >= 0 and when[i, VISIBLE] <= horizon and waiting < FULL_ENOUGH * r.max_tokens:
                waiting += job[i, TODO]
                i = job[i, AFTER]
        if waiting > 0 and waiting < FULL_ENOUGH * r.max_tokens:
            return -1.0, int(r.wait_steps - look[g, HELD_STEPS])
    look[g, HELD_STEPS] = 0
    return horizon, most


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _look(lane, look, r, g, t, steps, start_s):
    """Notes at t, the end of `steps` steps of instance g, which arrivals its next step may hold.

    A scheduler that looks ahead has put that step together while the last one began.
    """
    prompts = 0
    for at in range(g * r.dp * r.pp, (g + 1) * r.dp * r.pp):
        prompts += lane[at, TOKENS]
    look[g, SINCE_LOOK] += steps
    look[g, HELD_STEPS] += steps
    look[g, STOPPED] = t
    if prompts > 0 or look[g, SINCE_LOOK] >= r.poll_steps:
        look[g, SINCE_LOOK] = 0
        look[g, HORIZON] = t - (t - start_s) / steps if r.looks_ahead else t


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _release(when, visible, front, delay, i, free_s, t):
    """Request i is sent at t; returns when the front end has done it."""
    free_s = max(free_s, t) + front[i]
    when[i, ARRIVAL] = t
    visible[i] = max(visible[i - 1], free_s + delay[i])
    when[i, VISIBLE] = visible[i]
    return free_s


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _plan(lane, work, job, when, sums, tab, r, g, t, horizon, most):
    """(steps, seconds) that instance g does next, from time t; no steps if it has nothing to do.

    Arrivals up to `horizon` take part; decode steps are at most `most`.
    """
    num = r.dp * r.pp
    k, mixed, unseen = MANY, False, False
    for at in range(g * num, (g + 1) * num):
        lane[at, STEPS], lane[at, ACTIVE], lane[at, TOKENS] = MANY, 0, 0
        if lane[at, NUM_RESIDENT] > 0 or lane[at, NEXT_WAITING] >= 0:
            _plan_lane(lane, work, job, when, sums, tab, r, at, t, horizon)
            i = lane[at, NEXT_WAITING]
            unseen = unseen or (i >= 0 and horizon >= 0 and when[i, VISIBLE] > horizon and _has_seat(lane, r, at))
            mixed = mixed or lane[at, TOKENS] > 0
            k = min(k, lane[at, STEPS])
    if mixed:
        return 1, _segment(lane, work, tab, r, g, 0)[0]
    if k == MANY:
        return 0, 0.0
    most = min(most, r.longest_jump)
    if unseen and r.poll_steps <= 1:
        most = 1
    return _jump(lane, work, tab, r, g, min(k, most), NEVER)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _pass_time(lane, work, sums, weights, tab, r, g, k, start_s):
    """Advances clocks, KV caches, integrals and gaps of instance g by its k steps."""
    num, done = r.dp * r.pp, 0
    while done < k:
        first_s, slope_s, holds = _segment(lane, work, tab, r, g, done)
        holds = min(holds, k - done)
        num_gaps = 0
        for at in range(g * num, (g + 1) * num):
            n = lane[at, ACTIVE]
            if n == 0:
                sums[HELD_TIME] += lane[at, USED] * line_span_s(first_s, slope_s, holds)
                continue
            total, used = held_time(
                lane, at, PHASE, r.shift, lane[at, CLOCK] + done, n, r.p, lane[at, USED], first_s, slope_s, holds
            )
            sums[HELD_TIME], lane[at, USED] = sums[HELD_TIME] + total, used
            num_gaps += n * holds
            if lane[at, MARKS] > 0:  # the first gap of those who waited for prompts
                for m in range(lane[at, MARKS]):
                    gap_s = (start_s + first_s - work[at, MARK_S + m]) / r.gain
                    record_gaps(weights, GAPS_PER_DECADE, gap_s, gap_s, lane[at, r.mark_at + m] * r.gain)
                    num_gaps -= lane[at, r.mark_at + m]
                lane[at, MARKS] = 0
        if num_gaps > 0:
            last_s = first_s + slope_s * (holds - 1)
            record_gaps(weights, GAPS_PER_DECADE, first_s / r.gain, last_s / r.gain, num_gaps * r.gain)
        done += holds
    for at in range(g * num, (g + 1) * num):
        if lane[at, ACTIVE] > 0:
            lane[at, CLOCK] += k
            work[at, CACHED] += lane[at, ACTIVE] * k * r.gain
        elif lane[at, NUM_DECODING] > 0:  # decoding sequences stood by: they wait since the start of this step
            unmarked = lane[at, NUM_DECODING]
            for m in range(lane[at, MARKS]):
                unmarked -= lane[at, r.mark_at + m]
            if unmarked > 0:
                work[at, MARK_S + lane[at, MARKS]], lane[at, r.mark_at + lane[at, MARKS]] = start_s, unmarked
                lane[at, MARKS] += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _end_lane(lane, work, job, when, weights, r, at, t):
    """Lets finished sequences go and finished prompts decode; returns the requests that finished."""
    ended = 0
    if lane[at, ACTIVE] > 0:
        while lane[at, NUM_DECODING] > 0 and lane[at, r.heap_at] >> 32 <= lane[at, CLOCK]:
            i = lane[at, r.heap_at] & 0xFFFFFFFF
            when[i, FINISH] = t
            _stop_decoding(lane, work, job, r, at, i, 0)
            ended += 1
    i = lane[at, PROMPT]
    lane[at, PROMPT] = -1
    while i >= 0:
        after = job[i, AFTER]
        if job[i, TODO] > 0:
            lane[at, PROMPT] = i
            break
        if math.isnan(when[i, FIRST_TOKEN]):
            when[i, FIRST_TOKEN] = t
        else:
            gap_s = (t - when[i, LAST_TOKEN]) / r.gain
            record_gaps(weights, GAPS_PER_DECADE, gap_s, gap_s, r.gain)
        if job[i, LEFT] == 0:
            when[i, FINISH] = t
            lane[at, USED] -= job[i, OWN]
            _unlink(lane, job, at, i)
            ended += 1
        else:
            _start_decoding(lane, work, job, r, at, i)
        i = after
    return ended


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _enqueue(lane, job, r, at, i):
    """Puts request i at the end of the lane's queue; False if it can never fit the lane."""
    units = job[i, TODO] * r.units + r.p * job[i, LEFT]
    if blocks_of(units, r.shift) > r.capacity:
        return False
    job[i, AFTER] = -1
    if lane[at, NEXT_WAITING] < 0:
        lane[at, NEXT_WAITING] = i
    else:
        job[lane[at, LAST_WAITING], AFTER] = i
    lane[at, LAST_WAITING] = i
    return True


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _set_end(tree, g, end_s):
    """Sets the end of instance g's step in the tournament tree (leaves from len(tree)/2, smaller child above)."""
    place = len(tree) // 2 + g
    tree[place] = end_s
    place >>= 1
    while place > 0:
        tree[place] = min(tree[2 * place], tree[2 * place + 1])
        place >>= 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _first_end(tree):
    """Instance whose step ends first, of equals the lowest index."""
    place, half = 1, len(tree) // 2
    while place < half:
        place = 2 * place if tree[2 * place] <= tree[2 * place + 1] else 2 * place + 1
    return place - half


@njit(cache=True, error_model="numpy", _nrt=False)
def run_instances(lane, work, job, when, sums, weights, tab, r, visible, front, delay, fleet, draws):
    """Runs all requests, visible at `visible` (num,) s, to their end; fills `when`, `sums` and `weights`.

    `front`, `delay` (num,) s: a front end takes requests one after another, `front` each, `delay` later they are
    visible. `draws`: of `routing.router_draws`. In a closed loop `visible` and the arrivals are rewritten.
    """
    num, num_lanes = len(visible), r.dp * r.pp
    tree, start_s, steps, outstanding, turns, idle, is_listed, look = fleet
    num_idle = 0
    released = num if r.concurrency == 0 else min(r.concurrency, num)
    come = 0
    free_s = visible[released - 1] - delay[released - 1] if released > 0 else 0.0
    while True:
        t = min(tree[1], visible[come] if come < released else NEVER)
        if t == NEVER:
            break
        while tree[1] <= t:  # 1. steps end
            g = _first_end(tree)
            _set_end(tree, g, NEVER)
            _pass_time(lane, work, sums, weights, tab, r, g, steps[g], start_s[g])
            ended = 0
            for at in range(g * num_lanes, (g + 1) * num_lanes):
                ended += _end_lane(lane, work, job, when, weights, r, at, t)
            outstanding[g] -= ended
            _look(lane, look, r, g, t, steps[g], start_s[g])
            sums[BUSY], sums[NUM_STEPS], sums[END] = sums[BUSY] + t - start_s[g], sums[NUM_STEPS] + steps[g], t
            steps[g] = 0
            if r.concurrency > 0:
                for _ in range(min(ended, num - released)):
                    free_s = _release(when, visible, front, delay, released, free_s, t)
                    released += 1
            idle[num_idle], is_listed[g] = g, True
            num_idle += 1
        while come < released and visible[come] <= t:  # 2. requests arrive
            g = choose(r.router, come, outstanding, draws)
            at = g * num_lanes + turns[g]
            is_behind = lane[at, NEXT_WAITING] >= 0
            if _enqueue(lane, job, r, at, come):
                outstanding[g] += 1
                turns[g] = turns[g] + 1 if turns[g] + 1 < num_lanes else 0
                if steps[g] == 0 and not is_listed[g]:
                    idle[num_idle], is_listed[g] = g, True
                    num_idle += 1
                elif steps[g] > 1 and r.poll_steps <= 1 and not is_behind and _has_seat(lane, r, at):
                    steps[g], span_s = _jump(lane, work, tab, r, g, steps[g], t - start_s[g])
                    _set_end(tree, g, start_s[g] + span_s)
            elif r.concurrency > 0 and released < num:
                free_s = _release(when, visible, front, delay, released, free_s, t)
                released += 1
            come += 1
        for m in range(num_idle):  # 3. steps begin
            g = idle[m]
            is_listed[g] = False
            horizon, most = _notice(lane, job, when, look, r, g, t)
            steps[g], span_s = _plan(lane, work, job, when, sums, tab, r, g, t, horizon, most)
            if steps[g] > 0:
                start_s[g] = t
                _set_end(tree, g, t + span_s)
        num_idle = 0
