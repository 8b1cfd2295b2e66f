"""What failures leave of the recommended strategy, and what a spare costs.

A pool with one instance less is a strategy of its own, with a goodput of its own. A node takes all instances on it:
⌊GPUs of a node / GPUs of an instance⌋, packed densely, or one where an instance spans nodes. Restarting one instance
after the other leaves what the worst pool leaves, for as many start-ups as there are instances.
"""

from __future__ import annotations

from collections.abc import Iterator

from search.ledger import Ledger, with_counts
from search.money_view import LossRow, Resilience
from search.offer import Offer
from spaces.strategy import Pool, Strategy

POOLS = {"m": "one instance", "p": "one prefill instance", "d": "one decode instance"}


def resilience(ledger: Ledger, best: Offer, startup_s: float) -> Resilience:
    """Losses of one instance per pool and of one node, a rolling restart, and the price of a spare."""
    losses = list(_losses(ledger, best))
    spare = cheapest_spare(ledger, best.strategy)
    price = None if spare is None else ledger.tariff.usd_per_h(spare)
    return Resilience(
        losses=tuple(losses),
        spare=None if spare is None else str(spare),
        spare_usd_per_h=price,
        added_usd_per_h=None if price is None else max(0.0, price - best.usd_per_h),
        spare_goodput_req_s=0.0 if spare is None else ledger.goodput_req_s(spare),
        restart_min=sum(pool.count for pool in best.strategy.pools) * startup_s / 60.0,
    )


def _losses(ledger: Ledger, best: Offer) -> Iterator[LossRow]:
    strategy = best.strategy
    single = [(POOLS[pool.role], less(strategy, {index: 1})) for index, pool in enumerate(strategy.pools)]
    rows = [_loss(ledger, best, what, left) for what, left in single]
    yield from rows
    yield min(
        (_loss(ledger, best, "one node", left) for left in _without_a_node(ledger, strategy)),
        key=lambda row: row.goodput_req_s,
    )
    worst = min(rows, key=lambda row: row.goodput_req_s)
    yield LossRow(
        what="one instance at a time (rolling restart)",
        strategy=worst.strategy,
        goodput_req_s=worst.goodput_req_s,
        left_frac=worst.left_frac,
        carries=worst.carries,
    )


def _loss(ledger: Ledger, best: Offer, what: str, left: Strategy | None) -> LossRow:
    goodput = 0.0 if left is None else ledger.goodput_req_s(left)
    return LossRow(
        what=what,
        strategy=None if left is None else str(left),
        goodput_req_s=goodput,
        left_frac=goodput / best.goodput_req_s,
        carries=goodput >= ledger.demand_req_s,
    )


def less(strategy: Strategy, lost: dict[int, int]) -> Strategy | None:
    """The strategy without so many instances of each pool; None if a pool is gone."""
    counts = {index: strategy.pools[index].count - num for index, num in lost.items()}
    return with_counts(strategy, counts) if min(counts.values()) >= 1 else None


def _without_a_node(ledger: Ledger, strategy: Strategy) -> list[Strategy | None]:
    """What each node's failure leaves; pools of one GPU type that fit one node share it."""
    if len(strategy.gpu_counts) == 1:
        gpu = ledger.problem.gpu(strategy.pools[0].gpu)
        if strategy.num_gpus <= gpu.gpus_per_node:
            return [None]
    return [
        less(strategy, {index: min(pool.count, instances_per_node(ledger, pool))})
        for index, pool in enumerate(strategy.pools)
    ]


def instances_per_node(ledger: Ledger, pool: Pool) -> int:
    """Instances that one node's failure takes."""
    return max(1, ledger.problem.gpu(pool.gpu).gpus_per_node // pool.parallelism.num_gpus)


def cheapest_spare(ledger: Ledger, strategy: Strategy) -> Strategy | None:
    """The cheapest of the strategy and its enlargements by one instance per pool that survives any one instance."""
    sizes: list[dict[int, int]] = [{}]
    for index, pool in enumerate(strategy.pools):
        sizes += [{**size, index: pool.count + 1} for size in sizes]
    ranked = sorted(
        (with_counts(strategy, size) for size in sizes), key=lambda s: (ledger.tariff.usd_per_h(s), s.num_gpus)
    )
    return next((larger for larger in ranked if _survives(ledger, larger)), None)


def _survives(ledger: Ledger, strategy: Strategy) -> bool:
    """Whether the demand is carried with any one instance down."""
    left = (less(strategy, {index: 1}) for index in range(len(strategy.pools)))
    return all(s is not None and ledger.goodput_req_s(s) >= ledger.demand_req_s for s in left)
