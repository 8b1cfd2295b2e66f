"""Records of jobs filled from columns, and their times read back, each in one pass over memory.

`columns` (5, num) s: arrival, start, first token shown, KV arrival, finish. `sums` (6,): seconds summed over requests
in prefill, before prefill, in decode and before decode; the last finish (−∞ without one) and the first arrival.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from estimator.simulation import FINISHED, REJECTED


@njit(cache=True, error_model="numpy", _nrt=False)
def pack(jobs, sent, requests, bytes_per_token, bytes_per_s):
    """Fills every field of `jobs` from (sent, delay, visible) s and (input, cached tokens, decode steps)."""
    arrival_s, delay_s, visible_s = sent
    inputs, cached, steps = requests
    for i in range(len(jobs)):
        job = jobs[i]
        job["arrival_s"], job["delay_s"], job["visible_s"] = arrival_s[i], delay_s[i], visible_s[i]
        job["start_s"] = job["first_s"] = job["reserved_s"] = job["kv_s"] = np.nan
        job["join_s"] = job["finish_s"] = job["token_s"] = np.nan
        job["wire_s"] = inputs[i] * bytes_per_token / bytes_per_s
        job["held"], job["predicted"], job["known_s"] = 0, 0.0, 0.0
        job["prompt"] = job["todo"] = inputs[i] - cached[i]
        job["seen"], job["handed"], job["left"] = cached[i], inputs[i], steps[i]
        job["source_place"] = job["place"] = job["source"] = job["target"] = 0


@njit(cache=True, error_model="numpy", _nrt=False)
def unpack(jobs, holds_first_token, columns, status, sums):
    """Reads times, outcomes and sums; a first token that travels with the cache is shown when that has arrived."""
    sums[:4], sums[4], sums[5] = 0.0, -np.inf, np.inf
    for i in range(len(jobs)):
        job = jobs[i]
        arrival_s, start_s, first_s = job["arrival_s"], job["start_s"], job["first_s"]
        kv_s, join_s, finish_s = job["kv_s"], job["join_s"], job["finish_s"]
        columns[0, i], columns[1, i], columns[3, i], columns[4, i] = arrival_s, start_s, kv_s, finish_s
        columns[2, i] = kv_s if holds_first_token and np.isfinite(kv_s) else first_s
        sums[5] = min(sums[5], arrival_s)
        if np.isfinite(finish_s):
            status[i] = FINISHED
            sums[4] = max(sums[4], finish_s)
        else:
            status[i] = REJECTED
        if np.isfinite(start_s):
            sums[1] += start_s - arrival_s
            if np.isfinite(first_s):
                sums[0] += first_s - start_s
        if np.isfinite(join_s):
            sums[3] += join_s - first_s
            if np.isfinite(finish_s):
                sums[2] += finish_s - join_s
