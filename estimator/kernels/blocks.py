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
def blocks_opened(lane, at, first, shift, clock, n, p, k):
    """Blocks that n sequences open in k steps from `clock`."""
    opened = n * p * (k >> shift)
    for r in range(k & ((1 << shift) - 1)):
        opened += new_blocks(lane, at, first, shift, clock + r, p)
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

    A block opened by a step is held during it. With v_r blocks held in step r < M, steps d = M·m + r of one r hold
    v_r + n·p·m, and there are Q or Q + 1 of them: sums over m of products of two lines, Σm = Q(Q − 1)/2 and
    Σm² = Q(Q − 1)(2Q − 1)/6, from Σv_r and Σr·v_r.
    """
    M = 1 << shift
    Q, rest = k >> shift, k & (M - 1)
    held, moment, opened = 0, 0, used
    for r in range(rest):
        opened += new_blocks(lane, at, first, shift, clock + r, p)
        held, moment = held + opened, moment + r * opened
    if Q == 0:
        return first_s * held + slope_s * moment, opened
    per_cycle = n * p
    end = opened + per_cycle * Q
    total = _cycles_held(Q + 1, rest, 0, held, moment, per_cycle, first_s, slope_s, M)
    held, moment = 0, 0
    for r in range(rest, M):
        opened += new_blocks(lane, at, first, shift, clock + r, p)
        held, moment = held + opened, moment + r * opened
    return total + _cycles_held(Q, M - rest, rest, held, moment, per_cycle, first_s, slope_s, M), end


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _cycles_held(Q, num, low, held, moment, per_cycle, first_s, slope_s, M):
    """Block-seconds of Q cycles of `num` steps r from `low` on: Σv_r = `held`, Σr·v_r = `moment`."""
    triangle = 0.5 * Q * (Q - 1)
    squares = triangle * (2 * Q - 1) / 3.0
    grow_s = slope_s * M
    line_s = num * (first_s + slope_s * (low + 0.5 * (num - 1)))
    own = (Q * first_s + grow_s * triangle) * held + Q * slope_s * moment
    return own + per_cycle * (triangle * line_s + num * grow_s * squares)
