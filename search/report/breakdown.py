"""Where the time of a step goes: operators of each pool and phase, by what bounds them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from search.report.looks import BLUE, GREEN, HATCH, LINE, ORANGE, VIOLET, Figure, Plot, axes_of, layout
from search.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

BOUND_COLOURS = {"compute": BLUE, "memory": ORANGE, "link": GREEN, "host": VIOLET}
BOUND_PATTERNS = {"compute": "", "memory": "/", "link": "x", "host": "."}


def breakdown_figures(view: View) -> list[Figure]:
    """One bar per pool and phase; none without a recommended strategy."""
    if not view.breakdown:
        return []
    return [
        Figure(
            name="breakdown",
            alt="Milliseconds of each operator in a typical step, by what bounds it",
            plot=_plot(view),
            rows=[
                {"pool": t.pool, "phase": t.phase, "operator": t.operator, "ms": t.ms, "bound": t.bound}
                for t in view.breakdown
            ],
            draw=lambda drawing: _draw(view, drawing),
            height_px=170 + 70 * len({(t.pool, t.phase) for t in view.breakdown}),
        )
    ]


def step_name(pool: str, phase: str) -> str:
    """For example `decode pool`, `collocated: prefill`."""
    return pool if phase in pool else f"{pool}: {phase}"


def _plot(view: View) -> Plot:
    totals_ms: dict[str, float] = {}
    for time in view.breakdown:
        label = step_name(time.pool, time.phase)
        totals_ms[label] = totals_ms.get(label, 0.0) + time.ms
    shown_as = {label: f"{label}<br>{ms:.3g} ms" for label, ms in totals_ms.items()}
    traces = []
    by_bound = sorted(view.breakdown, key=lambda t: (list(BOUND_COLOURS).index(t.bound), -t.ms))
    for bound, times in groupby(by_bound, key=lambda t: t.bound):
        first = True
        for operator, group in groupby(sorted(times, key=lambda t: t.operator), key=lambda t: t.operator):
            ms = {step_name(t.pool, t.phase): t.ms for t in group}
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"{bound}-bound",
                    "legendgroup": bound,
                    "showlegend": first,
                    "y": list(shown_as.values()),
                    "x": [100.0 * ms.get(label, 0.0) / total for label, total in totals_ms.items()],
                    "customdata": [ms.get(label, 0.0) for label in totals_ms],
                    "text": [operator.replace("_", " ") if ms.get(label) else "" for label in totals_ms],
                    "textposition": "inside",
                    "insidetextanchor": "middle",
                    "textangle": 0,
                    "textfont": {"color": "#fff"},
                    "hovertemplate": f"<b>{operator}</b><br>%{{customdata:.2f}} ms, %{{x:.0f}} % of the step, "
                    f"{bound}-bound<extra></extra>",
                    "marker": {
                        "color": BOUND_COLOURS[bound],
                        "line": LINE,
                        "pattern": {"shape": BOUND_PATTERNS[bound], **HATCH, "fgopacity": 0.35},
                    },
                }
            )
            first = False
    shown = layout("share of one step, %", "")
    shown |= {"barmode": "stack", "uniformtext": {"minsize": 10, "mode": "hide"}}
    shown["yaxis"] |= {"autorange": "reversed"}
    shown["xaxis"] |= {"range": [0, 100]}
    return {"data": traces, "layout": shown}


def _draw(view: View, drawing: Drawing) -> None:
    axes = axes_of(drawing)
    times = [t for t in view.breakdown if t.ms > 0][::-1]
    labels = [f"{step_name(t.pool, t.phase)}: {t.operator}" for t in times]
    bars = axes.barh(range(len(times)), [t.ms for t in times], color=[BOUND_COLOURS[t.bound] for t in times])
    axes.bar_label(bars, [t.bound for t in times], fontsize=7, padding=2)
    axes.set_yticks(range(len(times)), labels, fontsize=7)
    axes.set_xlabel("milliseconds of one step")
