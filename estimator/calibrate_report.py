"""How far the operator cards are from measurement: `python -m estimator.calibrate_report` prints it from the cards.

One row per kind, engine and format with the median error on every GPU, then the groups above the aim; the same table
stands in `estimator/README.md` between markers.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

AIM_FRAC = 0.08
LIBRARIES = ("nccl", "deepep")  # not an engine's own operators
BEGIN, END = "<!-- operator errors: begin -->", "<!-- operator errors: end -->"
Entry = Mapping[str, Any]


def card_entries(cards_dir: Path) -> list[tuple[str, Entry]]:
    """(GPU, entry) of every curve of every card."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(cards_dir.glob("*.json"))]
    return [(card["gpu"], entry) for card in cards for entry in card["curves"]]


def print_summary(cards_dir: Path) -> None:
    """The table, and every group above the aim with its median, 90th percentile and held-out error."""
    entries = card_entries(cards_dir)
    print("\n".join(error_table(entries)))
    print(_groups_line(entries))
    above = [(gpu, entry) for gpu, entry in entries if entry["median_error_frac"] > AIM_FRAC]
    print(f"{len(above)} of {len(entries)} groups have a median above {100 * AIM_FRAC:.0f} %:")
    for gpu, entry in sorted(above, key=lambda pair: (pair[1]["kind"], pair[0], pair[1]["engine"], pair[1]["dtype"])):
        errors = f"{_percent(entry['median_error_frac'])} median, {_percent(entry['p90_error_frac'])} P90"
        print(f"  {entry['kind']:30s} {gpu:9s} {entry['engine']:7s} {entry['dtype']:10s} {errors}")


def _groups_line(entries: Sequence[tuple[str, Entry]]) -> str:
    """How many pairs of a GPU and an engine's format have a median over their operators above the aim, and which."""
    by_group: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for gpu, entry in entries:
        if entry["engine"] not in LIBRARIES:
            by_group[gpu, entry["engine"], entry["dtype"]].append(entry["median_error_frac"])
    medians = {group: float(np.median(errors)) for group, errors in by_group.items()}
    above = (f"{' '.join(group)} {_percent(error)}" for group, error in medians.items() if error > AIM_FRAC)
    return f"of {len(medians)} groups of one GPU, engine and format above {100 * AIM_FRAC:.0f} %: {', '.join(above)}"


def error_table(entries: Sequence[tuple[str, Entry]]) -> list[str]:
    """Markdown: per kind, engine and format the median / P90 error of each GPU, then the summary per kind."""
    gpus = sorted({gpu for gpu, _ in entries})
    cells: dict[tuple[str, str, str], dict[str, Entry]] = defaultdict(dict)
    for gpu, entry in entries:
        cells[entry["kind"], entry["engine"], _dtype(entry)][gpu] = entry
    lines = [f"| operator | engine | format | {' | '.join(gpus)} |", "|---" * (3 + len(gpus)) + "|"]
    for (kind, engine, dtype), by_gpu in sorted(cells.items()):
        errors = [_cell(by_gpu[gpu]) if gpu in by_gpu else "" for gpu in gpus]
        lines.append(f"| {kind} | {engine} | {dtype} | {' | '.join(errors)} |")
    return [*lines, "", *_kind_table(entries)]


def _kind_table(entries: Sequence[tuple[str, Entry]]) -> Iterator[str]:
    yield f"| operator | groups | median | worst | above {100 * AIM_FRAC:.0f} % | held-out shapes, median |"
    yield "|---|---|---|---|---|---|"
    for kind in (*sorted({entry["kind"] for _, entry in entries}), ""):
        mine = [entry for _, entry in entries if kind in ("", entry["kind"])]
        errors = np.array([entry["median_error_frac"] for entry in mine])
        unseen = [entry["held_out_error_frac"] for entry in mine if entry.get("held_out_error_frac") is not None]
        held_out = _percent(float(np.median(unseen))) if unseen else ""
        figures = f"{_percent(float(np.median(errors)))} | {_percent(float(errors.max()))}"
        yield f"| {kind or 'all'} | {len(mine)} | {figures} | {int((errors > AIM_FRAC).sum())} | {held_out} |"


def _dtype(entry: Entry) -> str:
    return f"{entry['dtype']} GPUs" if entry["dtype"].isdigit() else str(entry["dtype"])


def _cell(entry: Entry) -> str:
    figures = f"{100 * entry['median_error_frac']:.1f} / {100 * entry['p90_error_frac']:.0f}"
    return f"**{figures}**" if entry["median_error_frac"] > AIM_FRAC else figures


def _percent(frac: float) -> str:
    return f"{100 * frac:.1f} %"


def write_summary(cards_dir: Path, readme: Path) -> None:
    """Replace the table between the markers of a README that has them."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN in text and END in text:
        table = "\n".join(error_table(card_entries(cards_dir)))
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    print_summary(Path(__file__).parent / "catalogue" / "operators")
    sys.exit(0)
