"""The report: one HTML file that needs nothing else, and its figures as PNG and CSV in `figures/` beside it."""

from __future__ import annotations

import json
from pathlib import Path

from search.money_view import short
from search.report.figures import figures_of, plotly_json, write_files
from search.report.looks import Figure
from search.view import Candidate, View, near_range

_HERE = Path(__file__).parent
PLOTLY = _HERE / "vendor" / "plotly-basic.min.js"


def write_report(view: View, folder: Path) -> Path:
    """Write `report.html` and `figures/*.{png,csv}` into the run's folder; the page's path."""
    figures = figures_of(view)
    write_files(figures, folder / "figures")
    page = folder / "report.html"
    page.write_text(render_page(view, figures), encoding="utf-8")
    return page


def render_page(view: View, figures: dict[str, Figure]) -> str:
    """The whole page as text: style, script and numbers inside, no address of anything outside."""
    details = {candidate.strategy: detail(view, candidate) for candidate in view.candidates}
    return render(
        "page.html.j2",
        view=view,
        answer=_unbroken(view),
        figures=figures,
        plots={name: in_script(plotly_json(figure)) for name, figure in figures.items()},
        has_near=near_range(view) is not None,
        recommended=in_script(json.dumps(view.recommended.strategy if view.recommended else "")),
        details=in_script(json.dumps(details, allow_nan=False)),
        page_script=(_HERE / "page.js").read_text(encoding="utf-8"),
    )


def render(template: str, **values: object) -> str:
    """A template of this folder with the shared style and the vendored library."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(
        **values,
        short=short,
        figures_script=(_HERE / "figures.js").read_text(encoding="utf-8"),
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        plotly=PLOTLY.read_text(encoding="utf-8").replace("</script", "<\\/script"),
    )


def _unbroken(view: View) -> str:
    """The answer, with no line end between a number and its GPU."""
    answer = view.answer
    for candidate in (view.recommended, view.step_up):
        if candidate is not None:
            answer = answer.replace(candidate.gpus, candidate.gpus.replace(" ", "\u00a0"))
    return answer


def in_script(text: str) -> str:
    """JSON that may stand inside a script element: it can neither close it nor open a comment."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def detail(view: View, candidate: Candidate) -> dict[str, str]:
    """What a click on a strategy shows."""
    rate = f"{candidate.goodput_req_s:.3g} req/s ({candidate.low_req_s:.3g} to {candidate.high_req_s:.3g})"
    return {
        "Strategy": candidate.strategy,
        "GPUs": f"{candidate.gpus} ({candidate.architecture})",
        "Goodput": f"{rate}, set by {candidate.binding_limit}{', on few requests' if candidate.is_explored else ''}",
        "Headroom": f"{candidate.headroom_frac(view.demand_req_s):+.0%} against the demand",
        "Cost": f"{view.usd(candidate.usd_per_h)}/h, {view.usd(candidate.usd_per_1m_output)} per 1M output tokens",
        "At goodput": f"TTFT P90 {candidate.ttft_p90_ms:.0f} ms, TPOT P90 {candidate.tpot_p90_ms:.1f} ms",
        "Look closer": f"bestserve estimate spec.yaml -s '{candidate.strategy}' -r {view.demand_req_s:g}",
    }
