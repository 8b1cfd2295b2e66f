"""BestServe from Python, and runs side by side: one small plan, read and asked again."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from estimator.errors import BestServeError
from search import Answer, plan, read_run
from search.commands.compare import compare as compare_command
from search.compare import ComparedRun, Comparison, compare_runs, differences_of, flat
from search.report.compare_page import render_comparison, write_comparison
from search.terminal_compare import print_comparison
from search.view import View
from tests.small_view import candidate, view

ROOT = Path(__file__).parent.parent
QUESTION: dict[str, Any] = {
    "name": "small",
    "model": {"id": "llama-3.1-8b"},
    "traffic": {"rate_req_s": 4.0, "lengths": {"kind": "fixed", "input_tokens": 500, "output_tokens": 100}},
    "slo": {"share": 0.9, "ttft_ms": 800.0, "tpot_ms": 40.0},
    "gpus": ["l40s"],
    "search": {"max_gpus": 2, "trials": 8, "tp": [1], "pp": [1], "tokens": [2048], "seqs": [128]},
}


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    """A plan of a space of a few strategies."""
    return plan(QUESTION, out=tmp_path_factory.mktemp("runs") / "small")


def test_import_is_light() -> None:
    """`import search` loads nothing that takes long; an unknown name is an AttributeError as everywhere."""
    heavy = ("numpy", "pandas", "pydantic", "optuna", "ray", "plotly", "rich", "typer")
    code = f"import sys, search; print([name for name in {heavy} if name in sys.modules]); search.no_such_thing"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.stdout.strip() == "[]"
    assert "module 'search' has no attribute 'no_such_thing'" in ran.stderr


def test_answer_tables_and_figures_agree(answer: Answer) -> None:
    """Tables hold the view's candidates, figures draw the same numbers, printing gives the sentence."""
    assert str(answer).startswith(answer.view.answer)
    assert len(answer.front) == len(answer.view.front)
    assert list(answer.front["usd_per_h"]) == sorted(answer.front["usd_per_h"])
    assert set(answer.front["strategy"]) <= set(answer.candidates["strategy"])
    assert set(answer.tables) == set(answer.figures)
    drawn = {x for trace in answer.figures["front"].data for x in trace.x}
    assert drawn == set(answer.tables["front"]["usd_per_h"])
    assert {"latency_ttft_share_90", "latency_tpot_share_90", "serving", "requests"} <= set(answer.figures)
    assert answer.view.answer.replace("&", "&amp;") in answer._repr_html_()


def test_latency_meets_its_target_up_to_the_goodput(answer: Answer) -> None:
    """At most 90 % of the recommended strategy's goodput every target is kept, at 110 % one is not."""
    curve = answer.view.curves[0]
    best = answer.recommended
    assert best is not None
    for place, rate in enumerate(curve.rate_req_s):
        over = max(ms[place] / answer.view.slo_ms[target] for target, ms in curve.latency_ms.items())
        if rate <= 0.9 * best.goodput_req_s:
            assert over <= 1.0
        if rate >= 1.1 * best.goodput_req_s:
            assert over > 1.0


def test_strategies_can_be_asked_again(answer: Answer) -> None:
    """Goodput asked again is the plan's own; at half of it the targets are kept; what cannot exist is refused."""
    best = answer.recommended
    assert best is not None
    again = answer.goodput(best.strategy)
    assert getattr(again, "rate_req_s", None) == pytest.approx(best.goodput_req_s)
    assert answer.estimate(best.strategy, 0.5 * best.goodput_req_s).meets
    with pytest.raises(BestServeError, match=r"strategy: '1m-tp3@l40s' breaks .* accepted: a strategy that keeps"):
        answer.estimate("1m-tp3@l40s", 1.0)


def test_a_run_is_read_again_as_it_was(answer: Answer) -> None:
    """Read from its folder, a run gives the same view; a folder without a run is refused."""
    assert read_run(answer.folder).view == answer.view
    with pytest.raises(BestServeError, match="holds no run; accepted: the folder of a finished run"):
        read_run(answer.folder / "figures")


def test_example_script_runs(tmp_path: Path) -> None:
    """runs/explore.py runs as it stands, with few trials, and ends with the report's path."""
    environment = os.environ | {"TRIALS": "8", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "runs" / "explore.py")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.splitlines()[-1]).is_file()


