"""Goodput against cost: every strategy tried, the front as a line with its sampling intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search.report.looks import COLLOCATED, DISAGGREGATED, RED, Figure, Plot, Row, axes_of, layout, level
from search.view import Candidate, View, near_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def front_figures(view: View) -> list[Figure]:
    """One figure, or none where nothing is feasible."""
    if not view.candidates:
        return []
    return [
        Figure(
            name="front",
            alt=f"Goodput against cost of {len(view.candidates)} strategies, {len(view.front)} on the front",
            plot=_plot(view),
            rows=_rows(view),
            draw=lambda drawing: _draw(view, drawing),
        )
    ]


def _rows(view: View) -> list[Row]:
    """Every feasible strategy that was evaluated, cheapest first, with whether it is on the front."""
    front = {candidate.strategy for candidate in view.front}
    by_cost = sorted(view.candidates, key=lambda c: (c.usd_per_h, -c.goodput_req_s, c.strategy))
    return [
        {
            "strategy": candidate.strategy,
            "architecture": candidate.architecture,
            "num_gpus": candidate.num_gpus,
            "usd_per_h": candidate.usd_per_h,
            "goodput_req_s": candidate.goodput_req_s,
            "goodput_low_req_s": candidate.low_req_s,
            "goodput_high_req_s": candidate.high_req_s,
            "usd_per_1m_output": candidate.usd_per_1m_output,
            "ttft_p90_ms": candidate.ttft_p90_ms,
            "tpot_p90_ms": candidate.tpot_p90_ms,
            "binding_limit": candidate.binding_limit,
            "on_front": int(candidate.strategy in front),
        }
        for candidate in by_cost
    ]


def _plot(view: View) -> Plot:
    front = {candidate.strategy for candidate in view.front}
    x, y = [c.usd_per_h for c in view.front], [c.goodput_req_s for c in view.front]
    line = {"mode": "lines", "line": {"shape": "hv", "width": 1.5, "color": "#8b949e"}, "hoverinfo": "skip"}
    traces: list[Plot] = [{"type": "scatter", "x": x, "y": y, "name": "front", "showlegend": False, **line}]
    for on_front in (False, True):  # the front last, so that nothing covers it
        for is_disaggregated in (False, True):
            kind = [
                c
                for c in view.candidates
                if c.is_disaggregated == is_disaggregated and (c.strategy in front) == on_front
            ]
            if kind:
                traces.append(_points(kind, view.symbol, on_front=on_front))
    shown = layout(f"cost, {view.symbol}/h", "goodput, requests/s")
    shown["shapes"] = [level(view.demand_req_s, "demand")]
    shown["xaxis"]["rangemode"] = shown["yaxis"]["rangemode"] = "tozero"
    if view.recommended is not None:
        ring = {"size": 22, "symbol": "circle-open", "color": RED, "line": {"width": 3}}
        silent = {"hoverinfo": "skip", "hovertemplate": None, "legendrank": 1}
        traces.append(_trace([view.recommended], "recommended", ring, view.symbol) | silent)
        near = near_range(view)
        if near is not None:
            shown["xaxis"]["range"], shown["yaxis"]["range"] = [0, near[0]], [0, near[1]]
    return {"data": traces, "layout": shown}


def _points(candidates: list[Candidate], symbol: str, *, on_front: bool) -> Plot:
    """Strategies of one kind: circles or diamonds, large with intervals on the front, small and pale elsewhere."""
    kind = candidates[0]
    marker = {
        "color": DISAGGREGATED if kind.is_disaggregated else COLLOCATED,
        "symbol": "diamond" if kind.is_disaggregated else "circle",
        "size": 11 if on_front else 7,
        "opacity": 1.0 if on_front else 0.4,
    }
    trace = _trace(candidates, f"{kind.architecture}, {'on the front' if on_front else 'beaten'}", marker, symbol)
    trace["legendrank"] = 2 if on_front else 3
    if on_front:
        up = [c.high_req_s - c.goodput_req_s for c in candidates]
        down = [c.goodput_req_s - c.low_req_s for c in candidates]
        trace["error_y"] = {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3}
    return trace


def _trace(candidates: list[Candidate], name: str, marker: Plot, symbol: str) -> Plot:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "marker": marker,
        "x": [c.usd_per_h for c in candidates],
        "y": [c.goodput_req_s for c in candidates],
        "text": [c.strategy for c in candidates],
        "customdata": [c.strategy for c in candidates],
        "hovertemplate": f"<b>%{{text}}</b><br>%{{y:.2f}} req/s for {symbol}%{{x:.2f}}/h<extra></extra>",
    }


def _draw(view: View, drawing: Drawing) -> None:
    axes = axes_of(drawing)
    front = {candidate.strategy for candidate in view.front}
    for is_disaggregated, colour, marker in ((False, COLLOCATED, "o"), (True, DISAGGREGATED, "D")):
        kind = [c for c in view.candidates if c.is_disaggregated == is_disaggregated]
        for on_front in (False, True):
            points = [c for c in kind if (c.strategy in front) == on_front]
            if not points:
                continue
            label = f"{points[0].architecture}, {'on the front' if on_front else 'beaten'}"
            look: dict[str, Any] = {"s": 50, "zorder": 3} if on_front else {"s": 14, "alpha": 0.4}
            x, y = [c.usd_per_h for c in points], [c.goodput_req_s for c in points]
            axes.scatter(x, y, c=colour, marker=marker, label=label, **look)
    steps = [c.usd_per_h for c in view.front], [c.goodput_req_s for c in view.front]
    axes.step(*steps, where="post", color="#888", lw=1)
    if view.recommended is not None:
        best = view.recommended
        axes.scatter(
            [best.usd_per_h],
            [best.goodput_req_s],
            s=220,
            label="recommended",
            facecolors="none",
            edgecolors=RED,
            linewidths=2,
        )
    axes.axhline(view.demand_req_s, color=RED, ls="--", lw=1, label="demand")
    near = near_range(view)
    axes.set(xlabel=f"cost, {view.symbol}/h", ylabel="goodput, requests/s")
    axes.set_xlim(0, None if near is None else near[0])
    axes.set_ylim(0, None if near is None else near[1])
    axes.legend(fontsize=8)
