"""Runs side by side as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from search.compare import Comparison
from search.edge import writing
from search.report.figures import plotly_json
from search.report.fronts import fronts_figure
from search.report.page import in_script, render


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page to `path`, whose folder is made; returns it."""
    page = render_comparison(comparison)
    with writing(path, field="html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    return path


def render_comparison(comparison: Comparison) -> str:
    """The whole page as text."""
    fronts = fronts_figure(comparison)
    return render(
        "compare.html.j2",
        comparison=comparison,
        view=comparison.runs[0].view,
        rows=comparison.rows(),
        figures={"fronts": fronts},
        plot=in_script(plotly_json(fronts)),
    )
