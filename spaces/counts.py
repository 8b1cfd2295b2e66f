"""How many instances: the counts that budget, ownership, whole nodes and the user's own limits leave, without listing.

| symbol | meaning |
|---|---|
| n, n_p, n_d | GPUs of one instance: collocated, prefill, decode |
| x, y | prefill and decode instances; N ≤ x·n_p + y·n_d ≤ M GPUs in all |
| v | GPUs of a node; whole nodes ask that v divides the GPUs of each type |

For each x the y that fit are an interval, thinned by a congruence modulo v: counting them needs no loop over y.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from spaces.problem import Problem
from spaces.strategy import Pool

IntArray = NDArray[np.int64]


class Counts:
    """Instance counts of one problem's shapes."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._allowed = problem, problem.space

    def max_gpus(self, gpu: str) -> int:
        """Most GPUs of a type that a strategy may use."""
        return min(self._allowed.max_gpus, self._allowed.owned.get(gpu, self._allowed.max_gpus))

    def most(self, shape: Pool, beside: Mapping[str, int] | None = None) -> int:
        """Most instances of a shape within budget, ownership and its role's limit, `beside` GPUs already in use."""
        beside = beside or {}
        n = shape.parallelism.num_gpus
        in_budget = (self._allowed.max_gpus - sum(beside.values())) // n
        owned = (self.max_gpus(shape.gpu) - beside.get(shape.gpu, 0)) // n
        own = self._allowed.of(shape.role).max_count
        return min(in_budget, owned) if own is None else min(in_budget, owned, own)

    def of_one(self, shape: Pool) -> IntArray:
        """Counts of a collocated shape, rising."""
        n, counts = shape.parallelism.num_gpus, np.arange(1, self.most(shape) + 1)
        keep = (counts >= self._allowed.of("m").min_count) & (counts * n >= self._allowed.min_gpus)
        if self._allowed.whole_nodes:
            keep &= counts * n % self._node(shape) == 0
        return counts[keep]

    def num_pairs(self, p: Pool, d: Pool) -> int:
        """Number of (x, y)."""
        _, low, high, rest = self._intervals(p, d)
        step = self._node(d) if self._allowed.whole_nodes else 1
        if step == 1:
            return int(np.maximum(high - low + 1, 0).sum())
        total, n_d = 0, d.parallelism.num_gpus
        for residue in np.unique(rest).tolist():
            of_residue = rest == residue
            most = int(high[of_residue].max(initial=0))
            fitting = np.concatenate(([0], np.cumsum(np.arange(1, most + 1) * n_d % step == residue)))
            lows, highs = low[of_residue] - 1, high[of_residue]
            some = highs > lows
            total += int((fitting[highs[some]] - fitting[lows[some]]).sum())
        return total

    def of_pair(self, p: Pool, d: Pool) -> tuple[IntArray, IntArray]:
        """Every (x, y) as two arrays, x slowest."""
        x, low, high, rest = self._intervals(p, d)
        widths = np.maximum(high - low + 1, 0)
        xs, rests = np.repeat(x, widths), np.repeat(rest, widths)
        starts = np.repeat(low - (np.cumsum(widths) - widths), widths)
        ys = starts + np.arange(len(xs))
        if self._allowed.whole_nodes:
            keep = ys * d.parallelism.num_gpus % self._node(d) == rests
            xs, ys = xs[keep], ys[keep]
        return xs, ys

    def _intervals(self, p: Pool, d: Pool) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Per x: x, least and most y, and the residue of y·n_d modulo a node that whole nodes ask for; all (num,)."""
        allowed, n_p, n_d = self._allowed, p.parallelism.num_gpus, d.parallelism.num_gpus
        x = np.arange(allowed.of("p").min_count, self.most(p, {d.gpu: n_d}) + 1)
        used = x * n_p
        high = (allowed.max_gpus - used) // n_d
        high = np.minimum(high, (self.max_gpus(d.gpu) - (used if p.gpu == d.gpu else 0)) // n_d)
        if (own := allowed.of("d").max_count) is not None:
            high = np.minimum(high, own)
        low = np.maximum(-(-(allowed.min_gpus - used) // n_d), allowed.of("d").min_count)
        rest = np.zeros_like(x)
        if allowed.whole_nodes and p.gpu == d.gpu:
            rest = -used % self._node(d)
        elif allowed.whole_nodes:
            full = used % self._node(p) == 0
            x, low, high, rest = x[full], low[full], high[full], rest[full]
        return x, low, high, rest

    def _node(self, shape: Pool) -> int:
        return self._problem.gpu(shape.gpu).gpus_per_node
