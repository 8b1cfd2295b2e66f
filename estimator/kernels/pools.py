"""Event loop of two pools joined by a KV link: prompts are computed, their caches cross over, tokens are decoded.

All servers share one clock. Events within `SAME_S` are at one time, and happen in this order, each kind by index:

1. decode steps end: sequences finish by lane, in order of joining;
2. prefill steps end: prompts of one output token finish, others are given a decode lane (or wait for one with room);
3. transfers end, by receiving instance: the prefill lane gives the prompt's KV tokens free;
4. requests that have become visible are routed, in order of arrival; what can never fit is rejected;
5. idle decode instances start a stretch of steps;
6. hand-overs: the first in line of every lane that has lost a sequence, or whose line was empty, asks for room, and the
   next after it while there is room; with placement by heavy:light all lanes are asked for the first in the one line;
7. prefill instances start a step.

A hand-over with room is booked on the link at once: it starts when its sender and its receiver have ended what was
booked before. A transfer without duration ends in a round of its own at the same time. A sequence joins at the first end
of a step after its cache has arrived. In a closed loop a completion or rejection sends the next request.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from estimator.kernels.calendar import EMPTY, NEVER, due, mark, pop, push, set_time, take_marks
from estimator.kernels.decode_pool import cut, end_stretch, has_room, set_aside, start_decode, steps_reaching, take_finished
from estimator.kernels.prefill_pool import HALF_BLOCK, SAME_S, leave_prefill, start_prefill
from estimator.kernels.routing import choose

COME, RELEASED, OPEN, ROUTED, PLACED = range(5)  # of `Loop.counts`; OPEN: unfinished of the first `stop_after`
HEAVY_LIGHT = 9  # a placement beside the routers': TetriInfer's power of two by heavy:light ratio


class Link(NamedTuple):
    """When each instance's port is free, the lists and events of what is on its way to each decode instance."""

    sender_s: np.ndarray  # (num prefill instances,)
    receiver_s: np.ndarray  # (num decode instances,)
    flying: int
    leaf: int


class Loop(NamedTuple):
    """Routing, the closed loop, and the loop's scratch arrays. Decode lanes' lines are lists from `ready` on."""

    counts: np.ndarray
    draws: np.ndarray  # (num_requests, 2) or (0, 2): for the router
    placement_draws: np.ndarray
    outstanding: np.ndarray  # (num decode lanes,) placed and not finished, in order of choice
    is_heavy: np.ndarray  # (num_requests,) predicted to be a heavy decode
    heavy: np.ndarray  # (num decode lanes,)
    light: np.ndarray
    wake_prefill: np.ndarray
    wake_decode: np.ndarray
    freed: np.ndarray
    found: np.ndarray
    finished: np.ndarray
    ready: int
    pending: int
    router: int
    placement: int
    concurrency: int
    overhead_s: float
    stop_after: int


@njit(cache=True, _nrt=False)
def run_pools(jobs, lists, after, times, prefill, decode, link, loop, weights):  # noqa: PLR0913 (the state of a loop)
    """Runs until every request (or the first `loop.stop_after`) is finished; the times are left in `jobs`."""
    counts = loop.counts
    while counts[OPEN] > 0:
        t = times[1]
        if counts[COME] < counts[RELEASED]:
            t = min(t, jobs[counts[COME]]["visible_s"])
        if t == NEVER:
            break
        limit = t + SAME_S
        for place in range(due(times, limit, loop.found)):
            leaf = loop.found[place]
            if leaf >= link.leaf:
                end_transfers(jobs, lists, after, times, prefill, decode, link, loop, weights, leaf - link.leaf, limit)
            elif leaf >= prefill.leaf:
                end_prefill(jobs, lists, after, prefill, decode, loop, leaf - prefill.leaf, limit)
            else:
                end_decode(jobs, times, decode, loop, weights, leaf)
        while counts[COME] < counts[RELEASED] and jobs[counts[COME]]["visible_s"] <= limit:
            route(jobs, lists, after, prefill, decode, loop, t)
        for place in range(take_marks(loop.wake_decode, loop.found)):
            start_decode(decode, lists, after, jobs, times, loop.found[place], t, loop.freed)
        hand_over(jobs, lists, after, times, prefill, decode, link, loop, t)
        for place in range(take_marks(loop.wake_prefill, loop.found)):
            start_prefill(prefill, lists, after, jobs, times, loop.found[place], t)


