"""The space of strategies and its rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from estimator.catalogue.models import load_model
from estimator.errors import BestServeError
from spaces.choices import PoolChoices, SearchSpace
from spaces.problem import link_of
from spaces.rules import EXPLANATIONS, MEMORY_RULE, SHAPE_RULES, STRATEGY_RULES, broken_strategy
from spaces.space import Recorded, Space
from spaces.strategy import Strategy
from tests.small_problem import small_problem

FEW = {"m": PoolChoices(max_count=2), "p": PoolChoices(min_count=2)}
ELSEWHERE = {"h100_sxm": "a", "l40s": "b"}
VIOLATIONS = [
    ("layers", "llama-3.1-8b", "1m-tp1-pp64@h100_sxm", {}, "pp = 64 stages for 32 layers"),
    ("heads", "llama-3.1-8b", "1m-tp3@h100_sxm", {}, "tp = 3 does not divide 32 attention heads"),
    ("experts", "llama-3.1-8b", "1m-tp2-ep2@h100_sxm", {}, "ep = 2 in a model without experts"),
    ("experts", "mixtral-8x7b-v0.1", "1m-tp16-ep16@h100_sxm", {}, "ep = 16 does not divide 8 experts"),
    ("data_parallel", "llama-3.1-8b", "1m-tp1-dp2@h100_sxm", {}, "dp = 2 in a model without experts"),
    ("expert_split", "mixtral-8x7b-v0.1", "1m-tp4-ep4@h100_sxm", {"expert_tp": (2, 4)}, "1 GPUs share an expert, 2, 4"),
    ("engine_support", "mixtral-8x7b-v0.1", "1m-tp4-ep2@h100_sxm", {}, "vllm sets ep to tp × dp = 4, not 2"),
    (
        "engine_support",
        "llama-3.1-8b",
        "1p-tp1-pp2@l40s+1d-tp1@l40s",
        {},
        "hands no caches over with pp = 2 in the prefill",
    ),
    ("least_gpus", "llama-3.1-8b", "1m-tp1@l40s", {"min_gpus": 2}, "1 GPUs, at least 2 asked for"),
    ("instances", "llama-3.1-8b", "3m-tp1@l40s", {"pools": FEW}, "3 instances, 1 to 2 allowed"),
    ("instances", "llama-3.1-8b", "1p-tp1@l40s+1d-tp1@l40s", {"pools": FEW}, "1 instances, 2 or more allowed"),
    ("widths", "llama-3.1-8b", "1m-tp2@h100_sxm", {}, ""),
    ("fast_links", "llama-3.1-8b", "1m-tp16@h100_sxm", {}, "tp = 16 reaches over the 8 joined GPUs"),
    ("node_boundary", "mixtral-8x7b-v0.1", "1m-tp4-dp3@h100_sxm", {}, "neither fits in nor fills nodes of 8"),
    ("gpu_budget", "llama-3.1-8b", "5m-tp1@h100_sxm", {}, "5 GPUs, 4 allowed"),
    ("owned", "llama-3.1-8b", "2m-tp1@l40s", {"owned": {"l40s": 1}}, "2 l40s, 1 owned"),
    ("whole_nodes", "llama-3.1-8b", "1m-tp1@l40s", {"whole_nodes": True}, "1 l40s do not fill nodes"),
    ("one_provider", "llama-3.1-8b", "1p-tp1@h100_sxm+1d-tp1@l40s", {"providers": ELSEWHERE}, "GPUs of a and b"),
    ("patterns", "llama-3.1-8b", "1m-tp1@l40s", {"forbid": ("*@l40s*",)}, "forbidden by *@l40s*"),
    ("patterns", "llama-3.1-8b", "1m-tp1@l40s", {"only": ("*@h100*",)}, "matches none"),
]


@pytest.mark.parametrize(("rule", "model", "text", "choices", "reason"), VIOLATIONS)
def test_each_rule_names_itself(rule: str, model: str, text: str, choices: dict[str, Any], reason: str) -> None:
    """A strategy that breaks one rule is told which, why, and by how much."""
    problem = small_problem(model, **choices)
    if rule == "widths":
        group = problem.model.layers[0]
        odd = replace(group, ffn=replace(group.ffn, intermediate_size=14337))
        problem = replace(problem, model=replace(problem.model, layers=(odd,)))
        reason = "2 GPUs do not divide the feed-forward width of 14337"
    broken = broken_strategy(problem, Strategy.parse(text))
    assert broken is not None
    assert broken.rule == rule
    assert reason in broken.reason
    assert broken.violation > 0


def test_every_rule_has_an_explanation_and_a_violating_example() -> None:
    """No rule goes unexplained or untested."""
    assert {rule for rule, *_ in VIOLATIONS} == set(SHAPE_RULES) | set(STRATEGY_RULES)
    assert set(EXPLANATIONS) == set(SHAPE_RULES) | set(STRATEGY_RULES) | {MEMORY_RULE}
    assert all(text.endswith(".") for text in EXPLANATIONS.values())


def test_memory_removes_what_does_not_fit() -> None:
    """Llama-3.1-70B in bf16 (141 GB) fits no single H100 of 80 GB; two hold it, four hold it on L40S of 48 GB."""
    space = Space(small_problem("llama-3.1-70b", tp=(1, 2, 4), pp=(1,)))
    layouts = {(shape.gpu, shape.parallelism.tp) for shape in space.shapes["m"]}
    assert ("h100_sxm", 1) not in layouts
    assert ("h100_sxm", 4) in layouts
    assert ("l40s", 2) not in layouts
    assert space.removed[MEMORY_RULE].num_shapes > 0
    assert "GB" in space.removed[MEMORY_RULE].reason


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"architectures": ("collocated",)},
        {"architectures": ("disaggregated",), "owned": {"l40s": 1}},
        {"max_gpus": 7, "owned": {"h100_sxm": 3}, "disaggregated_policies": ("distserve", "tetriinfer")},
        {"forbid": ("*tp2*",)},
        {"pools": {"p": PoolChoices(gpus=("h100_sxm",), tp=(2,)), "d": PoolChoices(gpus=("l40s",))}},
        {"pools": {"m": PoolChoices(max_count=2), "p": PoolChoices(min_count=2), "d": PoolChoices(max_count=1)}},
        {"whole_nodes": True, "max_gpus": 24},
        {"whole_nodes": True, "max_gpus": 17, "min_gpus": 9, "owned": {"h100_sxm": 8}},
        {"min_gpus": 3},
        {"providers": {"h100_sxm": "a", "l40s": "b"}},
    ],
)
def test_size_counts_what_listing_lists(choices: dict[str, Any]) -> None:
    """The size is counted without listing, and every strategy listed is different, in the space, and breaks no rule."""
    space = Space(small_problem(**choices))
    listed = list(space)
    assert space.size == len(listed) == len(set(listed)) > 0
    assert all(strategy in space for strategy in listed)
    assert replace(listed[0], router="least_outstanding") not in space
    assert all(broken_strategy(space.problem, strategy) is None for strategy in listed)


def test_parameters_are_a_bijection() -> None:
    """Encoding a strategy and decoding its parameters gives it back, and no two share parameters."""
    space = Space(small_problem(max_gpus=6))
    seen = set()
    for strategy in space:
        params = space.encode(strategy)
        assert space.decode(Recorded(params)) == strategy
        seen.add(tuple(sorted(params.items())))
    assert len(seen) == space.size


def test_a_parameter_always_has_the_same_choices() -> None:
    """A sampler sees one list of choices per categorical parameter name, over the whole space."""
    space = Space(small_problem(max_gpus=6))
    choices: dict[str, tuple[str, ...]] = {}
    for strategy in space:
        recorded = Recorded(space.encode(strategy))
        space.decode(recorded)
        for name, asked in recorded.asked.items():
            if not isinstance(asked, tuple):
                assert choices.setdefault(name, tuple(asked)) == tuple(asked)
    assert {"architecture", "m_gpu", "p_gpu", "d_gpu"} <= set(choices)


def test_neighbours_stay_in_the_space_and_connect_it() -> None:
    """Every neighbour is another strategy of the space, and steps to neighbours reach all strategies of a kind."""
    space = Space(small_problem())
    for kind in (True, False):
        members = {strategy for strategy in space if strategy.is_disaggregated is kind}
        reached, frontier = set(), [next(iter(sorted(members, key=str)))]
        while frontier:
            strategy = frontier.pop()
            for other in space.neighbours(strategy):
                assert other in space
                assert other != strategy
                if other not in reached:
                    reached.add(other)
                    frontier.append(other)
        assert reached == members


def test_hand_over_uses_the_fastest_common_link() -> None:
    """Inside one NVLink domain KV caches go over NVLink; over each side's network else.

    Pairs that fill nodes hand over inside them under round robin.
    """
    problem = small_problem(max_gpus=32)
    h100 = problem.gpus["h100_sxm"]
    near = link_of(problem, Strategy.parse("1p-tp2@h100_sxm+1d-tp4@h100_sxm"))
    assert near.egress_bytes_per_s == 2 * h100.nvlink_bytes_per_s
    assert near.ingress_bytes_per_s == 4 * h100.nvlink_bytes_per_s
    far = link_of(problem, Strategy.parse("4p-tp2@h100_sxm+1d-tp4@h100_sxm"))
    assert far.egress_bytes_per_s == 2 * h100.network_bytes_per_s
    own = replace(problem, network_bytes_per_s=1e9)
    paired = link_of(problem, Strategy.parse("6p-tp2@h100_sxm+6d-tp2@h100_sxm"))
    assert paired.egress_bytes_per_s == 2 * h100.nvlink_bytes_per_s  # two pairs fill a node of eight
    drawn = link_of(problem, Strategy.parse("6p-tp2@h100_sxm,policy=tetriinfer+6d-tp2@h100_sxm"))
    assert drawn.egress_bytes_per_s == 2 * h100.network_bytes_per_s
    assert link_of(own, Strategy.parse("1p-tp2@h100_sxm+1d-tp1@l40s")).egress_bytes_per_s == 2e9


def test_wrong_choices_are_refused() -> None:
    """Choices outside what exists name the field and what would do."""
    with pytest.raises(BestServeError, match="max_gpus: 0 must be at least 1"):
        SearchSpace(max_gpus=0)
    with pytest.raises(BestServeError, match="architectures: 'serverless' is unknown"):
        SearchSpace(max_gpus=4, architectures=("serverless",))
    with pytest.raises(BestServeError, match=r"tp: .* must be choices of at least 1"):
        SearchSpace(max_gpus=4, tp=())
    with pytest.raises(BestServeError, match="is not one of the problem's GPUs"):
        broken_strategy(small_problem(), Strategy.parse("1m-tp1@tpu"))


def test_every_bundled_architecture_passes_through_the_rules() -> None:
    """Grouped-query, latent and mixture-of-experts models each leave shapes on eight H200."""
    for name in ("qwen3-32b", "deepseek-r1", "mixtral-8x7b-v0.1"):
        assert load_model(name).num_layers > 0
        problem = replace(
            small_problem(name, ("h200_sxm",), max_gpus=8, tp=(8,), pp=(1,), ep=(1, 8)), weight_dtype="fp8"
        )
        assert Space(problem).size > 0


def test_routers_are_chosen_where_several_are_allowed() -> None:
    """Each router has its own strategies, counted, listed, written to parameters and back; by default there is one."""
    space = Space(small_problem(max_gpus=3, routers=("round_robin", "least_outstanding")))
    listed = list(space)
    assert len(listed) == len(set(listed)) == space.size == 2 * Space(small_problem(max_gpus=3)).size
    assert {strategy.router for strategy in listed} == {"round_robin", "least_outstanding"}
    assert all(space.decode(Recorded(space.encode(strategy))) == strategy for strategy in listed)
    assert all(replace(s, router="least_outstanding") in [*space.neighbours(s), s] for s in listed[:50])
    with pytest.raises(BestServeError, match="routers: 'magic' is unknown"):
        small_problem(routers=("magic",))
