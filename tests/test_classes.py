"""Classes that an answer compares: what a study tries first of each, and how well it knows their least cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.classes import classes_of, plainest
from search.evaluate import Evaluation
from search.executor import LocalExecutor
from search.screen import Screen
from search.study import Settings, Study
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import made_up, made_up_screen, small_problem, tariff, usd_per_h

DEMAND = 9.0


def behind(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """Made-up goodput of a world in which the bound flatters collocated pipelines threefold."""
    exact = made_up(problem, strategy, seed)
    flattered = not strategy.is_disaggregated and strategy.pools[0].parallelism.pp > 1
    return replace(exact, goodput_req_s=exact.goodput_req_s / (3.0 if flattered else 1.0))


def test_the_plainest_are_tensor_parallel_at_every_degree_and_carry_the_demand() -> None:
    """Collocated ones at each degree of each GPU type and two pools of each type, all of them carrying the demand."""
    screen = made_up_screen(Space(small_problem(max_gpus=16)), DEMAND)
    found = plainest(screen)
    assert all(pool.num_gpus == pool.count * pool.parallelism.tp for strategy in found for pool in strategy.pools)
    single = {(s.pools[0].gpu, s.pools[0].parallelism.tp) for s in found if not s.is_disaggregated}
    assert single == {(gpu, tp) for gpu in ("h100_sxm", "l40s") for tp in (1, 2)}
    assert [set(s.gpu_counts) for s in found if s.is_disaggregated] == [{"h100_sxm"}, {"l40s"}]
    assert len(found) == 6
    assert min(made_up(screen.space.problem, strategy, 0).goodput_req_s for strategy in found) >= DEMAND


def test_the_default_layout_of_a_large_model_is_among_the_first_tried() -> None:
    """For DeepSeek-R1 on H200, where the bound puts attention data parallelism first, TP8 is tried all the same."""
    problem = small_problem("deepseek-r1", ("h200_sxm",), max_gpus=16, tp=(1, 2, 4, 8), dp=(1, 2, 4, 8), ep=(1, 8))
    space = Space(replace(problem, weight_dtype="fp8", kv_dtype="fp8"))
    first = [str(strategy) for strategy in plainest(Screen(space, tariff(), demand_req_s=4.0))]
    assert any("m-tp8@h200_sxm" in text for text in first), first


def test_nodes_that_are_paid_for_are_filled() -> None:
    """Where H100 are sold by eight, a demand of one GPU is also tried with as many instances as the node holds."""
    paid = tariff()
    node = replace(paid.cards["h100_sxm"], gpus_per_node=8)
    by_node = replace(paid, cards={**paid.cards, "h100_sxm": node})
    screen = Screen(Space(small_problem(max_gpus=16)), by_node, demand_req_s=0.1)
    shapes = {
        (s.pools[0].count, s.pools[0].parallelism.tp, s.pools[0].gpu) for s in plainest(screen) if len(s.pools) == 1
    }
    assert {(1, 1, "h100_sxm"), (8, 1, "h100_sxm"), (1, 2, "h100_sxm"), (4, 2, "h100_sxm")} <= shapes
    assert {count for count, tp, gpu in shapes if gpu == "l40s"} == {1}


@pytest.mark.parametrize("seed", range(5))
def test_a_study_knows_the_least_cost_of_every_class(seed: int) -> None:
    """With a tenth of the space evaluated the cheapest of each architecture and GPU type costs what it truly does."""
    problem = small_problem(max_gpus=12)
    space = Space(problem)
    screen = made_up_screen(space, DEMAND, 4.0)
    settings = Settings(trials=space.size // 10, demand_req_s=DEMAND, seed=seed)
    executor = LocalExecutor(problem, seed=0, evaluate=behind)
    found = Study(space, executor, tariff(), settings, screen=screen).run().evaluations
    for members in classes_of(space):
        known = [s for e in found if e.goodput_req_s >= DEMAND and (s := Strategy.parse(e.strategy)) in members]
        every = [s for s in space if s in members and behind(problem, s, 0).goodput_req_s >= DEMAND]
        assert min(usd_per_h(s.gpu_counts) for s in known) == min(usd_per_h(s.gpu_counts) for s in every), members
