"""The accuracy of the bundled cards on measured runs, as a gate: no figure may get worse by more than a tenth."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.validate import Validation, validate

MEDIANS = {
    ("silicon collocated", "tpot_mean_ms"): 0.0341,
    ("silicon collocated", "ttft_mean_ms"): 0.1024,
    ("silicon disaggregated", "tpot_mean_ms"): 0.0651,
    ("silicon disaggregated", "ttft_mean_ms"): 0.1926,
    ("prefix-cached vllm", "e2e_mean_ms"): 0.0366,
    ("prefix-cached vllm", "ttft_mean_ms"): 0.0685,
    ("prefix-cached vllm", "ttft_p99_ms"): 0.1506,
}  # printed by `bestserve fit` on 2026-11-26: of the bundled cards, which have seen these runs
MEAN_REGRET, LOST_CORRELATION = 0.0023, 0.0441
SLACK = 1.1


@pytest.fixture(scope="module")
def found(shared: Path) -> Validation:
    """Every run answered by the bundled cards; skipped with a notice where the measurements are absent."""
    return validate(shared / "measured" / "measurements.csv")


@pytest.mark.shared
@pytest.mark.slow
def test_every_run_is_answered(found: Validation) -> None:
    """All 1,779 runs have a prediction of every latency that was measured."""
    assert found.num_runs == 1779
    assert all(row.answered_frac == 1 for row in found.errors)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("part", "metric"), MEDIANS)
def test_median_errors_stay(found: Validation, part: str, metric: str) -> None:
    """The median error of each part of the table is at most a tenth above the one that was published."""
    row = next(row for row in found.errors if (row.part, row.metric) == (part, metric))
    assert row.median_frac <= SLACK * MEDIANS[part, metric]


@pytest.mark.shared
@pytest.mark.slow
def test_decisions_stay(found: Validation) -> None:
    """Mean regret of the layout picked, and what the rank correlation lacks of one, are at most a tenth more."""
    assert found.decision is not None
    assert found.decision.mean_regret_frac <= SLACK * MEAN_REGRET
    assert 1.0 - found.decision.mean_rank_correlation <= SLACK * LOST_CORRELATION
