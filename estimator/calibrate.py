"""Fit the operator curves to measured operators: `python -m estimator.calibrate MEASURED_DIR`.

Bounded least squares on log(predicted/measured) with a soft-L1 loss: a doubled and a halved time weigh alike, outliers
little. One JSON card per GPU holds every curve with its residuals, rows, version and source.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from estimator.calibrate_tables import Group, measured_groups
from estimator.roofline import FloatArray

SOURCE = "ai-dynamo/aiconfigurator (Apache-2.0), August 2026"
DATE = "2026-08"
CARDS_DIR = Path(__file__).parent / "catalogue" / "operators"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A curve and its |predicted/measured − 1|: median and 90th percentile over the rows it was fitted on."""

    curve: Any
    median_error_frac: float
    p90_error_frac: float


def fit_group(group: Group) -> Fit:
    """The curve of the group's type that is nearest to its rows."""
    names = list(group.curve.BOUNDS)
    low = np.array([group.curve.BOUNDS[name][0] for name in names])
    high = np.array([group.curve.BOUNDS[name][1] for name in names])
    default = group.curve()
    start = np.array([float(getattr(default, name)) for name in names])
    start[names.index("launch_s")] = 0.8 * float(group.latency_s.min())
    start = np.clip(start, low + 1e-6 * (high - low), high - 1e-6 * (high - low))

    def curve_at(scaled: FloatArray) -> Any:
        return group.curve(**dict(zip(names, (low + scaled * (high - low)).tolist(), strict=True)))

    def residuals(scaled: FloatArray) -> FloatArray:
        return np.asarray(np.log(group.predict(curve_at(scaled)) / group.latency_s))

    solution = least_squares(
        residuals, (start - low) / (high - low), bounds=(0.0, 1.0), loss="soft_l1", f_scale=0.1, diff_step=[1e-5]
    )
    errors = np.abs(np.expm1(residuals(solution.x)))
    return Fit(
        curve=_rounded(curve_at(solution.x)),
        median_error_frac=float(np.median(errors)),
        p90_error_frac=float(np.quantile(errors, 0.9)),
    )


def _rounded(curve: Any) -> Any:
    return type(curve)(**{field.name: float(f"{getattr(curve, field.name):.4g}") for field in fields(curve)})


def fit_operators(measured_dir: Path, out_dir: Path = CARDS_DIR, kinds: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Fit every group (of `kinds`, if given), write one card per GPU, and return the entries of all cards.

    With `kinds` the other kinds' entries of existing cards are kept.
    """
    chosen = frozenset(kinds)
    cards: dict[str, list[dict[str, Any]]] = {}
    for group in measured_groups(measured_dir, chosen):
        fit = fit_group(group)
        entry = _entry(group, fit)
        print(_line(group.gpu.name, entry), flush=True)
        cards.setdefault(group.gpu.name, []).append(entry)
    out_dir.mkdir(parents=True, exist_ok=True)
    for gpu, entries in sorted(cards.items()):
        path = out_dir / f"{gpu}.json"
        kept = json.loads(path.read_text(encoding="utf-8"))["curves"] if chosen and path.is_file() else []
        entries += [entry for entry in kept if entry["kind"] not in chosen]
        entries.sort(key=lambda entry: (entry["kind"], entry["engine"], entry["dtype"]))
        card = {"gpu": gpu, "source": SOURCE, "date": DATE, "curves": entries}
        path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [entry for entries in cards.values() for entry in entries]


def _entry(group: Group, fit: Fit) -> dict[str, Any]:
    return {
        "kind": group.kind,
        "engine": group.engine,
        "dtype": group.dtype,
        "version": group.version,
        "kernel": group.kernel,
        "num_rows": len(group.latency_s),
        "median_error_frac": round(fit.median_error_frac, 4),
        "p90_error_frac": round(fit.p90_error_frac, 4),
        "parameters": {name: getattr(fit.curve, name) for name in group.curve.BOUNDS},
    }


def _line(gpu: str, entry: dict[str, Any]) -> str:
    errors = f"{100 * entry['median_error_frac']:5.1f} % {100 * entry['p90_error_frac']:5.1f} %"
    key = f"{gpu:9s} {entry['engine']:7s} {entry['kind']:30s} {entry['dtype']:10s}"
    return f"{key} {errors} {entry['num_rows']:6d} rows  {entry['version']}"


def main(arguments: list[str]) -> int:
    """Fit from the folder given first; further words restrict the kinds."""
    started = time.perf_counter()
    entries = fit_operators(Path(arguments[0]), kinds=arguments[1:])
    medians = [entry["median_error_frac"] for entry in entries]
    print(f"{len(entries)} curves, median of medians {100 * float(np.median(medians)):.1f} %")
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
