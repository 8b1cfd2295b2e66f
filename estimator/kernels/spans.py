"""Time of runs of decode steps, and the histogram of token gaps: small compiled functions shared by the kernels."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from estimator.simulation import ITL_EDGES_S

MANY = 1 << 40
EDGES_S = ITL_EDGES_S
MANTISSA_BITS = 52 - 5  # of a float64 that are cut off: what is left counts 32nds of an octave, narrower than a bin
KEYS = EDGES_S[1:-1].view(np.int64) >> MANTISSA_BITS
FIRST_KEY = int(KEYS[0])
_STARTS_S = (np.arange(FIRST_KEY, int(KEYS[-1]) + 2) << MANTISSA_BITS).view(np.float64)
BINS = np.maximum(np.searchsorted(EDGES_S, _STARTS_S, side="right") - 1, 0)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_span_s(first_s, slope_s, k):
    """Seconds of k steps that take first_s, first_s + slope_s, ...: k·first + slope·k(k − 1)/2."""
    return k * (first_s + slope_s * (0.5 * (k - 1)))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_steps_until(limit_s, first_s, slope_s):
    """Fewest steps, at least 1, of such a line whose time reaches limit_s: the root of a quadratic, then corrected."""
    if limit_s <= first_s:
        return 1
    if slope_s > 0.0:
        per_slope = 1.0 / slope_s
        p, twice = first_s * per_slope - 0.5, 2.0 * limit_s * per_slope
        root = twice / (p + math.sqrt(p * p + twice))
    else:
        root = limit_s / first_s
    k = math.ceil(root)
    if line_span_s(first_s, slope_s, k) < limit_s:
        return k + 1
    return k - 1 if k > 1 and line_span_s(first_s, slope_s, k - 1) >= limit_s else k


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_crossing(top_s, top_slope, value_s, slope):
    """Steps for which a line that is not above the top one stays so."""
    return int(min((top_s - value_s) / (slope - top_slope), 1e9)) + 1 if slope > top_slope else MANY


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_backlog_s(backlog_s, first_s, span_s, k, push_s):
    """Work that one server has left after k steps, each of which ends with push_s more of it.

    Lindley: W_i = max(W_{i−1} − x_i, 0) + push. Unrolled, W_k is the largest of W_0 + k·push − Σx and of
    push + Σ_{i>j} (push − x_i) over j ≥ 1; that sum is convex in j where steps x_i never shorten, so that j = 1 and
    j = k suffice. `first_s` is x_1, `span_s` Σx.
    """
    return max(backlog_s + k * push_s - span_s, push_s + max(0.0, (k - 1) * push_s - (span_s - first_s)))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def gap_bin(gap_s):
    """Bin of `EDGES_S` that a gap lies in: the one in which its 32nd of an octave begins, or the next."""
    key = (np.float64(gap_s).view(np.int64) >> MANTISSA_BITS) - FIRST_KEY
    if key < 0:
        return 0
    place = BINS[min(key, len(BINS) - 1)]
    return place + (gap_s >= EDGES_S[place + 1])


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def record_gaps(weights, first_s, last_s, num_gaps):
    """Adds gaps that run evenly from first_s to last_s to the histogram over `EDGES_S`."""
    place = gap_bin(first_s)
    if last_s < EDGES_S[place + 1]:
        weights[place] += num_gaps
        return
    per_s, low_s = num_gaps / (last_s - first_s), first_s
    while EDGES_S[place + 1] <= last_s:
        weights[place] += per_s * (EDGES_S[place + 1] - low_s)
        low_s = EDGES_S[place + 1]
        place += 1
    weights[place] += per_s * (last_s - low_s)
