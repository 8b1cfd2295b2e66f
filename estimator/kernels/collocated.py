"""Event kernel of instances that do prefill and decode: continuous batching, fast-forwarded while no batch can change.

Every instance is a group of lanes that step together, as long as the longest. A lane is one attention-dp rank, with a
queue, seats and KV blocks of its own; idle ranks step along. Instances of several pipeline stages:
`estimator.kernels.pipelined`.

Total order of events at one time:

1. Steps end, by index of instance; in each by lane: sequences finish, then prompts end in order of admission. In a
   closed loop every request that ends, in that order, sends the next one once its client has seen the end.
2. Requests that have become visible are routed one by one in order of arrival (`estimator.kernels.routing`), to the
   lanes of an instance in turns. One that can never fit its lane is rejected here.
3. Instances without a running step put the next one together, others cut their jump where somebody new can join; none
   sees another, so that their order is no matter.

While every lane only decodes, step times are a piecewise straight line (`segment`), so that the group jumps to the
next finish, to the step that runs out of blocks, or to the first step end after an arrival that can be admitted.

Output tokens of all sequences of an instance pass its front end one after another, `output_s` each. Clients see those
of a step when its last one has passed; the instance does not wait for it. The histogram of gaps is the instance's.

The arrays and how a lane puts a step together are those of `estimator.kernels.batching`.
"""

from __future__ import annotations

import math

from numba import njit

