"""Event loop of two pools joined by a KV link: prompts are computed, their caches cross over, tokens are decoded.

All servers share one clock. Events within `SAME_S` are at one time, and happen in this order, each kind by index:

1. prefill steps end: prompts of one output token finish, others are given a decode lane (or wait for one with room);
2. transfers end, by receiving instance: the prefill lane gives the prompt's KV blocks free;
3. decode steps end: sequences finish by lane, in order of joining;
4. requests that have become visible are routed, in order of arrival; what can never fit is rejected;
5. idle decode instances start a stretch of steps;
6. hand-overs: the first in line of every lane that has lost a sequence, or whose line was empty, asks for room, and the
   next after it while there is room; with placement by heavy:light all lanes are asked for the first in the one line;
7. prefill instances start a step.

A hand-over with room is booked on the link at once: it starts when its sender and its receiver have ended what was
booked before; its latency holds neither, and counts steps as long as the one under way at the receiver. A transfer
without duration ends in a round of its own at the same time. A sequence joins at the first end of a step after its
cache has arrived. In a closed loop a completion or rejection sends the next request.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from estimator.kernels.calendar import EMPTY, NEVER, SAME_S, Array, due, mark, pop, push, set_time, take_marks
from estimator.kernels.decode_pool import (
    DecodePool,
    cut,
    end_stretch,
    has_room,
    own_blocks,
    set_aside,
    start_decode,
    step_s,
    steps_reaching,
    take_finished,
)
from estimator.kernels.prefill_pool import PrefillPool, leave_prefill, prompt_blocks, start_prefill
from estimator.kernels.routing import choose

COME, RELEASED, ROUTED, PLACED = range(4)  # of `Loop.counts`
HEAVY_LIGHT = 9  # a placement beside the routers': TetriInfer's power of two by heavy:light ratio


class Link(NamedTuple):
    """When each instance's port is free, the lists and events of what is on its way to each decode instance."""

    sender_s: Array  # (num prefill instances,)
    receiver_s: Array  # (num decode instances,)
    flying: int
    leaf: int
    latency_s: float
    latency_steps: float


class Loop(NamedTuple):
    """The servers, routing, the closed loop, scratch arrays. Decode lanes' lines are lists from `ready` on."""

    prefill: PrefillPool
    decode: DecodePool
    link: Link
    counts: Array
    draws: Array  # (num_requests, 2) or (0, 2): for the router
    placement_draws: Array
    outstanding: Array  # (num decode lanes,) placed and not finished, in order of choice
    is_heavy: Array  # (num_requests,) predicted to be a heavy decode
    heavy: Array  # (num decode lanes,)
    light: Array
    wake_prefill: Array
    wake_decode: Array
    freed: Array
    found: Array
    finished: Array
    front_free_s: Array  # (1,) when the front end has done the latest request of a closed loop
    ready: int
    pending: int
    router: int
    placement: int
    concurrency: int
    frontend_s: float


