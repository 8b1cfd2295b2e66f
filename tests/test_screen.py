"""The bound of every strategy, what is learned about the distance from it, and the choice of what to evaluate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.capacity import screen as estimate_from_above
from search.evaluate import evaluate
from search.forecast import LOWEST, NOISE, PRIOR_MEAN, Features, Forecast, Staircase, most_gain, shortfall
from search.pareto import hypervolume, non_dominated
from search.screen import MARGIN, NUM_DRAWN, THINNED_ROWS, Screen
from spaces.problem import system_of
from spaces.space import Space
from tests.small_problem import made_up_screen, small_problem, tariff, usd_per_h

POINTS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=20)


@pytest.fixture(scope="module")
def screen() -> Screen:
    """The closed form over a small space."""
    return Screen(Space(small_problem(max_gpus=8)), tariff())


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"owned": {"l40s": 2}, "max_gpus": 7},
        {"whole_nodes": True, "max_gpus": 16},
        {"providers": {"h100_sxm": "a", "l40s": "b"}},
        {"disaggregated_policies": ("distserve", "tetriinfer"), "architectures": ("disaggregated",)},
        {"routers": ("round_robin", "least_outstanding"), "max_gpus": 3},
    ],
)
def test_the_table_holds_every_strategy_once(choices: dict[str, Any]) -> None:
    """Rows and strategies translate into each other, the table of a small space lists it, and keys tell rows apart."""
    screen = made_up_screen(Space(small_problem(**choices)))
    listed = list(screen.space)
    table = [screen.strategy(screen.table, row) for row in range(len(screen.table))]
    assert sorted(map(str, table)) == sorted(map(str, listed))
    rows = screen.rows(listed)
    assert [screen.strategy(rows, row) for row in range(len(rows))] == listed
    assert len(np.unique(screen.keys(rows))) == len(listed)
    assert rows.usd_per_h == pytest.approx([usd_per_h(strategy.gpu_counts) for strategy in listed])


def test_the_bound_is_the_estimators_own(screen: Screen) -> None:
    """Flat arrays give what the estimator's closed form gives for one system, links included."""
    problem = screen.space.problem
    requests = problem.workload.draw(1.0, NUM_DRAWN, 0)
    for row in range(0, len(screen.table), 97):
        system = system_of(problem, screen.strategy(screen.table, row))
        expected = estimate_from_above(system, requests, problem.slo)  # type: ignore[arg-type]
        assert screen.table.bound_req_s[row] == pytest.approx(expected, rel=1e-9)


