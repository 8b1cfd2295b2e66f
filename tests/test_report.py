"""The report: one page that needs nothing else, checked in a real browser where there is one."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.report.page import PLOTLY, in_script, render_page, write_report
from search.terminal import print_view
from search.view import BillRow, Candidate, Curve, OperatorTime, Rejection, View

CHROMIUM = os.environ.get("BESTSERVE_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


def candidate(strategy: str, goodput_req_s: float, usd_per_h: float, **changes: Any) -> Candidate:
    """A candidate with plausible numbers."""
    gpu_counts = {"h100_sxm": max(1, round(usd_per_h / 4))}
    row = BillRow(
        gpu="h100_sxm",
        num_used=gpu_counts["h100_sxm"],
        num_bought=gpu_counts["h100_sxm"] + 1,
        usd_per_gpu_h=4.0,
        usd_per_h=usd_per_h,
        card="cloud-h100",
        source="a price list",
        date="2026-11-09",
    )
    given: dict[str, Any] = {
        "strategy": strategy,
        "is_disaggregated": "+" in strategy,
        "gpu_counts": gpu_counts,
        "goodput_req_s": goodput_req_s,
        "low_req_s": 0.98 * goodput_req_s,
        "high_req_s": 1.02 * goodput_req_s,
        "binding_limit": "tpot p90",
        "usd_per_h": usd_per_h,
        "usd_per_1m_output": usd_per_h / goodput_req_s,
        "ttft_p90_ms": 400.0,
        "tpot_p90_ms": 49.0,
        "utilisation_frac": 0.8,
        "tier": "fitted",
        "bill": (row,),
    }
    return Candidate(**(given | changes))


def view() -> View:
    """A small complete answer; the name carries what must be escaped."""
    front = (
        candidate("1m-tp1@h100_sxm", 6.0, 8.0),
        candidate("2m-tp2@h100_sxm", 24.0, 20.0),
        candidate("2p-tp1@h100_sxm+3d-tp2@h100_sxm", 45.0, 36.0),
    )
    rest = tuple(candidate(f"{n}m-tp4@h100_sxm,tokens={t}", 4.0 * n, 18.0 * n) for n in (1, 2, 3) for t in (2048, 8192))
    rates = (5.0, 10.0, 20.0, 30.0)
    curves = tuple(
        Curve(
            strategy=c.strategy,
            is_disaggregated=c.is_disaggregated,
            rate_req_s=rates,
            ttft_ms=(100.0, 120.0, 300.0, float("nan")),
            tpot_ms=(20.0, 25.0, 40.0, 90.0),
        )
        for c in front[1:]
    )
    times = tuple(
        OperatorTime(pool="m", phase=phase, operator=operator, ms=ms, bound=bound)
        for phase in ("decode", "prefill")
        for operator, ms, bound in (
            ("mlp", 9.0, "memory"),
            ("attention", 4.0, "memory"),
            ("projections", 5.0, "compute"),
            ("all_reduce", 2.0, "link"),
            ("host", 1.0, "host"),
        )
    )
    return View(
        name="small",
        question="Qwen3-32B </script><b>x</b>, 20 requests/s",
        demand_req_s=20.0,
        mean_output_tokens=211.0,
        slo_ms={"ttft p90": 1500.0, "tpot p90": 50.0},
        recommended=front[1],
        best_collocated=front[1],
        best_disaggregated=front[2],
        front=front,
        candidates=front + rest,
        num_evaluated=40,
        rejected=(Rejection(rule="memory", num=12, what="layouts", reason="1m-tp1@l40s: 64 GB of weights"),),
        is_complete=False,
        space_size=1234,
        curves=curves,
        breakdown=times,
        assumptions=(("Model", "Qwen3-32B, fp8 weights"), ("Times", "fitted")),
        command="bestserve plan small.yaml --trials 40",
        versions={"bestserve": "0.1.0", "python": "3.11"},
    )


def printed(shown: View, *, width: int, terminal: bool) -> str:
    """What the terminal shows."""
    text = io.StringIO()
    print_view(shown, Console(file=text, width=width, force_terminal=terminal, color_system=None, highlight=False))
    return text.getvalue()


def test_answer_names_gpus_price_headroom_and_token_price() -> None:
    """20 $/h over 20 req/s of 211 tokens is 20/3600/4220 × 1e6 = 1.32 $ per million; 24 req/s is 20 % headroom."""
    said = view().answer
    for part in ("5 H100 SXM", "$20.00/h", "20 requests/s", "20% headroom", "$1.32 per million"):
        assert part in said


def test_first_line_says_when_little_money_buys_much() -> None:
    """26 $/h is 30 % more than 20; 48 req/s is 140 % headroom over 20. At 24.5 req/s, 2 % more, nothing is said."""
    shown = view()
    more = replace(shown, front=(*shown.front[:2], candidate("3m-tp2@h100_sxm", 48.0, 26.0), shown.front[2]))
    assert "; 30% more money (6 H100 SXM, $26.00/h) buys 140% headroom." in more.answer
    assert more.as_json()["step_up"]["strategy"] == "3m-tp2@h100_sxm"
    little = replace(shown, front=(*shown.front[:2], candidate("3m-tp2@h100_sxm", 24.5, 26.0)))
    assert "more money" not in little.answer
    assert little.as_json()["step_up"] is None
    assert "more money" not in shown.answer  # 36 $/h is too far


def test_comparison_calls_a_tie_a_tie() -> None:
    """Less than 0.5 % apart is the same cost; 20 against 36 $/h is 44 % cheaper."""
    assert view().comparison == "Collocated is 44% cheaper than the best disaggregated strategy."
    near = candidate("1p-tp1@h100_sxm+1d-tp1@h100_sxm", 21.0, 20.05)
    assert "the same" in replace(view(), best_disaggregated=near).comparison


def test_no_answer_says_what_comes_nearest() -> None:
    """Without a strategy for the demand the sentence names the largest goodput found, or that there is none."""
    assert "the most is 45 requests/s" in replace(view(), recommended=None).answer
    assert "No strategy tried meets" in replace(view(), recommended=None, front=()).answer


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_terminal_fits_its_width(width: int) -> None:
    """No line is wider than the terminal, the answer comes first, and every front strategy's kind is a letter."""
    lines = printed(view(), width=width, terminal=True).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert lines[0].startswith("Rent 5 H100 SXM")
    text = "\n".join(lines)
    assert "✓C" in text
    assert re.search(r"^\W*D ", text, re.M)
    assert "req/s against $/h: c collocated" in text


