"""All figures of an answer, and their files: a PNG and a CSV of each."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from search.report.breakdown import breakdown_figures
from search.report.cost import cost_figures
from search.report.front import front_figures
from search.report.latency import latency_figures
from search.report.looks import Figure
from search.report.money import money_figures
from search.report.serving import serving_figures
from search.view import View


def figures_of(view: View) -> dict[str, Figure]:
    """Figures by name; a figure without numbers is left out."""
    parts = (front_figures, latency_figures, serving_figures, breakdown_figures, cost_figures, money_figures)
    return {figure.name: figure for part in parts for figure in part(view)}


def plotly_json(figure: Figure) -> str:
    """Data and layout for plotly."""
    return json.dumps(figure.plot, allow_nan=False)


def write_files(figures: dict[str, Figure], folder: Path) -> None:
    """Write `<figure>.png`, for slides and documents, and `<figure>.csv` of each figure; older ones go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.csv")):
        old.unlink()
    for figure in figures.values():
        write_csv(figure, folder / f"{figure.name}.csv")
        write_png(figure, folder / f"{figure.name}.png")


def write_csv(figure: Figure, path: Path) -> None:
    """The figure's numbers."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in figure.rows for name in row)))
        writer.writeheader()
        writer.writerows(figure.rows)


def write_png(figure: Figure, path: Path) -> None:
    """The figure drawn by matplotlib, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(drawing)
    figure.draw(drawing)
    drawing.savefig(path, dpi=150)
