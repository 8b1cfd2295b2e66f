"""Fit the operator curves to measured operators: `python -m estimator.calibrate MEASURED_DIR [KIND ...]`.

Bounded least squares on log(predicted/measured) with a Cauchy loss: a doubled and a halved time weigh alike, a kernel
that is mistuned for some shapes hardly. Every group is fitted from the curve's defaults, with and without a cache, from
the curve in its card, and from the last fit of the same kind, engine and format; the best one stays. `held out`: the
error on a quarter of the group's shapes after a second fit without them, from the defaults. One JSON card per GPU holds
every curve with its residuals, rows, version and source.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from estimator.calibrate_groups import Group
from estimator.calibrate_report import card_entries, print_summary, write_summary
from estimator.calibrate_tables import measured_groups
from estimator.roofline import FloatArray

SOURCE = "ai-dynamo/aiconfigurator (Apache-2.0), August 2026"
DATE = "2026-08"
CARDS_DIR = Path(__file__).parent / "catalogue" / "operators"
FIT_ROWS = 2000  # of a group enter the fit; its error is that over all rows drawn
HELD_OUT_FRAC = 0.25  # of the shapes
SOFT_FRAC = 0.1  # residual from which on the loss grows with its logarithm
MOST_EVALUATIONS = 30
ONE_SHOT_BYTES = tuple(1.5 * 2**power for power in range(16, 23))  # between the sizes measured
MOST_ROWS = (96.0, 192.0)  # between the heights of tiles
LEAST_TILE = 16_384.0  # 128 × 128, of which kernels without a choice are mostly built
START_FRAC = 0.3  # of its bound, where a parameter that may be absent starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A curve and its |predicted/measured − 1|: median and 90th percentile over the group's rows.

    `held_out_error_frac`: median over shapes left out of a second fit; None where the group has too few shapes.
    """

    curve: Any
    median_error_frac: float
    p90_error_frac: float
    held_out_error_frac: float | None = None


def fit_group(group: Group, starts: Iterable[Any] = ()) -> Fit:
    """The curve of the group's type that is nearest to its rows, searched from the defaults and from `starts`."""
    chosen = np.arange(len(group.latency_s)) < FIT_ROWS
    found = [_search(group.part(chosen), start) for start in (*_default_starts(group), *starts)]
    curve = min(found, key=lambda pair: pair[0])[1]
    errors = np.abs(group.predict(curve) / group.latency_s - 1.0)
    return Fit(
        curve=curve,
        median_error_frac=float(np.median(errors)),
        p90_error_frac=float(np.quantile(errors, 0.9)),
        held_out_error_frac=_held_out_error(group.part(chosen)),
    )


def _default_starts(group: Group) -> list[Any]:
    """The defaults, with a cache where benchmarks may have found data, with a fill; with kernels for few rows and tiles
    below a height; with large tiles alone; every limit of one-shot buffers.
    """
    starts, bounds = [group.default], group.curve.BOUNDS
    for names in (("cache_bytes",), ("cache_bytes", "fill_s", "join_s"), ("window_pad",)):
        if names[-1] in bounds and names[-1] not in group.fixed:
            starts.append(replace(starts[0], **{name: START_FRAC * bounds[name][1] for name in names}))
    if "most_rows" in bounds:
        starts += [replace(starts[0], narrow_gain=START_FRAC, token_frac=1.0, most_rows=most) for most in MOST_ROWS]
    if "least_tile" in bounds:
        starts += [replace(start, least_tile=LEAST_TILE) for start in starts]
    if "one_shot_bytes" in bounds:
        starts += [replace(starts[0], one_shot_bytes=most) for most in ONE_SHOT_BYTES]
    return starts


def _held_out_error(group: Group) -> float | None:
    """Median error on the shapes that a fit has not seen."""
    if not group.shape:
        return None
    shapes, index = np.unique(np.stack([group.rows[name] for name in group.shape]), axis=1, return_inverse=True)
    held = _drawn_shapes(shapes.shape[1])[index.reshape(-1)]
    if shapes.shape[1] < 4 or not held.any():
        return None
    rest, unseen = group.part(~held), group.part(held)
    curve = min((_search(rest, start) for start in _default_starts(group)), key=lambda pair: pair[0])[1]
    return float(np.median(np.abs(unseen.predict(curve) / unseen.latency_s - 1.0)))


