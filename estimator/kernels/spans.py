"""Time of runs of decode steps, and the histogram of token gaps: small compiled functions shared by the kernels."""

from __future__ import annotations

import math

from numba import njit

GAPS_PER_DECADE = 40.0  # bins of `estimator.simulation.ITL_EDGES_S`


@njit(cache=True, error_model="numpy", _nrt=False)
def decode_span_s(n, cached, k, base, b, bw, window, gain):
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


@njit(cache=True, error_model="numpy", _nrt=False)
def steps_until(limit_s, n, cached, k_max, base, b, bw, window, gain):
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


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_span_s(first_s, slope_s, k):
    """Seconds of k steps that take first_s, first_s + slope_s, ...: k·first + slope·k(k − 1)/2."""
    return k * first_s + slope_s * (k * (k - 1) / 2)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def line_steps_until(limit_s, first_s, slope_s):
    """Fewest steps, at least 1, of such a line whose time reaches limit_s: the root of a quadratic, then corrected."""
    if slope_s > 0.0:
        p = first_s / slope_s - 0.5
        root = 2.0 * limit_s / slope_s / (p + math.sqrt(p * p + 2.0 * limit_s / slope_s)) if limit_s > 0.0 else 1.0
    else:
        root = limit_s / first_s
    k = max(1, math.ceil(root))
    while k > 1 and line_span_s(first_s, slope_s, k - 1) >= limit_s:
        k -= 1
    while line_span_s(first_s, slope_s, k) < limit_s:
        k += 1
    return k


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def record_gaps(weights, per_decade, first_s, last_s, num_gaps):
    """Adds gaps that run evenly from first_s to last_s to the histogram (bin edges 0, 0.1 ms, then geometric)."""
    parts, scale = (1 if last_s <= first_s * 1.03 else 8), per_decade / math.log(10.0)
    for part in range(parts):
        gap = first_s + (last_s - first_s) * (part + 0.5) / parts
        place = 0
        if gap >= 1e-4:
            place = min(1 + int(math.log(gap * 1e4) * scale), len(weights) - 1)
        weights[place] += num_gaps / parts