def test_goodput_stays_below_the_margin(screen: Screen) -> None:
    """Simulated goodput of a spread of strategies lies below the margin over the bound, and mostly near the bound."""
    rows = list(range(5, len(screen.table), len(screen.table) // 12))
    found = [evaluate(screen.space.problem, screen.strategy(screen.table, row), 0).goodput_req_s for row in rows]
    ratio = np.array(found) / screen.table.bound_req_s[rows]
    assert ratio.max() < MARGIN
    assert np.median(ratio) > 0.6


def test_costs_are_the_tariffs_network_included() -> None:
    """Rows cost what the run's tariff bills: caches and instances pay for the network if they leave a node."""
    policies = ("distserve", "tetriinfer")
    space = Space(small_problem(max_gpus=20, tp=(1, 2), pp=(1, 16), disaggregated_policies=policies))
    priced = Screen(space, tariff(0.5), rate_of=lambda shape: 1.0)
    strategies = list(space)[::7] + [strategy for strategy in space if not strategy.is_disaggregated]
    assert priced.rows(strategies).usd_per_h == pytest.approx([tariff(0.5).usd_per_h(s) for s in strategies])
    kinds = {(s.is_disaggregated, priced.tariff.network_usd_per_h(s) > 0) for s in strategies}
    assert len(kinds) == 4


def test_a_large_space_is_thinned_but_keeps_its_best() -> None:
    """Thousands of GPUs leave a table that fits, whose fronts by the bound hold strategies of the space alone."""
    space = Space(small_problem(max_gpus=4096, max_num_seqs=(64, 128, 256)))
    screen = made_up_screen(space, demand_req_s=500.0)
    assert not screen.is_complete
    assert len(screen.table) <= 1.2 * THINNED_ROWS < space.size
    front = non_dominated(screen.table.bound_req_s, screen.table.usd_per_h)
    assert all(screen.strategy(screen.table, int(row)) in space for row in front)
    near = screen.table.bound_req_s[(screen.table.bound_req_s >= 500.0) & (screen.table.second < 0)].min()
    assert near < 1.02 * 500.0


def test_what_is_learned_carries_over_to_alike_strategies(screen: Screen) -> None:
    """After 100 strategies whose shortfall depends on GPU and balance, the rest is forecast within a few noises."""
    features = Features(screen)
    table = features.of(screen.table)
    rng = np.random.default_rng(0)
    weight = np.where(np.arange(features.num) % 3 == 0, -0.1, 0.02)
    truth = PRIOR_MEAN + weight[table[:, [1, 7]]].sum(axis=1)
    seen = rng.choice(len(table), 100, replace=False)
    noisy = truth[seen] + rng.normal(0, NOISE, len(seen))
    mean, sd = Forecast.fitted(features.sd, table[seen], noisy).of(table)
    prior_mean, prior_sd = Forecast.fitted(features.sd, table[:0], noisy[:0]).of(table)
    rest = np.setdiff1d(np.arange(len(table)), seen)
    assert np.sqrt(np.mean((mean - truth)[rest] ** 2)) < 2 * NOISE
    assert np.mean(np.abs(mean - truth)[rest] < 2 * sd[rest]) > 0.9
    assert np.all(sd <= prior_sd + 1e-12)
    assert np.all(prior_mean == PRIOR_MEAN)


def test_one_observation_by_hand() -> None:
    """One feature of prior deviation 0.3 seen once: mean 0.09/(0.09 + s²) of the observation, variance 0.09 s²/(…)."""
    forecast = Forecast.fitted(np.array([0.3, 0.2]), np.array([[0]]), np.array([PRIOR_MEAN + 0.5]))
    mean, sd = forecast.of(np.array([[0], [1]]))
    share = 0.09 / (0.09 + NOISE**2)
    assert mean == pytest.approx([PRIOR_MEAN + 0.5 * share, PRIOR_MEAN])
    assert sd == pytest.approx([np.sqrt(0.09 * (1 - share)), 0.2])


def test_shortfall_of_what_serves_nothing_is_the_least() -> None:
    """ln(G/B) as written, cut at its lowest for strategies without goodput or bound."""
    found = shortfall(np.array([0.5, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert found == pytest.approx([np.log(0.5), LOWEST, LOWEST, LOWEST])


@given(POINTS, st.integers(1, 25), st.integers(0, 25))
def test_gain_is_the_hypervolume_added(points: list[tuple[int, int]], goodput: int, cost: int) -> None:
    """The area that a point adds to a staircase is the difference of two hypervolumes, before and after it joins."""
    g, c = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points], dtype=float)
    front = non_dominated(g, c)
    staircase = Staircase(g[front], c[front], 22.0)
    before = hypervolume(g, c, ref_usd_per_h=22.0)
    after = hypervolume(np.append(g, goodput), np.append(c, cost), ref_usd_per_h=22.0)
    gain = float(staircase.gain(np.array([float(goodput)]), np.array([float(cost)]))[0])
    assert gain == pytest.approx(after - before, abs=1e-9)
    if gain > 0:
        again = staircase.with_point(float(goodput), float(cost))
        again_area = hypervolume(again.goodput, again.cost, ref_usd_per_h=22.0)
        assert again_area == pytest.approx(after)
        assert float(again.gain(np.array([float(goodput)]), np.array([float(cost)]))[0]) == pytest.approx(0.0)


def test_most_gain_takes_different_costs_before_the_second_of_one() -> None:
    """Two points of one cost: the lesser adds nothing once the better is taken."""
    hoped, cost = np.array([10.0, 9.0, 3.0]), np.array([5.0, 5.0, 1.0])
    empty = Staircase(np.zeros(0), np.zeros(0), 10.0)
    assert most_gain(hoped, cost, empty, room=3, least_gain=1e-9) == [0, 2]
