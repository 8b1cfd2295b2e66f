"""Classes of strategies that an answer compares, each architecture and each GPU type, and the plainest of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from search.screen import Screen
from spaces.space import Space
from spaces.strategy import Pool, Strategy

CARRIED_FRAC = 0.85  # of the bound: what a strategy serves in the median, so that plain ones should carry the demand


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyClass:
    """Strategies of one architecture, or that use one GPU type."""

    is_disaggregated: bool | None = None
    gpu: str | None = None

    def __contains__(self, strategy: Strategy) -> bool:
        if self.gpu is not None:
            return self.gpu in strategy.gpu_counts
        return strategy.is_disaggregated == self.is_disaggregated


def classes_of(space: Space) -> list[StrategyClass]:
    """Each architecture, then each GPU type, that the space holds."""
    shapes = [shape for shapes in space.shapes.values() for shape in shapes]
    paired = [kind for kind in (False, True) if any((shape.role != "m") == kind for shape in shapes)]
    architectures = [StrategyClass(is_disaggregated=kind) for kind in paired]
    return architectures + [StrategyClass(gpu=gpu) for gpu in sorted({shape.gpu for shape in shapes})]


def plainest(screen: Screen) -> list[Strategy]:
    """Tensor parallelism alone: collocated at every degree of each GPU type, two pools at the degrees that cost least.

    Of the engine limits those of the best bound; instances as the demand needs by it, one where there is none, and
    collocated ones also as many as fill the nodes that are paid for then.
    """
    needed = [_of(screen, "collocated", shape) for shape in _plain(screen, "m")]
    found = needed + [_filled(screen, strategy) for strategy in needed if strategy is not None]
    decode = _plain(screen, "d")
    for gpu in screen.gpus:
        pairs = [[shape for shape in shapes if shape.gpu == gpu] for shapes in (_plain(screen, "p"), decode)]
        if all(pairs):
            ends = [max(shapes, key=lambda shape: _rate(screen, shape) / shape.num_gpus) for shapes in pairs]
            found.append(_of(screen, "disaggregated", *ends))
    return list(dict.fromkeys(strategy for strategy in found if strategy is not None))


def _plain(screen: Screen, role: str) -> list[Pool]:
    """Of each GPU type and degree the shape of the best bound; shapes without one are left out."""
    best: dict[tuple[str, int], Pool] = {}
    for shape in screen.shapes:
        degrees = shape.parallelism
        if shape.role == role and degrees.num_gpus == degrees.tp and degrees.ep == 1 and _rate(screen, shape) > 0:
            key = (shape.gpu, degrees.tp)
            best[key] = max(best.get(key, shape), shape, key=lambda one: _rate(screen, one))
    return list(best.values())


def _rate(screen: Screen, shape: Pool) -> float:
    return float(screen.rate[screen.index_of[shape]])


def _of(screen: Screen, architecture: str, *shapes: Pool) -> Strategy | None:
    """The shapes in the first mode of their architecture; None where the space has none."""
    policies = screen.space.allowed
    allowed = policies.collocated_policies if architecture == "collocated" else policies.disaggregated_policies
    mode = next((mode for mode in screen.modes if mode[0] in allowed), None)
    if mode is None:
        return None
    pools = tuple(replace(shape, count=count) for shape, count in zip(shapes, _counts(screen, shapes), strict=True))
    return Strategy(pools=pools, policy=mode[0], router=mode[1])


def _filled(screen: Screen, strategy: Strategy) -> Strategy:
    """As many instances as the GPUs paid for hold, where GPUs are sold by the node."""
    (pool,) = strategy.pools
    node = screen.tariff.cards[pool.gpu].gpus_per_node
    paid = -(-pool.num_gpus // node) * node
    most = min(paid, screen.space.max_gpus(pool.gpu)) // pool.parallelism.num_gpus
    return replace(strategy, pools=(replace(pool, count=max(pool.count, most)),))


def _counts(screen: Screen, shapes: tuple[Pool, ...]) -> Iterator[int]:
    for shape in shapes:
        wanted = (screen.demand_req_s or 0.0) / (CARRIED_FRAC * _rate(screen, shape))
        yield min(max(1, math.ceil(wanted)), max(1, screen.space.max_gpus(shape.gpu) // shape.num_gpus))
