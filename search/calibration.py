"""From a benchmark of one's own to a calibration card: the step time and request overhead that explain it.

Two numbers from two medians. The step time factor s is the one at which the simulated median TPOT is the measured one
(TPOT rises with s: more time a step, and a fuller batch); the overhead is then what the median TTFT lacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from scipy.optimize import brentq

from estimator.engine import COST_BOUNDS
from estimator.errors import BestServeError, require
from estimator.recalibrate import STEP_BOUNDS, Recalibration, recalibrated
from estimator.slo import Metric
from search.benchmarks import Measured, read_benchmark
from search.edge import writing
from search.export.deployment import read_run
from search.export.kit import MIN_THROUGHPUT_FRAC
from search.export.prediction import predict
from search.run import RunFolder
from search.spec_calibration import CalibrationSpec
from spaces.problem import Problem
from spaces.strategy import Strategy

MEDIAN = 50.0
TOLERANCE = 1e-3  # of the factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A card, and measured beside predicted medians (ms) with it."""

    card: CalibrationSpec
    tpot_ms: tuple[float, float]
    ttft_ms: tuple[float, float]


def calibrate(run: Path, result: Path, *, strategy: str | None = None, rate_req_s: float | None = None) -> Calibration:
    """The card that makes the plan's strategy behave as measured, whatever card the run itself was planned with.

    Raises `BestServeError` where the load was not carried (then waiting, not speed, was measured), the strategy mixes
    GPU architectures, or no factor within the physical bounds explains the measurement.
    """
    spec, _, chosen = read_run(run, strategy)
    problem = spec.model_copy(update={"calibration": None}).problem()
    architectures = {problem.gpu(pool.gpu).architecture for pool in chosen.pools}
    require(
        len(architectures) == 1,
        field="strategy",
        value=str(chosen),
        rule="mixes GPU architectures, one measurement cannot tell them apart",
        accepted="a strategy on one architecture",
    )
    measured = read_benchmark(result, near_req_s=rate_req_s or spec.traffic.rate_req_s)
    rate = rate_req_s or measured.rate_req_s or spec.traffic.rate_req_s
    require(
        measured.throughput_req_s >= MIN_THROUGHPUT_FRAC * rate,
        field="result",
        value=str(result),
        rule=f"carried {measured.throughput_req_s:.3g} of {rate:g} requests/s: its latencies are of a growing queue",
        accepted="a result at a load that is carried",
    )
    found = solve(problem, chosen, measured, architecture=architectures.pop(), rate_req_s=rate)
    card = CalibrationSpec(
        engine=spec.engine,
        architecture=found.architecture,
        step_time_factor=round(found.step_time_factor, 4),
        request_overhead_ms=round(1e3 * found.request_overhead_s, 3),
        source=f"{measured.tool}, {measured.num_completed} requests at {rate:g}/s, {chosen}, {problem.model.name}",
        date=datetime.fromtimestamp(result.stat().st_mtime, UTC).date().isoformat(),
    )
    after = replace(problem, engine=recalibrated(problem.engine, card.recalibration()))
    medians = [
        (1e3 * _median(measured, metric, result.name), 1e3 * _predicted(after, chosen, rate, metric))
        for metric in ("tpot", "ttft")
    ]
    return Calibration(card=card, tpot_ms=medians[0], ttft_ms=medians[1])


def solve(
    problem: Problem, strategy: Strategy, measured: Measured, *, architecture: str, rate_req_s: float
) -> Recalibration:
    """Factor and overhead from the medians; the overhead stops at its bounds."""
    base = problem.engine.costs_on(architecture).request_overhead_s

    def with_factor(factor: float) -> Problem:
        by = Recalibration(architecture=architecture, step_time_factor=factor, request_overhead_s=base)
        return replace(problem, engine=recalibrated(problem.engine, by))

    tpot_s = _median(measured, "tpot", measured.tool)

    def too_slow(factor: float) -> float:
        predicted = _predicted(with_factor(factor), strategy, rate_req_s, "tpot")
        return predicted / tpot_s - 1.0 if math.isfinite(predicted) else 1.0

    low, high = (too_slow(factor) for factor in STEP_BOUNDS)
    require(
        low <= 0 <= high,
        field="result",
        value=f"median TPOT {1e3 * tpot_s:.4g} ms",
        rule=f"is not explained by steps {STEP_BOUNDS[0]:g} to {STEP_BOUNDS[1]:g} times as long as planned",
        accepted="a result of the planned strategy, model and load",
    )
    factor = float(brentq(too_slow, *STEP_BOUNDS, xtol=TOLERANCE))
    lacking_s = _median(measured, "ttft", measured.tool) - _predicted(with_factor(factor), strategy, rate_req_s, "ttft")
    least, most = COST_BOUNDS["request_overhead_s"]
    return Recalibration(
        architecture=architecture,
        step_time_factor=factor,
        request_overhead_s=min(max(base + lacking_s, least), most),
    )


def write_card(path: Path, card: CalibrationSpec) -> None:
    """The card as YAML, whole or not at all."""
    from search.export.files import yaml_text

    stamp = ["Measured by the user; name this file in a spec: `calibration: PATH`."]
    with writing(path, field="calibrate"):
        RunFolder(path.parent).write(path.name, yaml_text(card.model_dump(mode="json"), stamp).encode())


def _predicted(problem: Problem, strategy: Strategy, rate_req_s: float, metric: Metric) -> float:
    return predict(problem, strategy, rate_req_s=rate_req_s).value_s(metric, MEDIAN)


def _median(measured: Measured, metric: Metric, name: str) -> float:
    value = measured.value_s(metric, MEDIAN)
    if value is None or value <= 0:
        raise BestServeError("result", name, f"lacks the median {metric.upper()}", "a result with medians")
    return value