@njit(cache=True, error_model="numpy", _nrt=False, nogil=True)
def run_pools(state, loop):
    """Runs until every request is finished; the times are left in `jobs`."""
    counts, prefill, decode, link = loop.counts, loop.prefill, loop.decode, loop.link
    while True:
        t = state.times[1]
        if counts[COME] < counts[RELEASED]:
            t = min(t, state.jobs[counts[COME]]["visible_s"])
        if t == NEVER:
            break
        limit = t + SAME_S
        num, place = due(state.times, limit, loop.found), 0
        while place < num:
            leaf = loop.found[place]
            if leaf >= decode.leaf:
                end_decode(state, loop, leaf - decode.leaf)
            elif leaf >= link.leaf:
                num = end_transfers(state, loop, leaf - link.leaf, limit, num)
            else:
                end_prefill(state, loop, leaf, limit)
            place += 1
        while counts[COME] < counts[RELEASED] and state.jobs[counts[COME]]["visible_s"] <= limit:
            route(state, loop, t)
        for place in range(take_marks(loop.wake_decode, loop.found)):
            start_decode(decode, state, loop.found[place], t, loop.freed)
        hand_over(state, loop, t)
        for place in range(take_marks(loop.wake_prefill, loop.found)):
            start_prefill(prefill, state, loop.found[place], t)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def close(state, loop, t):
    """A request is finished or rejected at t: a closed loop sends the next one."""
    counts = loop.counts
    k = counts[RELEASED]
    if loop.concurrency > 0 and k < len(state.jobs):
        loop.front_free_s[0] = max(loop.front_free_s[0], t) + loop.frontend_s
        job = state.jobs[k]
        job["arrival_s"] = t
        job["visible_s"] = max(loop.front_free_s[0] + job["delay_s"], state.jobs[k - 1]["visible_s"])
        counts[RELEASED] += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def route(state, loop, t):
    """Gives the next visible request to a prefill lane; rejects it if either pool can never hold it."""
    prefill, decode = loop.prefill, loop.decode
    counts = loop.counts
    i = counts[COME]
    counts[COME] += 1
    job = state.jobs[i]
    full = own_blocks(decode, job["handed"], job["left"])
    if prompt_blocks(job["prompt"]) > prefill.capacity or (job["left"] > 0 and full > decode.capacity):
        close(state, loop, t)
        return
    place = choose(loop.router, counts[ROUTED], prefill.outstanding, loop.draws)
    counts[ROUTED] += 1
    prefill.outstanding[place] += 1
    num_units = len(prefill.free_s)
    unit = place % num_units
    job["source_place"], job["source"] = place, unit * prefill.ranks + place // num_units
    free_s = prefill.free_s[unit, 0]
    job["known_s"] = free_s + 2 * SAME_S if prefill.looks_ahead and free_s > t + SAME_S else t
    push(state, prefill.queues + job["source"], i)
    mark(loop.wake_prefill, unit)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def end_prefill(state, loop, unit, limit):
    """Prompts that have left the last stage: finished, or in line for a decode lane."""
    prefill, decode = loop.prefill, loop.decode
    ends = prefill.ends + unit
    while state.lists[ends, 0] != EMPTY and prefill.ends_s[state.lists[ends, 0]] <= limit:
        i = pop(state, ends)
        job, t = state.jobs[i], prefill.ends_s[i]
        job["first_s"] = job["token_s"] = t
        if job["left"] == 0:
            job["finish_s"] = t
            leave_prefill(prefill, job, t)
            close(state, loop, t)
        elif loop.placement == HEAVY_LIGHT:
            if state.lists[loop.pending, 0] == EMPTY:
                mark(loop.freed, 0)
            push(state, loop.pending, i)
        else:
            place = choose(loop.placement, loop.counts[PLACED], loop.outstanding, loop.placement_draws)
            loop.counts[PLACED] += 1
            loop.outstanding[place] += 1
            num_units = len(decode.units)
            lane = (place % num_units) * decode.ranks + place // num_units
            job["place"] = place
            if state.lists[loop.ready + lane, 0] == EMPTY:
                mark(loop.freed, lane)
            push(state, loop.ready + lane, i)
    mark(loop.wake_prefill, unit)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def hand_over(state, loop, t):
    """Sets room aside for prompts in line, in the order of the module's docstring."""
    decode = loop.decode
    num = take_marks(loop.freed, loop.found)
    if loop.placement == HEAVY_LIGHT:
        while num > 0 and state.lists[loop.pending, 0] != EMPTY:
            i = state.lists[loop.pending, 0]
            lane = lighter_lane(state, loop, i, t)
            if lane == EMPTY:
                return
            pop(state, loop.pending)
            loop.counts[PLACED] += 1
            send(state, loop, lane, i, t)
        return
    for at in range(num):
        lane = loop.found[at]
        while state.lists[loop.ready + lane, 0] != EMPTY:
            i = state.lists[loop.ready + lane, 0]
            if not has_room(decode, state, lane, i, t):
                break
            pop(state, loop.ready + lane)
            send(state, loop, lane, i, t)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def lighter_lane(state, loop, i, t):
    """Of the decode lanes with room two are drawn; the one with fewer heavy per light (+ 1) decode; or EMPTY.

    TetriInfer (arXiv 2401.11181), section 3.4: power of two choices by the ratio of heavy to light decodes.
    """
    decode = loop.decode
    num = 0
    for lane in range(len(decode.lanes)):
        if has_room(decode, state, lane, i, t):
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


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def send(state, loop, lane, i, t):
    """Sets room aside in the lane and books the link."""
    prefill, decode, link = loop.prefill, loop.decode, loop.link
    set_aside(decode, state, lane, i, t)
    job = state.jobs[i]
    loop.heavy[lane] += loop.is_heavy[i]
    loop.light[lane] += 1 - loop.is_heavy[i]
    sender, receiver = prefill.lanes[job["source"]]["unit"], decode.lanes[lane]["receiver"]
    ends_s = max(t, link.sender_s[sender], link.receiver_s[receiver]) + job["wire_s"]
    link.sender_s[sender] = link.receiver_s[receiver] = ends_s
    job["kv_s"] = ends_s + link.latency_s + link.latency_steps * step_s(decode, decode.lanes[lane]["unit"], t)
    if state.lists[link.flying + receiver, 0] == EMPTY:
        set_time(state.times, link.leaf + receiver, job["kv_s"])
    else:
        job["kv_s"] = max(job["kv_s"], state.jobs[state.lists[link.flying + receiver, 1]]["kv_s"])
    push(state, link.flying + receiver, i)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def end_transfers(state, loop, receiver, limit, num):
    """Caches that have arrived: the prefill lane forgets them, the decode instance takes them up at its next step.

    Where that is now the instance joins the `num` events of `loop.found`; returns how many there are then.
    """
    prefill, decode, link = loop.prefill, loop.decode, loop.link
    flying, next_s = link.flying + receiver, NEVER
    while state.lists[flying, 0] != EMPTY:
        job = state.jobs[state.lists[flying, 0]]
        if job["kv_s"] > limit:
            next_s = job["kv_s"]
            break
        push(state, decode.arrived + job["target"], pop(state, flying))
        leave_prefill(prefill, job, job["kv_s"])
        mark(loop.wake_prefill, prefill.lanes[job["source"]]["unit"])
        unit = decode.lanes[job["target"]]["unit"]
        mark(loop.wake_decode, unit)
        at = decode.units[unit]
        if at["is_running"] and at["num_steps"] > 1:
            num_steps = steps_reaching(decode, unit, job["kv_s"] - SAME_S - at["start_s"])
            if num_steps < at["num_steps"]:
                cut(decode, state, unit, num_steps)
                if at["end_s"] <= limit:
                    loop.found[num] = decode.leaf + unit
                    num += 1
    set_time(state.times, link.leaf + receiver, next_s)
    return num


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def end_decode(state, loop, unit):
    """The instance's stretch ends: finished sequences leave, their lanes may have room."""
    decode = loop.decode
    end_stretch(decode, state, unit)
    for lane in range(unit * decode.ranks, (unit + 1) * decode.ranks):
        num = take_finished(decode, state, lane, loop.finished)
        for place in range(num):
            i = loop.finished[place]
            job = state.jobs[i]
            job["finish_s"] = decode.units[unit]["end_s"]
            if loop.placement != HEAVY_LIGHT:
                loop.outstanding[job["place"]] -= 1
            loop.heavy[lane] -= loop.is_heavy[i]
            loop.light[lane] -= 1 - loop.is_heavy[i]
            close(state, loop, job["finish_s"])
        if num > 0:
            mark(loop.freed, lane)
    mark(loop.wake_decode, unit)