from estimator.kernels.batching import (
    ACTIVE,
    AFTER,
    ARRIVAL,
    BACKLOG,
    BUSY,
    CACHED,
    CLOCK,
    END,
    ENDING,
    FULL_ENOUGH,
    HELD_STEPS,
    HELD_TIME,
    HORIZON,
    LINE,
    MARK_S,
    MARKS,
    NEVER,
    NEXT_WAITING,
    NUM_DECODING,
    NUM_RESIDENT,
    NUM_STEPS,
    PHASE,
    SINCE_LOOK,
    SLOPE,
    STEPS,
    STOPPED,
    TODO,
    TOKENS,
    USED,
    VISIBLE,
    end_lane,
    enqueue,
    has_seat,
    plan_lane,
)
from estimator.kernels.blocks import held_time
from estimator.kernels.calendar import SAME_S, set_time
from estimator.kernels.routing import choose
from estimator.kernels.spans import MANY, line_backlog_s, line_crossing, line_span_s, line_steps_until, record_gaps


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def lane_line(lane, work, tab, r, at, done):
    """(stage time, growth per step, steps for which it holds) of a lane after `done` decode steps of a jump."""
    n = lane[at, ACTIVE]
    if lane[at, TOKENS] > 0:
        return work[at, LINE], 0.0, MANY
    if n == 0:
        return 0.0, 0.0, MANY
    grow = n * r.gain
    cached = work[at, CACHED] + done * grow
    b, bw = tab[4 * n + 2], tab[4 * n + 3]
    first_s, slope_s = tab[4 * n] + b * cached, b * grow
    if bw == 0.0:
        return first_s, slope_s, MANY
    cap = n * r.window
    if cached >= cap:
        return first_s + bw * cap, slope_s, MANY
    return first_s + bw * cached, slope_s + bw * grow, math.ceil((cap - cached) / grow)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def segment(lane, work, tab, r, g, done):
    """(step time, growth per step, steps for which it holds) of instance g after `done` steps of a jump."""
    num = r.dp
    if num == 1:
        return lane_line(lane, work, tab, r, g, done)
    holds, top_s, top_slope = MANY, 0.0, 0.0
    for at in range(g * num, (g + 1) * num):
        work[at, LINE], work[at, SLOPE], steps = lane_line(lane, work, tab, r, at, done)
        holds = min(holds, steps)
        if work[at, LINE] > top_s or (work[at, LINE] == top_s and work[at, SLOPE] > top_slope):
            top_s, top_slope = work[at, LINE], work[at, SLOPE]
    for at in range(g * num, (g + 1) * num):
        holds = min(holds, line_crossing(top_s, top_slope, work[at, LINE], work[at, SLOPE]))
    return top_s, top_slope, holds


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _jump(lane, work, tab, r, g, k, limit_s):
    """(steps, seconds) of instance g: k steps, or fewer if their time reaches `limit_s` sooner."""
    total_s, done = 0.0, 0
    while done < k:
        first_s, slope_s, holds = segment(lane, work, tab, r, g, done)
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
    first, num = g * r.dp, r.dp
    resident = 0
    for at in range(first, first + num):
        resident += lane[at, NUM_RESIDENT]
    if resident == 0 or look[g, STOPPED] < t:
        look[g, HORIZON], look[g, SINCE_LOOK] = t, 0
    horizon, most = look[g, HORIZON], MANY
    if r.poll_steps > 1:
        most = int(r.poll_steps - look[g, SINCE_LOOK])
    if r.wait_steps > 0 and resident > 0:
        waiting = 0
        for at in range(first, first + num):
            i = lane[at, NEXT_WAITING]
            while i >= 0 and when[i, VISIBLE] <= horizon and waiting < FULL_ENOUGH * r.max_tokens:
                waiting += job[i, TODO]
                i = job[i, AFTER]
            if i >= 0 and when[i, VISIBLE] > horizon and r.poll_steps <= 1:
                most = 1  # it is noticed a step later
        if waiting > 0 and waiting < FULL_ENOUGH * r.max_tokens:
            if look[g, HELD_STEPS] < r.wait_steps:
                look[g, HELD_STEPS] = max(look[g, HELD_STEPS], 0)
                return -1.0, min(most, int(r.wait_steps - look[g, HELD_STEPS]))
            most = 1  # those who still find no room are held back again
    look[g, HELD_STEPS] = -1
    return horizon, most


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _look(lane, look, r, g, t, steps, last_s):
    """Notes at t, the end of `steps` steps of instance g, which arrivals its next step may hold; the last took last_s.

    A scheduler that looks ahead has put that step together while the last one began.
    """
    prompts = 0
    for at in range(g * r.dp, (g + 1) * r.dp):
        prompts += lane[at, TOKENS]
    look[g, SINCE_LOOK] += steps
    if look[g, HELD_STEPS] >= 0:
        look[g, HELD_STEPS] += steps
    look[g, STOPPED] = t
    if prompts > 0 or look[g, SINCE_LOOK] >= r.poll_steps:
        look[g, SINCE_LOOK] = 0
        look[g, HORIZON] = t - last_s + SAME_S if r.looks_ahead else t  # who came when it began is in it


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def release(when, visible, delay, i, free_s, t, frontend_s):
    """Request i is sent at t; returns when the front end has done it."""
    free_s = max(free_s, t) + frontend_s
    when[i, ARRIVAL] = t
    visible[i] = max(visible[i - 1], free_s + delay[i])
    when[i, VISIBLE] = visible[i]
    return free_s


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _plan(lane, work, job, when, sums, tab, r, g, t, horizon, most):
    """Steps that instance g does next, from time t, 0 if it has nothing to do.

    Arrivals up to `horizon` take part; decode steps are at most `most`.
    """
    num = r.dp
    k, mixed, unseen = MANY, False, False
    for at in range(g * num, (g + 1) * num):
        lane[at, STEPS], lane[at, ACTIVE], lane[at, TOKENS] = MANY, 0, 0
        if lane[at, NUM_RESIDENT] > 0 or lane[at, NEXT_WAITING] >= 0:
            plan_lane(lane, work, job, when, sums, tab, r, at, t, t, horizon)
            i = lane[at, NEXT_WAITING]
            unseen = unseen or (i >= 0 and horizon >= 0 and when[i, VISIBLE] > horizon and has_seat(lane, r, at))
            mixed = mixed or lane[at, TOKENS] > 0
            k = min(k, lane[at, STEPS])
    if mixed or (unseen and r.poll_steps <= 1 and k < MANY):
        return 1
    return min(k, most, r.longest_jump) if k < MANY else 0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _tokens_per_step(lane, r, g):
    """Output tokens of one step of instance g."""
    tokens = 0.0
    for at in range(g * r.dp, (g + 1) * r.dp):
        tokens += r.gain * lane[at, ACTIVE] + (lane[at, ENDING] if lane[at, TOKENS] > 0 else 0)
    return tokens


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _pass_time(lane, work, look, sums, weights, tab, r, g, k, start_s):
    """Advances clocks, KV caches, output, integrals and gaps of instance g by its k steps; returns the last's time."""
    num, done, last_s = r.dp, 0, 0.0
    look[g, BACKLOG] = max(look[g, BACKLOG] - (start_s - look[g, STOPPED]), 0.0)
    while done < k:
        first_s, slope_s, holds = segment(lane, work, tab, r, g, done)
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
                    record_gaps(weights, gap_s, gap_s, lane[at, r.mark_at + m] * r.gain)
                    num_gaps -= lane[at, r.mark_at + m]
                lane[at, MARKS] = 0
        last_s = first_s + slope_s * (holds - 1)
        if r.output_s > 0.0:
            push_s = r.output_s * _tokens_per_step(lane, r, g)
            span_s = line_span_s(first_s, slope_s, holds)
            look[g, BACKLOG] = line_backlog_s(look[g, BACKLOG], first_s, span_s, holds, push_s)
        if num_gaps > 0:
            record_gaps(weights, first_s / r.gain, last_s / r.gain, num_gaps * r.gain)
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
    return last_s


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _first_end(tree):
    """Instance whose step ends first, of equals the lowest index, in a tree of `estimator.kernels.calendar`."""
    place, half = 1, len(tree) // 2
    while place < half:
        place = 2 * place if tree[2 * place] <= tree[2 * place + 1] else 2 * place + 1
    return place - half


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _may_change(lane, r, at, steps, is_behind):
    """Whether a request that has come to wait in the lane may change what its instance does: none runs, or a jump."""
    if steps <= 1:
        return steps == 0
    return r.poll_steps <= 1 and (r.wait_steps > 0 or (not is_behind and has_seat(lane, r, at)))


