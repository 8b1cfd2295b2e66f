"""What a previous run of a similar problem suggests trying first. Its evaluations are never taken for answers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd

from estimator.errors import BestServeError
from spaces.space import Space
from spaces.strategy import Pool, Strategy

MAX_WARM = 64  # strategies taken over at most


def warm_strategies(run: Path, space: Space, demand_req_s: float | None) -> tuple[Strategy, ...]:
    """The run's front as it is and at the counts that carry this demand, what carried its own demand first.

    Strategies move to the nearest of this space's shapes of the same GPU and degrees; those it lacks are left out.
    Raises `BestServeError` if the folder holds no front.
    """
    try:
        front = pd.read_csv(run / "front.csv")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        raise BestServeError("warm_start", str(run), "holds no front", "the folder of a finished run") from None
    found: dict[Strategy, None] = {}
    for text, goodput in zip(front["strategy"], front["goodput_req_s"], strict=True):
        moved = _moved(Strategy.parse(str(text)), space)
        if moved is None:
            continue
        for strategy in (_carrying(moved, goodput, demand_req_s), moved):
            if strategy in space:
                found[strategy] = None
    return tuple(found)[:MAX_WARM]


def _carrying(strategy: Strategy, goodput_req_s: float, demand_req_s: float | None) -> Strategy:
    """The strategy with all counts scaled so that it should just carry the demand."""
    if demand_req_s is None or goodput_req_s <= 0:
        return strategy
    scale = demand_req_s / goodput_req_s
    return replace(
        strategy,
        pools=tuple(replace(pool, count=max(1, math.ceil(pool.count * scale))) for pool in strategy.pools),
    )


def _moved(strategy: Strategy, space: Space) -> Strategy | None:
    pools = [_nearest(pool, space) for pool in strategy.pools]
    if any(pool is None for pool in pools):
        return None
    return replace(strategy, pools=tuple(pool for pool in pools if pool is not None))


def _nearest(pool: Pool, space: Space) -> Pool | None:
    """The space's shape of the same role, GPU and degrees whose limits are nearest, with the pool's count."""
    alike = [
        shape
        for shape in space.shapes.get(pool.role, ())
        if shape.gpu == pool.gpu and shape.parallelism == pool.parallelism
    ]
    if not alike:
        return None
    return replace(min(alike, key=lambda shape: _distance(shape, pool)), count=pool.count)


def _distance(a: Pool, b: Pool) -> float:
    limits = ((a.max_num_batched_tokens, b.max_num_batched_tokens), (a.max_num_seqs, b.max_num_seqs))
    return sum(abs(math.log(one / other)) if one and other else float(one != other) for one, other in limits)
