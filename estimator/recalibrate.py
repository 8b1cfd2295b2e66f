"""Engine costs corrected by one's own measurement: how much longer a step takes, and what a request costs outside it.

A measurement of one strategy at one load tells two numbers apart, not the fitted costs behind them: every step of the
engine on that architecture takes s times as long, and a request spends o seconds outside steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from estimator.engine import COST_BOUNDS, Engine
from estimator.errors import require

STEP_BOUNDS = (0.5, 2.0)  # beyond, something else than the engine's speed differs from what was planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """Measured over modelled step time, and seconds of a request outside steps, on one GPU architecture."""

    architecture: str
    step_time_factor: float
    request_overhead_s: float

    def __post_init__(self) -> None:
        bounds: Mapping[str, tuple[float, float]] = {
            "step_time_factor": STEP_BOUNDS,
            "request_overhead_s": COST_BOUNDS["request_overhead_s"],
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            require(
                low <= value <= high,
                field=f"calibration {name}",
                value=value,
                rule="is outside its physical bound",
                accepted=f"{low} to {high}",
            )


def recalibrated(engine: Engine, by: Recalibration) -> Engine:
    """The engine with corrected costs on that architecture, unchanged on others."""
    costs = replace(engine.costs_on(by.architecture), request_overhead_s=by.request_overhead_s)
    return replace(
        engine,
        costs={**engine.costs, by.architecture: costs},
        step_time_factors={**engine.step_time_factors, by.architecture: by.step_time_factor},
    )
