"""Event kernel of collocated instances with several pipeline stages: up to pp micro-batches in flight, each its own.

A micro-batch is one lane per attention-dp rank, with seats and KV blocks of its own; the micro-batches of an instance
share one queue per rank. Its step has stage time x, the longest of its lanes. It enters stage 1 at t, leaves stage s at
e_s = max(e_{s−1} + hop, free_s) + x, and its tokens appear when it leaves the last. Whenever stage 1 is free the next
one enters: of those with residents that have come back the one that came back first, with whom of the queue it can
seat; where none has, an empty one, if somebody waits. A prompt longer than a step goes on in the next that enters, if
that has room for it, and decodes where it ends. A scheduler that looks ahead has put a step that follows another
without a pause together when that one entered.

Events within `SAME_S` are at one time, and happen in this order, each kind by index of instance:

1. micro-batches leave the last stage, in the order in which they entered: sequences finish, then prompts end in order
   of admission, lane by lane; in a closed loop every request that ends sends the next one;
2. requests that have become visible are routed, in order of arrival, to the ranks of an instance in turns;
3. micro-batches enter stage 1.

Rounds in which nothing but decoding can happen are one event: `estimator.kernels.skipped_rounds`.
"""

from __future__ import annotations

from numba import njit

from estimator.kernels.batching import (
    LAST_WAITING,
    NEXT_WAITING,
    enqueue,
    has_seat,
)
from estimator.kernels.calendar import NEVER, SAME_S, due, mark, set_time, take_marks
from estimator.kernels.collocated import release
from estimator.kernels.micro_batches import (
    END_OF_LINE,
    HEAD_OF_LINE,
    ROUNDS,
    SHOWN_S,
    end_unit,
    enter,
    next_event_s,
    next_leaving,
    units_of,
)
from estimator.kernels.routing import choose
from estimator.kernels.skipped_rounds import (
    entry_s,
    interrupt,
    plan_leap,
    skip_rounds,
)


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
                set_time(fleet.times, g, entry_s(fleet, u, fleet.leap[g, ROUNDS]))
            else:
                set_time(fleet.times, g, next_event_s(fleet, g))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def offer(fleet, g, i, t):
    """Puts request i at the end of its rank's queue at t, where it may end skipped rounds; False if it never fits."""
    r, lane, rank = fleet.r, fleet.lane, fleet.turns[g]
    queue, at = fleet.queue[g * r.dp + rank], g * r.pp * r.dp + rank
    if fleet.leap[g, ROUNDS] > 0 and queue[HEAD_OF_LINE] < 0:
        for u in units_of(fleet, g):
            if has_seat(lane, r, u * r.dp + rank):
                interrupt(fleet, g, t)
                break
    lane[at, NEXT_WAITING], lane[at, LAST_WAITING] = queue[HEAD_OF_LINE], queue[END_OF_LINE]
    if not enqueue(lane, fleet.job, r, at, i):
        return False
    queue[HEAD_OF_LINE], queue[END_OF_LINE] = lane[at, NEXT_WAITING], lane[at, LAST_WAITING]
    fleet.turns[g] = rank + 1 if rank + 1 < r.dp else 0
    return True