@njit(cache=True, _nrt=False, forceinline=True)
def close(jobs, loop, i, t):
    """Request i is finished or rejected at t: counts it, and sends the next request of a closed loop."""
    counts = loop.counts
    if i < loop.stop_after:
        counts[OPEN] -= 1
    k = counts[RELEASED]
    if loop.concurrency > 0 and k < len(jobs):
        jobs[k]["arrival_s"] = t
        jobs[k]["visible_s"] = max(t + loop.overhead_s, jobs[k - 1]["visible_s"])
        counts[RELEASED] += 1


@njit(cache=True, _nrt=False, forceinline=True)
def route(jobs, lists, after, prefill, decode, loop, t):
    """Gives the next visible request to a prefill lane; rejects it if either pool can never hold it."""
    counts = loop.counts
    i = counts[COME]
    counts[COME] += 1
    job = jobs[i]
    full = job["handed"] + job["left"] * decode.cost.gain + HALF_BLOCK
    if job["prompt"] + HALF_BLOCK > prefill.capacity or (job["left"] > 0 and full > decode.capacity):
        close(jobs, loop, i, t)
        return
    place = choose(loop.router, counts[ROUTED], prefill.outstanding, loop.draws)
    counts[ROUTED] += 1
    prefill.outstanding[place] += 1
    num_units = len(prefill.free_s)
    unit = place % num_units
    job["source_place"], job["source"] = place, unit * prefill.ranks + place // num_units
    push(lists, after, prefill.queues + job["source"], i)
    mark(loop.wake_prefill, unit)


@njit(cache=True, _nrt=False, forceinline=True)
def end_prefill(jobs, lists, after, prefill, decode, loop, unit, limit):
    """Prompts that have left the last stage: finished, or in line for a decode lane."""
    ends = prefill.ends + unit
    while lists[ends, 0] != EMPTY and prefill.ends_s[lists[ends, 0]] <= limit:
        i = pop(lists, after, ends)
        job, t = jobs[i], prefill.ends_s[i]
        job["first_s"] = job["token_s"] = t
        if job["left"] == 0:
            job["finish_s"] = t
            leave_prefill(prefill, job, t)
            close(jobs, loop, i, t)
        elif loop.placement == HEAVY_LIGHT:
            if lists[loop.pending, 0] == EMPTY:
                mark(loop.freed, 0)
            push(lists, after, loop.pending, i)
        else:
            place = choose(loop.placement, loop.counts[PLACED], loop.outstanding, loop.placement_draws)
            loop.counts[PLACED] += 1
            loop.outstanding[place] += 1
            num_units = len(decode.units)
            lane = (place % num_units) * decode.ranks + place // num_units
            job["place"] = place
            if lists[loop.ready + lane, 0] == EMPTY:
                mark(loop.freed, lane)
            push(lists, after, loop.ready + lane, i)
    mark(loop.wake_prefill, unit)


@njit(cache=True, _nrt=False, forceinline=True)
def hand_over(jobs, lists, after, times, prefill, decode, link, loop, t):  # noqa: PLR0913 (the state of a loop)
    """Sets room aside for prompts in line, in the order of the module's docstring."""
    num = take_marks(loop.freed, loop.found)
    if loop.placement == HEAVY_LIGHT:
        while num > 0 and lists[loop.pending, 0] != EMPTY:
            i = lists[loop.pending, 0]
            lane = lighter_lane(jobs, decode, loop, i, t)
            if lane == EMPTY:
                return
            pop(lists, after, loop.pending)
            loop.counts[PLACED] += 1
            send(jobs, lists, after, times, prefill, decode, link, loop, lane, i, t)
        return
    for at in range(num):
        lane = loop.found[at]
        while lists[loop.ready + lane, 0] != EMPTY:
            i = lists[loop.ready + lane, 0]
            if not has_room(decode, jobs, lane, i, t):
                break
            pop(lists, after, loop.ready + lane)
            send(jobs, lists, after, times, prefill, decode, link, loop, lane, i, t)


