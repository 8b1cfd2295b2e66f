"""What the closed form says about every strategy before one is simulated: a bound of its goodput, beside its cost.

| symbol | meaning |
|---|---|
| r_s | req/s that one instance of shape s carries at most within the TPOT limit (`estimator.capacity`) |
| B | bound of a strategy: m·r_s collocated; min(x·r_p, y·r_d, link) with x prefill and y decode instances |

B leaves waiting out and takes mean contexts, so goodput G lies below it but for sampling: over 800 strategies of four
bundled problems G/B had median 0.87 and largest 1.034 (2026-11-25). `MARGIN`·B is therefore taken for certain: what it
puts behind a simulated strategy of no more cost need not be simulated. Strategies are *rows* of flat arrays; a space
too large for that is thinned to its best shapes and to counts near the balance of its pools.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from estimator.capacity import MeanRequest, instance_rate_req_s
from estimator.memory import kv_bytes_per_token
from estimator.outcome import Infeasible
from spaces.problem import instance_of, port_bytes_per_s
from spaces.space import Space
from spaces.strategy import Pool, Role, Strategy

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
RateOf = Callable[[Pool], float]
MARGIN = 1.1
MAX_ROWS = 400_000  # beyond it the table is thinned; a generation then takes about 0.2 s to choose
NUM_COUNTS = 24  # instance counts kept per shape in a thinned table, geometric
BALANCES = (0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.6)  # decode instances kept, over those that match the prefill pool
SHARES = (1.0, 1.05, 1.1, 1.2, 1.35)  # of the instances that carry the demand by the bound: what goodput loses to it
MAX_PART = 32  # instances of an equal part in a thinned table: larger ones cost ten times as much to simulate
NUM_DRAWN = 20_000  # requests whose mean the bound takes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Strategies as arrays of shape (n,). `first`/`second`: shapes by index, `second` −1 where collocated, `y` then 0.

    `bound_req_s`: B; `side`: what it comes from, 0 the only pool, 1 prefill, 2 decode, 3 the link.
    """

    policy: IntArray
    first: IntArray
    second: IntArray
    x: IntArray
    y: IntArray
    bound_req_s: FloatArray
    side: IntArray
    usd_per_h: FloatArray

    def __len__(self) -> int:
        return len(self.policy)

    def take(self, chosen: NDArray[np.bool_] | IntArray) -> Rows:
        """The chosen rows, by mask or index."""
        return Rows(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


class Screen:
    """The bound and the cost of every strategy of a space. `rate_of` replaces r_s, for spaces of made-up goodput."""

    def __init__(
        self,
        space: Space,
        cost_of: Callable[[Mapping[str, int]], float],
        *,
        seed: int = 0,
        demand_req_s: float | None = None,
        rate_of: RateOf | None = None,
    ) -> None:
        self.space = space
        self._cost_of, self._demand_req_s = cost_of, demand_req_s
        self._prices: dict[tuple[int, ...], float] = {}
        allowed = space.allowed
        self.policies = [*allowed.collocated_policies, *allowed.disaggregated_policies]
        self.shapes: list[Pool] = [shape for shapes in space.shapes.values() for shape in shapes]
        self.index_of = {shape: index for index, shape in enumerate(self.shapes)}
        self.gpus = sorted({shape.gpu for shape in self.shapes})
        self.gpu = np.array([self.gpus.index(shape.gpu) for shape in self.shapes], dtype=np.int64)
        self.size = np.array([shape.num_gpus for shape in self.shapes], dtype=np.int64)
        rate = rate_of or closed_form(space, seed)
        self.rate = np.array([rate(shape) for shape in self.shapes])
        self.is_complete = space.num_counted <= MAX_ROWS
        self._per_group = len(self.shapes) if self.is_complete else self._shapes_per_group()
        table = self._join(list(self._blocks()))
        self.table = table if self.is_complete else self._permitted(table)

    # ---- strategies and rows

    def rows(self, strategies: Sequence[Strategy]) -> Rows:
        """The rows of strategies of the space."""
        columns = np.zeros((5, len(strategies)), dtype=np.int64)
        for k, strategy in enumerate(strategies):
            pools = strategy.pools
            index = [self.index_of[replace(pool, count=1)] for pool in pools]
            second, y = (index[1], pools[1].count) if len(pools) == 2 else (-1, 0)
            columns[:, k] = (self.policies.index(strategy.policy), index[0], second, pools[0].count, y)
        return self._made(*columns)

    def strategy(self, rows: Rows, row: int) -> Strategy:
        """One row written as a strategy."""
        pools = [replace(self.shapes[rows.first[row]], count=int(rows.x[row]))]
        if rows.second[row] >= 0:
            pools.append(replace(self.shapes[rows.second[row]], count=int(rows.y[row])))
        return Strategy(pools=tuple(pools), policy=self.policies[rows.policy[row]])

    def keys(self, rows: Rows) -> IntArray:
        """(n,) one whole number per strategy, different for different ones."""
        most = self.space.allowed.max_gpus + 1
        key = rows.policy * (len(self.shapes) + 1) + rows.first
        return ((key * (len(self.shapes) + 1) + rows.second + 1) * most + rows.x) * most + rows.y

    # ---- making rows

    def _made(self, policy: IntArray, first: IntArray, second: IntArray, x: IntArray, y: IntArray) -> Rows:
        bound, side = self._bound(first, second, x, y)
        cost = self._cost(first, second, x, y)
        return Rows(policy=policy, first=first, second=second, x=x, y=y, bound_req_s=bound, side=side, usd_per_h=cost)

    def _bound(self, first: IntArray, second: IntArray, x: IntArray, y: IntArray) -> tuple[FloatArray, IntArray]:
        paired = second >= 0
        limits = np.full((3, len(first)), np.inf)
        limits[0] = x * self.rate[first]
        limits[1, paired] = y[paired] * self.rate[second[paired]]
        limits[2, paired] = self._link(first[paired], second[paired], x[paired], y[paired])
        return limits.min(axis=0), np.where(paired, 1 + limits.argmin(axis=0), 0)

    def _link(self, first: IntArray, second: IntArray, x: IntArray, y: IntArray) -> FloatArray:
        """req/s that the hand-over link carries, as `estimator.capacity.link_rate_req_s`."""
        num_p, num_d = x * self.size[first], y * self.size[second]
        together = (num_p + num_d) // np.gcd(x, y)  # at least; `spaces.problem.gpus_together`
        one_type = self.gpu[first] == self.gpu[second]
        rates = [
            num * self._ports(self.gpu[shape], one_type, together) for num, shape in ((num_p, first), (num_d, second))
        ]
        return np.asarray(np.minimum(*rates) / self._bytes_per_request, dtype=np.float64)

    def _ports(self, gpu: IntArray, one_type: NDArray[np.bool_], num_gpus: IntArray) -> FloatArray:
        most = int(num_gpus.max(initial=0)) + 1
        keys, inverse = np.unique((gpu * 2 + one_type) * most + num_gpus, return_inverse=True)
        ports = [
            port_bytes_per_s(
                self.space.problem, self.gpus[key // most // 2], one_type=bool(key // most % 2), num_gpus=key % most
            )
            for key in keys.tolist()
        ]
        return np.array(ports)[inverse] if len(keys) else np.zeros(0)

    @cached_property
    def _bytes_per_request(self) -> float:
        problem = self.space.problem
        return max(problem.workload.mean_input_tokens * kv_bytes_per_token(problem.model, problem.kv_dtype), 1.0)

    def _cost(self, first: IntArray, second: IntArray, x: IntArray, y: IntArray) -> FloatArray:
        paired = second >= 0
        num_p, num_d = x * self.size[first], np.where(paired, y * self.size[second], 0)
        columns = np.stack([self.gpu[first], num_p, np.where(paired, self.gpu[second], self.gpu[first]), num_d])
        if columns.shape[1] == 0:
            return np.zeros(0)
        distinct, inverse = np.unique(columns, axis=1, return_inverse=True)
        prices = np.array([self._price(tuple(column)) for column in distinct.T.tolist()])
        return np.asarray(prices[inverse.ravel()], dtype=np.float64)

    def _price(self, key: tuple[int, ...]) -> float:
        if key not in self._prices:
            gpu, num, other, others = key
            counts = {self.gpus[gpu]: num}
            if others:
                counts[self.gpus[other]] = counts.get(self.gpus[other], 0) + others
            self._prices[key] = self._cost_of(counts)
        return self._prices[key]

    # ---- the table

    def _shapes_per_group(self) -> int:
        """Shapes kept of those alike in GPU type and number, so that a thinned table stays below `MAX_ROWS`."""
        sizes = {role: Counter((s.gpu, s.num_gpus) for s in self.space.shapes.get(role, ())) for role in ("p", "d")}
        cells = {
            (p, d): min(
                NUM_COUNTS * len(BALANCES), self.space.max_gpus(p[0]) // p[1] * (self.space.max_gpus(d[0]) // d[1]) // 2
            )
            for p, d in product(sizes["p"], sizes["d"])
        }
        for kept in (64, 32, 16, 8, 4):
            rows = sum(min(sizes["p"][p], kept) * min(sizes["d"][d], kept) * num for (p, d), num in cells.items())
            if rows <= MAX_ROWS:
                return kept
        return 2

    def _blocks(self) -> Iterator[tuple[IntArray, ...]]:
        """(policy, first, second, x, y) arrays that together hold every row once."""
        space, allowed = self.space, self.space.allowed
        singles, prefill, decode = (self._groups(role) for role in ("m", "p", "d"))
        for number, policy in enumerate(self.policies):
            if policy in allowed.collocated_policies:
                for shapes in singles.values():
                    counts = self._thinned(shapes, space.counts.of_one(self.shapes[shapes[0]]))
                    first, x = _crossed(shapes, counts)
                    yield np.full(len(x), number), first, np.full(len(x), -1), x, np.zeros_like(x)
            else:
                for p, d in product(prefill.values(), decode.values()):
                    for first, second, x, y in self._pairs(p, d):
                        yield np.full(len(x), number), first, second, x, y

    def _groups(self, role: Role) -> dict[tuple[str, int], IntArray]:
        """Shapes by GPU type and number of GPUs: equal cost; the best few by rate where the table is thinned."""
        groups: dict[tuple[str, int], list[int]] = {}
        for shape in self.space.shapes.get(role, ()):
            groups.setdefault((shape.gpu, shape.num_gpus), []).append(self.index_of[shape])
        return {
            key: np.array(sorted(members, key=lambda s: -self.rate[s])[: self._per_group], dtype=np.int64)
            for key, members in groups.items()
        }

    def _pairs(self, p: IntArray, d: IntArray) -> Iterator[tuple[IntArray, IntArray, IntArray, IntArray]]:
        space, one_p, one_d = self.space, self.shapes[p[0]], self.shapes[d[0]]
        if not space.may_pair(one_p, one_d):
            return
        if self.is_complete or space.counts.num_pairs(one_p, one_d) <= NUM_COUNTS * len(BALANCES):
            x, y = space.counts.of_pair(one_p, one_d)
            first, cell = _crossed(np.repeat(p, len(d)), np.arange(len(x)))
            yield first, np.tile(np.repeat(d, len(x)), len(p)), x[cell], y[cell]
            return
        for one, other in product(p.tolist(), d.tolist()):
            cells = self._near_balance(one, other)
            if cells:
                x, y = np.array(sorted(cells), dtype=np.int64).T
                yield np.full(len(x), one), np.full(len(x), other), x, y

    def _near_balance(self, p: int, d: int) -> set[tuple[int, int]]:
        """Counts (x, y) at which the two pools carry about the same."""
        if self.rate[p] <= 0 or self.rate[d] <= 0:
            return set()
        space, one_p, one_d = self.space, self.shapes[p], self.shapes[d]
        most_x = space.max_count(one_p, {one_d.gpu: one_d.num_gpus})
        most_y = space.max_count(one_d, {one_p.gpu: one_p.num_gpus})
        balance = self.rate[p] / self.rate[d]
        return {
            _alike_parts(x, y)
            for x in self._thinned(np.array([p]), np.arange(1, most_x + 1)).tolist()
            for share in BALANCES
            for y in (math.floor(x * balance * share), math.ceil(x * balance * share))
            if y >= 1
        } | {
            _alike_parts(x, y)
            for y in self._thinned(np.array([d]), np.arange(1, most_y + 1)).tolist()
            for x in (math.floor(y / balance), math.ceil(y / balance))
            if x >= 1
        }

    def _thinned(self, shapes: IntArray, counts: IntArray) -> IntArray:
        """All counts; in a thinned table a geometric choice, with those that may just carry the demand."""
        if self.is_complete or len(counts) <= NUM_COUNTS:
            return counts
        chosen = set(np.unique(np.geomspace(1, len(counts), NUM_COUNTS).round().astype(int) - 1).tolist())
        if self._demand_req_s is not None:
            enough = [self._demand_req_s * share / rate for rate in self.rate[shapes] for share in SHARES if rate > 0]
            chosen |= set(np.searchsorted(counts, enough).tolist())
        return counts[sorted(place for place in chosen if place < len(counts))]

    def _join(self, blocks: list[tuple[IntArray, ...]]) -> Rows:
        columns = [np.concatenate(column) for column in zip(*blocks, strict=True)] if blocks else []
        return self._made(*(columns or [np.zeros(0, dtype=np.int64)] * 5))

    def _permitted(self, rows: Rows) -> Rows:
        """Rows of a thinned table that keep budget, ownership and the user's counts, as `spaces.counts` has them."""
        allowed, node = self.space.allowed, np.array([self.space.problem.gpu(gpu).gpus_per_node for gpu in self.gpus])
        paired = rows.second >= 0
        gpu, other = self.gpu[rows.first], np.where(paired, self.gpu[rows.second], self.gpu[rows.first])
        num_p, num_d = rows.x * self.size[rows.first], np.where(paired, rows.y * self.size[rows.second], 0)
        one_type, owned = gpu == other, np.array([self.space.max_gpus(name) for name in self.gpus])
        first_type = num_p + np.where(one_type, num_d, 0)
        keep = (num_p + num_d <= allowed.max_gpus) & (num_p + num_d >= allowed.min_gpus)
        keep &= (first_type <= owned[gpu]) & (one_type | (num_d <= owned[other]))
        if allowed.whole_nodes:
            keep &= (first_type % node[gpu] == 0) & (one_type | (num_d % node[other] == 0))
        for role, chosen, count in (("m", ~paired, rows.x), ("p", paired, rows.x), ("d", paired, rows.y)):
            choices = allowed.of(role)  # type: ignore[arg-type]
            most = choices.max_count or allowed.max_gpus
            keep &= ~chosen | ((count >= choices.min_count) & (count <= most))
        return rows.take(keep)


def closed_form(space: Space, seed: int) -> RateOf:
    """r_s by the estimator's capacity formula, for the mean of the requests that a study of `seed` simulates."""
    problem = space.problem
    requests = problem.workload.draw(1.0, NUM_DRAWN, seed)
    means: dict[int, MeanRequest] = {}
    tpot_s = min((t.limit_s for t in problem.slo.targets if t.metric == "tpot"), default=math.inf)

    def rate(shape: Pool) -> float:
        instance = instance_of(problem, shape)
        if isinstance(instance, Infeasible):
            return 0.0
        window = instance.cost.window_tokens
        if window not in means:
            means[window] = MeanRequest.of(requests, window)
        mean = means[window]
        if shape.role == "p":
            found = instance_rate_req_s(instance, mean, decode=False)
        else:
            found = instance_rate_req_s(instance, mean, tpot_s=tpot_s, prefill=shape.role == "m")
        return min(found, 1e9)

    return rate


def _alike_parts(x: int, y: int) -> tuple[int, int]:
    """Counts near these that split into equal parts of about `MAX_PART` instances at most: one part is simulated."""
    parts = max(1, (x + y) // MAX_PART)
    return parts * max(1, round(x / parts)), parts * max(1, round(y / parts))


def _crossed(outer: IntArray, inner: IntArray) -> tuple[IntArray, IntArray]:
    """Every pair of the two, outer slowest, as two arrays."""
    return np.repeat(outer, len(inner)), np.tile(inner, len(outer))
