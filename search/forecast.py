"""What evaluated strategies say about the rest: how far goodput stays behind its bound, learned by Bayesian regression.

| symbol | shape | meaning |
|---|---|---|
| G, B | (n,) req/s | goodput, and its bound (`search.screen`) |
| e | (n,) | ln(G/B): what waiting, bursts and the TTFT target cost; about −0.15, and alike for alike strategies |
| X | (n, k) | features by number: the limiting pool's GPU, layout and shape, the balance of pools, counts |
| w, Λ | (F,), diag | weights, e = Σ_k w[X_k] + noise of variance s²; w ~ N(0, Λ), wider the coarser |

The posterior of w given N evaluations is normal with precision A = Λ⁻¹ + XᵀX/s² and mean A⁻¹Xᵀe/s² (Bishop 2006, eq.
3.53-3.54); features never seen keep their prior. A forecast only chooses what is evaluated next; it is never an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.screen import Rows, Screen

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
PRIOR_MEAN = -0.15  # of e, over 800 strategies of four bundled problems (2026-11-25)
NOISE = 0.03  # of e: sampling and bisection of a goodput, and what the features do not tell
LOWEST = -3.0  # e of strategies that serve nothing
NUM_BALANCES = 17  # bins of the logarithm of the pools' balance, a quarter octave each
NUM_COUNTS = 13  # bins of counts, one octave each
SD = {  # prior standard deviation of each family of features
    "kind": 0.2,
    "gpu": 0.2,
    "layout": 0.2,
    "shape": 0.15,
    "other_gpu": 0.05,
    "other_layout": 0.1,
    "other_shape": 0.1,
    "balance": 0.15,
    "count": 0.05,
    "other_count": 0.05,
    "ranks": 0.3,
}


class Features:
    """Numbers the features of a screen's rows: X of shape (n, k) with values below `num`."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        layouts = [(shape.role, shape.gpu, shape.parallelism) for shape in screen.shapes]
        names = {layout: number for number, layout in enumerate(dict.fromkeys(layouts))}
        self._layout = np.array([names[layout] for layout in layouts], dtype=np.int64)
        self._gpu = screen.gpu
        sizes = {"kind": 1, "gpu": len(screen.gpus), "layout": len(names), "shape": len(screen.shapes) + 1}
        sizes |= {f"other_{name}": sizes[name] for name in ("gpu", "layout", "shape")}
        sizes |= {"balance": NUM_BALANCES, "count": NUM_COUNTS, "other_count": NUM_COUNTS}
        ranks, self._ranks = np.unique([shape.parallelism.dp for shape in screen.shapes], return_inverse=True)
        sizes["ranks"] = max(len(ranks), 1)
        self._kinds = 4 * len(screen.modes)  # mode and side: each learns its own weights
        self._offsets = dict(zip(sizes, np.cumsum([0, *list(sizes.values())[:-1]]) * self._kinds, strict=True))
        self.num = sum(sizes.values()) * self._kinds
        self.sd = np.concatenate([np.full(size * self._kinds, SD[name]) for name, size in sizes.items()])

    def of(self, rows: Rows) -> IntArray:
        """X (n, k). A collocated strategy is its own other pool."""
        screen, by_decode = self._screen, rows.side == 2
        second = np.where(rows.second >= 0, rows.second, rows.first)
        limiting, other = np.where(by_decode, second, rows.first), np.where(by_decode, rows.first, second)
        count = np.where(by_decode, rows.y, rows.x)
        other_count = np.where(rows.second >= 0, np.where(by_decode, rows.x, rows.y), rows.x)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log2(rows.x * screen.rate[rows.first]) - np.log2(np.maximum(rows.y, 1) * screen.rate[second])
        ratio = np.where((rows.second >= 0) & np.isfinite(ratio), ratio, 0.0)
        half = NUM_BALANCES // 2
        values = {
            "kind": np.zeros(len(rows), dtype=np.int64),
            "gpu": self._gpu[limiting],
            "layout": self._layout[limiting],
            "shape": limiting,
            "other_gpu": self._gpu[other],
            "other_layout": self._layout[other],
            "other_shape": other,
            "balance": np.clip(np.round(4 * ratio), -half, half).astype(np.int64) + half,
            "count": _octave(count),
            "other_count": _octave(other_count),
        }
        values["ranks"] = self._ranks[limiting]
        kind = rows.mode * 4 + rows.side
        return np.stack([self._offsets[name] + value * self._kinds + kind for name, value in values.items()], axis=1)

    def layouts(self, rows: Rows) -> IntArray:
        """(n, 2) GPU and degrees of both pools by number."""
        return np.stack([self._layout[rows.first], np.where(rows.second >= 0, self._layout[rows.second], -1)], axis=1)