@njit(cache=True, _nrt=False, forceinline=True)
def lighter_lane(jobs, decode, loop, i, t):
    """Of the decode lanes with room two are drawn; the one with fewer heavy per light decode (the new one light), or EMPTY.

    TetriInfer (arXiv 2401.11181), section 3.4: power of two choices by the ratio of heavy to light decodes.
    """
    num = 0
    for lane in range(len(decode.lanes)):
        if has_room(decode, jobs, lane, i, t):
            loop.finished[num] = lane
            num += 1
    if num == 0:
        return EMPTY
    turn = loop.counts[PLACED]
    first = int(loop.placement_draws[turn, 0] * num)
    if num == 1:
        return loop.finished[0]
    second = int(loop.placement_draws[turn, 1] * (num - 1))
    second += second >= first
    one, other = loop.finished[first], loop.finished[second]
    if loop.heavy[other] * (loop.light[one] + 1) < loop.heavy[one] * (loop.light[other] + 1):
        return other
    return one


@njit(cache=True, _nrt=False, forceinline=True)
def send(jobs, lists, after, times, prefill, decode, link, loop, lane, i, t):  # noqa: PLR0913 (the state of a loop)
    """Sets room aside in the lane and books the link."""
    set_aside(decode, jobs, times, lane, i, t)
    job = jobs[i]
    loop.heavy[lane] += loop.is_heavy[i]
    loop.light[lane] += 1 - loop.is_heavy[i]
    sender = job["source"] // prefill.ranks
    receiver = lane // decode.ranks % len(link.receiver_s)
    job["kv_s"] = max(t, link.sender_s[sender], link.receiver_s[receiver]) + job["wire_s"]
    link.sender_s[sender] = link.receiver_s[receiver] = job["kv_s"]
    if lists[link.flying + receiver, 0] == EMPTY:
        set_time(times, link.leaf + receiver, job["kv_s"])
    push(lists, after, link.flying + receiver, i)


@njit(cache=True, _nrt=False, forceinline=True)
def end_transfers(jobs, lists, after, times, prefill, decode, link, loop, weights, receiver, limit):  # noqa: PLR0913
    """Caches that have arrived: the prefill lane forgets them, the decode instance takes them up at its next step."""
    flying, next_s = link.flying + receiver, NEVER
    while lists[flying, 0] != EMPTY:
        job = jobs[lists[flying, 0]]
        if job["kv_s"] > limit:
            next_s = job["kv_s"]
            break
        push(lists, after, decode.arrived + job["target"], pop(lists, after, flying))
        leave_prefill(prefill, job, job["kv_s"])
        mark(loop.wake_prefill, job["source"] // prefill.ranks)
        unit = job["target"] // decode.ranks
        mark(loop.wake_decode, unit)
        at = decode.units[unit]
        if at["is_running"] and at["num_steps"] > 1:
            num_steps = steps_reaching(decode, unit, job["kv_s"] - SAME_S - at["start_s"])
            if num_steps < at["num_steps"]:
                cut(decode, times, unit, num_steps)
                if at["end_s"] <= limit:
                    end_decode(jobs, times, decode, loop, weights, unit)
    set_time(times, link.leaf + receiver, next_s)


@njit(cache=True, _nrt=False, forceinline=True)
def end_decode(jobs, times, decode, loop, weights, unit):
    """The instance's stretch ends: finished sequences leave, their lanes may have room."""
    end_stretch(decode, jobs, weights, unit, times)
    for lane in range(unit * decode.ranks, (unit + 1) * decode.ranks):
        num = take_finished(decode, jobs, lane, loop.finished)
        for place in range(num):
            i = loop.finished[place]
            job = jobs[i]
            job["finish_s"] = decode.units[unit]["end_s"]
            if loop.placement != HEAVY_LIGHT:
                loop.outstanding[job["place"]] -= 1
            loop.heavy[lane] -= loop.is_heavy[i]
            loop.light[lane] -= 1 - loop.is_heavy[i]
            close(jobs, loop, i, job["finish_s"])
        if num > 0:
            mark(loop.freed, lane)
    mark(loop.wake_decode, unit)
