"""Engine costs fitted on whole measured runs: `python -m estimator.calibrate_runs MEASUREMENTS`.

Per engine and GPU architecture, the bounded symbols of `EngineCosts` minimise

    Σ ρ(log predicted TPOT / measured) + w·Σ ρ(log predicted TTFT / measured),   ρ = soft-L1 at 8 %, w = 0.3²

over the collocated closed-loop runs and prefix-cached ones. A TTFT of more than 5 s is queueing for memory and counts a
third. Leave-one-group-out (group = model × GPU × engine): the held-out group's rows leave the sum, the fit is repeated
by one Gauss-Newton step from the full fit (its Jacobian without those rows), and the group is simulated anew with the
result. The costs go to `engines_fit.json`, the table of errors to the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, lsq_linear

from estimator.accuracy import Prediction, error_rows
from estimator.catalogue.engines import FIT_PATH, engine_names, load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.engine import COST_BOUNDS, EngineCosts
from estimator.measured_runs import MeasuredRun, read_runs
from estimator.replay import answer

FloatArray = NDArray[np.float64]
NAMES = tuple(field.name for field in fields(EngineCosts))
LOW = np.array([COST_BOUNDS[name][0] for name in NAMES])
SPAN = np.array([COST_BOUNDS[name][1] for name in NAMES]) - LOW
TTFT_WEIGHT = 0.3
QUEUED_TTFT_MS, QUEUED_WEIGHT = 5e3, 0.3
SOFT_FRAC = 0.08
MIN_RUNS = 20
SOURCE = "InferenceMAX and NVIDIA runs by way of ai-dynamo/aiconfigurator (Apache-2.0), sim2real and vllm_h100"
DATE = "2026-08-31"  # of the measurements
PRIOR = 0.05  # pull of every symbol, in units of its bound's width, toward the engine-free default


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Costs of one engine on one architecture as a point of the unit cube of bounds, and the residuals there."""

    runs: tuple[MeasuredRun, ...]
    position: FloatArray
    residuals: FloatArray

    @property
    def costs(self) -> EngineCosts:
        """The fitted costs."""
        return costs_at(self.position)


def costs_at(position: FloatArray) -> EngineCosts:
    """Costs at a point of the unit cube of bounds."""
    values = LOW + np.clip(position, 0.0, 1.0) * SPAN
    return EngineCosts(**dict(zip(NAMES, (float(value) for value in values), strict=True)))


def architecture_of(run: MeasuredRun) -> str:
    """Architecture of the run's GPU."""
    return load_gpu(run.gpu).architecture


def predict(run: MeasuredRun, costs: EngineCosts) -> Prediction:
    """The run simulated with other costs."""
    return answer(run, replace(load_engine(run.engine), costs={"": costs})).latency_ms


def residuals_of(runs: Sequence[MeasuredRun], position: FloatArray) -> FloatArray:
    """Weighted log ratios, TPOT of all runs, then TTFT of all, then the prior: (2·num_runs + num_symbols,)."""
    costs = costs_at(position)
    predicted = [predict(run, costs) for run in runs]
    tpot = [np.log(p["tpot_mean_ms"] / r.measured_ms["tpot_mean_ms"]) for p, r in zip(predicted, runs, strict=True)]
    ttft = [
        _ttft_weight(r) * np.log(p["ttft_mean_ms"] / r.measured_ms["ttft_mean_ms"])
        for p, r in zip(predicted, runs, strict=True)
    ]
    return np.nan_to_num(np.concatenate((tpot, ttft, PRIOR * (position - position_of(EngineCosts())))), posinf=3.0)


def _ttft_weight(run: MeasuredRun) -> float:
    return TTFT_WEIGHT * (QUEUED_WEIGHT if run.measured_ms["ttft_mean_ms"] > QUEUED_TTFT_MS else 1.0)


def position_of(costs: EngineCosts) -> FloatArray:
    """The point of the unit cube of bounds at which `costs` lie."""
    values = asdict(costs)
    return np.asarray((np.array([values[name] for name in NAMES]) - LOW) / SPAN, dtype=np.float64)