def test_piped_output_has_no_plot_and_no_escapes() -> None:
    """Into a pipe goes plain text: no plot, no colour codes."""
    text = printed(view(), width=120, terminal=False)
    assert "req/s against" not in text
    assert "\x1b" not in text


def test_report_files(tmp_path: Path) -> None:
    """A page, and a PNG and a CSV of each figure; the CSV holds every candidate with its front flag."""
    page = write_report(view(), tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    images = {f"{n}.png" for n in ("front", "latency_ttft", "latency_tpot", "breakdown", "cost")}
    assert names == images | {f"{n}.csv" for n in ("front", "latency", "breakdown", "cost")}
    assert all((tmp_path / "figures" / n).read_bytes().startswith(b"\x89PNG") for n in images)
    with (tmp_path / "figures" / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["strategy"] for row in rows if row["on_front"] == "1"} == {c.strategy for c in view().front}
    assert page.stat().st_size <= 5_000_000


def test_page_is_escaped_and_names_no_outside_address() -> None:
    """User text cannot close the script or open a tag, and outside the vendored library there is no http address."""
    html = render_page(view())
    own = html.replace(PLOTLY.read_text(encoding="utf-8").replace("</script", "<\\/script"), "")
    assert "</script><b>" not in own
    assert "&lt;/script&gt;&lt;b&gt;" in own
    assert "http://" not in own
    assert "https://" not in own
    assert in_script('"</script>"') == '"\\u003c/script>"'


def test_page_without_an_answer() -> None:
    """A run in which nothing was feasible still has a page that says so."""
    empty = replace(view(), recommended=None, front=(), candidates=(), curves=(), breakdown=(), best_collocated=None)
    html = render_page(replace(empty, best_disaggregated=None))
    assert "No strategy tried meets the targets" in html
    assert 'id="front"' not in html


def test_vendored_library_is_the_recorded_one() -> None:
    """plotly-basic.min.js has the SHA-256 that its README records, and its licence lies beside it."""
    readme = (PLOTLY.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(PLOTLY.read_bytes()).hexdigest() in readme
    assert "MIT" in (PLOTLY.parent / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, or skip."""
    if not Path(CHROMIUM).is_file():
        pytest.skip("no Chromium: set BESTSERVE_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_page_in_a_browser(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """The page draws every strategy, hover names it, click shows it; no error, no request, fits a phone."""
    page_file = write_report(view(), tmp_path)
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text) if message.type in ("error", "warning") else None)
    page.on(
        "request",
        lambda request: (
            trouble.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None
        ),
    )
    page.goto(page_file.as_uri())
    page.wait_for_selector("#front .scatterlayer .point")
    points = page.locator("#front .scatterlayer .point")
    assert points.count() == len(view().candidates) + 1
    last = page.locator("#front .scatterlayer .trace").nth(-2).locator(".point").first
    last.scroll_into_view_if_needed()
    box = last.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#front .hoverlayer .hovertext")
    assert "2p-tp1@h100_sxm+3d-tp2@h100_sxm" in page.locator("#front .hoverlayer").text_content()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.getElementById('detail').textContent.includes('2p-tp1@h100_sxm')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for figure in ("latency_ttft", "latency_tpot", "breakdown", "cost"):
        assert page.locator(f"#{figure} .main-svg").count() > 0
    if shots := os.environ.get("BESTSERVE_SCREENSHOTS"):
        page.screenshot(path=str(Path(shots) / f"report-{scheme}-{width}.png"), full_page=True)
    page.close()
    assert trouble == []
