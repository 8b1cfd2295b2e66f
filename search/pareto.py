"""The Pareto front of goodput (up) against cost (down), and the area it dominates.

| symbol | shape | meaning |
|---|---|---|
| g | (n,) req/s | goodput, larger is better |
| c | (n,) $/h | cost, smaller is better |
| (0, c_ref) | point | reference: no goodput at the dearest cost considered |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(goodput_req_s: ArrayLike, usd_per_h: ArrayLike) -> NDArray[np.int64]:
    """Indices of the undominated points by rising cost (and goodput); of equal points the first one given.

    A point is dominated if another is no worse in both and better in one.
    """
    g, c = np.asarray(goodput_req_s, dtype=np.float64), np.asarray(usd_per_h, dtype=np.float64)
    order = np.lexsort((np.arange(len(g)), -g, c))
    if len(order) == 0:
        return order.astype(np.int64)
    best_before = np.concatenate(([-np.inf], np.maximum.accumulate(g[order])[:-1]))
    return order[g[order] > best_before].astype(np.int64)


def hypervolume(goodput_req_s: ArrayLike, usd_per_h: ArrayLike, *, ref_usd_per_h: float) -> float:
    """Area dominated between the points and (0 req/s, `ref_usd_per_h`); points beyond the reference add nothing.

    A staircase: between two neighbouring costs of the front, the goodput of the cheaper one holds.
    """
    g, c = np.asarray(goodput_req_s, dtype=np.float64), np.asarray(usd_per_h, dtype=np.float64)
    inside = (g > 0) & (c < ref_usd_per_h)
    g, c = g[inside], c[inside]
    front = non_dominated(g, c)
    widths = np.diff(np.append(c[front], ref_usd_per_h))
    return float(g[front] @ widths)
