"""Measured runs read, answered and scored."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from estimator.accuracy import decision_row, error_row, error_rows
from estimator.measured_runs import METRICS, MeasuredRun, read_runs
from estimator.replay import answer
from search.validate import accuracy_table, validate


@pytest.fixture(scope="module")
def runs(shared: Path) -> list[MeasuredRun]:
    """Every measured run."""
    return read_runs(shared / "measured" / "measurements.csv")


def test_errors_by_hand() -> None:
    """Predictions of 110, 80 and nothing beside 100 have a median error of 15 % and a bias of −5 %."""
    row = error_row("part", "tpot_mean_ms", [(110.0, 100.0), (80.0, 100.0), (np.nan, 100.0)])
    assert row.median_frac == pytest.approx(0.15)
    assert row.bias_frac == pytest.approx(-0.05)
    assert row.answered_frac == pytest.approx(2 / 3)


def test_the_measurement_itself_has_no_error_and_no_regret(runs: list[MeasuredRun]) -> None:
    """Given the measurement as prediction, every error and the regret are zero and every rank is right."""
    perfect = {run.id: run.measured_ms for run in runs}
    assert all(row.mean_frac == 0 and row.answered_frac == 1 for row in error_rows(runs, perfect))
    decision = decision_row(runs, perfect)
    assert decision is not None
    assert decision.mean_regret_frac == 0
    assert decision.mean_rank_correlation == pytest.approx(1.0)
    assert decision.ranks.lost == pytest.approx(0.0, abs=1e-9)
    assert decision.num_groups > 200


def test_the_inverse_picks_the_worst(runs: list[MeasuredRun]) -> None:
    """Predicting the inverse of every rate per GPU picks the slowest layout: ranks are reversed, regret is large."""
    inverse = {run.id: {"ttft_mean_ms": 0.0, "tpot_mean_ms": 1e9 / _gpu_ms(run) / run.num_gpus} for run in runs}
    decision = decision_row(runs, inverse)
    assert decision is not None
    assert decision.mean_rank_correlation == pytest.approx(-1.0, abs=0.05)
    assert decision.ranks.lost == pytest.approx((1.0 - decision.mean_rank_correlation) * decision.ranks.num_groups)
    assert 0.0 < decision.ranks.lost_close < decision.ranks.lost  # some groups hold close layouts alone
    assert decision.mean_regret_frac > 0.1


def test_layouts_predicted_alike_share_their_regret_and_order(runs: list[MeasuredRun]) -> None:
    """One of two layouts predicted alike makes half the tokens a GPU: regret of 25 %, half a pair, no correlation."""
    first = next(run for run in runs if run.concurrency is not None and run.mode == "collocated")
    parallelism, measured_ms = first.pools[0].parallelism, {"ttft_mean_ms": 0.0, "tpot_mean_ms": 10.0}
    layouts = {
        name: replace(first.pools[0], parallelism=replace(parallelism, tp=tp)) for name, tp in (("a", 1), ("b", 2))
    }
    twins = [replace(first, id=name, pools=(pool,), measured_ms=measured_ms) for name, pool in layouts.items()]
    alike = {"a": {"ttft_mean_ms": 0.0, "tpot_mean_ms": 7.0}, "b": {"ttft_mean_ms": 0.0, "tpot_mean_ms": 3.5}}
    decision = decision_row(twins, alike)
    assert decision is not None
    assert decision.mean_regret_frac == pytest.approx(0.25)
    assert [row.ordered_frac for row in decision.pairs] == [0.5]
    assert np.isnan(decision.mean_rank_correlation)


def _gpu_ms(run: MeasuredRun) -> float:
    gaps = sum(run.output_bounds) / 2 - 1
    return run.num_gpus * (run.measured_ms["ttft_mean_ms"] + gaps * run.measured_ms["tpot_mean_ms"])


def test_prefix_cached_runs_compute_the_last_block_alone(runs: list[MeasuredRun]) -> None:
    """From the second round on, a cycled prompt of 547 tokens leaves 547 − 544 = 3 to compute; the first round more."""
    run = next(run for run in runs if run.unique_prompts and not run.starts_warm and run.input_bounds == (547, 547))
    requests = run.requests()
    left = requests.input_tokens - requests.cached_tokens
    assert set(left[run.unique_prompts :]) == {3}
    assert set(left[: run.unique_prompts]) == {547 - 96}


def test_closed_loops_send_many_requests_a_slot(runs: list[MeasuredRun]) -> None:
    """Where a closed loop states its number of requests it is ten times its concurrency; else fifteen are assumed."""
    closed = [run for run in runs if run.concurrency is not None]
    by_source = {run.source: run.num_requests / (run.concurrency or 1) for run in closed}
    assert by_source == {"silicon/inferencemax": 10, "silicon/nvidia_internal_gap_analysis": 15}


def test_every_kind_of_run_is_answered(runs: list[MeasuredRun]) -> None:
    """One run of each model, engine and mode is answered with finite, ordered latencies."""
    first = {(run.model, run.engine, run.mode): run for run in reversed(runs) if run.num_requests <= 5000}
    for run in first.values():
        latency = answer(run).latency_ms
        assert all(np.isfinite(latency[metric]) for metric in METRICS)
        assert latency["ttft_p50_ms"] <= latency["ttft_p90_ms"] <= latency["ttft_p99_ms"]
        assert latency["e2e_mean_ms"] > latency["ttft_mean_ms"] > 0


def test_validate_writes_a_line_per_run(shared: Path, tmp_path: Path) -> None:
    """`validate` on a file of forty runs writes forty finite lines and a table that names every part of them."""
    source = (shared / "measured" / "measurements.csv").read_text(encoding="utf-8").splitlines()
    few = tmp_path / "few.csv"
    few.write_text("\n".join([source[0], *source[1:1700:45], source[-10]]) + "\n", encoding="utf-8")
    found = validate(few, predictions=tmp_path / "out.csv", peers=shared / "measured" / "peers.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.num_runs == len(few.read_text(encoding="utf-8").splitlines()) - 1
    assert all(np.isfinite(float(row[metric])) for row in rows for metric in METRICS)
    table = accuracy_table(found)
    assert "silicon collocated | tpot_mean | bestserve | 100 %" in table
    assert "aiconfigurator" in table
