"""Decode instances of a disaggregated system: room for hand-overs, fast-forwarded steps, preemption by recompute.

A step is put together as in `estimator.kernels.collocated`: sequences whose caches have arrived join; while the blocks
that the step opens do not fit the KV cache the latest to join is evicted; then evicted ones are recomputed beside the
decoding, the latest evicted first, within the token budget, where they can take a step; not beside those that an
eviction has just made room for. KV use counts whole blocks (`estimator.kernels.blocks`), those that the step under way
opens and those set aside for caches on their way among them.

A lane has room for a hand-over if it recomputes nothing, has a seat, and its prompt fits beside what is used; always if
it is empty. Reserve-static asks besides that every sequence's prompt and predicted output fit together; reserve-dynamic
that there is room at the end of the sequence with the least predicted tokens to go, when everyone has opened the blocks
of as many more (TetriInfer, arXiv 2401.11181, section 3.5).

While nothing joins and no sequence ends k steps are one event. The attention-dp ranks of an instance are lanes that
step together, as long as the slowest: a stretch, along which step times are a straight line, ends where another rank
becomes the slowest or the slowest one's window has filled.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from estimator.kernels.blocks import blocks_of, blocks_opened, held_time, new_blocks, steps_within
from estimator.kernels.calendar import EMPTY, NEVER, SAME_S, Array, mark, pop, push_front, set_time
from estimator.kernels.prefill_pool import Cost, prompt_blocks
from estimator.kernels.spans import MANY, line_crossing, line_span_s, line_steps_until, record_gaps

GREEDY, RESERVE_STATIC, RESERVE_DYNAMIC = 0, 1, 2

DECODE_LANE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "num_seqs",
            "num_redo",
            "num_waiting_redo",
            "num_coming",
            "num_joined",  # sequences in their first step, last in the lane's order
            "next_end",  # the unit's clock at the next finish
            "used",  # KV blocks of sequences and recomputed ones
            "coming",  # KV blocks set aside
            "reserved",  # KV blocks of all sequences at their predicted ends
            "unit",
            "receiver",  # the instance's place on the link
        )
    ]
    + [(name, np.float64) for name in ("cached", "kv_block_s")],
    align=True,
)
DECODE_UNIT = np.dtype(
    [(name, np.int64) for name in ("is_running", "num_steps", "clock")]
    + [(name, np.float64) for name in ("start_s", "end_s", "first_s", "slope_s")],
    align=True,
)  # the stretch under way, whose steps take first_s, first_s + slope_s, ...; clock counts steps


class DecodePool(NamedTuple):
    """Arrays and settings of the pool; `arrived`, `evicted`: number of its first list, `leaf`: of its first event.

    `capacity` in blocks; shift, U (`token_units`) and p of `estimator.kernels.blocks`.
    """

    cost: Cost
    lanes: Array  # (num_units·ranks,) DECODE_LANE
    units: Array  # (num_units,) DECODE_UNIT
    phases: Array  # (num_lanes, M) sequences of each phase
    seqs: Array  # (num_lanes, max_num_seqs) in order of joining
    ends: Array  # (num_lanes, max_num_seqs) clock at which each finishes
    redo: Array  # (num_lanes, max_num_seqs) evicted sequences that are recomputed
    step_s: Array  # (num_lanes,) scratch
    totals: Array  # busy s, steps, preemptions
    arrived: int
    evicted: int
    leaf: int
    ranks: int
    budget: int
    max_seqs: int
    capacity: int
    admission: int
    shift: int
    token_units: int
    p: int


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def steps_reaching(pool, unit, limit_s):
    """Fewest steps of the stretch under way, at least one, that take limit_s; all of them if they take less."""
    at = pool.units[unit]
    if at["num_steps"] == 1:
        return 1
    return min(line_steps_until(limit_s, at["first_s"], at["slope_s"]), at["num_steps"])


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def step_s(pool, unit, t):
    """How long the step takes that is under way at t; 0 where none is."""
    at = pool.units[unit]
    if not at["is_running"]:
        return 0.0
    return at["first_s"] + at["slope_s"] * (steps_reaching(pool, unit, t - at["start_s"] + SAME_S) - 1)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def own_blocks(pool, tokens, steps):
    """Blocks of a sequence that had so many tokens and has taken so many steps."""
    return blocks_of(tokens * pool.token_units + pool.p * steps, pool.shift)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def opened_blocks(pool, lane):
    """Blocks that the lane's sequences open in the step from the present clock."""
    return new_blocks(pool.phases, lane, 0, pool.shift, pool.units[pool.lanes[lane]["unit"]]["clock"], pool.p)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def has_room(pool, state, lane, i, t):
    """Whether the lane may set room aside for prompt i at t; the rules are in the module's docstring."""
    at, job, unit = pool.lanes[lane], state.jobs[i], pool.lanes[lane]["unit"]
    seated = at["num_seqs"] + at["num_redo"] + at["num_coming"]
    if at["num_waiting_redo"] > 0 or seated >= pool.max_seqs:
        return False
    if seated == 0:
        return True
    need = prompt_blocks(job["handed"])
    if pool.admission == RESERVE_STATIC and at["reserved"] + predicted_blocks(job) > pool.capacity:
        return False
    n, done, stretch = at["num_seqs"], 0, pool.units[unit]
    room = pool.capacity - at["used"] - at["coming"] - need
    if room < 0 or n == 0:
        return room >= 0
    most = n * ((pool.p * stretch["num_steps"] >> pool.shift) + 1) if stretch["is_running"] else 0
    if pool.admission == RESERVE_DYNAMIC:  # the least predicted tokens to go are at most the mean of those predicted
        most += seated * at["reserved"] // n
    if most <= room:  # enough in any case
        return True
    if stretch["is_running"]:
        done = steps_reaching(pool, unit, t - stretch["start_s"] + SAME_S) - 1
        room -= blocks_opened(pool.phases, lane, 0, pool.shift, stretch["clock"], n, pool.p, done + 1)
    if room >= 0 and pool.admission == RESERVE_DYNAMIC:
        least, held = shortest(pool, state, lane, stretch["clock"] + done)
        room += held - seated * prompt_blocks(math.ceil(least))
    return room >= 0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def predicted_blocks(job):
    """Blocks of prompt and predicted output."""
    return prompt_blocks(job["handed"] + int(job["predicted"]))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def shortest(pool, state, lane, clock):
    """Predicted tokens to go, at least 0, of the first decoding sequence with the fewest, and the blocks it holds."""
    least, held = np.inf, 0
    for slot in range(pool.lanes[lane]["num_seqs"]):
        job = state.jobs[pool.seqs[lane, slot]]
        steps = job["left"] - (pool.ends[lane, slot] - clock)
        total = job["held"] - job["handed"] + steps * pool.cost.gain
        remaining = max(job["predicted"] - total, 0.0)
        if remaining < least:
            least, held = remaining, own_blocks(pool, job["held"], steps)
            if least == 0.0:
                break
    return least, held


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def set_aside(pool, state, lane, i, t):
    """Sets room aside for prompt i; the stretch under way ends before its tokens would overflow what is left."""
    at, job, unit = pool.lanes[lane], state.jobs[i], pool.lanes[lane]["unit"]
    at["num_coming"] += 1
    at["coming"] += prompt_blocks(job["handed"])
    at["reserved"] += predicted_blocks(job)
    job["target"], job["reserved_s"] = lane, t
    stretch = pool.units[unit]
    if stretch["is_running"] and stretch["num_steps"] > 1 and at["num_seqs"] > 0:
        most = steps_that_fit(pool, lane, stretch["num_steps"])
        if most < stretch["num_steps"]:
            cut(pool, state, unit, most)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def steps_that_fit(pool, lane, k_max):
    """Steps, 1 to k_max, that the lane's sequences can take from the stretch's start until the KV cache is full."""
    at, clock, n = pool.lanes[lane], pool.units[pool.lanes[lane]["unit"]]["clock"], pool.lanes[lane]["num_seqs"]
    room = pool.capacity - at["used"] - at["coming"]
    return max(1, steps_within(pool.phases, lane, 0, pool.shift, clock, n, pool.p, room, k_max))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def cut(pool, state, unit, num_steps):
    """Ends the stretch under way after num_steps steps."""
    at = pool.units[unit]
    at["num_steps"] = num_steps
    at["end_s"] = at["start_s"] + line_span_s(at["first_s"], at["slope_s"], num_steps)
    set_time(state.times, pool.leaf + unit, at["end_s"])


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def join(pool, state, lane, t):
    """Lets the sequences whose caches have arrived decode from t on."""
    at, clock = pool.lanes[lane], pool.units[pool.lanes[lane]["unit"]]["clock"]
    while state.lists[pool.arrived + lane, 0] != EMPTY:
        i = pop(state, pool.arrived + lane)
        job = state.jobs[i]
        own = prompt_blocks(job["handed"])
        job["join_s"], job["held"] = t, job["handed"]
        at["num_coming"] -= 1
        at["coming"] -= own
        at["kv_block_s"] += own * (t - job["reserved_s"])
        at["used"] += own
        seat(pool, lane, i, job, clock)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def seat(pool, lane, i, job, clock):
    """The sequence decodes from the next step on, after all others."""
    at = pool.lanes[lane]
    slot, end = at["num_seqs"], clock + job["left"]
    pool.seqs[lane, slot], pool.ends[lane, slot] = i, end
    pool.phases[lane, phase(pool, job, clock)] += 1
    at["num_seqs"] += 1
    at["num_joined"] += 1
    at["cached"] += job["held"]
    at["next_end"] = min(at["next_end"], end)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def phase(pool, job, clock):
    """ρ of `estimator.kernels.blocks` of a sequence that joined at that clock."""
    return (job["held"] * pool.token_units - pool.p * clock) & ((1 << pool.shift) - 1)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def unseat(pool, lane, job, end, clock):
    """Takes a sequence that would have finished at clock `end` out of KV cache and step; returns its tokens."""
    at, steps = pool.lanes[lane], job["left"] - (end - clock)
    tokens = job["held"] + pool.cost.gain * steps
    at["used"] -= own_blocks(pool, job["held"], steps)
    at["cached"] -= tokens
    pool.phases[lane, phase(pool, job, end - job["left"])] -= 1
    return tokens


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def evict(pool, state, lane, t):
    """Evicts the latest to join until one step's blocks fit, the only sequence never; returns how many went."""
    at, clock = pool.lanes[lane], pool.units[pool.lanes[lane]["unit"]]["clock"]
    evicted = 0
    while at["num_seqs"] > 0 and at["num_seqs"] + at["num_redo"] + at["num_coming"] > 1:
        if at["used"] + at["coming"] + opened_blocks(pool, lane) <= pool.capacity:
            break
        slot = at["num_seqs"] - 1
        i = pool.seqs[lane, slot]
        job, end = state.jobs[i], pool.ends[lane, slot]
        job["todo"] = int(unseat(pool, lane, job, end, clock))
        if end - clock < job["left"]:
            job["token_s"] = t
        job["left"], job["held"] = end - clock, 0
        at["num_seqs"] = slot
        at["num_joined"] = max(0, at["num_joined"] - 1)
        push_front(state, pool.evicted + lane, i)
        at["num_waiting_redo"] += 1
        evicted += 1
    if evicted > 0:
        next_finish(pool, lane)
    return evicted


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def next_finish(pool, lane):
    """Looks up the clock of the lane's next finish."""
    at, first = pool.lanes[lane], MANY
    for slot in range(at["num_seqs"]):
        first = min(first, pool.ends[lane, slot])
    at["next_end"] = first


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def recompute(pool, state, lane, may_start):
    """Puts evicted sequences into the lane's step; returns its prompt tokens and the seconds of them and the heads."""
    at, cost = pool.lanes[lane], pool.cost
    if at["num_redo"] + at["num_waiting_redo"] == 0:
        return 0, 0.0
    room, slot, ending, tokens, pairs, window_pairs = pool.budget - cost.q * at["num_seqs"], 0, 0, 0, 0.0, 0.0
    while room > 0:
        if slot == at["num_redo"]:
            i = state.lists[pool.evicted + lane, 0]
            seated = at["num_seqs"] + at["num_redo"] + at["num_coming"]
            if i == EMPTY or seated >= pool.max_seqs or not may_start:
                break
            todo = state.jobs[i]["todo"]
            need = at["used"] + at["coming"] + opened_blocks(pool, lane) + own_blocks(pool, todo, 1)
            if seated > 0 and need > pool.capacity:
                break
            pool.redo[lane, slot] = pop(state, pool.evicted + lane)
            at["used"] += prompt_blocks(todo)
            at["num_redo"] += 1
            at["num_waiting_redo"] -= 1
        job = state.jobs[pool.redo[lane, slot]]
        new = min(job["todo"], room)
        sees = job["held"] + (new + 1) / 2
        pairs, window_pairs = pairs + new * sees, window_pairs + new * min(sees, cost.window)
        job["todo"] -= new
        job["held"] += new
        ending += job["todo"] == 0
        room, slot, tokens = room - new, slot + 1, tokens + new
    if tokens == 0:
        return 0, 0.0
    step_tokens, sampled = tokens + cost.q * at["num_seqs"], at["num_seqs"] + ending
    step_s = cost.M[min(step_tokens, len(cost.M) - 1)] + cost.H[min(sampled, len(cost.H) - 1)]
    return tokens, step_s + cost.c * pairs + cost.cw * window_pairs


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def start_decode(pool, state, unit, t, freed):
    """Starts the longest stretch that nothing known at t can change; marks lanes whose evicted are all back."""
    at, cost = pool.units[unit], pool.cost
    if at["is_running"]:
        return
    lanes = range(unit * pool.ranks, (unit + 1) * pool.ranks)
    evicted, tokens, leader, longest_s = 0, 0, EMPTY, 0.0
    for lane in lanes:
        own = pool.lanes[lane]
        join(pool, state, lane, t)
        gone = evict(pool, state, lane, t)
        had_redo = own["num_waiting_redo"] > 0
        redo_tokens, step_s = recompute(pool, state, lane, gone == 0 or own["num_seqs"] == 0)
        if had_redo and own["num_waiting_redo"] == 0:
            mark(freed, lane)
        evicted, tokens, n = evicted + gone, tokens + redo_tokens, own["num_seqs"]
        if n > 0:
            read_s = cost.B[n] * own["cached"] + cost.BW[n] * min(own["cached"], n * cost.window)
            step_s = read_s + (step_s if redo_tokens > 0 else cost.D[n])
        pool.step_s[lane] = step_s
        if (n > 0 or redo_tokens > 0) and (leader == EMPTY or step_s > longest_s):
            leader, longest_s = lane, step_s
    pool.totals[2] += evicted
    if leader == EMPTY:
        set_time(state.times, pool.leaf + unit, NEVER)
        return
    at["is_running"], at["start_s"], at["first_s"], at["slope_s"] = 1, t, longest_s, 0.0
    num_steps = 1
    if tokens == 0 and evicted == 0:
        num_steps, at["slope_s"] = stretch_steps(pool, unit, leader)
    cut(pool, state, unit, num_steps)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def stretch_steps(pool, unit, leader):
    """Steps until a rank has a sequence that finishes, a full KV cache, or a longer step than the leader; its slope."""
    k = MANY
    lanes = range(unit * pool.ranks, (unit + 1) * pool.ranks)
    for lane in lanes:
        own = pool.lanes[lane]
        if own["num_seqs"] > 0:
            k = steps_that_fit(pool, lane, min(k, max(own["next_end"] - pool.units[unit]["clock"], 1)))
    top_slope, holds = decode_slope(pool, leader)
    k = min(k, holds)
    for lane in lanes:
        if lane != leader and pool.lanes[lane]["num_seqs"] > 0:
            slope_s, holds = decode_slope(pool, lane)
            k = min(k, holds, line_crossing(pool.step_s[leader], top_slope, pool.step_s[lane], slope_s))
    return k, top_slope


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def decode_slope(pool, lane):
    """Growth of the lane's decode step per step, and the steps for which it holds: until the window has filled."""
    own, n, cost = pool.lanes[lane], pool.lanes[lane]["num_seqs"], pool.cost
    grow, spare = n * cost.gain, n * cost.window - own["cached"]
    if cost.BW[n] > 0.0 and spare > 0:
        return (cost.B[n] + cost.BW[n]) * grow, math.ceil(spare / grow)
    return cost.B[n] * grow, MANY


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def end_stretch(pool, state, unit):
    """Adds up the stretch that has ended: tokens, KV use, gaps; `take_finished` and `start_decode` do the rest."""
    at, gain = pool.units[unit], pool.cost.gain
    k, first_s, slope_s, total_s = at["num_steps"], at["first_s"], at["slope_s"], at["end_s"] - at["start_s"]
    pool.totals[0] += total_s
    pool.totals[1] += k
    num_gaps = 0
    for lane in range(unit * pool.ranks, (unit + 1) * pool.ranks):
        own = pool.lanes[lane]
        n = own["num_seqs"]
        if n == 0:
            own["kv_block_s"] += own["used"] * total_s
            continue
        held_s, own["used"] = held_time(
            pool.phases, lane, 0, pool.shift, at["clock"], n, pool.p, own["used"], first_s, slope_s, k
        )
        own["kv_block_s"] += held_s
        own["cached"] += n * k * gain
        num_gaps += n * k - own["num_joined"]
        for slot in range(n - own["num_joined"], n):
            gap_s = (at["start_s"] - state.jobs[pool.seqs[lane, slot]]["token_s"] + first_s) / gain
            record_gaps(state.weights, gap_s, gap_s, gain)
        own["num_joined"] = 0
    if num_gaps > 0:
        record_gaps(state.weights, first_s / gain, (first_s + slope_s * (k - 1)) / gain, num_gaps * gain)
    at["clock"] += k
    at["is_running"] = 0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def take_finished(pool, state, lane, finished):
    """Moves the lane's finished sequences into `finished`, returns how many; recomputed ones decode."""
    own, clock = pool.lanes[lane], pool.units[pool.lanes[lane]["unit"]]["clock"]
    num = 0
    if own["next_end"] <= clock:
        kept = 0
        while pool.ends[lane, kept] > clock:
            kept += 1
        for slot in range(kept, own["num_seqs"]):
            i, end = pool.seqs[lane, slot], pool.ends[lane, slot]
            if end <= clock:
                job = state.jobs[i]
                unseat(pool, lane, job, end, clock)
                own["reserved"] -= predicted_blocks(job)
                finished[num] = i
                num += 1
            else:
                pool.seqs[lane, kept], pool.ends[lane, kept] = i, end
                kept += 1
        own["num_seqs"] = kept
        next_finish(pool, lane)
    kept = 0
    for slot in range(own["num_redo"]):
        i = pool.redo[lane, slot]
        if state.jobs[i]["todo"] > 0:
            pool.redo[lane, kept] = i
            kept += 1
        else:
            seat(pool, lane, i, state.jobs[i], clock)
    own["num_redo"] = kept
    return num
