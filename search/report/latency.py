"""Latency against rate of the recommended strategy and its rivals, one figure per target of the SLO."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from search.report.looks import COLLOCATED, DISAGGREGATED, RED, Figure, Plot, axes_of, layout, level, moment
from search.view import Curve, View, target_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DASHES = ("solid", "dash", "dot", "dashdot")
LINESTYLES = ("-", "--", ":", "-.")
SYMBOLS = ("circle", "diamond", "square", "cross")
MARKERS = "oDs+"


def latency_figures(view: View) -> list[Figure]:
    """One figure per target, TTFT first; none without curves."""
    return [
        Figure(
            name=f"latency_{''.join(c if c.isalnum() else '_' for c in target.replace(' %', ''))}",
            alt=f"{target_label(target)} against arrival rate of {len(view.curves)} strategies, target {limit_ms:g} ms",
            plot=_plot(view, target, limit_ms),
            rows=[
                {"strategy": curve.strategy, "rate_req_s": rate, "latency_ms": ms, "target": target}
                for curve in view.curves
                for rate, ms in zip(curve.rate_req_s, curve.latency_ms[target], strict=True)
            ],
            draw=partial(_draw, view, target, limit_ms),
        )
        for target, limit_ms in view.slo_ms.items()
        if view.curves
    ]


def curve_name(curve: Curve, place: int) -> str:
    """A letter and what it stands for; the letters are explained beneath the figures."""
    return f"{'ABCDEFGH'[place]}: {curve.gpus}, {'disaggregated' if curve.is_disaggregated else 'collocated'}"


def _plot(view: View, target: str, limit_ms: float) -> Plot:
    traces: list[Plot] = []
    for place, curve in enumerate(view.curves):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": curve_name(curve, place),
                "x": list(curve.rate_req_s),
                "y": [ms if math.isfinite(ms) else None for ms in curve.latency_ms[target]],
                "line": {
                    "dash": DASHES[place % 4],
                    "width": 3 if place == 0 else 1.5,
                    "color": DISAGGREGATED if curve.is_disaggregated else COLLOCATED,
                },
                "marker": {"symbol": SYMBOLS[place % 4], "size": 7},
                "hovertemplate": f"%{{y:.0f}} ms at %{{x:.2f}} req/s<extra>{'ABCDEFGH'[place]}</extra>",
            }
        )
    shown = layout("arrival rate, requests/s", f"{target_label(target)}, ms")
    values = [ms for trace in traces for ms in trace["y"] if ms] + [limit_ms]
    steps = (1, 2, 5) if max(values) > 30 * min(values) else (1, 2, 3, 4, 5, 7)
    ticks = [step * 10**power for power in range(6) for step in steps]
    shown["yaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    shown["yaxis"]["range"] = [math.log10(min(values) / 1.3), math.log10(max(values) * 1.5)]
    shown["xaxis"]["rangemode"] = "tozero"
    shown["shapes"] = [level(limit_ms, f"target {limit_ms:,g} ms"), moment(view.demand_req_s, "demand")]
    return {"data": traces, "layout": shown}


def _draw(view: View, target: str, limit_ms: float, drawing: Drawing) -> None:
    axes = axes_of(drawing)
    for place, curve in enumerate(view.curves):
        axes.plot(
            curve.rate_req_s,
            curve.latency_ms[target],
            c=DISAGGREGATED if curve.is_disaggregated else COLLOCATED,
            ls=LINESTYLES[place % 4],
            lw=2.5 if place == 0 else 1.2,
            marker=MARKERS[place % 4],
            ms=4,
            label=f"{curve_name(curve, place)}\n{curve.strategy}",
        )
    axes.axhline(limit_ms, color=RED, ls="--", lw=1, label=f"target {limit_ms:g} ms")
    axes.axvline(view.demand_req_s, color=RED, ls=":", lw=1, label="demand")
    axes.set(xlabel="arrival rate, requests/s", ylabel=f"{target_label(target)}, ms", yscale="log")
    axes.legend(fontsize=7)
