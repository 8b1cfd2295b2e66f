"""A benchmark's result against the plan: which limits it keeps, and how far the prediction was off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from estimator.errors import BestServeError, require
from estimator.slo import Slo
from search.benchmarks import METRICS, Level, Measured, read_benchmark
from search.export.deployment import read_run
from search.export.kit import MAX_FAILED_FRAC, MIN_THROUGHPUT_FRAC
from search.export.prediction import Prediction, predict
from spaces.problem import Problem

COMPARED: tuple[Level, ...] = (None, 50.0, 90.0, 99.0)
LENGTH_TOLERANCE_FRAC = 0.1  # mean lengths further from the plan's than this make the comparison unfair


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One limit: `passed` if measured keeps it. Latencies in ms, the others in their own unit."""

    name: str
    measured: float
    limit: float
    is_upper: bool
    unit: str

    @property
    def passed(self) -> bool:
        """At most the limit, or at least."""
        return self.measured <= self.limit if self.is_upper else self.measured >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Predicted beside measured; `error_frac` > 0: it was predicted too slow."""

    name: str
    predicted_ms: float
    measured_ms: float

    @property
    def error_frac(self) -> float:
        """(predicted − measured) / measured."""
        return self.predicted_ms / self.measured_ms - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer of `bestserve verify`."""

    run: str
    strategy: str
    tool: str
    rate_req_s: float
    checks: tuple[Check, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "strategy": self.strategy,
            "tool": self.tool,
            "rate_req_s": self.rate_req_s,
            "passed": self.passed,
            "checks": [
                {"name": c.name, "passed": c.passed, "measured": c.measured, "limit": c.limit, "unit": c.unit}
                for c in self.checks
            ],
            "predictions": [
                {"name": c.name, "predicted_ms": c.predicted_ms, "measured_ms": c.measured_ms}
                | {"error_frac": c.error_frac}
                for c in self.comparisons
            ],
            "warnings": list(self.warnings),
        }


def verify(run: Path, result: Path, *, strategy: str | None = None, rate_req_s: float | None = None) -> Verdict:
    """Judge the benchmark result against the run's SLO and prediction.

    The prediction is made at `rate_req_s`; by default at the rate the result says was offered, or else at the demand.
    Raises `BestServeError` for a run, strategy or result that cannot be read, or a result without what a limit needs.
    """
    spec, problem, chosen = read_run(run, strategy)
    demand = spec.traffic.rate_req_s
    measured = read_benchmark(result, near_req_s=rate_req_s or demand)
    require(
        measured.num_completed > 0,
        field="result",
        value=str(result),
        rule="completed no request",
        accepted="a result with completed requests",
    )
    rate = rate_req_s or measured.rate_req_s or demand
    prediction = predict(problem, chosen, rate_req_s=rate)
    return Verdict(
        run=spec.name,
        strategy=str(chosen),
        tool=measured.tool,
        rate_req_s=rate,
        checks=(*slo_checks(problem.slo, measured, result), *load_checks(measured, rate)),
        comparisons=compare(prediction, measured),
        warnings=tuple(_warnings(problem, measured, rate, demand)),
    )


def slo_checks(slo: Slo, measured: Measured, result: Path) -> list[Check]:
    """The SLO's own limits; failed requests count as misses where single requests are known."""
    if slo.share is not None:
        met = met_frac(slo, measured)
        if met is None:
            accepted = "a result of vllm bench serve with --save-detailed or --goodput"
            raise BestServeError("result", str(result), "does not say which requests meet all limits", accepted)
        each = " and ".join(f"{t.metric.upper()} ≤ {1e3 * t.limit_s:g} ms" for t in slo.targets)
        return [Check(name=f"share with {each}", measured=met, limit=slo.share, is_upper=False, unit="")]
    checks = []
    for target in slo.targets:
        value = _percentile_s(measured, target.metric, target.percentile)
        name = f"{target.metric.upper()} P{target.percentile:g}"
        if value is None:
            accepted = f"a result with that percentile (vllm bench serve --metric-percentiles {target.percentile:g})"
            raise BestServeError("result", str(result), f"lacks {name}", accepted)
        checks.append(Check(name=name, measured=1e3 * value, limit=1e3 * target.limit_s, is_upper=True, unit="ms"))
    return checks


def _percentile_s(measured: Measured, metric: Any, level: float) -> float | None:
    """The level that `level` % of all requests sent do not exceed, ∞ if failures reach there."""
    values = measured.requests_s.get(metric)
    if values is None:
        return measured.value_s(metric, level)
    values = np.sort(values[~np.isnan(values)])
    return float(values[max(math.ceil(level / 100.0 * len(values) - 1e-9), 1) - 1]) if len(values) else None


def met_frac(slo: Slo, measured: Measured) -> float | None:
    """Share of the requests sent that met every limit; an undefined TPOT misses nothing."""
    if all(target.metric in measured.requests_s for target in slo.targets):
        met = [np.nan_to_num(measured.requests_s[t.metric], nan=0.0, posinf=np.inf) <= t.limit_s for t in slo.targets]
        return float(np.logical_and.reduce(met).mean())
    return measured.met_frac


def load_checks(measured: Measured, rate_req_s: float) -> list[Check]:
    """Whether the load was carried at all."""
    least = MIN_THROUGHPUT_FRAC * rate_req_s
    return [
        Check(name="throughput", measured=measured.throughput_req_s, limit=least, is_upper=False, unit="requests/s"),
        Check(name="failed share", measured=measured.failed_frac, limit=MAX_FAILED_FRAC, is_upper=True, unit=""),
    ]


def compare(prediction: Prediction, measured: Measured) -> tuple[Comparison, ...]:
    """Mean and percentiles of every metric that both know."""
    found = []
    for metric in METRICS:
        for level in COMPARED:
            value, predicted = measured.value_s(metric, level), prediction.value_s(metric, level)
            if value is not None and value > 0 and math.isfinite(predicted):
                name = f"{metric.upper()} {'mean' if level is None else f'P{level:g}'}"
                found.append(Comparison(name=name, predicted_ms=1e3 * predicted, measured_ms=1e3 * value))
    return tuple(found)


def _warnings(problem: Problem, measured: Measured, rate: float, demand: float) -> list[str]:
    """What makes the comparison unfair."""
    found = []
    for side in ("input", "output"):
        planned = getattr(problem.workload, f"mean_{side}_tokens")
        seen = getattr(measured, f"mean_{side}_tokens")
        if seen is not None and abs(seen / planned - 1.0) > LENGTH_TOLERANCE_FRAC:
            found.append(f"mean {side} of {seen:.0f} tokens, planned {planned:.0f}: not the planned load")
    if rate < (1 - LENGTH_TOLERANCE_FRAC) * demand:
        found.append(f"offered {rate:g} requests/s, the plan is for {demand:g}: passing here does not verify the plan")
    if measured.tool == "guidellm" and not measured.requests_s:
        found.append("GuideLLM weighs TPOT percentiles by tokens where it lists no requests; ours are per request")
    return found
