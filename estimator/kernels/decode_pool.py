"""Decode instances of a disaggregated system: room for hand-overs, fast-forwarded steps, preemption by recompute.

A step is put together as in `estimator.kernels.collocated`: sequences whose caches have arrived join; while the step's
new tokens do not fit the KV cache the latest to join is evicted; then evicted ones are recomputed beside the decoding,
the latest evicted first, within the token budget, where they can take a step; not beside those that an eviction has
just made room for. KV use counts the tokens that the
step is about to write and those set aside for caches on their way, with half a block per sequence.

A lane has room for a hand-over if it recomputes nothing, has a seat, and its prompt fits beside what is used; always if
it is empty. Reserve-static asks besides that every sequence's prompt and predicted output fit together; reserve-dynamic
that at the end of the sequence with the least predicted tokens to go, when everyone holds as many more, there is room
(TetriInfer, arXiv 2401.11181, section 3.5).

While nothing joins and no sequence ends k steps are one event. The attention-dp ranks of an instance are lanes that
step together, as long as the slowest: a stretch ends where another rank becomes the slowest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from estimator.kernels.calendar import EMPTY, NEVER, Array, mark, pop, push_front, set_time
from estimator.kernels.prefill_pool import HALF_BLOCK, SAME_S, Cost
from estimator.kernels.spans import decode_span_s, record_gaps, steps_until

GREEDY, RESERVE_STATIC, RESERVE_DYNAMIC = 0, 1, 2
FOREVER = 1 << 60

DECODE_LANE = np.dtype(
    [(name, np.int64) for name in ("num_seqs", "num_redo", "num_waiting_redo", "num_coming", "num_joined", "next_end")]
    + [(name, np.float64) for name in ("used", "cached", "coming_tokens", "reserved", "kv_token_s")],
    align=True,
)  # next_end: the unit's clock at the next finish; joined: sequences in their first step, last in the lane's order
DECODE_UNIT = np.dtype(
    [(name, np.int64) for name in ("is_running", "num_steps", "clock", "num_seqs")]
    + [(name, np.float64) for name in ("start_s", "end_s", "base_s", "b", "bw", "cached")],
    align=True,
)  # the stretch under way: the slowest rank's sequences, cached tokens and step cost; clock counts steps


class DecodePool(NamedTuple):
    """Arrays and settings of the pool; `arrived`, `evicted`: number of its first list, `leaf`: of its first event."""

    cost: Cost
    lanes: Array  # (num_units·ranks,) DECODE_LANE
    units: Array  # (num_units,) DECODE_UNIT
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
    capacity: float
    admission: int


@njit(cache=True, _nrt=False, forceinline=True)
def span_s(pool, unit, k):
    """Seconds of the first k steps of the stretch under way."""
    at, cost = pool.units[unit], pool.cost
    if k == 0:
        return 0.0
    return decode_span_s(at["num_seqs"], at["cached"], k, at["base_s"], at["b"], at["bw"], cost.window, cost.gain)


@njit(cache=True, _nrt=False, forceinline=True)
def steps_reaching(pool, unit, limit_s):
    """Fewest steps of the stretch under way, at least one, that take limit_s; all of them if they take less."""
    at, cost = pool.units[unit], pool.cost
    k = at["num_steps"]
    if k == 1:
        return 1
    return steps_until(
        limit_s, at["num_seqs"], at["cached"], k, at["base_s"], at["b"], at["bw"], cost.window, cost.gain
    )


@njit(cache=True, _nrt=False, forceinline=True)
def steps_done(pool, unit, t):
    """Steps of the stretch under way that have ended at t."""
    return steps_reaching(pool, unit, t - pool.units[unit]["start_s"] + SAME_S) - 1


@njit(cache=True, _nrt=False, forceinline=True)
def moment_s(pool, unit, k):
    """Σ_{i<k} i·(seconds of step i) of the stretch under way: steps × what each has added before it."""
    at, cost = pool.units[unit], pool.cost
    grow = at["num_seqs"] * cost.gain
    first, second = k * (k - 1) / 2, (k - 1) * k * (2 * k - 1) / 6
    total = (at["base_s"] + at["b"] * at["cached"]) * first + at["b"] * grow * second
    if at["bw"] == 0.0:
        return total
    cap, below = at["num_seqs"] * cost.window, 0.0
    if at["cached"] < cap:
        below = min(float(k), np.ceil((cap - at["cached"]) / grow))
    below_first, below_second = below * (below - 1) / 2, (below - 1) * below * (2 * below - 1) / 6
    return total + at["bw"] * (at["cached"] * below_first + grow * below_second + cap * (first - below_first))


@njit(cache=True, _nrt=False, forceinline=True)
def has_room(pool, state, lane, i, t):
    """Whether the lane may set room aside for prompt i at t; the rules are in the module's docstring."""
    at, job, unit = pool.lanes[lane], state.jobs[i], lane // pool.ranks
    seated = at["num_seqs"] + at["num_redo"] + at["num_coming"]
    if at["num_waiting_redo"] > 0 or seated >= pool.max_seqs:
        return False
    if seated == 0:
        return True
    if pool.admission == RESERVE_STATIC:
        least = at["reserved"] + job["handed"] + job["predicted"]
        if least + HALF_BLOCK * (seated + 1) > pool.capacity:
            return False
    grow, done = at["num_seqs"] * pool.cost.gain, 0
    written = at["used"] + at["coming_tokens"]
    if pool.units[unit]["is_running"]:
        all_written = written + pool.units[unit]["num_steps"] * grow
        if pool.admission == RESERVE_DYNAMIC or all_written + job["handed"] + HALF_BLOCK * (seated + 1) > pool.capacity:
            done = steps_done(pool, unit, t)
            written += (done + 1) * grow
    if written + job["handed"] + HALF_BLOCK * (seated + 1) > pool.capacity:
        return False
    if pool.admission == RESERVE_DYNAMIC and at["num_seqs"] > 0:
        least, held = shortest(pool, state, lane, pool.units[unit]["clock"] + done)
        later = written - held + job["handed"] + seated * least
        return later + HALF_BLOCK * seated <= pool.capacity
    return True


