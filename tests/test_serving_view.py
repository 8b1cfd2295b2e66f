"""What a report shows of a simulated stretch of serving, and of the known errors of its times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from estimator.build import step_breakdown
from estimator.catalogue.timing import load_timing
from estimator.dtypes import Dtypes
from search.error_view import known_errors
from search.estimate import estimate, existing_system
from search.serving_view import Serving, serving_of
from search.simulated_view import breakdown_of
from spaces.problem import Problem
from spaces.strategy import Strategy
from tests.small_problem import small_problem

STRATEGIES = ("2m-tp1@h100_sxm", "1p-tp1@h100_sxm+1d-tp2@h100_sxm")


def counted(shown: Serving, enter: str, leave: str, until_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact bin means of the shown requests between two of their times, and which bins end before `until_s`."""
    middle = np.array(shown.time_s)
    half = (middle[1] - middle[0]) / 2
    total = np.zeros(len(middle))
    for span in shown.requests:
        start, end = getattr(span, enter), getattr(span, leave)
        if start is not None:
            total += np.clip(middle + half, start, end) - np.clip(middle - half, start, end)
    return total / (2 * half), middle + half < until_s


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counts_are_those_of_the_requests_shown(strategy: str) -> None:
    """At a rate so low that earlier requests are gone, queue, prompts and decode are the shown requests' own times."""
    shown = serving_of(small_problem(), strategy, 0.05)
    until_s = shown.requests[-1].arrival_s
    first, last = shown.pools[0], shown.pools[-1]
    decoding_from = "first_token_s" if len(shown.pools) == 1 else "kv_arrival_s"
    states = [(first.waiting, "arrival_s", "prefill_start_s"), (first.prefill, "prefill_start_s", "first_token_s")]
    states += [(last.decode, decoding_from, "finish_s")]
    for values, enter, leave in states:
        exact, inside = counted(shown, enter, leave, until_s)
        assert inside.sum() > 20
        assert exact[inside].max() > 0
        np.testing.assert_allclose(np.array(values)[inside], exact[inside], atol=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_events_of_a_request_are_in_order(strategy: str) -> None:
    """Arrival, prefill start, first token, cache across, finish; the cache moves only between two pools."""
    shown = serving_of(small_problem(), strategy, 5.0)
    assert len(shown.requests) == 24
    for span in shown.requests:
        moved = span.first_token_s if span.kv_arrival_s is None else span.kv_arrival_s
        times = (span.arrival_s, span.prefill_start_s, span.first_token_s, moved, span.finish_s)
        assert list(times) == sorted(times)
        assert (span.kv_arrival_s is None) == ("+" not in strategy)
    assert any(shown.moving) == ("+" in strategy)
    assert all(0 <= share <= 1 for pool in shown.pools for share in pool.kv_frac)


def quick(problem: Problem, strategy: str) -> dict[str, float | None]:
    """Known errors by what they are of."""
    return {error.what: error.median_frac for error in known_errors(problem, Strategy.parse(strategy))}


def test_known_errors_are_the_fits_that_the_steps_use() -> None:
    """bf16 products and both attentions with the card's own errors; collectives only where GPUs are joined."""
    problem = small_problem()
    found, curves = quick(problem, "2m-tp1@h100_sxm"), load_timing(problem.gpu("h100_sxm"), "vllm").curves
    assert found == {
        "matrix products, bf16": curves["gemm", "bf16"].median_error_frac,
        "attention over the prompt, bf16": curves["context_attention", "bf16"].median_error_frac,
        "attention while generating, bf16": curves["generation_attention", "bf16"].median_error_frac,
    }
    joined = quick(problem, "1m-tp4@h100_sxm")
    assert joined["all-reduce, 4 GPUs"] is not None
    assert set(found) < set(joined)


def test_what_was_never_measured_has_no_error() -> None:
    """A GPU of an unknown architecture has no curve: its times are the data sheet's, and no error is made up."""
    problem = small_problem()
    unknown = replace(problem.gpu("h100_sxm"), name="mystery", architecture="unknown")
    errors = known_errors(replace(problem, gpus={"mystery": unknown}), Strategy.parse("1m-tp1@mystery"))
    assert {error.tier for error in errors} == {"data_sheet"}
    assert all(error.median_frac is None for error in errors)


def test_a_decode_step_is_that_of_one_micro_batch() -> None:
    """Where the time goes, the decode step of a batch of 24 over two stages is one of twelve sequences."""
    problem = small_problem()
    strategy = Strategy.parse("1m-tp1-pp2@h100_sxm")
    summary = estimate(problem, existing_system(problem, strategy), str(strategy), rate_req_s=2.0).summary
    summary = replace(summary, decode=replace(summary.decode, mean_batch_seqs=24.0))
    shown = {time.operator: time.ms for time in breakdown_of(problem, strategy, summary) if time.phase == "decode"}
    tokens = problem.workload.mean_input_tokens + problem.workload.mean_output_tokens / 2
    parts = step_breakdown(
        model=problem.model,
        gpu=problem.gpu("h100_sxm"),
        engine=problem.engine,
        parallelism=strategy.pools[0].parallelism,
        dtypes=Dtypes(weight=problem.weight_dtype, kv=problem.kv_dtype),
        num_seqs=12,
        cached_tokens=12 * tokens,
    )
    assert shown == pytest.approx({part.operator: 1e3 * part.seconds for part in parts})