def compared(*views: View) -> Comparison:
    """Views as runs A, B, …"""
    runs = tuple(ComparedRun(label="ABC"[i], folder="ABC"[i], view=shown) for i, shown in enumerate(views))
    return Comparison(runs=runs, differences=())


def test_cheapest_run_is_named_and_a_tie_is_a_tie() -> None:
    """20 against 26 $/h is 30 % more; 20 and 20.05 are both cheapest; without an answer a run says so."""
    dear = replace(view(), recommended=candidate("3m-tp2@h100_sxm", 48.0, 26.0))
    assert compared(view(), dear).answer == "A is cheapest at $20.00/h; B costs 30% more."
    near = replace(view(), recommended=candidate("3m-tp2@h100_sxm", 48.0, 20.05))
    assert compared(dear, view(), near).answer == "B and C are cheapest at $20.00/h; A costs 30% more."
    assert compared(view(), replace(view(), recommended=None)).answer.endswith("; B has no answer.")


def test_runs_with_different_demands_compare_by_token() -> None:
    """At twice the demand for 1.5 times the money the second is cheaper per token: the first costs a third more."""
    twice = replace(view(), demand_req_s=40.0, recommended=candidate("3m-tp2@h100_sxm", 48.0, 30.0))
    said = compared(view(), twice).answer
    assert said == "B is cheapest at $0.99 per million output tokens at its demand; A costs 33% more."


def test_differences_of_specs() -> None:
    """Nested fields are named by their path; equal fields and the run's name are left out; absent is the default."""
    one = flat({"name": "a", "slo": {"ttft": {"p90_ms": 1500.0}}, "gpus": ["x", "y"], "seed": 0})
    two = flat({"name": "b", "slo": {"ttft": {"p90_ms": 800.0}}, "gpus": ["x"], "seed": 0, "cached": 0.5})
    found = {row.field: row.values for row in differences_of([one, two])}
    assert found == {"slo.ttft.p90_ms": ("1500", "800"), "gpus": ("x, y", "x"), "cached": ("(default)", "0.5")}


def test_runs_side_by_side(answer: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs of the same question but for a target: terminal, JSON and page tell that target and both answers."""
    other = plan(QUESTION | {"slo": {"ttft": {"p90_ms": 2000.0}, "tpot": {"p90_ms": 60.0}}}, out=tmp_path / "loose")
    found = compare_runs([answer.folder, other.folder])
    assert {row.field for row in found.differences} >= {"slo.share", "slo.ttft.p90_ms"}
    text = io.StringIO()
    print_comparison(found, Console(file=text, width=80))
    assert max(len(line.rstrip()) for line in text.getvalue().splitlines()) <= 80
    compare_command([answer.folder, other.folder], html=tmp_path / "page.html", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["answer"] == found.answer
    assert [run["label"] for run in printed["runs"]] == ["small", "loose"]
    assert printed["runs"][1]["recommended"]["strategy"] == getattr(other.recommended, "strategy", None)
    assert "slo.share" in (tmp_path / "page.html").read_text()


def test_too_few_runs_are_refused(answer: Answer) -> None:
    """One run is nothing to compare."""
    with pytest.raises(BestServeError, match="1 are too few to compare; accepted: two folders"):
        compare_runs([answer.folder])


def test_comparison_page_names_no_outside_address(tmp_path: Path) -> None:
    """The page is one file, at most 5 MB, with the answer in it and labels escaped."""
    found = compared(view(), replace(view(), name="<b>"))
    renamed = replace(found, runs=(replace(found.runs[0], label="<b>bold</b>"), found.runs[1]))
    page = write_comparison(renamed, tmp_path / "deep" / "page.html")
    assert page.stat().st_size <= 5_000_000
    html = render_comparison(renamed)
    assert "<b>bold</b>" not in html
    assert "&lt;b&gt;bold" in html


def test_tables_are_tables(answer: Answer) -> None:
    """Every table of the answer is a DataFrame with as many rows as its figure's CSV, none empty."""
    for name, table in answer.tables.items():
        assert isinstance(table, pd.DataFrame)
        assert len(table) > 0, name
