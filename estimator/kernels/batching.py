"""One lane of an instance: its queue, seats, KV blocks, and the steps it puts together. Compiled, for `collocated`.

A lane is one attention-dp rank of one pipeline micro-batch, with a queue, seats and KV blocks of its own. It puts a
step together as vLLM V1 does: decoding sequences first, then the prompt under way, then waiting requests
in order of arrival, within the token budget, the seats and the KV blocks. Where blocks run out the latest admitted is
evicted, recomputes its prompt and tokens, and waits before all others; nobody is admitted in that step. A lane that
reserves admits a request only where its prompt and whole output fit beside those of all residents, and never evicts.
Prefill-first runs steps of prompts alone while any can be admitted, and admits whole prompts. Static batching admits,
whole prompts too, only while nothing decodes.

Arrays, which every function takes in this order (flat, because a compiled call pays for each array it touches):

| array | columns |
|---|---|
| lane (lanes, ...) int | counters, M phases (`blocks`), heap of (last clock << 32) + request, sequences per mark |
| work (lanes, ...) | cached tokens S, stage time and its growth per step, time of each mark |
| job (num, 9) int | tokens to do and held, steps left, clock of joining or -1, neighbours, own blocks, cached prefix, |
| | blocks that it will hold in the end |
| when (num, 7) | start, first token, finish, arrival, last token before an eviction, eviction, visible, s |
| look (instances, 5) | arrivals noticed until, steps since, steps that prompts are held back (-1: not), end of work, |
| | s of output that had not passed the front end then |
| sums (6,) | busy s, KV block·s, steps, evictions, evicted s, end s |
| weights | histogram of token gaps |
| tab | rows of D, H, b and b_w of `estimator.iteration`, then its M |

Residents of a lane are a linked list in order of admission, waiting requests another; -1 is no request. A mark is a
time since which so many decoding sequences have waited for a token, while steps of prompts ran.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba import njit

from estimator.kernels.blocks import blocks_of, new_blocks, steps_within
from estimator.kernels.spans import record_gaps

CHUNKED, PREFILL_FIRST, STATIC = 0, 1, 2
NEVER = 1e300
CLOCK, NUM_RESIDENT, NUM_DECODING, USED, FIRST, LAST, PROMPT, NEXT_WAITING, LAST_WAITING = range(9)
ACTIVE, TOKENS, ENDING, STEPS, MARKS, PROMISED, PHASE = range(9, 16)
CACHED, LINE, SLOPE, MARK_S = range(4)
TODO, HELD, LEFT, JOINED, BEFORE, AFTER, OWN, SEEN, WHOLE = range(9)
START, FIRST_TOKEN, FINISH, ARRIVAL, LAST_TOKEN, EVICTED, VISIBLE = range(7)
HORIZON, SINCE_LOOK, HELD_STEPS, STOPPED, BACKLOG = range(5)
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
    frontend_s: float
    output_s: float
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
    reserves: bool


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
def link(lane, job, at, i):
    """Makes request i the latest resident."""
    last = lane[at, LAST]
    job[i, BEFORE], job[i, AFTER] = last, -1
    if last >= 0:
        job[last, AFTER] = i
    else:
        lane[at, FIRST] = i
    lane[at, LAST] = i
    lane[at, NUM_RESIDENT] += 1
    lane[at, PROMISED] += job[i, WHOLE]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def unlink(lane, job, at, i):
    """Takes request i out of the residents."""
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
    lane[at, PROMISED] -= job[i, WHOLE]


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
    unlink(lane, job, at, i)
    return done


@njit(cache=True, error_model="numpy", _nrt=False)
def _evict(lane, work, job, when, sums, r, at, t, last_s):
    """The latest admitted gives up its blocks and waits, before all others, to compute its tokens again."""
    i = lane[at, LAST]
    if job[i, JOINED] >= 0:
        place = 0
        while lane[at, r.heap_at + place] & 0xFFFFFFFF != i:
            place += 1
        marks, marked = lane[at, MARKS], 0
        for m in range(marks):
            marked += lane[at, r.mark_at + m]
        when[i, LAST_TOKEN] = last_s
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
        unlink(lane, job, at, i)
    job[i, HELD] = job[i, OWN] = 0
    when[i, EVICTED] = t
    sums[PREEMPTIONS] += 1
    job[i, AFTER] = lane[at, NEXT_WAITING]
    lane[at, NEXT_WAITING] = i
    if job[i, AFTER] < 0:
        lane[at, LAST_WAITING] = i


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _make_room(lane, work, job, when, sums, r, at, t, last_s):
    """Evicts until one decode step's blocks fit, the first admitted never; returns those blocks, whether it evicted."""
    before = sums[PREEMPTIONS]
    opened = new_blocks(lane, at, PHASE, r.shift, lane[at, CLOCK], r.p)
    while lane[at, USED] + opened > r.capacity and lane[at, NUM_RESIDENT] > 1:
        _evict(lane, work, job, when, sums, r, at, t, last_s)
        opened = new_blocks(lane, at, PHASE, r.shift, lane[at, CLOCK], r.p)
    return opened, sums[PREEMPTIONS] > before


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def has_seat(lane, r, at):
    return lane[at, NUM_RESIDENT] < r.seats and (r.policy != STATIC or lane[at, NUM_DECODING] == 0)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def may_promise(lane, job, r, at, i):
    """Whether a lane that reserves has blocks left for all that request i will ever hold; any other lane has."""
    return not r.reserves or lane[at, PROMISED] + job[i, WHOLE] <= r.capacity


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _admit(lane, job, when, sums, at, i, t):
    """Moves the first waiting request i among the residents."""
    lane[at, NEXT_WAITING] = job[i, AFTER]
    if math.isnan(when[i, START]):
        when[i, START] = t
    else:
        sums[EVICTED_TIME] += t - when[i, EVICTED]
    link(lane, job, at, i)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def plan_lane(lane, work, job, when, sums, tab, r, at, t, last_s, horizon):
    """Puts the lane's next step together: its tokens, decoding sequences, stage time and how often it may repeat.

    It begins at t; tokens of the step before appeared at `last_s`; arrivals up to `horizon` take part.
    """
    chunked = r.policy == CHUNKED
    budget, taken, evicted = r.max_tokens, lane[at, USED], False
    if chunked and lane[at, NUM_DECODING] > 0:
        opened, evicted = _make_room(lane, work, job, when, sums, r, at, t, last_s)
        taken, budget = lane[at, USED] + opened, budget - r.q * lane[at, NUM_DECODING]
    tokens, ending, pairs, window_pairs = 0, 0, 0.0, 0.0
    i = lane[at, PROMPT]
    while budget > 0:
        fresh = i < 0
        if fresh:
            i = lane[at, NEXT_WAITING]
            if i < 0 or evicted or when[i, VISIBLE] > horizon or not has_seat(lane, r, at):
                break
            if not may_promise(lane, job, r, at, i):
                break
        new = min(job[i, TODO], budget)
        units = (job[i, HELD] + (new if chunked else job[i, TODO])) * r.units
        need = blocks_of(units, r.shift) - job[i, OWN]
        if taken + need > r.capacity:
            if not fresh:
                _evict(lane, work, job, when, sums, r, at, t, last_s)
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
        _, evicted = _make_room(lane, work, job, when, sums, r, at, t, last_s)
    n = lane[at, NUM_DECODING] if tokens == 0 or chunked else 0
    lane[at, ACTIVE], lane[at, TOKENS], lane[at, ENDING] = n, tokens, ending
    if tokens > 0:
        stage_s = tab[min(4 * r.num_rows + tokens + r.q * n, len(tab) - 1)]
        stage_s += tab[4 * min(n + ending, r.num_rows - 1) + 1]
        stage_s += r.c * pairs + r.cw * window_pairs
        if n > 0:
            stage_s += tab[4 * n + 2] * work[at, CACHED] + tab[4 * n + 3] * min(work[at, CACHED], n * r.window)
        work[at, LINE] = stage_s
    elif n > 0:
        next_finish = (lane[at, r.heap_at] >> 32) - lane[at, CLOCK]
        room = r.capacity - lane[at, USED]
        lane[at, STEPS] = (
            1 if evicted else steps_within(lane, at, PHASE, r.shift, lane[at, CLOCK], n, r.p, room, max(next_finish, 1))
        )


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def end_lane(lane, work, job, when, weights, r, at, t, shown_s):
    """Lets finished sequences go and finished prompts decode at t; returns the requests that finished.

    Clients see the tokens of this step at `shown_s`.
    """
    ended = 0
    if lane[at, ACTIVE] > 0:
        while lane[at, NUM_DECODING] > 0 and lane[at, r.heap_at] >> 32 <= lane[at, CLOCK]:
            i = lane[at, r.heap_at] & 0xFFFFFFFF
            when[i, FINISH] = shown_s
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
            when[i, FIRST_TOKEN] = shown_s
        else:
            gap_s = (t - when[i, LAST_TOKEN]) / r.gain
            record_gaps(weights, gap_s, gap_s, r.gain)
        if job[i, LEFT] == 0:
            when[i, FINISH] = shown_s
            lane[at, USED] -= job[i, OWN]
            unlink(lane, job, at, i)
            ended += 1
        else:
            _start_decoding(lane, work, job, r, at, i)
        i = after
    return ended


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def enqueue(lane, job, r, at, i):
    """Puts request i at the end of the lane's queue; False if it can never fit the lane."""
    job[i, WHOLE] = blocks_of(job[i, TODO] * r.units + r.p * job[i, LEFT], r.shift)
    if job[i, WHOLE] > r.capacity:
        return False
    job[i, AFTER] = -1
    if lane[at, NEXT_WAITING] < 0:
        lane[at, NEXT_WAITING] = i
    else:
        job[lane[at, LAST_WAITING], AFTER] = i
    lane[at, LAST_WAITING] = i
    return True
