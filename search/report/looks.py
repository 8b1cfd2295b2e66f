"""What all figures share: their three forms, colours, hatches, axes. Shape and hatch tell what colour also tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Row = dict[str, Any]
Plot = dict[str, Any]

BLUE, ORANGE, GREEN, VIOLET, GREY, RED = "#2f78b7", "#d96b27", "#3a9469", "#8467bd", "#8b949e", "#c2314d"
COLLOCATED, DISAGGREGATED = BLUE, ORANGE
HATCH = {"fillmode": "overlay", "fgcolor": "#fff", "fgopacity": 0.6, "size": 6, "solidity": 0.2}
LINE = {"width": 1, "color": "#fff"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure: `plot` for plotly (data and layout), `rows` for the CSV, `draw` onto an empty matplotlib figure.

    `alt`: what it shows, in a sentence, for those who cannot see it.
    """

    name: str
    alt: str
    plot: Plot
    rows: list[Row]
    draw: Callable[[Drawing], None]
    height_px: int = 420


def layout(x_title: str, y_title: str) -> Plot:
    """Shared looks; colours of text and grid are set by the page to suit light, dark and print."""
    return {
        "xaxis": {"title": {"text": x_title}, "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y_title}, "zeroline": False, "automargin": True},
        "margin": {"l": 56, "r": 16, "t": 36, "b": 48},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "bargap": 0.35,
    }


def level(value: float, name: str) -> Plot:
    """A dashed line across the figure at `value` of the y axis, with its name."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "line": {"dash": "dash", "width": 1.5, "color": RED},
        "label": {"text": name, "textposition": "start", "font": {"size": 12, "color": RED}},
    }


def moment(value: float, name: str) -> Plot:
    """A dashed line from bottom to top at `value` of the x axis, with its name at the top."""
    line = level(0, name) | {"xref": "x", "yref": "paper", "x0": value, "x1": value, "y0": 0, "y1": 1}
    line["label"] |= {"textposition": "end", "textangle": 0, "xanchor": "left", "yanchor": "top", "padding": 5}
    return line


def axes_of(drawing: Drawing, num: int = 1) -> Any:
    """`num` axes above each other with a common x axis; one for num = 1."""
    found = drawing.subplots(num, 1, sharex=True)
    for axes in [found] if num == 1 else found:
        axes.spines[["top", "right"]].set_visible(False)
    return found


def stacked(labels: list[str], series: dict[str, list[float]], looks: dict[str, tuple[str, str]]) -> list[Plot]:
    """Horizontal bars of `labels`, one trace a series; `looks`: colour and hatch of each series, grey if not there."""
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": labels,
            "x": values,
            "showlegend": True,
            "marker": {
                "color": looks.get(name, (GREY, ""))[0],
                "pattern": {"shape": looks.get(name, (GREY, ""))[1], **HATCH},
            },
            "hovertemplate": "%{x:.2f}<extra>%{fullData.name}</extra>",
        }
        for name, values in series.items()
    ]


def draw_stacked(
    axes: Any, labels: list[str], series: dict[str, list[float]], looks: dict[str, tuple[str, str]]
) -> None:
    """The same bars by matplotlib, first label at the top, with a legend."""
    left = [0.0] * len(labels)
    for name, values in series.items():
        colour, hatch = looks.get(name, (GREY, ""))
        axes.barh(labels, values, left=left, color=colour, hatch=hatch * 2 or None, edgecolor="white", label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.legend(fontsize=8)
