"""The hourly bill by GPU type: each pool's share, and what is bought only because nodes are sold whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.report.looks import BLUE, GREY, ORANGE, Figure, axes_of, draw_stacked, layout, stacked
from search.view import Candidate, View, gpu_label
from spaces.strategy import Strategy

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

POOLS = {"m": "instances", "p": "prefill pool", "d": "decode pool"}
UNUSED = "bought in whole nodes, unused"
LOOKS = {"instances": (BLUE, ""), "prefill pool": (BLUE, ""), "decode pool": (ORANGE, "/"), UNUSED: (GREY, "x")}


def cost_figures(view: View) -> list[Figure]:
    """The recommended strategy's bill; none without one."""
    best = view.recommended
    if best is None or not best.bill:
        return []
    labels, series = [gpu_label(row.gpu) for row in best.bill], parts_of(best)
    shown = layout(f"{view.symbol}/h", "") | {"barmode": "stack"}

    def draw(drawing: Drawing) -> None:
        axes = axes_of(drawing)
        draw_stacked(axes, labels, series, LOOKS)
        axes.set_xlabel(f"{view.symbol}/h")

    return [
        Figure(
            name="cost",
            alt="The hourly bill by GPU type and pool",
            plot={"data": stacked(labels, series, LOOKS), "layout": shown},
            rows=[
                {
                    "gpu": row.gpu,
                    "num_used": row.num_used,
                    "num_bought": row.num_bought,
                    "usd_per_gpu_h": row.usd_per_gpu_h,
                    **{f"usd_per_h_{name.replace(' ', '_')}": values[place] for name, values in series.items()},
                    "card": row.card,
                    "source": row.source,
                    "date": row.date,
                }
                for place, row in enumerate(best.bill)
            ],
            draw=draw,
            height_px=130 + 40 * len(labels),
        )
    ]


def parts_of(best: Candidate) -> dict[str, list[float]]:
    """$/h of each pool, and of what is bought unused, per line of the bill; together they are the line's price."""
    pools = Strategy.parse(best.strategy).pools
    series = {
        POOLS[pool.role]: [pool.num_gpus * row.usd_per_gpu_h if row.gpu == pool.gpu else 0.0 for row in best.bill]
        for pool in pools
    }
    unused = [(row.num_bought - row.num_used) * row.usd_per_gpu_h for row in best.bill]
    return series | ({UNUSED: unused} if any(unused) else {})