def _octave(counts: IntArray) -> IntArray:
    return np.minimum(np.log2(np.maximum(counts, 1)).astype(np.int64), NUM_COUNTS - 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """Posterior of the weights: `column` (F,) places seen features in `mean` (f,) and `covariance` (f, f), else −1."""

    sd: FloatArray
    column: IntArray
    mean: FloatArray
    covariance: FloatArray

    @classmethod
    def fitted(cls, sd: FloatArray, seen: IntArray, shortfall: FloatArray) -> Forecast:
        """From X of the evaluated strategies (N, k) and their e (N,); `sd` (F,) of the prior."""
        features, places = np.unique(seen, return_inverse=True)
        num, places = len(features), places.reshape(seen.shape)
        column = np.full(len(sd), -1, dtype=np.int64)
        column[features] = np.arange(num)
        pairs = (places[:, :, None] * num + places[:, None, :]).ravel()
        gram = np.bincount(pairs, minlength=num * num).reshape(num, num)
        precision = gram / NOISE**2 + np.diag(1.0 / sd[features] ** 2)
        covariance = np.asarray(np.linalg.inv(precision) if num else precision, dtype=np.float64)
        known = np.repeat(shortfall - PRIOR_MEAN, seen.shape[1])
        moment = np.bincount(places.ravel(), weights=known, minlength=num) / NOISE**2
        return cls(sd=sd, column=column, mean=covariance @ moment, covariance=covariance)

    def of(self, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of e for X (n, k), both (n,)."""
        places = self.column[features]
        seen = places >= 0
        unseen_variance = np.where(seen, 0.0, self.sd[features] ** 2).sum(axis=1)
        if not len(self.mean):
            return np.full(len(features), PRIOR_MEAN), np.sqrt(unseen_variance)
        mean = PRIOR_MEAN + np.where(seen, self.mean[places], 0.0).sum(axis=1)
        variance = unseen_variance
        for one in range(features.shape[1]):
            for other in range(one, features.shape[1]):
                both = seen[:, one] & seen[:, other]
                share = np.where(both, self.covariance[places[:, one], places[:, other]], 0.0)
                variance = variance + (share if one == other else 2.0 * share)
        return mean, np.sqrt(np.maximum(variance, 0.0))


def shortfall(goodput_req_s: FloatArray, bound_req_s: FloatArray) -> FloatArray:
    """e (n,) of evaluated strategies, not below `LOWEST`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        e = np.log(goodput_req_s / bound_req_s)
    return np.where(np.isfinite(e), np.clip(e, LOWEST, 1.0), LOWEST)


class Staircase:
    """The front as a function of cost: most goodput for at most that cost. Grows by `with_point`."""

    def __init__(self, goodput_req_s: FloatArray, usd_per_h: FloatArray, ref_usd_per_h: float) -> None:
        """Undominated points by rising cost."""
        self.goodput, self.cost, self.ref = goodput_req_s, usd_per_h, ref_usd_per_h
        knots = np.concatenate(([0.0], usd_per_h, [max(ref_usd_per_h, *usd_per_h, 0.0)]))
        steps = np.concatenate(([0.0], goodput_req_s))
        self._knots, self._area = knots, np.concatenate(([0.0], np.cumsum(steps * np.diff(knots))))

    @property
    def area(self) -> float:
        """Dominated between the points and (0 req/s, `ref_usd_per_h`)."""
        return float(self._area[-1])

    def at(self, usd_per_h: FloatArray) -> FloatArray:
        """Most goodput for at most these costs."""
        reached = np.concatenate(([0.0], self.goodput))
        return np.asarray(reached[np.searchsorted(self.cost, usd_per_h * (1 + 1e-12), side="right")], dtype=np.float64)

    def gain(self, goodput_req_s: FloatArray, usd_per_h: FloatArray) -> FloatArray:
        """Area that each point alone would add: ∫ (g − front) dt from its cost to where the front reaches g."""
        after = np.searchsorted(self.goodput, goodput_req_s, side="left")
        until = np.append(self.cost, self.ref)[after]
        below = np.interp(until, self._knots, self._area) - np.interp(usd_per_h, self._knots, self._area)
        return np.where(until > usd_per_h, goodput_req_s * (until - usd_per_h) - below, 0.0)

    def with_point(self, goodput_req_s: float, usd_per_h: float) -> Staircase:
        """The staircase with one more point."""
        keep = (self.cost < usd_per_h) | (self.goodput > goodput_req_s)
        place = int(np.count_nonzero(self.cost[keep] < usd_per_h))
        goodput = np.insert(self.goodput[keep], place, goodput_req_s)
        cost = np.insert(self.cost[keep], place, usd_per_h)
        front = np.concatenate(([True], goodput[1:] > np.maximum.accumulate(goodput)[:-1]))
        return Staircase(goodput[front], cost[front], self.ref)


def most_gain(
    hoped_req_s: FloatArray, usd_per_h: FloatArray, front: Staircase, *, room: int, least_gain: float
) -> list[int]:
    """Up to `room` points, each adding most area to the front and to those taken before it; none below `least_gain`."""
    gain = front.gain(hoped_req_s, usd_per_h)
    rows = np.flatnonzero(gain > least_gain)
    chosen: list[int] = []
    while len(rows) and len(chosen) < room:
        best = int(rows[np.argmax(gain[rows])])
        chosen.append(best)
        front = front.with_point(float(hoped_req_s[best]), float(usd_per_h[best]))
        gain[rows] = front.gain(hoped_req_s[rows], usd_per_h[rows])
        rows = rows[gain[rows] > least_gain]
    return chosen
