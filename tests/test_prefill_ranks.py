"""Prefill instances step by step on paper: ranks that share experts, and steps that are put together one ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.instance import Instance
from estimator.parallelism import Parallelism
from estimator.simulate import simulate
from tests.test_disaggregated import FAST_LINK, clock_instance, requests_of, system_of


def ranks_instance(**changes: object) -> Instance:
    """Two ranks; a step takes 1 s a token of the fuller one, 0.25 s of it in experts for each token of the mean."""
    instance = clock_instance(16, 4)
    cost = replace(instance.cost, pooled_s=0.25 * np.arange(17.0))
    return replace(instance, cost=cost, parallelism=Parallelism(dp=2), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "seconds"),
    [
        ([8], 0.75 * 8 + 0.25 * 4),  # the idle rank's GPUs take half of the experts' work
        ([8, 8], 8.0),
        ([8, 4], 0.75 * 8 + 0.25 * 6),
    ],
)
def test_ranks_share_the_work_of_experts(inputs: list[int], seconds: float) -> None:
    """A prompt alone among two ranks has experts' time halved; equal prompts take the table's."""
    system = system_of(ranks_instance(), clock_instance(16, 4), link=FAST_LINK)
    run = simulate(system, requests_of([0.0] * len(inputs), inputs, 2))
    np.testing.assert_allclose(run.first_token_s, seconds, rtol=1e-12)


@pytest.mark.parametrize(
    ("looks_ahead", "first_s"),
    [
        # 0-8 the first, 8-16 the second; the third, come at 9 s, at once after it
        (False, [8, 16, 20]),
        (True, [8, 16, 20]),
    ],
)
def test_nothing_waits_where_the_next_step_is_empty(looks_ahead: bool, first_s: list[float]) -> None:
    """A step of one prompt at a time: whoever is first in line starts when the one before ends, looked ahead or not."""
    instance = replace(clock_instance(8, 4), looks_ahead=looks_ahead)
    run = simulate(system_of(instance, clock_instance(16, 4), link=FAST_LINK), requests_of([0, 1, 9], [8, 8, 4], 2))
    np.testing.assert_allclose(run.first_token_s, first_s, rtol=1e-12)


@pytest.mark.parametrize(("looks_ahead", "first_s"), [(False, [4, 14, 14]), (True, [4, 12, 14])])
def test_a_step_put_together_ahead_leaves_out_who_came_since(looks_ahead: bool, first_s: list[float]) -> None:
    """The second prompt waits since before the step that runs, the third came within it: one step later if ahead."""
    instance = replace(clock_instance(10, 4), looks_ahead=looks_ahead)
    system = system_of(instance, clock_instance(16, 4), link=FAST_LINK)
    run = simulate(system, requests_of([0, 0, 1], [4, 8, 2], 2))
    np.testing.assert_allclose(run.first_token_s, first_s, rtol=1e-12)