@njit(cache=True, error_model="numpy", _nrt=False, nogil=True)
def run_instances(lane, work, job, when, sums, weights, tab, r, visible, delay, fleet, draws):
    """Runs all requests, visible at `visible` (num,) s, to their end; fills `when`, `sums` and `weights`.

    `delay` (num,) s: from the end of the front end to `visible`. `draws`: of `routing.router_draws`. In a closed loop
    `visible` and the arrivals are rewritten.
    """
    num, num_lanes = len(visible), r.dp
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
            set_time(tree, g, NEVER)
            last_s = _pass_time(lane, work, look, sums, weights, tab, r, g, steps[g], start_s[g])
            ended, shown_s = 0, t + look[g, BACKLOG]
            for at in range(g * num_lanes, (g + 1) * num_lanes):
                ended += end_lane(lane, work, job, when, weights, r, at, t, shown_s)
            outstanding[g] -= ended
            _look(lane, look, r, g, t, steps[g], last_s)
            sums[BUSY], sums[NUM_STEPS], sums[END] = sums[BUSY] + t - start_s[g], sums[NUM_STEPS] + steps[g], t
            steps[g] = 0
            if r.concurrency > 0:
                for _ in range(min(ended, num - released)):
                    free_s = release(when, visible, delay, released, free_s, shown_s, r.frontend_s)
                    released += 1
            idle[num_idle], is_listed[g] = g, True
            num_idle += 1
        while come < released and visible[come] <= t:  # 2. requests arrive
            g = choose(r.router, come, outstanding, draws)
            at = g * num_lanes + turns[g]
            is_behind = lane[at, NEXT_WAITING] >= 0
            if enqueue(lane, job, r, at, come):
                outstanding[g] += 1
                turns[g] = turns[g] + 1 if turns[g] + 1 < num_lanes else 0
                if not is_listed[g] and _may_change(lane, r, at, steps[g], is_behind):
                    idle[num_idle], is_listed[g] = g, True
                    num_idle += 1
            elif r.concurrency > 0 and released < num:
                free_s = release(when, visible, delay, released, free_s, t, r.frontend_s)
                released += 1
            come += 1
        for m in range(num_idle):  # 3. steps begin, jumps are cut
            g = idle[m]
            is_listed[g] = False
            limit_s = t - start_s[g]
            if steps[g] == 0:
                horizon, most = _notice(lane, job, when, look, r, g, t)
                steps[g] = _plan(lane, work, job, when, sums, tab, r, g, t, horizon, most)
                start_s[g], limit_s = t, NEVER
            if steps[g] > 0:
                steps[g], span_s = _jump(lane, work, tab, r, g, steps[g], limit_s)
                set_time(tree, g, start_s[g] + span_s)
        num_idle = 0
