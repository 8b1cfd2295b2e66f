"""Engine costs fitted on whole measured runs.

Every symbol of `EngineCosts` of an engine e on a GPU architecture a is low + span · σ(z), with low and span of its
bounds, σ the logistic function and

    z = z_default + base + engine_e + architecture_{e,a}

so that engines share what they can and an architecture differs where its runs insist: the three shifts are pulled to
zero with the standard deviations `SHIFT_STD`. The fit minimises

    Σ ρ(log predicted TPOT / measured) + w² · Σ ρ(log predicted TTFT / measured) + Σ (shift / std)²,  ρ = Cauchy

by Gauss-Newton on re-weighted residuals over all runs; slopes are one-sided differences of the simulation.

Leave-one-group-out (group = model × GPU × engine): the held-out group's rows leave the sum; Gauss-Newton goes on from
the full fit with its Jacobian, the kept runs of the engine simulated anew each step (chord method), and the group is
simulated with what results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from estimator.catalogue.engines import FIT_PATH
from estimator.catalogue.gpus import load_gpu
from estimator.engine import COST_BOUNDS, EngineCosts
from estimator.measured_runs import MeasuredRun
from estimator.replay import PreparedRun, replay

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Key = tuple[str, str]  # engine, architecture
Group = tuple[str, str, str]  # model, GPU, engine
NAMES = tuple(field.name for field in fields(EngineCosts))
LOW = np.array([COST_BOUNDS[name][0] for name in NAMES])
HIGH = np.array([COST_BOUNDS[name][1] for name in NAMES])
SPAN = HIGH - LOW
SHIFT_STD = {"base": 0.5, "engine": 0.2, "architecture": 0.1}
ENGINE_OWN = {
    "gemm_launch_s": 3.0,
    "elementwise_launch_s": 3.0,
    "expert_group_s": 3.0,
    "host_s": 3.0,
    "host_s_per_seq": 3.0,
    "prefill_layer_s": 2.0,
    "prefill_experts_s": 2.0,
    "cold_start_s": 5.0,
    "delta_cold_s": 5.0,
    "sync_host_s": 3.0,
    "sync_host_s_per_seq": 3.0,
    "link_factor": 3.0,
    "exchange_factor": 3.0,
    "hand_over_s": 5.0,
    "shared_overlap_frac": 3.0,
    "quantise_launch_s": 2.0,
    "block_factor": 2.0,
    "mxfp4_factor": 2.0,
}
# times that of the others: how kernels are fused, launched and scheduled is what engines differ in
ARCHITECTURE_OWN = {"prefill_layer_s": 8.0, "prefill_experts_s": 8.0}  # a GPU's nodes have processors of their own
RESIDUAL_STD = {"tpot": 0.08, "ttft": 0.20}  # where Cauchy's loss turns from square to logarithm
LATENCY_WEIGHT = np.array([1.0, 0.6])  # of TPOT's and TTFT's residuals
LONGEST_STEP = 1.5  # of any z in one step
SHORTEST_SHARE, ENOUGH = 0.1, 0.0005
STEPS_PER_SLOPES = 3  # slopes cost a simulation per symbol, a step one
STEP = 0.02  # of z, for slopes
SOURCE = "InferenceMAX and NVIDIA runs by way of ai-dynamo/aiconfigurator (Apache-2.0), sim2real and vllm_h100"
DATE = "2026-08-31"  # of the measurements


def key_of(run: MeasuredRun) -> Key:
    """Engine and GPU architecture of a run."""
    return run.engine, load_gpu(run.gpu).architecture


def position_of(costs: EngineCosts) -> FloatArray:
    """z of given costs, (num_symbols,)."""
    values = asdict(costs)
    share = np.clip((np.array([values[name] for name in NAMES]) - LOW) / SPAN, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(share / (1 - share)))


def costs_at(position: FloatArray) -> EngineCosts:
    """Costs at z, (num_symbols,)."""
    values = np.minimum(LOW + SPAN / (1.0 + np.exp(-position)), HIGH)
    return EngineCosts(**dict(zip(NAMES, (float(value) for value in values), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Which shifts add up to z of each (engine, architecture): `matrix` (num_keys, num_shifts) per symbol."""

    keys: tuple[Key, ...]
    matrix: FloatArray
    std: FloatArray  # (num_shifts, num_symbols)

    @classmethod
    def of(cls, keys: Sequence[Key]) -> Design:
        """One shift for all, one per engine, one per key."""
        unique = tuple(sorted(set(keys)))
        engines = sorted({engine for engine, _ in unique})
        rows = [
            [1.0, *(float(engine == key[0]) for engine in engines), *(float(other == key) for other in unique)]
            for key in unique
        ]
        std = [SHIFT_STD["base"], *[SHIFT_STD["engine"]] * len(engines), *[SHIFT_STD["architecture"]] * len(unique)]
        own = np.array([ENGINE_OWN.get(name, 1.0) for name in NAMES])
        by_symbol = np.outer(std, np.ones(len(NAMES)))
        by_symbol[1:] *= own
        places = np.array([ARCHITECTURE_OWN.get(name, own[i]) for i, name in enumerate(NAMES)])
        by_symbol[1 + len(engines) :] *= places / own
        return cls(keys=unique, matrix=np.array(rows), std=by_symbol)

    def positions(self, shifts: FloatArray) -> FloatArray:
        """z of every key, (num_keys, num_symbols), from shifts (num_shifts, num_symbols)."""
        return position_of(EngineCosts()) + self.matrix @ shifts

    def costs(self, shifts: FloatArray) -> dict[Key, EngineCosts]:
        """Costs of every key."""
        return {key: costs_at(z) for key, z in zip(self.keys, self.positions(shifts), strict=True)}


