"""Figures about money: tipping points, owning against renting, serving a day's demand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from search.money_view import BuyOrRent, DemandPlan, Money, TippingPoint, amount
from search.report.looks import (
    BLUE,
    GREEN,
    GREY,
    HATCH,
    ORANGE,
    RED,
    VIOLET,
    Figure,
    Plot,
    axes_of,
    draw_stacked,
    layout,
    stacked,
)
from search.view import View, gpu_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MAX_TIPS = 12
PART_LOOKS = {
    "capital": (BLUE, ""),
    "power": (ORANGE, "/"),
    "hosting": (GREEN, "x"),
    "maintenance": (VIOLET, "."),
    "staff": (GREY, "-"),
    "rent": (RED, ""),
}


def money_figures(view: View) -> list[Figure]:
    """What of the money there is to draw."""
    money = view.money
    if money is None:
        return []
    figures = []
    if money.tipping_points:
        figures.append(_tips(money))
    if money.buy_or_rent:
        figures.append(_owning(money))
    if money.demand is not None and money.demand.hours:
        figures.append(_demand(money, money.demand))
    return figures


def _tips(money: Money) -> Figure:
    tips = money.tipping_points[:MAX_TIPS]
    names = [_short(tip, place) for place, tip in enumerate(tips)]
    change = [100.0 * tip.change_frac for tip in tips]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "x": [value if (value > 0) == is_up else None for value in change],
            "customdata": [tip.sentence(money.currency) for tip in tips],
            "hovertemplate": "%{customdata}<extra></extra>",
            "text": [f"{value:+.0f} %" for value in change],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": BLUE if is_up else ORANGE, "pattern": {"shape": "" if is_up else "/", **HATCH}},
        }
        for is_up in (True, False)
    ]
    shown = layout("change that tips the answer, %", "")
    shown["yaxis"] |= {"autorange": "reversed", "categoryorder": "array", "categoryarray": names}
    widest = max(abs(value) for value in change)
    shown["xaxis"] |= {"range": [-1.5 * widest if min(change) < 0 else 0, 1.5 * widest if max(change) > 0 else 0]}
    shown |= {"showlegend": False, "barmode": "overlay"}

    def draw(drawing: Drawing) -> None:
        axes = axes_of(drawing)
        bars = axes.barh(names, change, color=[BLUE if value > 0 else ORANGE for value in change])
        axes.bar_label(bars, [f"{value:+.0f} %" for value in change], fontsize=8, padding=2)
        axes.axvline(0, color="#555", lw=1)
        axes.invert_yaxis()
        axes.set_xlabel("change that tips the answer, %")

    return Figure(
        name="tipping_points",
        alt="How far each price, rate, length, target and link is from changing the answer",
        plot={"data": traces, "layout": shown},
        rows=[
            {
                "group": tip.group,
                "name": tip.name,
                "unit": tip.unit,
                "now": tip.now,
                "tip": tip.tip,
                "change_frac": tip.change_frac,
                "takes_over": tip.takes_over,
                "usd_per_h": tip.usd_per_h,
                "is_simulated": tip.is_simulated,
            }
            for tip in tips
        ],
        draw=draw,
        height_px=110 + 34 * len(tips),
    )


def _short(tip: TippingPoint, place: int) -> str:
    """The name, told apart from others that tip the other way by an invisible mark."""
    return tip.name + "\u200b" * place


def _owning(money: Money) -> Figure:
    rows = money.buy_or_rent
    labels = [f"{what} {gpu_label(row.gpu)}" for row in rows for what in ("own", "rent")]
    parts = list(dict.fromkeys(part for row in rows for part in row.parts_usd_per_gpu_h))
    series = {part: [v for row in rows for v in (row.parts_usd_per_gpu_h.get(part, 0.0), 0.0)] for part in parts}
    series["rent"] = [v for row in rows for v in (0.0, row.utilisation_frac * row.rent_usd_per_gpu_h)]
    shown = layout(f"{money.symbol} per GPU and hour", "") | {"barmode": "stack"}
    shown["yaxis"] |= {"autorange": "reversed"}

    def draw(drawing: Drawing) -> None:
        axes = axes_of(drawing)
        draw_stacked(axes, labels, series, PART_LOOKS)
        axes.set_xlabel(f"{money.symbol} per GPU and hour")

    return Figure(
        name="own_or_rent",
        alt="Parts of the price of owning a GPU against renting it",
        plot={"data": stacked(labels, series, PART_LOOKS), "layout": shown},
        rows=[_owning_row(row) for row in rows],
        draw=draw,
        height_px=150 + 70 * len(rows),
    )


def _owning_row(row: BuyOrRent) -> dict[str, object]:
    months = row.break_even_months
    return {
        "gpu": row.gpu,
        "num_gpus": row.num_gpus,
        "rent_usd_per_gpu_h": row.rent_usd_per_gpu_h,
        "own_usd_per_gpu_h": row.own_usd_per_gpu_h,
        **{f"{part}_usd_per_gpu_h": value for part, value in row.parts_usd_per_gpu_h.items()},
        "purchase_usd": row.purchase_usd,
        "break_even_months": months if math.isfinite(months) else "",
        "source": row.source,
        "date": row.date,
    }


def _demand(money: Money, demand: DemandPlan) -> Figure:
    hours = [row.hour for row in demand.hours]
    rates = [row.rate_req_s for row in demand.hours]
    base = [row.num_base * demand.unit_req_s for row in demand.hours]
    burst = [max(0, row.num_units - row.num_base) * demand.unit_req_s for row in demand.hours]
    bar = {"type": "bar", "x": hours, "hovertemplate": "%{y:.1f} req/s at %{x} h<extra>%{fullData.name}</extra>"}
    traces: list[Plot] = [
        {**bar, "name": "reserved capacity", "y": base, "marker": {"color": BLUE}},
        {
            **bar,
            "name": "added for the peak",
            "y": burst,
            "marker": {"color": ORANGE, "pattern": {"shape": "/", **HATCH}},
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "demand",
            "x": hours,
            "y": rates,
            "line": {"color": RED, "width": 2.5},
            "hovertemplate": "%{y:.1f} req/s at %{x} h<extra>demand</extra>",
        },
    ]
    shown = layout("hour", "requests/s") | {"barmode": "stack", "bargap": 0.1}
    shown["xaxis"] |= {"dtick": 6 if len(hours) <= 48 else 24}

    def draw(drawing: Drawing) -> None:
        axes = axes_of(drawing)
        axes.bar(hours, base, color=BLUE, label="reserved capacity")
        axes.bar(hours, burst, bottom=base, color=ORANGE, hatch="//", edgecolor="white", label="added for the peak")
        axes.plot(hours, rates, c=RED, lw=2, marker="o", ms=3, label="demand")
        axes.set(xlabel="hour", ylabel="requests/s")
        axes.legend(fontsize=8)

    return Figure(
        name="demand",
        alt=f"Demand over {len(hours)} hours and the capacity that follows it; "
        f"{amount(demand.usd_per_day, money.currency)} a day",
        plot={"data": traces, "layout": shown},
        rows=[
            {
                "hour": row.hour,
                "rate_req_s": row.rate_req_s,
                "num_units": row.num_units,
                "num_base": row.num_base,
                "usd": row.usd,
                "missed_frac": row.missed_frac,
            }
            for row in demand.hours
        ],
        draw=draw,
        height_px=340,
    )