def _drawn_shapes(num_shapes: int) -> NDArray[np.bool_]:
    order = np.random.default_rng(0).permutation(num_shapes)
    return np.asarray(order < max(1, round(HELD_OUT_FRAC * num_shapes)))


def _search(group: Group, start: Any) -> tuple[float, Any]:
    """Loss and curve of a bounded robust least-squares fit from `start`, four significant digits."""
    names = [name for name in group.curve.BOUNDS if name not in group.fixed]
    low = np.array([group.curve.BOUNDS[name][0] for name in names])
    high = np.array([group.curve.BOUNDS[name][1] for name in names])
    position = np.array([float(getattr(start, name)) for name in names])
    if "launch_s" in names and start.launch_s == group.default.launch_s:
        position[names.index("launch_s")] = 0.8 * float(group.latency_s.min())
    position = np.clip((position - low) / (high - low), 1e-4, 1.0 - 1e-4)
    latency_s = group.latency_s

    def curve_at(scaled: FloatArray) -> Any:
        return replace(group.default, **dict(zip(names, (low + scaled * (high - low)).tolist(), strict=True)))

    def residuals(scaled: FloatArray) -> FloatArray:
        return np.asarray(np.log(group.predict(curve_at(scaled)) / latency_s))

    solution = least_squares(
        residuals,
        position,
        bounds=(0.0, 1.0),
        loss="cauchy",
        f_scale=SOFT_FRAC,
        diff_step=[1e-4],
        ftol=1e-4,
        max_nfev=MOST_EVALUATIONS,
    )
    return float(solution.cost), _rounded(curve_at(solution.x))


def _rounded(curve: Any) -> Any:
    return type(curve)(**{field.name: float(f"{getattr(curve, field.name):.4g}") for field in fields(curve)})


def fit_operators(measured_dir: Path, out_dir: Path = CARDS_DIR, kinds: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Fit every group (of `kinds`, if given), write one card per GPU, and return the entries of all cards.

    With `kinds` the other kinds' entries of existing cards are kept.
    """
    chosen = frozenset(kinds)
    cards: dict[str, list[dict[str, Any]]] = {}
    last: dict[tuple[str, str, str], Any] = {}
    standing = {
        (gpu, entry["kind"], entry["engine"], entry["dtype"]): entry["parameters"]
        for gpu, entry in card_entries(out_dir)
    }
    for group in measured_groups(measured_dir, chosen):
        key = (group.kind, group.engine, group.dtype)
        starts = [last[key]] if key in last else []
        if (group.gpu.name, *key) in standing:
            starts.append(group.curve(**standing[group.gpu.name, *key]))
        fit = fit_group(group, starts)
        last[key] = fit.curve
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
    held_out = fit.held_out_error_frac
    return {
        "kind": group.kind,
        "engine": group.engine,
        "dtype": group.dtype,
        "version": group.version,
        "kernel": group.kernel,
        "num_rows": len(group.latency_s),
        "median_error_frac": round(fit.median_error_frac, 4),
        "p90_error_frac": round(fit.p90_error_frac, 4),
        "held_out_error_frac": None if held_out is None else round(held_out, 4),
        "parameters": {name: getattr(fit.curve, name) for name in group.curve.BOUNDS},
    }


def _line(gpu: str, entry: dict[str, Any]) -> str:
    errors = f"{100 * entry['median_error_frac']:5.1f} % {100 * entry['p90_error_frac']:5.1f} %"
    held_out = entry["held_out_error_frac"]
    unseen = "held out   -" if held_out is None else f"held out {100 * held_out:5.1f} %"
    key = f"{gpu:9s} {entry['engine']:7s} {entry['kind']:30s} {entry['dtype']:10s}"
    return f"{key} {errors} {unseen} {entry['num_rows']:6d} rows  {entry['version']}"


def main(arguments: list[str]) -> int:
    """Fit from the folder given first; further words restrict the kinds. Ends with the table of all cards."""
    started = time.perf_counter()
    fit_operators(Path(arguments[0]), kinds=arguments[1:])
    print_summary(CARDS_DIR)
    write_summary(CARDS_DIR, Path(__file__).parent / "README.md")
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