def latencies_ms(runs: Sequence[PreparedRun], costs: Mapping[Key, EngineCosts]) -> FloatArray:
    """TPOT and TTFT of prepared runs simulated with given costs, (num_runs, 2)."""
    found = []
    for prepared in runs:
        simulation = replay(prepared, costs[key_of(prepared.run)])
        found.append((1e3 * np.nanmean(simulation.tpot_s), 1e3 * np.nanmean(simulation.ttft_s)))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def measured_ms(runs: Sequence[MeasuredRun]) -> FloatArray:
    """TPOT and TTFT as measured, (num_runs, 2)."""
    return np.array([(run.measured_ms["tpot_mean_ms"], run.measured_ms["ttft_mean_ms"]) for run in runs])


def residuals(predicted: FloatArray, measured: FloatArray) -> FloatArray:
    """Log ratios over their scales, (num_runs, 2); an unanswered run counts as a factor of 20."""
    ratio = np.nan_to_num(np.log(predicted / measured), nan=3.0, posinf=3.0, neginf=-3.0)
    return np.asarray(ratio / np.array([RESIDUAL_STD["tpot"], RESIDUAL_STD["ttft"]]))


Simulate = Callable[[IntArray, Mapping[Key, EngineCosts]], FloatArray]  # runs by index, costs → (num, 2) ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Runs to fit: `keys`, `groups` and `measured` (num_runs, 2) ms by run; `simulate` predicts a choice of them."""

    keys: tuple[Key, ...]
    groups: tuple[Group, ...]
    measured: FloatArray
    simulate: Simulate
    design: Design

    @classmethod
    def of(cls, runs: Sequence[MeasuredRun], simulate: Simulate) -> Problem:
        """Of runs in the order in which `simulate` counts them."""
        keys = tuple(key_of(run) for run in runs)
        return cls(
            keys=keys,
            groups=tuple(run.group for run in runs),
            measured=measured_ms(runs),
            simulate=simulate,
            design=Design.of(keys),
        )

    @property
    def key_index(self) -> IntArray:
        """Place in `design.keys` of every run's key, (num_runs,)."""
        return np.array([self.design.keys.index(key) for key in self.keys])

    def predict(self, index: IntArray, shifts: FloatArray) -> FloatArray:
        """Chosen runs under `shifts`, (num, 2) ms."""
        return self.simulate(index, self.design.costs(shifts))

    def slopes(self, shifts: FloatArray, predicted: FloatArray) -> FloatArray:
        """Of the residuals by z of each run's own key, (num_runs, 2, num_symbols)."""
        everything = np.arange(len(self.keys))
        here, z = residuals(predicted, self.measured), self.design.positions(shifts)
        columns = []
        for symbol in range(len(NAMES)):
            moved = z.copy()
            moved[:, symbol] += STEP
            costs = {key: costs_at(row) for key, row in zip(self.design.keys, moved, strict=True)}
            there = residuals(self.simulate(everything, costs), self.measured)
            columns.append((there - here) / STEP)
        return np.stack(columns, axis=2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """Shifts (num_shifts, num_symbols), predictions (num_runs, 2) ms and slopes of the residuals there."""

    shifts: FloatArray
    predicted: FloatArray
    slopes: FloatArray
    loss: float


def gauss_newton_step(problem: Problem, fit: Fit, keep: NDArray[np.bool_]) -> FloatArray:
    """The next shifts from re-weighted residuals of the kept runs; no z moves by more than `LONGEST_STEP`."""
    design, num_symbols = problem.design, len(NAMES)
    scaled = residuals(fit.predicted, problem.measured)
    weight = np.sqrt(1.0 / (1.0 + scaled**2)) * LATENCY_WEIGHT
    num_shifts = len(fit.shifts)
    normal = np.zeros((num_shifts * num_symbols, num_shifts * num_symbols))
    gradient = np.zeros(num_shifts * num_symbols)
    for index, use in enumerate(design.matrix):
        mine = keep & (problem.key_index == index)
        jacobian = (weight[mine][:, :, None] * fit.slopes[mine]).reshape(-1, num_symbols)
        normal += np.kron(np.outer(use, use), jacobian.T @ jacobian)
        gradient += np.kron(use, jacobian.T @ (weight[mine] * scaled[mine]).ravel())
    prior = 1.0 / design.std.ravel() ** 2
    normal[np.diag_indices_from(normal)] += prior
    gradient += prior * fit.shifts.ravel()
    step = -np.linalg.solve(normal, gradient).reshape(fit.shifts.shape)
    return fit.shifts + step * min(1.0, LONGEST_STEP / float(np.abs(design.matrix @ step).max()))


def loss(problem: Problem, predicted: FloatArray, shifts: FloatArray) -> float:
    """What the fit minimises."""
    rows = np.log1p(residuals(predicted, problem.measured) ** 2) * LATENCY_WEIGHT**2
    return float(rows.sum() + ((shifts / problem.design.std) ** 2).sum())


def fit(problem: Problem, num_iterations: int = 12) -> Fit:
    """Gauss-Newton from the defaults, steps halved until the loss falls, until it falls by less than `ENOUGH`."""
    everything = np.arange(len(problem.keys))
    found = _fit_at(problem, everything, np.zeros((problem.design.matrix.shape[1], len(NAMES))))
    for _ in range(num_iterations):
        before = found.loss
        found = replace(found, slopes=problem.slopes(found.shifts, found.predicted))
        for _ in range(STEPS_PER_SLOPES):
            tried = _stepped(problem, found)
            gained = found.loss - tried.loss
            found = tried
            if gained < ENOUGH * found.loss:
                break
        if before - found.loss < ENOUGH * found.loss:
            break
    return found


def _stepped(problem: Problem, found: Fit) -> Fit:
    """The fit a Gauss-Newton step further, halved until the loss falls; as it is where no share of it helps."""
    everything = np.arange(len(problem.keys))
    target = gauss_newton_step(problem, found, np.ones(len(everything), dtype=bool))
    share = 1.0
    while share >= SHORTEST_SHARE:
        tried = _fit_at(problem, everything, found.shifts + share * (target - found.shifts))
        if tried.loss < found.loss:
            return replace(tried, slopes=found.slopes)
        share /= 2
    return found


def _fit_at(problem: Problem, everything: IntArray, shifts: FloatArray) -> Fit:
    predicted = problem.predict(everything, shifts)
    return Fit(shifts=shifts, predicted=predicted, slopes=np.empty(0), loss=loss(problem, predicted, shifts))


def shifts_without(problem: Problem, full: Fit, group: Group, num_steps: int = 2) -> FloatArray:
    """Shifts refitted without a group, from the full fit by the chord method."""
    keep = np.array([other != group for other in problem.groups])
    same_engine = np.flatnonzero(keep & np.array([key[0] == group[2] for key in problem.keys]))
    found = full
    for step in range(num_steps):
        shifts = gauss_newton_step(problem, found, keep)
        predicted = found.predicted.copy()
        if step + 1 < num_steps and len(same_engine):
            predicted[same_engine] = problem.predict(same_engine, shifts)
        found = replace(found, shifts=shifts, predicted=predicted)
    return found.shifts


def held_out(problem: Problem, full: Fit) -> tuple[FloatArray, dict[Group, dict[Key, EngineCosts]]]:
    """Every run predicted by the fit that has not seen its group, (num_runs, 2) ms, and those fits' costs."""
    predicted = np.full_like(full.predicted, np.nan)
    costs: dict[Group, dict[Key, EngineCosts]] = {}
    for group in sorted(set(problem.groups)):
        held = np.flatnonzero([other == group for other in problem.groups])
        shifts = shifts_without(problem, full, group)
        costs[group] = problem.design.costs(shifts)
        predicted[held] = problem.simulate(held, costs[group])
    return predicted, costs


def write_card(problem: Problem, full: Fit, path: Path = FIT_PATH) -> None:
    """Replace the fitted card, four significant digits; an architecture without runs takes its engine's own values."""
    design = problem.design
    costs: dict[str, dict[str, dict[str, float]]] = {}
    for (engine, architecture), found in design.costs(full.shifts).items():
        costs.setdefault(engine, {})[architecture] = _rounded(found)
        row = design.matrix[design.keys.index((engine, architecture))].copy()
        row[-len(design.keys) :] = 0.0  # no architecture's shift
        costs[engine][""] = _rounded(costs_at(position_of(EngineCosts()) + row @ full.shifts))
    card = {"source": SOURCE, "date": DATE, "costs": costs}
    path.write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _rounded(costs: EngineCosts) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in asdict(costs).items()}
