"""Errors of whole runs: quantiles by hand, the finest group with enough runs, the card and what answers say of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from estimator.catalogue.run_errors import card_text, load_run_errors, read_card
from estimator.errors import BestServeError
from estimator.run_errors import LEAST_RUNS, LEVELS, RunErrorCard, RunGroup, group_errors
from search import error_view
from search.error_view import run_error_line
from search.run_errors import read_predictions, run_error_card
from spaces.strategy import Strategy
from tests.small_problem import small_problem

H100 = RunGroup(engine="vllm", gpu="h100_sxm", mode="collocated", kind="dense")
TPOT = "tpot_mean_ms"


def card_of(*groups: tuple[RunGroup, int, float]) -> RunErrorCard:
    """A card of `num` runs a group, each predicted `ratio` times too long."""
    pairs = [
        (group, f"{metric}_mean_ms", ratio, 1.0)
        for group, num, ratio in groups
        for metric in ("tpot", "ttft")
        for _ in range(num)
    ]
    return RunErrorCard(rows=group_errors(pairs), is_held_out=False, source="a test", date="2026-11-25")


def test_quantiles_by_hand() -> None:
    """Predictions 0.9, 1.0, 1.3 of 1 have errors 10, 0, 30 %: median 10 %, bias 0, P90 between 10 and 30 at 26 %."""
    rows = group_errors([(H100, TPOT, predicted, 1.0) for predicted in (0.9, 1.0, 1.3, float("nan"))])
    assert len(rows) == len(LEVELS)
    for row in rows:
        assert (row.num_runs, row.median_frac, row.bias_frac) == (3, 0.1, 0.0)
        assert row.p90_frac == pytest.approx(0.26)


def test_finest_group_with_enough_runs_answers() -> None:
    """Eight dense runs on H100 answer for themselves; seven are too few, and their engine's other GPUs help out."""
    l40s = replace(H100, gpu="l40s")
    found = card_of((H100, LEAST_RUNS, 1.1), (l40s, LEAST_RUNS - 1, 1.5)).find(H100, TPOT)
    assert found is not None
    assert (found.group, found.num_runs, found.median_frac) == (H100, 8, 0.1)
    wider = card_of((H100, LEAST_RUNS, 1.1), (l40s, LEAST_RUNS - 1, 1.5)).find(l40s, TPOT)
    assert wider is not None
    assert wider.group == RunGroup(engine="vllm", mode="collocated")
    assert wider.num_runs == 15
    assert card_of((H100, 3, 1.1)).find(H100, TPOT) is None


def test_card_is_read_as_it_was_written() -> None:
    """JSON and back is the same card; without a source it is refused."""
    card = card_of((H100, 9, 1.2))
    assert read_card(json.loads(card_text(card))) == card
    with pytest.raises(BestServeError, match="run errors source: '' must be given; accepted: text"):
        replace(card, source="")


def test_bundled_card_has_groups_that_add_up() -> None:
    """In the bundled card each coarser group holds exactly the runs of the finer ones within it."""
    card = load_run_errors()
    num = {(row.group, row.metric): row.num_runs for row in card.rows}
    finest = [row for row in card.rows if row.group.at(LEVELS[0]) == row.group and row.group.kind]
    for level in LEVELS[1:]:
        for group, metric in {(row.group.at(level), row.metric) for row in finest}:
            inside = sum(row.num_runs for row in finest if (row.group.at(level), row.metric) == (group, metric))
            assert num[group, metric] == inside


def test_answer_says_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names runs, engine, GPU, kind of model and both errors, or that only wider groups were measured."""
    card = card_of((H100, 10, 1.07))
    monkeypatch.setattr("estimator.catalogue.run_errors.load_run_errors", lambda: card)
    assert error_view.run_error_line(small_problem(), Strategy.parse("1m-tp1@h100_sxm")) == (
        "On 10 measured collocated runs of vllm on H100 SXM with dense models, which the fit has seen, "
        "mean TPOT was 7% and mean TTFT 7% off in the median."
    )
    other = run_error_line(small_problem(), Strategy.parse("1m-tp1@l40s"))
    assert other.startswith("Too few collocated runs of vllm on L40S were measured; on 10 measured collocated runs of")
    apart = run_error_line(small_problem(), Strategy.parse("1p-tp1@l40s+1d-tp1@l40s"))
    assert apart == "No whole run of this kind was measured."


def test_two_files_give_a_card(shared: Path, tmp_path: Path) -> None:
    """Predictions that are the measured values themselves have no error anywhere."""
    measurements = shared / "measured" / "measurements.csv"
    from estimator.measured_runs import read_runs

    runs = read_runs(measurements)[::40]
    lines = [f"{run.id},{run.measured_ms.get(TPOT, '')},{run.measured_ms.get('ttft_mean_ms', '')}" for run in runs]
    predictions = tmp_path / "predictions.csv"
    predictions.write_text("\n".join(["id,tpot_mean_ms,ttft_mean_ms", *lines]))
    card = run_error_card(measurements, predictions, is_held_out=True)
    assert card.rows
    assert {row.median_frac for row in card.rows} == {0.0}
    predictions.write_text("id,tpot_mean_ms\nnobody,1.0\n")
    with pytest.raises(BestServeError, match="share no id; accepted: ids of the runs"):
        run_error_card(measurements, predictions, is_held_out=True)


def test_predictions_of_several_tools_are_refused(tmp_path: Path) -> None:
    """A file that predicts a run twice is another's or a mix: refused with the run, not averaged."""
    predictions = tmp_path / "peers.csv"
    predictions.write_text("id,peer,ttft_mean_ms\na1,one,100\na1,other,120\n")
    with pytest.raises(BestServeError, match=r"predicts run a1 twice; accepted: one row a run"):
        read_predictions(predictions)
