"""The pages in a real headless Chromium: drawn, alive, silent, on a phone, in the dark, on paper."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.compare import ComparedRun, Comparison
from search.report.compare_page import write_comparison
from search.report.figures import figures_of
from search.report.page import write_report
from search.view import View
from tests.small_view import errors, money, serving, view

CHROMIUM = os.environ.get("BESTSERVE_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
SILENT = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOUD = ("error", "warning", "trace")  # plotly warns by console.trace
pytestmark = pytest.mark.browser


def whole() -> View:
    """Every part that can be shown."""
    return replace(view(), serving=serving(), errors=errors(), money=money())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, or skip."""
    if not Path(CHROMIUM).is_file():
        pytest.skip("no Chromium: install one or set BESTSERVE_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=list(SILENT))
        yield launched
        launched.close()


def opened(
    browser: Any, page_file: Path, *, scheme: str = "light", width: int = 1200, first: str = "front"
) -> tuple[Any, list[str]]:
    """The page in a tab, and a list that fills with errors, warnings and requests that leave the page."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text) if message.type in LOUD else None)
    page.on(
        "request",
        lambda request: (
            trouble.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None
        ),
    )
    page.goto(page_file.as_uri())
    page.wait_for_selector(f"#{first} .scatterlayer .point")
    if shots := os.environ.get("BESTSERVE_SCREENSHOTS"):
        page.screenshot(path=str(Path(shots) / f"{page_file.stem}-{scheme}-{width}.png"), full_page=True)
    return page, trouble


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an answer with everything in it."""
    return write_report(whole(), tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_page_is_drawn_and_alive(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    """All strategies and figures drawn; hover names, click shows; no error, no request, no sideways scroll."""
    page, trouble = opened(browser, page_file, scheme=scheme, width=width)
    assert page.locator("#front .scatterlayer .point").count() == len(view().candidates) + 1
    for name in figures_of(whole()):
        assert page.locator(f"#{name} .main-svg").count() > 0, name
    point = page.locator("#front .scatterlayer .trace").nth(-2).locator(".point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    place = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*place)
    page.wait_for_selector("#front .hoverlayer .hovertext")
    assert "2p-tp1@h100_sxm+3d-tp2@h100_sxm" in page.locator("#front .hoverlayer").text_content()
    page.mouse.click(*place)
    page.wait_for_function("() => document.getElementById('detail').textContent.includes('2p-tp1@h100_sxm')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert trouble == []


def test_table_row_shows_its_strategy(browser: Any, page_file: Path) -> None:
    """A click on a row of the front's table shows that strategy's numbers, as a click on its point does."""
    page, trouble = opened(browser, page_file)
    page.locator("#choices summary").click()
    page.locator("#front-table tbody tr").first.click()
    page.wait_for_function("() => document.getElementById('detail').textContent.includes('1m-tp1@h100_sxm')")
    page.close()
    assert trouble == []


def test_dark_page_is_dark_and_its_figures_follow(browser: Any, page_file: Path) -> None:
    """Text is light on dark in the page and in the figures, and turns when the system does."""
    page, trouble = opened(browser, page_file, scheme="dark")
    colour_of = "getComputedStyle(document.querySelector('#front .xtick text')).fill"
    lightness = f"({colour_of}).match(/[0-9]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3"
    back = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).reduce((sum, p) => sum + Number(p), 0) / 3"
    assert page.evaluate(back) < 60
    assert page.evaluate(lightness) > 180
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => {lightness} < 80")
    page.close()
    assert trouble == []


def test_print_fits_the_paper(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """Printed from the dark, figures are redrawn in black within the width of A4, tables open, and it is a PDF."""
    page, trouble = opened(browser, page_file, scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.querySelector('#front .xtick text')).fill") == "rgb(0, 0, 0)"
    widths = page.evaluate(
        "[...document.querySelectorAll('.plot .main-svg')].map((s) => s.getBoundingClientRect().width)"
    )
    assert max(widths) <= 700
    assert page.evaluate("[...document.querySelectorAll('details')].every((more) => more.open)")
    pdf = page.pdf(path=str(tmp_path / "report.pdf"), format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    page.close()
    assert trouble == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_comparison_in_a_browser(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """Runs side by side: both fronts drawn and named on hover; no error, no request, no sideways scroll."""
    dear = replace(view(), front=tuple(replace(c, usd_per_h=1.3 * c.usd_per_h) for c in view().front))
    runs = tuple(ComparedRun(label=label, folder=label, view=v) for label, v in (("one", view()), ("two", dear)))
    page_file = write_comparison(Comparison(runs=runs, differences=()), tmp_path / "comparison.html")
    page, trouble = opened(browser, page_file, scheme=scheme, width=width, first="fronts")
    assert page.locator("#fronts .scatterlayer .point").count() == 2 * len(view().front)
    point = page.locator("#fronts .scatterlayer .trace").nth(1).locator(".point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#fronts .hoverlayer .hovertext")
    assert "1m-tp1@h100_sxm" in page.locator("#fronts .hoverlayer").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    assert trouble == []