@njit(cache=True, _nrt=False, forceinline=True)
def shortest(pool, state, lane, clock):
    """Predicted tokens to go, at least 0, of the decoding sequence with the fewest, and the tokens it holds."""
    least, held = np.inf, 0.0
    for slot in range(pool.lanes[lane]["num_seqs"]):
        job = state.jobs[pool.seqs[lane, slot]]
        gained = (job["left"] - (pool.ends[lane, slot] - clock)) * pool.cost.gain
        total = job["held"] - job["handed"] + gained
        remaining = max(job["predicted"] - total, 0.0)
        if remaining < least:
            least, held = remaining, job["held"] + gained
    return least, held


@njit(cache=True, _nrt=False, forceinline=True)
def set_aside(pool, state, lane, i, t):
    """Sets room aside for prompt i; the stretch under way ends before its tokens would overflow what is left."""
    at, job, unit = pool.lanes[lane], state.jobs[i], lane // pool.ranks
    at["num_coming"] += 1
    at["coming_tokens"] += job["handed"]
    at["reserved"] += job["handed"] + job["predicted"]
    job["target"], job["reserved_s"] = lane, t
    stretch = pool.units[unit]
    if stretch["is_running"] and stretch["num_steps"] > 1 and at["num_seqs"] > 0:
        most = steps_that_fit(pool, lane)
        if most < stretch["num_steps"]:
            cut(pool, state, unit, most)


@njit(cache=True, _nrt=False, forceinline=True)
def steps_that_fit(pool, lane):
    """Steps, at least one, that the lane's sequences can take from the stretch's start until the KV cache is full."""
    at = pool.lanes[lane]
    spare = pool.capacity - at["used"] - at["coming_tokens"] - HALF_BLOCK * (at["num_seqs"] + at["num_coming"])
    return max(1, int(spare / (at["num_seqs"] * pool.cost.gain)))


@njit(cache=True, _nrt=False, forceinline=True)
def cut(pool, state, unit, num_steps):
    """Ends the stretch under way after num_steps steps."""
    at = pool.units[unit]
    at["num_steps"] = num_steps
    at["end_s"] = at["start_s"] + span_s(pool, unit, num_steps)
    set_time(state.times, pool.leaf + unit, at["end_s"])


