"""KV blocks of decoding sequences, counted exactly while steps are skipped.

A sequence that joined decoding at clock j with h tokens holds u(c) = (h·U + p·(c − j)) units at clock c, in ⌈u/M⌉
blocks. Its phase ρ = (h·U − p·j) mod M never changes, so a histogram of phases tells how many sequences open a block in
the step from c to c + 1: those with (ρ + p·c) mod M in {0, M − p + 1, ..., M − 1}. Over M steps every sequence opens p.

| symbol | meaning |
|---|---|
| U | units per token: 1 where a step gains whole tokens, else 16 |
| M | units per block, 16·U, a power of two |
| p | units gained per step |

The phases of one rank are lane[at, first : first + M].
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, error_model="numpy")
def blocks_of(units, M):
    """⌈units/M⌉."""
    return (units + M - 1) // M


@njit(cache=True, error_model="numpy")
def new_blocks(lane, at, first, M, clock, p):
    """Blocks opened by one step from `clock`."""
    opened = 0
    for r in range(p):
        opened += lane[at, first + ((-r - p * clock) & (M - 1))]
    return opened


@njit(cache=True, error_model="numpy")
def steps_within(lane, at, first, M, clock, n, p, room, k_max):
    """Most steps, at most k_max, that n sequences can take before they have opened more than `room` blocks."""
    if n * (p * k_max // M + 1) <= room:
        return k_max
    cycles = room // (n * p)
    k, left = cycles * M, room - cycles * n * p
    while k < k_max:
        left -= new_blocks(lane, at, first, M, clock + k, p)
        if left < 0:
            return k
        k += 1
    return k_max


@njit(cache=True, error_model="numpy")
def held_time(lane, at, first, M, clock, n, p, used, first_s, slope_s, k):
    """Block-seconds of k steps that take first_s + slope_s·d, from `used` blocks, and the blocks used at their end.

    A block opened by a step is held during it. Steps d = M·m + r of one r form products of two lines in m, summed by
    Σm = Q(Q − 1)/2 and Σm² = Q(Q − 1)(2Q − 1)/6.
    """
    per_cycle, total, opened, end = n * p, 0.0, used, used
    for r in range(min(k, M)):
        opened += new_blocks(lane, at, first, M, clock + r, p)
        step_s = first_s + slope_s * r
        if k <= M:
            total += opened * step_s
            end = opened
            continue
        Q = (k - r + M - 1) // M
        grow_s = slope_s * M
        total += opened * step_s * Q + (opened * grow_s + per_cycle * step_s) * (Q * (Q - 1) / 2)
        total += per_cycle * grow_s * (Q * (Q - 1) * (2 * Q - 1) / 6)
        if r == (k - 1) % M:
            end = opened + per_cycle * (Q - 1)
    return total, end
