"""What a screen's table keeps of a space too large to list: promising shapes, at counts that may be of use.

| symbol | meaning |
|---|---|
| r, c | req/s that one instance of a shape carries at most, and what it costs per hour |
| q | req/s to be carried: by a pair of shapes for (q/r_p)·c_p + (q/r_d)·c_d, counts rounded up |

Kept are the pairs whose cost is least at some q, and of each the counts near the balance of its pools, geometric in
size, and those about the demand. Pools of n·g and m·g instances are simulated as one part of n and m: large counts are
moved to near ones whose parts are small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
NUM_COUNTS = 24  # instance counts per shape, geometric
BALANCES = (0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.6)  # decode instances, over those that match the prefill pool
SHARES = (0.92, 0.96, 1.0, 1.05, 1.1, 1.2, 1.35, 1.6)  # of what carries the demand by the bound, in either pool
MAX_PART = 12  # instances of an equal part: simulating one takes as much longer as it is larger
NUM_LEVELS = 14  # rates at which pairs are compared, each half the one before
MOST_OVER = 4.0  # times the least cost at every level: dearer pairs are left out
PAST_TOP = 1.5  # bound over the goodput wanted, at most: what waiting and tails may cost
CHUNK = 256  # pairs whose counts are made at once
NEAR = 0.12  # of the counts: how far `around` looks
FINE_PART = 32  # instances of an equal part there


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thinning:
    """Shapes as arrays (s,): `rate_req_s` and `usd_per_h` of one instance, its `num_gpus`, instances at `most`.

    `max_gpus` of a strategy; `demand_req_s` None: no rate is special; `top_req_s`: goodput wanted at most.
    """

    rate_req_s: FloatArray
    usd_per_h: FloatArray
    num_gpus: IntArray
    most: IntArray
    max_gpus: int
    demand_req_s: float | None
    top_req_s: float

    def singles(self, shapes: IntArray) -> tuple[IntArray, IntArray]:
        """(shape, count) of collocated pools."""
        counts = self._grid(shapes)
        if self.demand_req_s is not None:
            counts = np.concatenate((counts, self._about_demand(shapes, self.demand_req_s)), axis=1)
        keep = (counts >= 1) & (counts <= self.most[shapes, None])
        cells = np.stack([np.broadcast_to(shapes[:, None], counts.shape)[keep], counts[keep]])
        first, x = np.unique(cells, axis=1)
        return first, x

    def pairs(self, first: IntArray, second: IntArray, room: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """(first, second, x, y) of the best pairs first, about `room` of them at most."""
        ranked = self._ranked(first, second)
        found: list[IntArray] = [np.zeros((4, 0), dtype=np.int64)]
        for start in range(0, len(ranked), CHUNK):
            if room <= 0:
                break
            chunk = ranked[start : start + CHUNK]
            found.append(self._cells(first[chunk], second[chunk]))
            room -= found[-1].shape[1]
        p, d, x, y = np.concatenate(found, axis=1)
        return p, d, x, y

    def _ranked(self, first: IntArray, second: IntArray) -> IntArray:
        """Pairs by their cost over the least, at the level where it is nearest; hopeless ones are left out."""
        rate_p, rate_d = self.rate_req_s[first], self.rate_req_s[second]
        sound = np.flatnonzero((rate_p > 0) & (rate_d > 0))
        if len(sound) == 0:
            return sound
        p, d, over = first[sound], second[sound], np.full(len(sound), np.inf)
        best = float(np.minimum(self.most[p] * rate_p[sound], self.most[d] * rate_d[sound]).max())
        for level in range(NUM_LEVELS):
            q = min(self.top_req_s, best) / 2**level
            x, y = np.ceil(q / rate_p[sound]), np.ceil(q / rate_d[sound])
            fits = x * self.num_gpus[p] + y * self.num_gpus[d] <= self.max_gpus
            cost = np.where(fits, x * self.usd_per_h[p] + y * self.usd_per_h[d], np.inf)
            least = cost.min()
            if np.isfinite(least):
                over = np.minimum(over, cost / max(least, 1e-12))
        order = np.argsort(over, kind="stable")
        return sound[order[over[order] <= MOST_OVER]]

    def _cells(self, p: IntArray, d: IntArray) -> IntArray:
        """(4, n) distinct (first, second, x, y) of these pairs, within the GPU budget."""
        balance = (self.rate_req_s[p] / self.rate_req_s[d])[:, None]
        x_grid, y_grid = self._grid(p), self._grid(d)
        xs, ys = [], []
        for share in BALANCES:
            for rounded in (np.floor, np.ceil):
                xs.append(x_grid)
                ys.append(rounded(x_grid * balance * share))
        for rounded in (np.floor, np.ceil):
            xs.append(rounded(y_grid / balance))
            ys.append(y_grid)
        if self.demand_req_s is not None:
            about_x, about_y = (self._about_demand(shapes, self.demand_req_s) for shapes in (p, d))
            xs.append(np.repeat(about_x, len(SHARES), axis=1))
            ys.append(np.tile(about_y, (1, len(SHARES))))
        x, y = (np.concatenate(parts, axis=1).astype(np.int64) for parts in (xs, ys))
        x, y = alike_parts(x, y)
        first, second = (np.broadcast_to(shapes[:, None], x.shape) for shapes in (p, d))
        keep = (x >= 1) & (y >= 1) & (x * self.num_gpus[first] + y * self.num_gpus[second] <= self.max_gpus)
        return _distinct(first[keep], second[keep], x[keep], y[keep])

    def _grid(self, shapes: IntArray) -> IntArray:
        """(s, NUM_COUNTS) counts from 1 to what carries the most that is wanted."""
        rate = np.maximum(self.rate_req_s[shapes], 1e-12)
        top = np.clip(np.ceil(min(PAST_TOP * self.top_req_s, 1e15) / rate), 1, self.most[shapes])
        return np.round(top[:, None] ** np.linspace(0.0, 1.0, NUM_COUNTS)).astype(np.int64)

    def _about_demand(self, shapes: IntArray, demand_req_s: float) -> IntArray:
        """(s, shares) counts that just carry the demand by the bound, and a little more or less."""
        rate = np.maximum(self.rate_req_s[shapes, None], 1e-9)
        return np.ceil(demand_req_s * np.array(SHARES) / rate).astype(np.int64)


def alike_parts(x: IntArray, y: IntArray) -> tuple[IntArray, IntArray]:
    """Counts near these that split into equal parts of about `MAX_PART` instances; a count of 0 stays 0."""
    parts = np.maximum(1, (x + y) // MAX_PART)
    x, y = (parts * np.maximum(np.round(n / parts), np.minimum(n, 1)).astype(np.int64) for n in (x, y))
    return x, y


def around(x: int, y: int) -> tuple[IntArray, IntArray]:
    """Counts within `NEAR` of these, of pairs those that split into equal parts of `FINE_PART` instances at most."""
    xs, ys = (np.arange(max(1, math.floor(n * (1 - NEAR))), math.ceil(n * (1 + NEAR)) + 1) for n in (x, y))
    if y == 0:
        return xs, np.zeros_like(xs)
    near_x, near_y = np.repeat(xs, len(ys)), np.tile(ys, len(xs))
    keep = near_x + near_y <= FINE_PART * np.gcd(near_x, near_y)
    return near_x[keep], near_y[keep]


def _distinct(p: IntArray, d: IntArray, x: IntArray, y: IntArray) -> IntArray:
    sizes = [int(column.max(initial=0)) + 1 for column in (p, d, x, y)]
    keys = np.unique(np.ravel_multi_index((p, d, x, y), sizes))
    return np.stack(np.unravel_index(keys, sizes)).astype(np.int64)
