"""Spaces too large to list: what is kept of them, and that a larger space never costs more."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.evaluate import Evaluate, Evaluation
from search.executor import LocalExecutor
from search.study import Settings, Study
from search.thinning import FINE_PART, MAX_PART, alike_parts, around
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Pool, Strategy
from tests.small_problem import made_up, made_up_screen, pool_rate, small_problem, tariff, usd_per_h

CHOICES: dict[str, Any] = {"tp": (1, 2, 4), "max_num_seqs": (64, 128, 256)}


def uneven(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """The made-up law, less up to a fifth that depends on shapes alone."""
    found = made_up(problem, strategy, seed)
    return replace(found, goodput_req_s=found.goodput_req_s * (1.0 - 0.2 * _share(strategy)))


def studied(problem: Problem, settings: Settings, evaluate: Evaluate) -> tuple[Evaluation, ...]:
    """What a study of made-up goodput evaluates."""
    screen = made_up_screen(Space(problem), settings.demand_req_s, settings.reach)
    executor = LocalExecutor(problem, seed=settings.seed, evaluate=evaluate)
    return Study(screen.space, executor, tariff(), settings, screen=screen).run().evaluations


def least_cost(max_gpus: int, demand_req_s: float, *, seed: int = 0) -> float:
    """What the cheapest costs that a study of 160 evaluations finds to carry the demand."""
    problem = small_problem(max_gpus=max_gpus, **CHOICES)
    found = studied(problem, Settings(trials=160, seed=seed, demand_req_s=demand_req_s), uneven)
    costs = [tariff().usd_per_h(Strategy.parse(e.strategy)) for e in found if e.goodput_req_s >= demand_req_s]
    return min(costs, default=math.inf)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("demand_req_s", [3.0, 11.0, 27.0, 45.0])
def test_a_larger_space_never_costs_more(demand_req_s: float, seed: int) -> None:
    """With as many evaluations and the same seed, 4,096 GPUs carry a demand for no more than the 12 among them."""
    small = least_cost(12, demand_req_s, seed=seed)
    assert math.isfinite(small)
    for max_gpus in (48, 4096):
        assert least_cost(max_gpus, demand_req_s, seed=seed) <= small * (1 + 1e-12)


@pytest.mark.parametrize("demand_req_s", [300.0, 3000.0])
def test_demands_of_hundreds_of_gpus_cost_little_over_the_least(demand_req_s: float) -> None:
    """No counts of any shapes carry the demand for over a hundredth less than what a study finds."""
    space = Space(small_problem(max_gpus=4096, **CHOICES))
    strategies = [Strategy(pools=(shape,)) for shape in space.shapes["m"]]
    strategies += [Strategy(pools=pools) for pools in product(space.shapes["p"], space.shapes["d"])]
    least = min(cheapest_counts(strategy, demand_req_s) for strategy in strategies)
    assert least <= least_cost(4096, demand_req_s) * (1 + 1e-12) <= 1.01 * least


def cheapest_counts(strategy: Strategy, demand_req_s: float) -> float:
    """Cost of the least counts of these shapes that carry the demand by the uneven law, pool by pool."""
    needed = demand_req_s / (1.0 - 0.2 * _share(strategy))
    cost = 0.0
    for pool in strategy.pools:
        counts = range(1, 4096 // pool.num_gpus + 1)
        rates = [_rate(replace(pool, count=count)) for count in counts]
        enough = bisect_left(rates, needed)
        cost += usd_per_h({pool.gpu: counts[enough] * pool.num_gpus}) if enough < len(counts) else math.inf
    return cost


def test_a_study_looks_further_where_nothing_near_carries_the_demand() -> None:
    """If goodput stays far behind every bound, the reach grows until something carries the demand."""

    def far_behind(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        found = made_up(problem, strategy, seed)
        return replace(found, goodput_req_s=found.goodput_req_s / 10.0)

    problem = small_problem(max_gpus=4096)
    least = made_up_screen(Space(problem), 20.0, 1.0).most_usd_per_h
    found = studied(problem, Settings(trials=200, demand_req_s=20.0, reach=1.0), far_behind)
    carrying = [e for e in found if e.goodput_req_s >= 20.0]
    assert carrying
    assert min(tariff().usd_per_h(Strategy.parse(e.strategy)) for e in carrying) > least


def test_what_is_beyond_the_reach_is_left_aside() -> None:
    """Of strategies far over the demand only a few are evaluated; without a reach the front goes on to the budget."""
    problem = small_problem(max_gpus=64, **CHOICES)
    most = {}
    for reach in (4.0, None):
        found = studied(problem, Settings(trials=160, demand_req_s=10.0, reach=reach), made_up)
        goodput = np.array([e.goodput_req_s for e in found])
        most[reach] = goodput.max()
        assert np.mean(goodput > 60.0) < 0.1 or reach is None
    assert 40.0 <= most[4.0] < most[None]


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_alike_parts_are_near_and_small(x: int, y: int) -> None:
    """Counts move by less than one per part, and split into equal parts hardly larger than allowed."""
    near_x, near_y = (int(n[0]) for n in alike_parts(np.array([x]), np.array([y])))
    parts = max(1, (x + y) // MAX_PART)
    assert near_x % parts == near_y % parts == 0
    assert near_x + near_y <= (2 * MAX_PART + 1) * math.gcd(near_x, near_y)
    assert (near_y == 0) == (y == 0)
    assert near_x >= 1
    assert all(abs(near - n) <= max(parts / 2, parts - n) for near, n in ((near_x, x), (near_y, y)) if n)


@given(st.integers(1, 600), st.integers(0, 600))
def test_around_holds_the_counts_themselves_and_small_parts(x: int, y: int) -> None:
    """Counts near collocated ones are all there; of pairs those whose parts are small, themselves included if so."""
    near = set(zip(*(counts.tolist() for counts in around(x, y)), strict=True))
    assert all(near_x >= 1 for near_x, _ in near)
    assert ((x, y) in near) == (y == 0 or x + y <= FINE_PART * math.gcd(x, y))
    assert all(b == 0 if y == 0 else a + b <= FINE_PART * math.gcd(a, b) for a, b in near)


def _rate(pool: Pool) -> float:
    return {"m": 1.0, "p": 2.6, "d": 1.7}[pool.role] * pool_rate(pool)


def _share(strategy: Strategy) -> float:
    shapes = "+".join(pool.written().lstrip("0123456789") for pool in strategy.pools)
    return zlib.crc32(shapes.encode()) / 2**32
