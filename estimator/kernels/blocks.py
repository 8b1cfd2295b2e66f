"""KV blocks of decoding sequences, counted exactly while steps are skipped.

A sequence that joined decoding at clock j with h tokens holds u(c) = (h·U + p·(c − j)) units at clock c, in ⌈u/M⌉
blocks. Its phase ρ = (h·U − p·j) mod M never changes, so a histogram of phases tells how many sequences open a block in
the step from c to c + 1: those with (ρ + p·c) mod M in {0, M − p + 1, ..., M − 1}. Over M steps every sequence opens p.

| symbol | meaning |
|---|---|
| U | units per token: 1 where a step gains whole tokens, else 16 |
| M | units per block, 16·U |
| p | units gained per step |
"""

from __future__ import annotations

from numba import njit


@njit(cache=True)
def blocks_of(units, M):
    """⌈units/M⌉."""
    return (units + M - 1) // M


@njit(cache=True)
def new_blocks(phases, clock, p):
    """Blocks opened by one step from `clock`."""
    mask = len(phases) - 1  # M is a power of two
    opened = 0
    for r in range(p):
        opened += phases[(-r - p * clock) & mask]
    return opened


@njit(cache=True)
def steps_within(phases, clock, n, p, room, k_max):  # noqa: PLR0913 (scalars of a hot loop)
    """Most steps, at most k_max, that n sequences can take before they have opened more than `room` blocks."""
    M = len(phases)
    if n * (p * k_max // M + 1) <= room:
        return k_max
    cycles = room // (n * p)
    k, left = cycles * M, room - cycles * n * p
    while k < k_max:
        left -= new_blocks(phases, clock + k, p)
        if left < 0:
            return k
        k += 1
    return k_max


@njit(cache=True)
def held_time(phases, clock, n, p, used, first_s, slope_s, k):  # noqa: PLR0913
    """Block-seconds of k steps that take first_s + slope_s·d, from `used` blocks, and the blocks used at their end.

    A block opened by a step is held during it. Steps d = M·m + r of one r form products of two lines in m, summed by
    Σm = Q(Q − 1)/2 and Σm² = Q(Q − 1)(2Q − 1)/6.
    """
    M = len(phases)
    per_cycle, total, opened, end = n * p, 0.0, used, used
    for r in range(min(k, M)):
        opened += new_blocks(phases, clock + r, p)
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
