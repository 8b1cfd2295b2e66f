"""What the closed form says about every strategy before one is simulated: a bound of its goodput, beside its cost.

| symbol | meaning |
|---|---|
| r_s | req/s that one instance of shape s carries at most within the TPOT limit (`estimator.capacity`) |
| B | bound of a strategy: m·r_s collocated; min(x·r_p, y·r_d, link) with x prefill and y decode instances |

B leaves waiting out and takes mean contexts, so goodput G lies below it but for sampling: over 18,650 strategies
of three spaces simulated whole G/B had medians of 0.84 to 0.92 and was 1.025 at most (`python -m
tests.bench.bench_search exact`, 2026-11-26). `MARGIN`·B is therefore taken for certain: what it puts behind a simulated
strategy of no more cost need not be simulated. Strategies are *rows* of flat arrays; of a space too large for that the
table holds what `search.thinning` keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from estimator.capacity import MeanRequest, instance_rate_req_s
from estimator.memory import kv_bytes_per_token
from estimator.outcome import Infeasible
from search.tariff import Tariff
from search.thinning import Thinning, alike_parts, around
from spaces.problem import MEDIA, gpus_moving, instance_of, joined_gpus, medium_of, port_bytes_per_s, spans_nodes
from spaces.space import Space
from spaces.strategy import Pool, Role, Strategy

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
RateOf = Callable[[Pool], float]
MARGIN = 1.1
MAX_ROWS = 400_000  # strategies beyond which a space is thinned; a generation then takes about 0.2 s to choose
THINNED_ROWS = 150_000  # about as many a thinned table has at most
PAST_CEILING = 2.0  # times what the ceiling costs by the bound: dearer strategies are left aside
WIDER = 4.0  # times the reach, where nothing within it carries the demand
NUM_DRAWN = 20_000  # requests whose mean the bound takes


class Columns(NamedTuple):
    """What is chosen, as arrays (n,): mode and shapes by number, instances; `second` −1 and `y` 0 where collocated."""

    mode: IntArray
    first: IntArray
    second: IntArray
    x: IntArray
    y: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Strategies as arrays of shape (n,): the `Columns`, what bounds them, what they cost.

    `bound_req_s`: B; `side`: what it comes from, 0 the only pool, 1 prefill, 2 decode, 3 the link.
    """

    mode: IntArray
    first: IntArray
    second: IntArray
    x: IntArray
    y: IntArray
    bound_req_s: FloatArray
    side: IntArray
    usd_per_h: FloatArray

    def __len__(self) -> int:
        return len(self.mode)

    def take(self, chosen: BoolArray | IntArray) -> Rows:
        """The chosen rows, by mask or index."""
        return Rows(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


class Screen:
    """The bound and the cost of every strategy of a space. `rate_of` replaces r_s, for spaces of made-up goodput.

    With a demand and a `reach`, goodput beyond `ceiling_req_s`, their product, is worth nothing more, and strategies
    over `most_usd_per_h` are left aside: `PAST_CEILING` times what the ceiling costs by the bound.
    """

    def __init__(
        self,
        space: Space,
        tariff: Tariff,
        *,
        seed: int = 0,
        demand_req_s: float | None = None,
        reach: float | None = None,
        rate_of: RateOf | None = None,
    ) -> None:
        self.space, self.tariff, self.demand_req_s, self.reach = space, tariff, demand_req_s, reach
        self.ceiling_req_s = math.inf if demand_req_s is None or reach is None else reach * demand_req_s
        self.modes = [*space.modes("collocated"), *space.modes("disaggregated")]
        self.shapes: list[Pool] = [shape for shapes in space.shapes.values() for shape in shapes]
        self.index_of = {shape: index for index, shape in enumerate(self.shapes)}
        self.gpus = sorted({shape.gpu for shape in self.shapes})
        self.gpu = np.array([self.gpus.index(shape.gpu) for shape in self.shapes], dtype=np.int64)
        self.size = np.array([shape.num_gpus for shape in self.shapes], dtype=np.int64)
        self._rate_of = rate_of or closed_form(space, seed)
        self.rate = np.array([self._rate_of(shape) for shape in self.shapes])
        self.is_complete = space.num_counted <= MAX_ROWS
        columns = self._join(list(self._listed() if self.is_complete else self._thinned()))
        table = self._made(columns)
        self.most_usd_per_h = self._most_usd_per_h(table)
        self.table = table if self.is_complete else table.take(table.usd_per_h <= self.most_usd_per_h)

    def widened(self) -> Screen | None:
        """The screen with `WIDER` times the reach; None if nothing was left aside."""
        if self.reach is None or self.most_usd_per_h >= dearest_usd_per_h(self.space, self.tariff):
            return None
        demand, reach = self.demand_req_s, WIDER * self.reach
        return Screen(self.space, self.tariff, demand_req_s=demand, reach=reach, rate_of=self._rate_of)

    def _most_usd_per_h(self, rows: Rows) -> float:
        reaching = rows.usd_per_h[rows.bound_req_s >= self.ceiling_req_s]
        return min(dearest_usd_per_h(self.space, self.tariff), PAST_CEILING * float(reaching.min(initial=math.inf)))

    # ---- strategies and rows

    def rows(self, strategies: Sequence[Strategy]) -> Rows:
        """The rows of strategies of the space."""
        columns = np.zeros((5, len(strategies)), dtype=np.int64)
        for k, strategy in enumerate(strategies):
            pools = strategy.pools
            index = [self.index_of[replace(pool, count=1)] for pool in pools]
            second, y = (index[1], pools[1].count) if len(pools) == 2 else (-1, 0)
            mode = self.modes.index((strategy.policy, strategy.router))
            columns[:, k] = (mode, index[0], second, pools[0].count, y)
        return self._made(Columns(*columns))

    def strategy(self, rows: Rows, row: int) -> Strategy:
        """One row written as a strategy."""
        pools = [replace(self.shapes[rows.first[row]], count=int(rows.x[row]))]
        if rows.second[row] >= 0:
            pools.append(replace(self.shapes[rows.second[row]], count=int(rows.y[row])))
        policy, router = self.modes[rows.mode[row]]
        return Strategy(pools=tuple(pools), policy=policy, router=router)

    def keys(self, rows: Rows) -> IntArray:
        """(n,) one whole number per strategy, different for different ones."""
        most = self.space.allowed.max_gpus + 1
        key = rows.mode * (len(self.shapes) + 1) + rows.first
        return ((key * (len(self.shapes) + 1) + rows.second + 1) * most + rows.x) * most + rows.y

    def rounded(self, strategy: Strategy) -> Strategy:
        """In a thinned space a strategy near this one that is quick to simulate; else the strategy."""
        if self.is_complete or not strategy.is_disaggregated:
            return strategy
        counts = alike_parts(*(np.array([pool.count]) for pool in strategy.pools))
        pools = tuple(replace(pool, count=int(count[0])) for pool, count in zip(strategy.pools, counts, strict=True))
        return replace(strategy, pools=pools)

    def around(self, strategy: Strategy) -> Rows:
        """Strategies within the budget that differ from this one in counts alone, and not by much."""
        pools, row = strategy.pools, self.rows([strategy])
        x, y = around(pools[0].count, pools[1].count if len(pools) == 2 else 0)
        mode, first, second = (np.full(len(x), int(column[0])) for column in (row.mode, row.first, row.second))
        columns = Columns(mode, first, second, x, y)
        return self._made(_taken(columns, self._permitted(columns)))

    def mask(self, is_disaggregated: bool | None, gpu: str | None) -> BoolArray:
        """(n,) the table's rows of one architecture, or that use one GPU type."""
        paired = self.table.second >= 0
        if gpu is None:
            return np.asarray(paired == is_disaggregated)
        number = self.gpus.index(gpu)
        return np.asarray((self.gpu[self.table.first] == number) | (paired & (self.gpu[self.table.second] == number)))

    # ---- making rows

    def _made(self, columns: Columns) -> Rows:
        media = self._media(columns)
        bound, side = self._bound(columns, media)
        return Rows(**columns._asdict(), bound_req_s=bound, side=side, usd_per_h=self._cost(columns, media))

    def _bound(self, columns: Columns, media: IntArray) -> tuple[FloatArray, IntArray]:
        _, first, second, x, y = columns
        paired = second >= 0
        limits = np.full((3, len(first)), np.inf)
        limits[0] = x * self.rate[first]
        limits[1, paired] = y[paired] * self.rate[second[paired]]
        ends = ((first[paired], x[paired]), (second[paired], y[paired]))
        ports = [num * self.size[shape] * self._ports[self.gpu[shape], media[paired]] for shape, num in ends]
        limits[2, paired] = np.minimum(*ports) / self._bytes_per_request
        return limits.min(axis=0), np.where(paired, 1 + limits.argmin(axis=0), 0)

    def _media(self, columns: Columns) -> IntArray:
        """(n,) what KV caches cross, by its place in `MEDIA` (`spaces.problem.kv_medium`); 0 where nothing crosses."""
        mode, first, second, x, y = columns
        paired, num_p, num_d = second >= 0, *self._num_gpus(columns)
        one_type, num = self.gpu[first] == self.gpu[second], num_p + num_d
        by_parts = one_type & np.array([mode == ("distserve", "round_robin") for mode in self.modes])[mode]
        num = np.where(by_parts, gpus_moving(num, np.gcd(x, y), self._joined[self.gpu[first]]), num)
        cards = [self.space.problem.gpu(gpu) for gpu in self.gpus]
        most = 1 + max((max(card.nvlink_domain_gpus, card.gpus_per_node) for card in cards), default=0)
        keys, inverse = np.unique(
            (self.gpu[first] * 2 + one_type) * (most + 1) + np.minimum(num, most), return_inverse=True
        )
        media = [
            medium_of(cards[key // (most + 1) // 2], one_type=bool(key // (most + 1) % 2), num_gpus=key % (most + 1))
            for key in keys.tolist()
        ]
        places = np.array([MEDIA.index(medium) for medium in media], dtype=np.int64)
        return np.where(paired, places[inverse], 0) if len(keys) else np.zeros(0, dtype=np.int64)

    def _num_gpus(self, columns: Columns) -> tuple[IntArray, IntArray]:
        """GPUs of the first pool and of the second."""
        paired = columns.second >= 0
        return columns.x * self.size[columns.first], np.where(paired, columns.y * self.size[columns.second], 0)

    @cached_property
    def _joined(self) -> IntArray:
        """(gpus,) GPUs that reach each other without the network."""
        cards = [self.space.problem.gpu(gpu) for gpu in self.gpus]
        return np.array([joined_gpus(card) for card in cards], dtype=np.int64)

    @cached_property
    def _ports(self) -> FloatArray:
        """(gpus, media) bytes/s of one GPU."""
        ports = [port_bytes_per_s(self.space.problem, gpu, medium) for gpu in self.gpus for medium in MEDIA]
        return np.array(ports).reshape(len(self.gpus), len(MEDIA))

    @cached_property
    def _bytes_per_request(self) -> float:
        problem = self.space.problem
        return max(problem.workload.mean_input_tokens * kv_bytes_per_token(problem.model, problem.kv_dtype), 1.0)

    def _cost(self, columns: Columns, media: IntArray) -> FloatArray:
        """(n,) $/h: GPUs of each type, and the network where it is used (`search.tariff`)."""
        gpu, other = self.gpu[columns.first], self.gpu[columns.second]
        num_p, num_d = self._num_gpus(columns)
        one_type = (columns.second < 0) | (gpu == other)
        cost = self._rents[gpu, num_p + np.where(one_type, num_d, 0)] + self._rents[other, np.where(one_type, 0, num_d)]
        if self.tariff.network_usd_per_gpu_h > 0:
            paired = columns.second >= 0
            crosses = self._spans[columns.first] | (
                paired & (self._spans[columns.second] | (media == MEDIA.index("network")))
            )
            cost += np.where(crosses, self.tariff.network_usd_per_gpu_h * (num_p + num_d), 0.0)
        return np.asarray(cost, dtype=np.float64)

    @cached_property
    def _rents(self) -> FloatArray:
        """(gpus, max_gpus + 1) $/h of so many."""
        numbers = range(self.space.allowed.max_gpus + 1)
        rents = [self.tariff.rent_usd_per_h(gpu, num) for gpu in self.gpus for num in numbers]
        return np.array(rents).reshape(len(self.gpus), len(numbers))

    @cached_property
    def _spans(self) -> BoolArray:
        """(shapes,) whether one instance needs the network."""
        return np.array([spans_nodes(self.space.problem.gpu(shape.gpu), shape) for shape in self.shapes], dtype=bool)

    # ---- the table

    def _listed(self) -> Iterator[Columns]:
        """Columns that together hold every row once."""
        space = self.space
        singles, prefill, decode = (self._groups(role) for role in ("m", "p", "d"))
        for number, (policy, _) in enumerate(self.modes):
            if policy in space.allowed.collocated_policies:
                for shapes in singles.values():
                    first, x = _crossed(shapes, space.counts.of_one(self.shapes[shapes[0]]))
                    yield Columns(np.full(len(x), number), first, np.full(len(x), -1), x, np.zeros_like(x))
            else:
                for p, d in product(prefill.values(), decode.values()):
                    if space.may_pair(self.shapes[p[0]], self.shapes[d[0]]):
                        x, y = space.counts.of_pair(self.shapes[p[0]], self.shapes[d[0]])
                        first, cell = _crossed(np.repeat(p, len(d)), np.arange(len(x)))
                        second = np.tile(np.repeat(d, len(x)), len(p))
                        yield Columns(np.full(len(first), number), first, second, x[cell], y[cell])

    def _thinned(self) -> Iterator[Columns]:
        """Columns of what is worth keeping."""
        thinning = self._thinning()
        singles, prefill, decode = (np.array(self._indices(role), dtype=np.int64) for role in ("m", "p", "d"))
        first, x = thinning.singles(singles)
        one = Columns(np.zeros_like(x), first, np.full(len(x), -1), x, np.zeros_like(x))
        p, d = _crossed(prefill, decode)
        pairing = np.array([self.space.may_pair(self.shapes[a], self.shapes[b]) for a, b in zip(p, d, strict=True)])
        num_pair_modes = len(self.space.modes("disaggregated"))
        room = THINNED_ROWS // max(num_pair_modes, 1) if num_pair_modes else 0
        two = Columns(np.zeros(0, dtype=np.int64), *thinning.pairs(p[pairing], d[pairing], room))
        for number, (policy, _) in enumerate(self.modes):
            rows = one if policy in self.space.allowed.collocated_policies else two
            rows = rows._replace(mode=np.full(len(rows.x), number))
            yield _taken(rows, self._permitted(rows))

    def _thinning(self) -> Thinning:
        dear = [self.space.max_gpus(shape.gpu) for shape in self.shapes]
        unit = np.array([self._rents[gpu, num] / max(num, 1) for gpu, num in zip(self.gpu, dear, strict=True)])
        allowed = self.space.allowed
        return Thinning(
            rate_req_s=self.rate,
            usd_per_h=unit * self.size,
            num_gpus=self.size,
            most=np.array([self.space.max_count(shape) for shape in self.shapes], dtype=np.int64),
            max_gpus=allowed.max_gpus,
            demand_req_s=self.demand_req_s,
            top_req_s=self.ceiling_req_s,
        )

    def _indices(self, role: Role) -> list[int]:
        return [self.index_of[shape] for shape in self.space.shapes.get(role, ())]

    def _groups(self, role: Role) -> dict[tuple[str, int], IntArray]:
        """Shapes by GPU type and number of GPUs, whose counts are the same."""
        groups: dict[tuple[str, int], list[int]] = {}
        for index in self._indices(role):
            groups.setdefault((self.shapes[index].gpu, self.shapes[index].num_gpus), []).append(index)
        return {key: np.array(members, dtype=np.int64) for key, members in groups.items()}

    @staticmethod
    def _join(blocks: list[Columns]) -> Columns:
        empty = Columns(*[np.zeros(0, dtype=np.int64)] * 5)
        return Columns(*(np.concatenate(columns) for columns in zip(empty, *blocks, strict=True)))

    def _permitted(self, columns: Columns) -> BoolArray:
        """(n,) which keep budget, ownership and the user's counts, as `spaces.counts` has them."""
        allowed, node = self.space.allowed, np.array([self.space.problem.gpu(gpu).gpus_per_node for gpu in self.gpus])
        paired = columns.second >= 0
        gpu, other = self.gpu[columns.first], np.where(paired, self.gpu[columns.second], self.gpu[columns.first])
        num_p, num_d = self._num_gpus(columns)
        one_type, owned = gpu == other, np.array([self.space.max_gpus(name) for name in self.gpus])
        first_type = num_p + np.where(one_type, num_d, 0)
        keep = (num_p + num_d <= allowed.max_gpus) & (num_p + num_d >= allowed.min_gpus)
        keep &= (first_type <= owned[gpu]) & (one_type | (num_d <= owned[other]))
        if allowed.whole_nodes:
            keep &= (first_type % node[gpu] == 0) & (one_type | (num_d % node[other] == 0))
        for role, chosen, count in (("m", ~paired, columns.x), ("p", paired, columns.x), ("d", paired, columns.y)):
            choices = allowed.of(role)  # type: ignore[arg-type]
            most = choices.max_count or allowed.max_gpus
            keep &= ~chosen | ((count >= choices.min_count) & (count <= most))
        return keep


def dearest_usd_per_h(space: Space, tariff: Tariff) -> float:
    """Just over the GPU budget spent on the dearest type, network included."""
    gpus = {shape.gpu for shapes in space.shapes.values() for shape in shapes}
    budgets = [(gpu, space.max_gpus(gpu)) for gpu in sorted(gpus)]
    prices = [tariff.rent_usd_per_h(gpu, num) + tariff.network_usd_per_gpu_h * num for gpu, num in budgets]
    return 1.001 * max(prices, default=1.0)


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


def _taken(columns: Columns, chosen: BoolArray) -> Columns:
    return Columns(*(column[chosen] for column in columns))


def _crossed(outer: IntArray, inner: IntArray) -> tuple[IntArray, IntArray]:
    """Every pair of the two, outer slowest, as two arrays."""
    return np.repeat(outer, len(inner)), np.tile(inner, len(outer))
