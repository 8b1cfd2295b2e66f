"""KV blocks of decoding sequences, counted exactly while steps are skipped.

A sequence that joined decoding at clock j with h tokens holds u(c) = (h·U + p·(c − j)) units at clock c, in ⌈u/M⌉
blocks. Its phase ρ = (h·U − p·j) mod M never changes, so a histogram of phases tells how many sequences open a block in
the step from c to c + 1: those with (ρ + p·c) mod M in {0, M − p + 1, ..., M − 1}. Over M steps every sequence opens p.

| symbol | meaning |
|---|---|
| U | units per token: 1 where a step gains whole tokens, else 16 |
| M | units per block, 16·U = 2^shift |
| p | units gained per step |

The phases of one rank are lane[at, first : first + M].
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def blocks_of(units, shift):
    """⌈units/M⌉."""
    return (units + (1 << shift) - 1) >> shift


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def new_blocks(lane, at, first, shift, clock, p):
    """Blocks opened by one step from `clock`."""
    mask, opened = (1 << shift) - 1, lane[at, first + (-p * clock & ((1 << shift) - 1))]
    for r in range(1, p):
        opened += lane[at, first + ((-r - p * clock) & mask)]
    return opened


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def steps_within(lane, at, first, shift, clock, n, p, room, k_max):
    """Most steps, at most k_max, that n sequences can take before they have opened more than `room` blocks."""
    if n * ((p * k_max >> shift) + 1) <= room:
        return k_max
    cycles = room // (n * p)
    k, left = cycles << shift, room - cycles * n * p
    while k < k_max:
        left -= new_blocks(lane, at, first, shift, clock + k, p)
        if left < 0:
            return k
        k += 1
    return k_max


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def held_time(lane, at, first, shift, clock, n, p, used, first_s, slope_s, k):
    """Block-seconds of k steps that take first_s + slope_s·d, from `used` blocks, and the blocks used at their end.

    A block opened by a step is held during it. Steps d = M·m + r of one r form products of two lines in m, summed by
    Σm = Q(Q − 1)/2 and Σm² = Q(Q − 1)(2Q − 1)/6.
    """
    M = 1 << shift
    total, opened = 0.0, used
    if k <= M:
        for r in range(k):
            opened += new_blocks(lane, at, first, shift, clock + r, p)
            total += opened * (first_s + slope_s * r)
        return total, opened
    cycles, rest, per_cycle, grow_s = k >> shift, k & (M - 1), n * p, slope_s * M
    end = used + per_cycle * cycles
    for r in range(M):
        opened += new_blocks(lane, at, first, shift, clock + r, p)
        step_s = first_s + slope_s * r
        Q = cycles
        if r < rest:
            Q, end = cycles + 1, opened + per_cycle * cycles
        triangle = Q * (Q - 1) * 0.5
        total += opened * step_s * Q + (opened * grow_s + per_cycle * step_s) * triangle
        total += per_cycle * grow_s * triangle * (2 * Q - 1) / 3.0
    return total, end
