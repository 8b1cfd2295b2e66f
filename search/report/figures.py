"""Interactive figures of the report, as plotly JSON. Marker shapes and dashes tell what colours also tell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import groupby
from typing import Any

from search.view import Candidate, View

COLLOCATED, DISAGGREGATED = "#3b82c4", "#e07b39"
BOUND_COLOURS = {"compute": "#3b82c4", "memory": "#e07b39", "link": "#3f9b6c", "host": "#8a6fc0"}
BOUND_PATTERNS = {"compute": "", "memory": "/", "link": "x", "host": "."}
HATCH = {"fillmode": "overlay", "fgcolor": "#fff", "fgopacity": 0.6}
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "cross")


def plotly_json(view: View) -> dict[str, str]:
    """Figures by name as JSON of data and layout; a figure without numbers is left out."""
    return {name: json.dumps(figure, allow_nan=False) for name, draw in FIGURES.items() if (figure := draw(view))}


def front_figure(view: View) -> dict[str, Any] | None:
    """Goodput against cost: the front as a line with intervals, what it dominates small and pale."""
    if not view.candidates:
        return None
    front = {candidate.strategy for candidate in view.front}
    traces: list[dict[str, Any]] = []
    for is_disaggregated in (False, True):
        kind = [c for c in view.candidates if c.is_disaggregated == is_disaggregated]
        style = {"color": DISAGGREGATED if is_disaggregated else COLLOCATED}
        style["symbol"] = "diamond" if is_disaggregated else "circle"
        name = "disaggregated" if is_disaggregated else "collocated"
        rest = [c for c in kind if c.strategy not in front]
        best = [c for c in kind if c.strategy in front]
        if rest:
            traces.append(_points(rest, f"{name}, dominated", {**style, "size": 6, "opacity": 0.35}))
        if best:
            traces.append(_points(best, f"{name}, on the front", {**style, "size": 11}, interval=True))
    line = {"mode": "lines", "line": {"shape": "hv", "width": 1, "color": "#888"}, "hoverinfo": "skip"}
    x, y = [c.usd_per_h for c in view.front], [c.goodput_req_s for c in view.front]
    traces.insert(0, {"type": "scatter", "x": x, "y": y, "name": "front", "showlegend": False, **line})
    if view.recommended is not None:
        ring = {"size": 20, "symbol": "circle-open", "color": "#c2314d", "line": {"width": 3}}
        traces.append(_points([view.recommended], "recommended", ring))
    layout = _layout("cost, $/h", "goodput, requests/s")
    layout["shapes"] = [_level(view.demand_req_s, "demand")]
    layout["yaxis"]["rangemode"] = layout["xaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def _points(candidates: list[Candidate], name: str, marker: dict[str, Any], interval: bool = False) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "marker": marker,
        "x": [c.usd_per_h for c in candidates],
        "y": [c.goodput_req_s for c in candidates],
        "text": [c.strategy for c in candidates],
        "customdata": [c.strategy for c in candidates],
        "hovertemplate": "<b>%{text}</b><br>%{y:.2f} req/s for $%{x:.2f}/h<extra></extra>",
    }
    if interval:
        up = [c.high_req_s - c.goodput_req_s for c in candidates]
        down = [c.goodput_req_s - c.low_req_s for c in candidates]
        trace["error_y"] = {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3}
    return trace


def ttft_figure(view: View) -> dict[str, Any] | None:
    """TTFT P90 against rate."""
    return _latency_figure(view, "ttft", "TTFT P90, ms")


def tpot_figure(view: View) -> dict[str, Any] | None:
    """TPOT P90 against rate."""
    return _latency_figure(view, "tpot", "TPOT P90, ms")


def _latency_figure(view: View, metric: str, title: str) -> dict[str, Any] | None:
    if not view.curves:
        return None
    traces: list[dict[str, Any]] = []
    for place, curve in enumerate(view.curves):
        values = [None if math.isnan(ms) else ms for ms in getattr(curve, f"{metric}_ms")]
        colour = DISAGGREGATED if curve.is_disaggregated else COLLOCATED
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": curve.strategy + (" (recommended)" if place == 0 else ""),
                "x": list(curve.rate_req_s),
                "y": values,
                "line": {"dash": DASHES[place % 4], "width": 3 if place == 0 else 1.5, "color": colour},
                "marker": {"symbol": SYMBOLS[place % 4], "size": 7},
                "hovertemplate": "%{y:.0f} ms at %{x:.2f} req/s<extra>%{fullData.name}</extra>",
            }
        )
    layout = _layout("arrival rate, requests/s", title)
    ticks = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    layout["yaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    limits = {name: ms for name, ms in view.slo_ms.items() if name.startswith(metric)}
    layout["shapes"] = [_level(ms, f"target {name}") for name, ms in limits.items()]
    shown = [ms for trace in traces for ms in trace["y"] if ms] + list(limits.values())
    layout["yaxis"]["range"] = [math.log10(min(shown) / 1.3), math.log10(max(shown) * 1.5)]
    demand = _level(0, "demand") | {"xref": "x", "yref": "paper", "x0": view.demand_req_s, "x1": view.demand_req_s}
    demand["label"] |= {"textposition": "end", "textangle": 0, "xanchor": "left", "yanchor": "top"}
    layout["shapes"].append(demand | {"y0": 0, "y1": 1})
    return {"data": traces, "layout": layout}


def breakdown_figure(view: View) -> dict[str, Any] | None:
    """Milliseconds of each operator in a step, a bar per pool and phase, patterned by what bounds the operator."""
    if not view.breakdown:
        return None
    labels = list(dict.fromkeys(_step(t.pool, t.phase) for t in view.breakdown))
    traces = []
    by_bound = sorted(view.breakdown, key=lambda t: (list(BOUND_COLOURS).index(t.bound), -t.ms))
    for bound, times in groupby(by_bound, key=lambda t: t.bound):
        shown = False
        for operator, group in groupby(sorted(times, key=lambda t: t.operator), key=lambda t: t.operator):
            ms_by_label = {_step(t.pool, t.phase): t.ms for t in group}
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"{bound}-bound",
                    "legendgroup": bound,
                    "showlegend": not shown,
                    "y": labels,
                    "x": [ms_by_label.get(label, 0.0) for label in labels],
                    "text": [operator if ms_by_label.get(label) else "" for label in labels],
                    "textposition": "inside",
                    "insidetextanchor": "middle",
                    "textangle": 0,
                    "hovertemplate": f"<b>{operator}</b><br>%{{x:.2f}} ms, {bound}-bound<extra>%{{y}}</extra>",
                    "marker": {
                        "color": BOUND_COLOURS[bound],
                        "line": {"width": 1, "color": "#fff"},
                        "pattern": {"shape": BOUND_PATTERNS[bound], "size": 6, "solidity": 0.2, **HATCH},
                    },
                }
            )
            shown = True
    layout = _layout("ms of one step", "")
    layout |= {"barmode": "stack", "uniformtext": {"minsize": 9, "mode": "hide"}}
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True}
    layout["height"] = 160 + 80 * len(labels)
    return {"data": traces, "layout": layout}


def cost_figure(view: View) -> dict[str, Any] | None:
    """The bill by GPU type: used and stranded."""
    if view.recommended is None or not view.recommended.bill:
        return None
    rows = view.recommended.bill
    gpus = [row.gpu for row in rows]
    used = [row.num_used * row.usd_per_gpu_h for row in rows]
    stranded = [(row.num_bought - row.num_used) * row.usd_per_gpu_h for row in rows]
    bar = {"type": "bar", "orientation": "h", "y": gpus, "hovertemplate": "$%{x:.2f}/h<extra>%{fullData.name}</extra>"}
    traces = [{**bar, "name": "used", "x": used, "marker": {"color": COLLOCATED}}]
    if any(stranded):
        pattern = {"color": "#999", "pattern": {"shape": "/", **HATCH}}
        traces.append({**bar, "name": "bought in whole nodes, unused", "x": stranded, "marker": pattern})
    layout = _layout("$/h", "")
    layout |= {"barmode": "stack", "height": 140 + 40 * len(rows)}
    layout["yaxis"] |= {"automargin": True}
    return {"data": traces, "layout": layout}


def _step(pool: str, phase: str) -> str:
    return f"{pool} {phase}" if pool != phase else phase


def _level(value: float, name: str) -> dict[str, Any]:
    """A dashed line across the figure with its name."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "line": {"dash": "dash", "width": 1.5, "color": "#c2314d"},
        "label": {"text": name, "textposition": "start", "font": {"size": 11, "color": "#c2314d"}},
    }


def _layout(x_title: str, y_title: str) -> dict[str, Any]:
    """Shared looks; colours of text and grid are set by the page to suit light, dark and print."""
    return {
        "xaxis": {"title": {"text": x_title}, "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y_title}, "zeroline": False, "automargin": True},
        "margin": {"l": 60, "r": 16, "t": 30, "b": 50},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
    }


FIGURES: dict[str, Callable[[View], dict[str, Any] | None]] = {
    "front": front_figure,
    "latency_ttft": ttft_figure,
    "latency_tpot": tpot_figure,
    "breakdown": breakdown_figure,
    "cost": cost_figure,
}
