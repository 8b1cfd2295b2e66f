"""What `bestserve space` prints: size, what each rule takes, examples; and how a spec narrows a space."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from estimator.errors import BestServeError
from search.space_view import space_view
from search.spec import Spec, parse_spec
from search.terminal import limit_lines
from search.view import Rejection, View
from spaces.choices import PoolChoices
from spaces.rules import EXPLANATIONS
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import small_problem


def spec(**search: Any) -> Spec:
    """A spec of one 8B model with this `search` part."""
    return parse_spec(
        {
            "name": "narrow",
            "model": {"id": "meta-llama/Llama-3.1-8B"},
            "traffic": {"rate_req_s": 5, "lengths": {"kind": "fixed", "input_tokens": 100, "output_tokens": 10}},
            "slo": {"ttft": {"p90_ms": 1000}},
            "gpus": ["h100_sxm", "l40s"],
            "search": search,
        },
        folder=Path(),
    )


def test_each_limit_in_force_says_how_much_it_takes() -> None:
    """Size and freed strategies of a rule make the space without it; shape rules show an example with its reason."""
    problem = small_problem(owned={"l40s": 2}, forbid=("*-tp2*",), pp=(1, 64), pools={"m": PoolChoices(max_count=2)})
    view = space_view(Space(problem))
    effects = {effect.rule: effect for effect in view.rules}
    assert set(effects) == {"layers", "owned", "instances", "patterns"}
    without = Space(small_problem(forbid=("*-tp2*",), pp=(1, 64), pools={"m": PoolChoices(max_count=2)}))
    assert view.size + (effects["owned"].strategies or 0) == without.size
    assert "pp = 64 stages for 32 layers" in effects["layers"].example
    assert all(effect.says == EXPLANATIONS[effect.rule] for effect in view.rules)


def test_examples_are_strategies_of_the_space() -> None:
    """Up to five different ones, both architectures among them."""
    space = Space(small_problem())
    examples = [Strategy.parse(text) for text in space_view(space).examples]
    assert len(set(examples)) == 5
    assert all(strategy in space for strategy in examples)
    assert {strategy.is_disaggregated for strategy in examples} == {True, False}


def test_a_spec_fixes_lists_and_ranges() -> None:
    """One value fixes a choice, a range stands for its powers of two and its ends, a pool narrows for itself."""
    problem = spec(
        tp=4,
        pp={"min": 1, "max": 6},
        tokens=[2048],
        min_gpus=8,
        prefill={"tp": [2, 4], "gpus": ["h100_sxm"], "count": {"max": 3}},
        decode={"expert_tp": {"min": 2, "max": 8}, "count": {"min": 2}},
    ).problem()
    allowed = problem.space
    assert allowed.degrees("m", "tp") == (4,)
    assert allowed.degrees("p", "tp") == (2, 4)
    assert allowed.pp == (1, 2, 4, 6)
    assert allowed.expert_tp_of("d") == (2, 4, 8)
    assert allowed.expert_tp_of("m") is None
    for strategy in Space(problem):
        assert strategy.num_gpus >= 8
        if strategy.is_disaggregated:
            prefill, decode = strategy.pools
            assert (prefill.gpu, prefill.count <= 3, decode.count >= 2) == ("h100_sxm", True, True)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"min_gpus": 64}, r"min_gpus: 64 must not exceed max_gpus; accepted: 1 to 32"),
        ({"tp": {"min": 4, "max": 2}}, r"max: 2 must not be below min = 4"),
        ({"tp": {"min": 4}}, r"max: None must be given"),
        ({"prefill": {"gpus": ["a100_sxm"]}}, r"search.prefill.gpus: 'a100_sxm' is not among the spec's gpus"),
    ],
)
def test_what_cannot_be_narrowed_so_is_refused(search: dict[str, Any], message: str) -> None:
    """Wrong limits name their field and what would do."""
    with pytest.raises(BestServeError, match=message):
        spec(**search)


@pytest.mark.parametrize(
    ("rule", "num", "what", "line"),
    [
        ("memory", 1200, "layouts", "Left out: 1,200 layouts by memory."),
        ("kv_fit", 1, "layouts", "Left out: 1 layout by kv fit."),
        ("unstable", 1, "strategies", "Left out: 1 strategy as unstable."),
        ("failed", 2, "strategies", "Left out: 2 strategies as failed."),
    ],
)
def test_what_is_left_out_is_counted_and_named(rule: str, num: int, what: str, line: str) -> None:
    """Rules remove layouts, outcomes strategies; one of them is singular."""
    view = SimpleNamespace(rejected=(Rejection(rule=rule, num=num, what=what, reason="why"),))
    assert limit_lines(cast(View, view)) == [line]