@njit(cache=True, _nrt=False, forceinline=True)
def join(pool, state, lane, t):
    """Lets the sequences whose caches have arrived decode from t on."""
    at, clock = pool.lanes[lane], pool.units[lane // pool.ranks]["clock"]
    while state.lists[pool.arrived + lane, 0] != EMPTY:
        i = pop(state, pool.arrived + lane)
        job = state.jobs[i]
        job["join_s"], job["held"] = t, job["handed"]
        at["num_coming"] -= 1
        at["coming_tokens"] -= job["handed"]
        at["kv_token_s"] += job["handed"] * (t - job["reserved_s"])
        at["used"] += job["handed"]
        seat(pool, lane, i, job, clock)


@njit(cache=True, _nrt=False, forceinline=True)
def seat(pool, lane, i, job, clock):
    """The sequence decodes from the next step on, after all others."""
    at = pool.lanes[lane]
    slot, end = at["num_seqs"], clock + job["left"]
    pool.seqs[lane, slot], pool.ends[lane, slot] = i, end
    at["num_seqs"] += 1
    at["num_joined"] += 1
    at["cached"] += job["held"]
    at["next_end"] = min(at["next_end"], end)


@njit(cache=True, _nrt=False, forceinline=True)
def evict(pool, state, lane, t):
    """Evicts the latest to join until one step's tokens fit, the only sequence never; returns how many went."""
    at, gain, clock = pool.lanes[lane], pool.cost.gain, pool.units[lane // pool.ranks]["clock"]
    evicted = 0
    while at["num_seqs"] > 0 and at["num_seqs"] + at["num_redo"] + at["num_coming"] > 1:
        seated = at["num_seqs"] + at["num_redo"] + at["num_coming"]
        if at["used"] + at["coming_tokens"] + at["num_seqs"] * gain + HALF_BLOCK * seated <= pool.capacity:
            break
        slot = at["num_seqs"] - 1
        i = pool.seqs[lane, slot]
        job, to_go = state.jobs[i], pool.ends[lane, slot] - clock
        holds = job["held"] + gain * (job["left"] - to_go)
        at["used"] -= holds
        at["cached"] -= holds
        if to_go < job["left"]:
            job["token_s"] = t
        job["left"], job["todo"], job["held"] = to_go, int(holds), 0.0
        at["num_seqs"] = slot
        at["num_joined"] = max(0, at["num_joined"] - 1)
        push_front(state, pool.evicted + lane, i)
        at["num_waiting_redo"] += 1
        evicted += 1
    if evicted > 0:
        next_finish(pool, lane)
    return evicted


@njit(cache=True, _nrt=False, forceinline=True)
def next_finish(pool, lane):
    """Looks up the clock of the lane's next finish."""
    at, first = pool.lanes[lane], FOREVER
    for slot in range(at["num_seqs"]):
        first = min(first, pool.ends[lane, slot])
    at["next_end"] = first


@njit(cache=True, _nrt=False, forceinline=True)
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
            need = at["used"] + at["coming_tokens"] + (at["num_seqs"] + 1) * cost.gain + state.jobs[i]["todo"]
            if seated > 0 and need + HALF_BLOCK * (seated + 1) > pool.capacity:
                break
            pool.redo[lane, slot] = pop(state, pool.evicted + lane)
            at["used"] += state.jobs[i]["todo"]
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


@njit(cache=True, _nrt=False, forceinline=True)
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
        return
    at["is_running"], at["start_s"], at["num_steps"] = 1, t, 1
    at["num_seqs"], at["cached"], at["base_s"], at["b"], at["bw"] = 1, 0.0, longest_s, 0.0, 0.0
    if tokens == 0 and evicted == 0:
        n = pool.lanes[leader]["num_seqs"]
        at["num_seqs"], at["cached"] = n, pool.lanes[leader]["cached"]
        at["base_s"], at["b"], at["bw"] = cost.D[n], cost.B[n], cost.BW[n]
        at["num_steps"] = stretch_steps(pool, unit, leader)
    cut(pool, state, unit, at["num_steps"])


@njit(cache=True, _nrt=False, forceinline=True)
def stretch_steps(pool, unit, leader):
    """Steps until a rank has a sequence that finishes, a full KV cache, or a longer step than the leader."""
    k = FOREVER
    for lane in range(unit * pool.ranks, (unit + 1) * pool.ranks):
        own = pool.lanes[lane]
        if own["num_seqs"] > 0:
            k = min(k, own["next_end"] - pool.units[unit]["clock"], steps_that_fit(pool, lane))
    for lane in range(unit * pool.ranks, (unit + 1) * pool.ranks):
        if lane != leader and pool.lanes[lane]["num_seqs"] > 0:
            k = min(k, steps_behind(pool, lane, leader, k))
    return max(k, 1)


@njit(cache=True, _nrt=False, forceinline=True)
def step_at(pool, lane, i):
    """Seconds of the lane's i-th decode step from now, and whether its window still fills."""
    own, cost = pool.lanes[lane], pool.cost
    n = own["num_seqs"]
    cached = own["cached"] + i * n * cost.gain
    in_window = min(cached, n * cost.window)
    return cost.D[n] + cost.B[n] * cached + cost.BW[n] * in_window, in_window < n * cost.window


@njit(cache=True, _nrt=False, forceinline=True)
def steps_behind(pool, lane, leader, k_max):
    """Steps, at most k_max, through which the lane's are no longer than the leader's: lines until a window fills."""
    for other in (lane, leader):
        own, n = pool.lanes[other], pool.lanes[other]["num_seqs"]
        spare = n * pool.cost.window - own["cached"]
        if spare > 0 and pool.cost.BW[n] > 0.0:
            k_max = min(k_max, int(np.ceil(spare / (n * pool.cost.gain))))
    low, high = 1, k_max
    if step_at(pool, lane, high - 1)[0] <= step_at(pool, leader, high - 1)[0]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if step_at(pool, lane, middle - 1)[0] <= step_at(pool, leader, middle - 1)[0]:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, _nrt=False, forceinline=True)
def end_stretch(pool, state, unit):
    """Adds up the stretch that has ended: tokens, KV use, gaps; `take_finished` does the rest."""
    at, gain = pool.units[unit], pool.cost.gain
    k = at["num_steps"]
    total_s, first_s, moment = at["end_s"] - at["start_s"], span_s(pool, unit, 1), moment_s(pool, unit, k)
    pool.totals[0] += total_s
    pool.totals[1] += k
    num_gaps = 0.0
    for lane in range(unit * pool.ranks, (unit + 1) * pool.ranks):
        own = pool.lanes[lane]
        n = own["num_seqs"]
        own["kv_token_s"] += own["used"] * total_s + n * gain * moment
        if n == 0:
            continue
        own["used"] += n * k * gain
        own["cached"] += n * k * gain
        num_gaps += (n * k - own["num_joined"]) * gain
        for slot in range(n - own["num_joined"], n):
            gap_s = (at["start_s"] - state.jobs[pool.seqs[lane, slot]]["token_s"] + first_s) / gain
            record_gaps(state.weights, gap_s, gap_s, gain)
        own["num_joined"] = 0
    if num_gaps > 0:
        last_s = max(first_s, 2 * total_s / k - first_s)
        record_gaps(state.weights, first_s / gain, last_s / gain, num_gaps)
    at["clock"] += k
    at["is_running"] = 0
    set_time(state.times, pool.leaf + unit, NEVER)


@njit(cache=True, _nrt=False, forceinline=True)
def take_finished(pool, state, lane, finished):
    """Moves the lane's finished sequences into `finished`, returns how many; recomputed ones decode."""
    own, unit = pool.lanes[lane], pool.units[lane // pool.ranks]
    num = 0
    if own["next_end"] <= unit["clock"]:
        kept, first = 0, FOREVER
        for slot in range(own["num_seqs"]):
            i, end = pool.seqs[lane, slot], pool.ends[lane, slot]
            if end <= unit["clock"]:
                job = state.jobs[i]
                holds = job["held"] + pool.cost.gain * job["left"]
                own["used"] -= holds
                own["cached"] -= holds
                own["reserved"] -= job["handed"] + job["predicted"]
                finished[num] = i
                num += 1
            else:
                pool.seqs[lane, kept], pool.ends[lane, kept] = i, end
                kept, first = kept + 1, min(first, end)
        own["num_seqs"], own["next_end"] = kept, first
    kept = 0
    for slot in range(own["num_redo"]):
        i = pool.redo[lane, slot]
        if state.jobs[i]["todo"] > 0:
            pool.redo[lane, kept] = i
            kept += 1
        else:
            seat(pool, lane, i, state.jobs[i], unit["clock"])
    own["num_redo"] = kept
    return num
