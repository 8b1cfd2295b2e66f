"""Each figure of the report as a PNG, for slides and documents; drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from search.report.figures import BOUND_COLOURS, COLLOCATED, DASHES, DISAGGREGATED
from search.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINESTYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
RED = "#c2314d"


def write_images(view: View, folder: Path) -> list[Path]:
    """Write `<figure>.png` for every figure that has numbers; the paths written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for name, draw in IMAGES.items():
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if not draw(view, axes):
            continue
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        written.append(path)
    return written


def draw_front(view: View, axes: Axes) -> bool:
    """Goodput against cost."""
    if not view.candidates:
        return False
    front = {candidate.strategy for candidate in view.front}
    for is_disaggregated, colour, marker in ((False, COLLOCATED, "o"), (True, DISAGGREGATED, "D")):
        kind = [c for c in view.candidates if c.is_disaggregated == is_disaggregated]
        for on_front in (False, True):
            points = [c for c in kind if (c.strategy in front) == on_front]
            if not points:
                continue
            label = f"{points[0].architecture}, {'on the front' if on_front else 'dominated'}"
            look = {"s": 50, "zorder": 3} if on_front else {"s": 12, "alpha": 0.35}
            x, y = [c.usd_per_h for c in points], [c.goodput_req_s for c in points]
            axes.scatter(x, y, c=colour, marker=marker, label=label, **look)
    steps = [c.usd_per_h for c in view.front], [c.goodput_req_s for c in view.front]
    axes.step(*steps, where="post", color="#888", lw=1)
    if view.recommended is not None:
        best = view.recommended
        ring = {"facecolors": "none", "edgecolors": RED, "linewidths": 2}
        axes.scatter([best.usd_per_h], [best.goodput_req_s], s=200, label="recommended", **ring)  # type: ignore[arg-type]
    axes.axhline(view.demand_req_s, color=RED, ls="--", lw=1, label="demand")
    axes.set(xlabel="cost, $/h", ylabel="goodput, requests/s", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=8)
    return True


def draw_ttft(view: View, axes: Axes) -> bool:
    """TTFT P90 against rate."""
    return _draw_latency(view, axes, "ttft")


def draw_tpot(view: View, axes: Axes) -> bool:
    """TPOT P90 against rate."""
    return _draw_latency(view, axes, "tpot")


def _draw_latency(view: View, axes: Axes, metric: str) -> bool:
    if not view.curves:
        return False
    for place, curve in enumerate(view.curves):
        colour = DISAGGREGATED if curve.is_disaggregated else COLLOCATED
        style = {"ls": LINESTYLES[DASHES[place % 4]], "lw": 2.5 if place == 0 else 1.2, "marker": "oDs+"[place % 4]}
        axes.plot(curve.rate_req_s, getattr(curve, f"{metric}_ms"), c=colour, ms=4, label=curve.strategy, **style)  # type: ignore[arg-type]
    for name, limit_ms in view.slo_ms.items():
        if name.startswith(metric):
            axes.axhline(limit_ms, color=RED, ls="--", lw=1, label=f"target {name}")
    axes.axvline(view.demand_req_s, color=RED, ls=":", lw=1, label="demand")
    axes.set(xlabel="arrival rate, requests/s", ylabel=f"{metric.upper()} P90, ms", yscale="log")
    axes.legend(fontsize=8)
    return True


def draw_breakdown(view: View, axes: Axes) -> bool:
    """Milliseconds of each operator, longest first per step."""
    if not view.breakdown:
        return False
    times = [t for t in view.breakdown if t.ms > 0][::-1]
    labels = [f"{t.pool} {t.phase}: {t.operator}" for t in times]
    bars = axes.barh(range(len(times)), [t.ms for t in times], color=[BOUND_COLOURS[t.bound] for t in times])
    axes.bar_label(bars, [t.bound for t in times], fontsize=7, padding=2)
    axes.set_yticks(range(len(times)), labels, fontsize=7)
    axes.set_xlabel("ms of one step")
    return True


def draw_cost(view: View, axes: Axes) -> bool:
    """The bill by GPU type."""
    if view.recommended is None or not view.recommended.bill:
        return False
    rows = view.recommended.bill
    used = [row.num_used * row.usd_per_gpu_h for row in rows]
    stranded = [(row.num_bought - row.num_used) * row.usd_per_gpu_h for row in rows]
    axes.barh([row.gpu for row in rows], used, color=COLLOCATED, label="used")
    axes.barh([row.gpu for row in rows], stranded, left=used, color="#bbb", hatch="//", label="bought, unused")
    axes.set_xlabel("$/h")
    axes.legend(fontsize=8)
    return True


IMAGES: dict[str, Callable[[View, Axes], bool]] = {
    "front": draw_front,
    "latency_ttft": draw_ttft,
    "latency_tpot": draw_tpot,
    "breakdown": draw_breakdown,
    "cost": draw_cost,
}
