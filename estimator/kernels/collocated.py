"""Event kernel of one collocated instance: continuous batching, fast-forwarded while the batch cannot change.

Order of events at one time: a step ends (its sequences in order of admission finish or gain a token), then requests
that have become visible join the queue in order of arrival, then the next step is put together. A step is put together
as vLLM V1 does: decoding sequences first, then prompts under way, then waiting requests in order of arrival, within the
token budget, the sequence limit and the KV tokens. Prefill-first runs steps of prompts alone while any can be
admitted. Static batching admits only when nothing is resident. When the KV cache is full the latest sequence admitted
is evicted and recomputed, before anything that waits.

KV use is counted in tokens; half a block per resident sequence is the expected loss to partly filled blocks.

| array | meaning, per request |
|---|---|
| visible | arrival + request overhead, s |
| prompt, seen | tokens to compute, tokens found in the prefix cache |
| steps | decode steps after the first token |
| arrived | tokens whose KV cache was handed over, 0 for a prompt to compute |
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

CHUNKED, PREFILL_FIRST, STATIC = 0, 1, 2
HALF_BLOCK = 8.0
NEVER = 1e300


@njit(cache=True)
def decode_span_s(n, cached, k, base, b, bw, window, gain):  # noqa: PLR0913 (scalars of a hot loop)
    """Seconds of k decode steps from `cached` tokens: Σ_{i<k} base + b·S_i + bw·min(S_i, nW), S_i = S + i·n·gain."""
    grow = n * gain
    full = k * (base + b * cached) + b * grow * k * (k - 1) / 2
    if bw == 0.0:
        return full
    cap = float(n * window)
    below = 0.0
    if cached < cap:
        below = min(float(k), math.ceil((cap - cached) / grow))
    return full + bw * (below * cached + grow * below * (below - 1) / 2 + (k - below) * cap)


@njit(cache=True)
def steps_until(limit_s, n, cached, k_max, base, b, bw, window, gain):  # noqa: PLR0913
    """Fewest steps, at most k_max, whose time reaches limit_s (bisection: the span grows with every step)."""
    if decode_span_s(n, cached, k_max, base, b, bw, window, gain) < limit_s:
        return k_max
    low, high = 0, k_max
    while high - low > 1:
        middle = (low + high) // 2
        if decode_span_s(n, cached, middle, base, b, bw, window, gain) >= limit_s:
            high = middle
        else:
            low = middle
    return max(high, 1)


@njit(cache=True)
def record_gaps(weights, per_decade, first_s, last_s, num_gaps):
    """Adds gaps that run evenly from first_s to last_s to the histogram (bin edges 0, 0.1 ms, then geometric)."""
    parts = 1 if last_s <= first_s * 1.03 else 8
    for part in range(parts):
        gap = first_s + (last_s - first_s) * (part + 0.5) / parts
        place = 0
        if gap >= 1e-4:
            place = min(1 + int(math.log10(gap / 1e-4) * per_decade), len(weights) - 1)
        weights[place] += num_gaps / parts


@njit(cache=True)
def release(visible, out, concurrency, released, t, overhead):
    """In a closed loop one completion sends the next request; returns how many have been sent."""
    if concurrency > 0 and released < len(visible):
        out[3, released] = t
        visible[released] = t + overhead
        released += 1
    return released


@njit(cache=True, inline="always")
def evict(pools, state, gain, capacity):
    """Evicts the latest admitted until one step's tokens fit, the last one never; new n_dec, n_redo, cached, used."""
    dec, n_dec, redo, n_redo, clock, cached, used = pools
    todo, held, left, join, seen = state
    while n_dec > 1 and used + n_dec * gain + HALF_BLOCK * n_dec > capacity:
        n_dec -= 1
        i = dec[n_dec]
        grown = held[i] + gain * (clock - join[i])
        used, cached = used - grown, cached - grown - seen[i]
        left[i] -= clock - join[i]
        todo[i], held[i] = int(grown), 0.0
        redo[n_redo] = i
        n_redo += 1
    return n_dec, n_redo, cached, used


@njit(cache=True, inline="always")
def end_step(pools, state, decoded, gain, t, out):
    """Lets finished sequences go and finished prompts decode, at t; returns the new n_pre, n_dec, cached, used, ended.

    `decoded`: the step held decoding sequences; `ended`: requests that finished.
    """
    pre, n_pre, dec, n_dec, clock, cached, used = pools
    todo, held, left, join, seen = state
    ended = kept = 0
    for slot in range(n_dec):
        i = dec[slot]
        if decoded and join[i] + left[i] <= clock:
            out[2, i] = t
            used, cached = used - held[i] - gain * left[i], cached - held[i] - seen[i] - gain * left[i]
            ended += 1
        else:
            dec[kept] = i
            kept += 1
    n_dec, kept = kept, 0
    for slot in range(n_pre):
        i = pre[slot]
        if todo[i] > 0:
            pre[kept] = i
            kept += 1
            continue
        if np.isnan(out[1, i]):
            out[1, i] = t
        if left[i] == 0:
            out[2, i] = t
            used -= held[i]
            ended += 1
            continue
        dec[n_dec], join[i] = i, clock
        n_dec += 1
        cached += held[i] + seen[i]
    return kept, n_dec, cached, used, ended


