"""What the terminal says about money: answers before and after a change, and the parts of a plan's answer."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from search.cli import app
from search.planner import plan
from search.reprice import reprice
from search.result_view import view_of_run
from search.spec import load_spec
from search.terminal_change import print_repriced, print_whatif
from search.terminal_money import print_money
from search.whatif import whatif
from tests.test_cli import TINY
from tests.test_whatif import price_file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a curve of demand and a server's price."""
    folder = tmp_path_factory.mktemp("terminal")
    spec = folder / "tiny.yaml"
    spec.write_text(
        TINY + "demand: {diurnal: {peak_factor: 3}, scaling: reactive}\n"
        "ownership: {servers: {l40s: {price: 80000, kw_load_per_gpu: 0.5, kw_idle_per_gpu: 0.1, "
        "source: quote, date: 2026-11-20}}, utilisation: 0.5}\n"
    )
    plan(load_spec(spec), out=folder / "run", workers=0)
    return folder / "run"


def printed(show, *what: object) -> str:  # type: ignore[no-untyped-def]
    """What a function prints on a wide console."""
    text = io.StringIO()
    show(*what, Console(file=text, width=200, color_system=None))
    return text.getvalue()


def test_a_plan_tells_money_in_sentences(run: Path) -> None:
    """Cost per token, owning, failures, demand over time and tipping points are there, in the run's currency."""
    money = view_of_run(run).money
    assert money is not None
    said = printed(print_money, money)
    for part in (
        "At the demand: $",
        "per 1,000 good requests",
        "l40s (in servers of 8 GPUs together) used 50% of the time",
        "of the goodput is left",
        "Day with a peak of 3 times the mean (4 req/s mean, 12 peak)",
        "What would change the answer, nearest first",
        "Why not",
    ):
        assert part in said, part
    assert money.demand is not None
    assert len(money.demand.hours) == 24
    assert sum(hour.usd for hour in money.demand.hours) == pytest.approx(money.demand.usd_per_day)


def test_reprice_says_what_changed(run: Path, tmp_path: Path) -> None:
    """The new price and its card, the answer before and after, the difference, and that nothing was simulated."""
    said = printed(print_repriced, reprice(run, price_file(tmp_path, l40s=9.0)))
    assert "l40s: $1.00/h (own-l40s) → $9.00/h (new-l40s)" in said
    assert said.index("Was ") < said.index("Now ") < said.index("Difference: +$3.00/h (+300%)")
    assert "would now cost $9.00/h." in said
    assert "evaluations ranked again, none simulated." in said


def test_whatif_says_what_becomes_of_the_old_answer(run: Path) -> None:
    """Too much demand for the old strategy says how much of it that carries; the same answer says that it stays."""
    said = printed(print_whatif, whatif(run, ["traffic.rate=3x"]))
    assert "traffic.rate_req_s 4 → 12" in said
    assert "of 12 req/s now, set by" in said
    assert "evaluations of the run kept, " in said
    assert "The answer stays: " in printed(print_whatif, whatif(run, ["traffic.rate=+1%"]))
    assert "Nothing tried serves 4000 req/s now" in printed(print_whatif, whatif(run, ["rate=1000x"]))


def test_commands_print_one_json_object(run: Path, tmp_path: Path) -> None:
    """`reprice` and `whatif` with --json print one object that names what was and what is recommended.

    `reprice` simulates nothing; `whatif` confirms what the new answer rests on.
    """
    prices = price_file(tmp_path, l40s=9.0)
    reprice, what_if = ["reprice", str(run), "--prices", str(prices)], ["whatif", str(run), "--set", "prices.l40s=9"]
    for arguments, most in ((reprice, 0), (what_if, 2)):
        ran = CliRunner().invoke(app, [*arguments, "--json"])
        assert ran.exit_code == 0, ran.output
        found = json.loads(ran.output)
        assert found["before"]["gpus"] == {"l40s": 1}
        assert found["after"]["gpus"] == {"h100_sxm": 1}
        assert found["num_simulated"] <= most
