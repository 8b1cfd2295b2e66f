"""A few seconds of simulated serving: queue, batch and KV cache over time, and the way of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search.report.looks import BLUE, GREEN, GREY, HATCH, ORANGE, Figure, Plot, Row, axes_of, layout
from search.serving_view import PoolLoad, Serving
from search.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PANELS = (("yaxis3", "queue", (0.74, 1.0)), ("yaxis2", "batch", (0.37, 0.66)), ("yaxis", "KV cache, %", (0.0, 0.29)))
STATES = {
    "waiting": (GREY, ""),
    "prefill": (BLUE, "/"),
    "cache on the link": (GREEN, "x"),
    "decode": (ORANGE, ""),
}
NAMES = {"instances": "", "prefill": "prefill pool", "decode": "decode pool"}
Lines = list[tuple[str, str, str, tuple[float, ...]]]  # axis, name, colour, values


def serving_figures(view: View) -> list[Figure]:
    """Load over time, and the requests of the same seconds; none without a recommended strategy."""
    serving = view.serving
    if serving is None:
        return []
    figures = [
        Figure(
            name="serving",
            alt=f"Queue, batch and KV cache use over {serving.time_s[-1]:.0f} s at {serving.rate_req_s:g} requests/s",
            plot=_load_plot(serving),
            rows=_load_rows(serving),
            draw=lambda drawing: _draw_load(serving, drawing),
            height_px=460,
        )
    ]
    if serving.requests:
        figures.append(
            Figure(
                name="requests",
                alt=f"Waiting, prefill and decode of {len(serving.requests)} requests in a row",
                plot=_request_plot(serving),
                rows=_request_rows(serving),
                draw=lambda drawing: _draw_requests(serving, drawing),
                height_px=460,
            )
        )
    return figures


def _load_rows(serving: Serving) -> list[Row]:
    columns: dict[str, tuple[float, ...]] = {"time_s": serving.time_s}
    for pool in serving.pools:
        prefix = "" if pool.name == "instances" else f"{pool.name}_pool_"
        columns |= {f"{prefix}{name}": getattr(pool, name) for name in ("waiting", "prefill", "decode", "kv_frac")}
    columns["caches_on_the_link"] = serving.moving
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _lines(serving: Serving) -> Lines:
    """What the three panels show, top to bottom."""
    first, last = serving.pools[0], serving.pools[-1]
    is_split = len(serving.pools) > 1
    lines: Lines = [("y3", "waiting", GREY, first.waiting)]
    if is_split:
        lines.append(("y3", "caches on the link", GREEN, serving.moving))
    lines += [("y2", "in prefill", BLUE, first.prefill), ("y2", "in decode", ORANGE, last.decode)]
    colours = (BLUE, ORANGE) if is_split else (ORANGE,)
    for pool, colour in zip(serving.pools, colours, strict=True):
        lines.append(("y", _kv_name(pool), colour, tuple(100.0 * share for share in pool.kv_frac)))
    return lines


def _kv_name(pool: PoolLoad) -> str:
    return f"KV cache {NAMES[pool.name]}".strip()


def _load_plot(serving: Serving) -> Plot:
    traces: list[Plot] = []
    for axis, name, colour, values in _lines(serving):
        unit = " %" if axis == "y" else ""
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": list(serving.time_s),
                "y": list(values),
                "yaxis": axis,
                "line": {"width": 1.5, "color": colour, "shape": "hvh", "dash": "dot" if axis == "y" else "solid"},
                "fill": "tozeroy",
                "fillcolor": f"{colour}33",
                "hovertemplate": f"%{{y:.1f}}{unit} {name} at %{{x:.1f}} s<extra></extra>",
            }
        )
    shown = layout("seconds", "")
    for axis, title, domain in PANELS:
        shown[axis] = {"title": {"text": title}, "zeroline": False, "automargin": True, "rangemode": "tozero"}
        shown[axis] |= {"domain": list(domain), "nticks": 4}
    shown["xaxis"]["anchor"] = "y"
    shown["margin"] |= {"t": 76}  # three rows of legend
    return {"data": traces, "layout": shown}


def _draw_load(serving: Serving, drawing: Drawing) -> None:
    axes = dict(zip(("y3", "y2", "y"), axes_of(drawing, 3), strict=True))
    for axis, name, colour, values in _lines(serving):
        axes[axis].step(serving.time_s, values, where="mid", c=colour, lw=1, label=name)
    for axis, title, _ in PANELS:
        place = axes[axis.replace("yaxis", "y")]
        place.set_ylabel(title, fontsize=8)
        place.set_ylim(bottom=0)
        place.legend(fontsize=7, loc="upper right")
    axes["y"].set_xlabel("seconds")


def _request_rows(serving: Serving) -> list[Row]:
    return [
        {
            "request": place + 1,
            "arrival_s": span.arrival_s,
            "prefill_start_s": span.prefill_start_s,
            "first_token_s": span.first_token_s,
            "kv_arrival_s": span.kv_arrival_s,
            "finish_s": span.finish_s,
            "input_tokens": span.input_tokens,
            "output_tokens": span.output_tokens,
        }
        for place, span in enumerate(serving.requests)
    ]


def _states(serving: Serving) -> dict[str, tuple[list[float], list[float]]]:
    """By state, start and length in s of each request's stay in it, (num_requests,) each."""
    states: dict[str, tuple[list[float], list[float]]] = {state: ([], []) for state in STATES}
    for span in serving.requests:
        moved_s = span.first_token_s if span.kv_arrival_s is None else span.kv_arrival_s
        times = (span.arrival_s, span.prefill_start_s, span.first_token_s, moved_s, span.finish_s)
        for state, start_s, end_s in zip(STATES, times[:-1], times[1:], strict=True):
            states[state][0].append(start_s)
            states[state][1].append(end_s - start_s)
    return {state: stays for state, stays in states.items() if any(stays[1])}


def _request_plot(serving: Serving) -> Plot:
    sizes = [f"{span.input_tokens:,} tokens in, {span.output_tokens:,} out" for span in serving.requests]
    traces: list[Plot] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": state,
            "base": starts,
            "x": lengths,
            "y": list(range(1, len(lengths) + 1)),
            "text": sizes,
            "textposition": "none",
            "hovertemplate": f"request %{{y}}, %{{text}}<br>{state} %{{x:.2f}} s<extra></extra>",
            "marker": {"color": STATES[state][0], "pattern": {"shape": STATES[state][1], **HATCH}},
        }
        for state, (starts, lengths) in _states(serving).items()
    ]
    shown = layout("seconds", "request, by arrival")
    shown |= {"barmode": "overlay", "bargap": 0.25}
    shown["yaxis"] |= {"autorange": "reversed", "nticks": 8}
    return {"data": traces, "layout": shown}


def _draw_requests(serving: Serving, drawing: Drawing) -> None:
    axes = axes_of(drawing)
    for state, (starts, lengths) in _states(serving).items():
        look: dict[str, Any] = {"color": STATES[state][0], "hatch": STATES[state][1] * 2 or None, "edgecolor": "white"}
        axes.barh(range(1, len(lengths) + 1), lengths, left=starts, label=state, linewidth=0.3, **look)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", ylabel="request, by arrival")
    axes.legend(fontsize=8)
