"""The report: one HTML file that needs nothing else, and its figures as PNG and CSV in `figures/` beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from search.report.figures import plotly_json
from search.report.images import write_images
from search.report.tables import TABLES
from search.view import View

_HERE = Path(__file__).parent
PLOTLY = _HERE / "vendor" / "plotly-basic.min.js"


def write_report(view: View, folder: Path) -> Path:
    """Write `report.html` and `figures/*.{png,csv}` into the run's folder; the page's path."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    write_tables(view, figures)
    write_images(view, figures)
    page = folder / "report.html"
    page.write_text(render_page(view), encoding="utf-8")
    return page


def render_page(view: View) -> str:
    """The whole page as text: style, script and numbers inside, no address of anything outside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    details = {c.strategy: _detail(view, c.strategy) for c in view.candidates}
    return environment.get_template("page.html.j2").render(
        view=view,
        figures={name: in_script(text) for name, text in plotly_json(view).items()},
        recommended=in_script(json.dumps(view.recommended.strategy if view.recommended else None)),
        details=in_script(json.dumps(details, allow_nan=False)),
        plotly=PLOTLY.read_text(encoding="utf-8").replace("</script", "<\\/script"),
    )


def write_tables(view: View, folder: Path) -> None:
    """Write `<figure>.csv` for every figure that has numbers."""
    for name, rows_of in TABLES.items():
        rows = rows_of(view)
        if not rows:
            continue
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def in_script(text: str) -> str:
    """JSON that may stand inside a script element: it can neither close it nor open a comment."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _detail(view: View, strategy: str) -> dict[str, str]:
    """What a click on a strategy shows."""
    candidate = next(c for c in view.candidates if c.strategy == strategy)
    return {
        "Strategy": strategy,
        "GPUs": f"{candidate.gpus} ({candidate.architecture})",
        "Goodput": f"{candidate.goodput_req_s:.3g} req/s ({candidate.low_req_s:.3g} to {candidate.high_req_s:.3g})",
        "Cost": f"${candidate.usd_per_h:,.2f}/h, ${candidate.usd_per_1m_output:,.2f} per 1M output tokens",
        "At goodput": f"TTFT P90 {candidate.ttft_p90_ms:.0f} ms, TPOT P90 {candidate.tpot_p90_ms:.1f} ms",
        "Limit": candidate.binding_limit,
        "Headroom": f"{candidate.headroom_frac(view.demand_req_s):+.0%} against the demand",
    }