def fit(runs: Sequence[MeasuredRun], start: EngineCosts, num_evaluations: int = 6) -> Fit:
    """Robust bounded least squares from `start`."""

    def residuals(position: FloatArray) -> FloatArray:
        return residuals_of(runs, position)

    found = least_squares(
        residuals,
        np.clip(position_of(start), 1e-6, 1 - 1e-6),
        bounds=(0, 1),
        loss="soft_l1",
        f_scale=SOFT_FRAC,
        diff_step=np.full(len(NAMES), 2e-3),
        max_nfev=num_evaluations,
    )
    return Fit(runs=tuple(runs), position=np.asarray(found.x), residuals=residuals_of(runs, found.x))


def without(full: Fit, group: tuple[str, str, str], jacobian: FloatArray) -> EngineCosts:
    """Costs refitted without a group: one robust Gauss-Newton step from the full fit, inside the bounds."""
    held = np.array([run.group == group for run in full.runs])
    keep = ~np.concatenate((held, held, np.zeros(len(NAMES), dtype=bool)))
    weight = np.sqrt(1.0 / np.sqrt(1.0 + (full.residuals[keep] / SOFT_FRAC) ** 2))
    room = (-full.position - 1e-12, 1.0 - full.position + 1e-12)
    step = lsq_linear(weight[:, None] * jacobian[keep], -weight * full.residuals[keep], bounds=room)
    return costs_at(full.position + step.x)


def jacobian_of(full: Fit) -> FloatArray:
    """Slopes of the residuals at the fit, (num_residuals, num_symbols), by one-sided differences into the bounds."""
    columns = []
    for index in range(len(NAMES)):
        step = 2e-3 if full.position[index] < 0.5 else -2e-3
        moved = full.position.copy()
        moved[index] += step
        columns.append((residuals_of(full.runs, moved) - full.residuals) / step)
    return np.column_stack(columns)


def held_out(full: Fit) -> dict[str, Prediction]:
    """Every run predicted by the fit that has not seen its group."""
    jacobian = jacobian_of(full)
    predicted: dict[str, Prediction] = {}
    for group in sorted({run.group for run in full.runs}):
        costs = without(full, group, jacobian)
        predicted |= {run.id: predict(run, costs) for run in full.runs if run.group == group}
    return predicted


def calibrate(measurements: Path, *, write: bool = True) -> dict[str, Prediction]:
    """Fit every engine and architecture, write the card, print errors; returns the held-out predictions."""
    runs = [run for run in read_runs(measurements) if run.mode == "collocated"]
    costs: dict[str, dict[str, dict[str, float]]] = {}
    predicted: dict[str, Prediction] = {}
    for engine in engine_names():
        for architecture in sorted({architecture_of(run) for run in runs}):
            mine = [run for run in runs if run.engine == engine and architecture_of(run) == architecture]
            if len(mine) < MIN_RUNS:
                continue
            full = fit(mine, load_engine(engine).costs_on(architecture))
            predicted |= held_out(full)
            costs.setdefault(engine, {})[architecture] = asdict(full.costs)
            print(engine, architecture, f"{len(mine)} runs", flush=True)
    for row in error_rows(runs, predicted):
        print(f"{row.part} {row.metric}: median {row.median_frac:.1%}, mean {row.mean_frac:.1%} held out", flush=True)
    if write:
        write_card(costs)
    return predicted


def write_card(costs: dict[str, dict[str, dict[str, float]]]) -> None:
    """Replace the fitted card, four significant digits; an unseen architecture takes the mean of those seen."""
    for by_architecture in costs.values():
        names = list(by_architecture)
        by_architecture[""] = {
            name: float(np.mean([by_architecture[architecture][name] for architecture in names])) for name in NAMES
        }
    rounded = {
        engine: {arch: {name: float(f"{value:.4g}") for name, value in values.items()} for arch, values in by.items()}
        for engine, by in costs.items()
    }
    card = {"source": SOURCE, "date": DATE, "costs": rounded}
    FIT_PATH.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    calibrate(Path(sys.argv[1]))
