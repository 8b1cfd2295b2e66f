"""The fronts of several runs in one figure: goodput against cost, a line and a marker shape per run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.compare import Comparison
from search.report.looks import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, Figure, Plot, axes_of, layout, level

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLOURS = (BLUE, ORANGE, GREEN, VIOLET, RED, GREY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
MARKERS = "oDs^Px"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def fronts_figure(comparison: Comparison) -> Figure:
    """All fronts; the recommended strategy of each run is large, every demand a dashed line."""
    demands = {run.view.demand_req_s: run.label for run in comparison.runs}
    shown = layout(f"cost, {comparison.runs[0].view.symbol}/h", "goodput, requests/s")
    shown["xaxis"]["rangemode"] = shown["yaxis"]["rangemode"] = "tozero"
    shown["shapes"] = [
        level(demand, "demand" if len(demands) == 1 else f"demand of {label}") for demand, label in demands.items()
    ]
    near = _near(comparison)
    if near is not None:
        shown["xaxis"]["range"], shown["yaxis"]["range"] = [0, near[0]], [0, near[1]]
    return Figure(
        name="fronts",
        alt=f"Goodput against cost: the fronts of {len(comparison.runs)} runs",
        plot={"data": [_line(comparison, place) for place in range(len(comparison.runs))], "layout": shown},
        rows=[
            {
                "run": run.label,
                "strategy": candidate.strategy,
                "usd_per_h": candidate.usd_per_h,
                "goodput_req_s": candidate.goodput_req_s,
            }
            for run in comparison.runs
            for candidate in run.view.front
        ],
        draw=lambda drawing: _draw(comparison, drawing),
        height_px=460,
    )


def _near(comparison: Comparison) -> tuple[float, float] | None:
    """Three times the dearest recommended cost, and the goodput that the fronts reach there."""
    bests = [run.view.recommended for run in comparison.runs if run.view.recommended is not None]
    if not bests:
        return None
    usd = 3.0 * max(best.usd_per_h for best in bests)
    reached = [c.goodput_req_s for run in comparison.runs for c in run.view.front if c.usd_per_h <= usd]
    return usd, 1.1 * max(reached)


def _line(comparison: Comparison, place: int) -> Plot:
    run = comparison.runs[place]
    best = run.view.recommended
    is_best = [best is not None and c.strategy == best.strategy for c in run.view.front]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": run.label,
        "x": [c.usd_per_h for c in run.view.front],
        "y": [c.goodput_req_s for c in run.view.front],
        "text": [c.strategy for c in run.view.front],
        "hovertemplate": "<b>%{text}</b><br>%{y:.2f} req/s for %{x:.2f}/h<extra>%{fullData.name}</extra>",
        "line": {"shape": "hv", "width": 1.5, "dash": DASHES[place % 6], "color": COLOURS[place % 6]},
        "marker": {"symbol": SYMBOLS[place % 6], "size": [15 if large else 8 for large in is_best]},
    }


def _draw(comparison: Comparison, drawing: Drawing) -> None:
    axes = axes_of(drawing)
    for place, run in enumerate(comparison.runs):
        x, y = [c.usd_per_h for c in run.view.front], [c.goodput_req_s for c in run.view.front]
        look = {"color": COLOURS[place % 6], "marker": MARKERS[place % 6], "ms": 5, "lw": 1.2}
        axes.step(x, y, where="post", label=run.label, **look)
        axes.axhline(run.view.demand_req_s, color=RED, ls="--", lw=1)
    near = _near(comparison)
    axes.set(xlabel="cost per hour", ylabel="goodput, requests/s")
    axes.set_xlim(0, None if near is None else near[0])
    axes.set_ylim(0, None if near is None else near[1])
    axes.legend(fontsize=8)
