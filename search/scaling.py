"""What evaluated strategies say about the rest: goodput grows with the counts, so few evaluations rank them all.

| symbol | meaning |
|---|---|
| G(s, m) | goodput of m collocated instances of shape s; about m·g_s, because round robin makes instances alike |
| G(p, d, x, y) | of x prefill and y decode instances; about min(x·P_p, y·D_d), the pool that binds |
| g_s, P_p, D_d | req/s per instance, from the strategies evaluated so far |

P_p is max G/x over evaluated strategies with shape p; where no TTFT-bound one shows it to be the limit, it is raised by
the pool's idle share (a guess, tested by the evaluation it suggests). Likewise D_d with the other limits. A prediction
only chooses what is evaluated next; it is never an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from search.evaluate import Evaluation
from spaces.space import Space
from spaces.strategy import Pool, Role, Strategy

SHAPES_PER_SIZE = 2  # best shapes followed per role, GPU type and number of GPUs: equal cost, so the rest lose to them
MAX_COUNTS = 48  # counts tried per shape, geometric above
FULL_FRAC = 0.9  # utilisation at which a pool counts as the limit
Key = tuple[Pool, str]  # shape with count 1, and policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A strategy and the goodput expected of it."""

    strategy: Strategy
    goodput_req_s: float


def per_instance_rates(known: Iterable[tuple[Strategy, Evaluation]]) -> dict[Key, float]:
    """g, P and D by shape and policy; 0 for shapes that have served nothing."""
    proven: dict[Key, float] = {}
    hoped: dict[Key, float] = {}
    limiting: set[Key] = set()
    for strategy, evaluation in known:
        for pool in strategy.pools:
            key = (replace(pool, count=1), strategy.policy)
            rate = evaluation.goodput_req_s / pool.count
            proven[key] = max(proven.get(key, 0.0), rate)
            idle_raise = _idle_raise(pool.role, evaluation)
            hoped[key] = max(hoped.get(key, 0.0), rate * idle_raise)
            if idle_raise == 1.0 and rate > 0:
                limiting.add(key)
    return {key: rate if key in limiting else hoped[key] for key, rate in proven.items()}


def _idle_raise(role: Role, evaluation: Evaluation) -> float:
    """1 if the pool was the limit; else how much more a full pool might carry, at most twice."""
    if role == "m" or not evaluation.is_ok:
        return 1.0
    if (role == "p") == evaluation.binding_limit.startswith("ttft"):
        return 1.0
    used = evaluation.prefill_utilisation_frac if role == "p" else evaluation.decode_utilisation_frac
    return float(np.clip(FULL_FRAC / max(used, 1e-3), 1.0, 2.0))


def predictions(space: Space, rates: Mapping[Key, float], demand_req_s: float | None) -> Iterator[Prediction]:
    """Every count worth a look of the best shapes: collocated, then each pair near its balance."""
    for policy in space.allowed.collocated_policies:
        for shape in _best(space, rates, "m", policy):
            rate = rates[shape, policy]
            for count in _counts(space.max_count(shape), _enough(rate, demand_req_s)):
                pools = (replace(shape, count=count),)
                yield Prediction(strategy=Strategy(pools=pools, policy=policy), goodput_req_s=count * rate)
    for policy in space.allowed.disaggregated_policies:
        for p, d in product(_best(space, rates, "p", policy), _best(space, rates, "d", policy)):
            yield from _pairs(space, p, d, policy, (rates[p, policy], rates[d, policy]), demand_req_s)


def _pairs(
    space: Space, p: Pool, d: Pool, policy: str, per_instance: tuple[float, float], demand_req_s: float | None
) -> Iterator[Prediction]:
    """For each number of decode instances, the prefill instances that nearly or just keep up, and vice versa."""
    rate_p, rate_d = per_instance
    found: set[tuple[int, int]] = set()
    for x in _counts(space.max_count(p, {d.gpu: d.num_gpus}), _enough(rate_p, demand_req_s)):
        balance = x * rate_p / rate_d
        most = space.max_count(d, {p.gpu: x * p.num_gpus})
        found.update((x, y) for y in {math.floor(balance), math.ceil(balance), 1, min(most, math.ceil(balance))} if y)
    for y in _counts(space.max_count(d, {p.gpu: p.num_gpus}), _enough(rate_d, demand_req_s)):
        balance = y * rate_d / rate_p
        found.update((x, y) for x in {math.floor(balance), math.ceil(balance)} if x)
    for x, y in sorted(found):
        if x >= 1 and 1 <= y <= space.max_count(d, {p.gpu: x * p.num_gpus}):
            pools = (replace(p, count=x), replace(d, count=y))
            goodput = min(x * rate_p, y * rate_d)
            yield Prediction(strategy=Strategy(pools=pools, policy=policy), goodput_req_s=goodput)


def _best(space: Space, rates: Mapping[Key, float], role: Role, policy: str) -> list[Pool]:
    """The best shapes of a role, `SHAPES_PER_SIZE` per GPU type and number of GPUs."""
    groups: dict[tuple[str, int], list[Pool]] = {}
    for shape in space.shapes.get(role, ()):
        if rates.get((shape, policy), 0.0) > 0:
            groups.setdefault((shape.gpu, shape.num_gpus), []).append(shape)
    ranked = (sorted(group, key=lambda shape: -rates[shape, policy]) for group in groups.values())
    return [shape for group in ranked for shape in group[:SHAPES_PER_SIZE]]


def _enough(rate: float, demand_req_s: float | None) -> int | None:
    return math.ceil(demand_req_s / rate) if demand_req_s and rate > 0 else None


def _counts(most: int, enough: int | None) -> list[int]:
    """1 to `most`, thinned geometrically when many, with the count that carries the demand and its neighbours."""
    if most < 1:
        return []
    if most <= MAX_COUNTS:
        return list(range(1, most + 1))
    counts = set(np.unique(np.geomspace(1, most, MAX_COUNTS).round().astype(int)).tolist())
    if enough is not None:
        counts.update(count for count in (enough - 1, enough, enough + 1) if 1 <= count <= most)
    return sorted(counts)


def promising(
    candidates: list[Prediction],
    cost_of: Callable[[Strategy], float],
    front: tuple[NDArray[np.float64], NDArray[np.float64]],
    slack_frac: float,
) -> list[Prediction]:
    """Candidates that, if `slack_frac` better than predicted, would not be dominated; the best of each cost first.

    `front`: goodput (n,) and cost (n,) of the front found so far, by rising cost. Of the candidates, those stay that no
    other candidate beats by the slack at no more cost.
    """
    if not candidates:
        return []
    goodput = np.array([candidate.goodput_req_s for candidate in candidates])
    cost = np.array([cost_of(candidate.strategy) for candidate in candidates])
    front_goodput, front_cost = front
    reached = np.concatenate(([0.0], front_goodput))[np.searchsorted(front_cost, cost + 1e-9, side="right")]
    order = np.lexsort((-goodput, cost))
    best_before = np.concatenate(([0.0], np.maximum.accumulate(goodput[order])[:-1]))
    hopeful = (goodput[order] * (1 + slack_frac) > best_before) & (goodput[order] * (1 + slack_frac) > reached[order])
    chosen = order[hopeful]
    gain = goodput[chosen] * (1 + slack_frac) / np.maximum(reached[chosen], 1e-12)
    return [candidates[index] for index in chosen[np.argsort(-gain, kind="stable")]]