@njit(cache=True)
def run_lane(requests, tables, settings, concurrency, out, weights):
    """Simulates one instance; fills `out` (4, num): prefill start, first token, finish, arrival; returns totals.

    requests: (visible, prompt, seen, steps, arrived); tables: (D, M, H, b, b_w); settings: float array
    (policy, max tokens, max seqs, KV tokens, W, c, c_w, q, gain, overhead). Totals: busy s, kv token·s, steps,
    preemptions, end s. `clock` counts decode steps: a sequence that joined at clock j with s steps to go ends at j + s
    and holds its prompt and (clock − j)·gain tokens.
    """
    visible, prompt, seen, steps, arrived = requests
    D, M, H, B, BW = tables
    policy, max_tokens, max_seqs = int(settings[0]), int(settings[1]), int(settings[2])
    capacity, window, c, cw = settings[3], settings[4], settings[5], settings[6]
    q, gain, overhead = int(settings[7]), settings[8], settings[9]
    num = len(visible)
    todo, held, left, join = prompt.copy(), arrived.copy(), steps.copy(), np.zeros(num, np.int64)
    pre, dec, redo = np.empty(max_seqs, np.int64), np.empty(max_seqs, np.int64), np.empty(num, np.int64)
    n_pre = n_dec = n_redo = head = come = clock = 0
    released = num if concurrency == 0 else min(concurrency, num)
    cached = used = t = 0.0
    totals = np.zeros(5)
    while True:
        while come < released and visible[come] <= t:
            come += 1
        if n_pre + n_dec + n_redo == 0 and head == come:
            if come >= released:
                break
            t = visible[come]
            continue
        budget = max_tokens - (q * n_dec if policy == CHUNKED else 0)
        tokens, slot, pairs, window_pairs = 0, 0, 0.0, 0.0
        while budget > 0:
            if slot == n_pre:
                if n_pre + n_dec >= max_seqs or (n_redo == 0 and head == come) or (policy == STATIC and n_dec > 0):
                    break
                i = redo[n_redo - 1] if n_redo > 0 else head
                if n_redo == 0 and todo[i] + held[i] + steps[i] * gain + HALF_BLOCK > capacity:
                    head += 1  # can never fit: rejected
                    released = release(visible, out, concurrency, released, t, overhead)
                    continue
                need = todo[i] + held[i] + HALF_BLOCK * (n_pre + n_dec + 1)
                if used + need > capacity and n_pre + n_dec > 0:
                    break
                if n_redo > 0:
                    n_redo -= 1
                else:
                    head += 1
                    out[0, i] = t
                used += todo[i] + held[i]
                if todo[i] == 0:  # its KV cache was handed over: it decodes at once
                    dec[n_dec], join[i] = i, clock
                    n_dec, cached, budget = n_dec + 1, cached + held[i] + seen[i], budget - q
                    continue
                pre[n_pre] = i
                n_pre += 1
            i = pre[slot]
            new = min(todo[i], budget)
            sees = seen[i] + held[i] + (new + 1) / 2
            pairs, window_pairs = pairs + new * sees, window_pairs + new * min(sees, window)
            todo[i] -= new
            held[i] += new
            tokens, budget = tokens + new, budget - new
            slot += 1
        if tokens == 0 and n_dec == 0:
            continue
        n, k = (0 if tokens > 0 and policy != CHUNKED else n_dec), 1
        if tokens > 0:
            ending = 0
            for slot in range(n_pre):
                ending += todo[pre[slot]] == 0
            span = M[min(tokens + q * n, len(M) - 1)] + H[min(n + ending, len(H) - 1)] + c * pairs + cw * window_pairs
            if n > 0:
                span += B[n] * cached + BW[n] * min(cached, n * window)
                record_gaps(weights, 40.0, span / gain, span / gain, n * gain)
        else:
            pools = (dec, n_dec, redo, n_redo, clock, cached, used)
            n, n_redo, cached, used = evict(pools, (todo, held, left, join, seen), gain, capacity)
            evicted, n_dec = n_dec - n, n
            totals[3] += evicted
            k = left[dec[0]] + join[dec[0]] - clock
            for slot in range(1, n):
                k = min(k, left[dec[slot]] + join[dec[slot]] - clock)
            k = max(1, min(k, int((capacity - used - HALF_BLOCK * n) / (n * gain))))
            if evicted > 0:  # what was just evicted may fit again after one step
                k = 1
            base, b, bw = D[n], B[n], BW[n]
            if n_redo == 0 and head == come and come < released and n < max_seqs and policy != STATIC:
                k = steps_until(visible[come] - t, n, cached, k, base, b, bw, window, gain)
            span = decode_span_s(n, cached, k, base, b, bw, window, gain)
            first = decode_span_s(n, cached, 1, base, b, bw, window, gain)
            record_gaps(weights, 40.0, first / gain, max(first, 2 * span / k - first) / gain, n * k * gain)
        totals[0], totals[1], totals[2] = totals[0] + span, totals[1] + span * used, totals[2] + k
        t += span
        if n > 0:
            clock, cached, used = clock + k, cached + n * k * gain, used + n * k * gain
        pools = (pre, n_pre, dec, n_dec, clock, cached, used)
        n_pre, n_dec, cached, used, ended = end_step(pools, (todo, held, left, join, seen), n > 0, gain, t, out)
        for _ in range(ended):
            released = release(visible, out, concurrency, released, t, overhead)
    totals[4] = t
    return totals
