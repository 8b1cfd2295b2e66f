"""Engine costs corrected by one's own measurement: how much longer a step takes, and what a request costs outside it.

Every term of a step is one factor or fixed time of `EngineCosts` times kernel seconds (formulas in `estimator.build`):
multiplying them all by s makes every step s times as long. `prefill_factor` multiplies other factors and stays. Values
that would leave their physical bound stop there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from estimator.engine import COST_BOUNDS, Engine, EngineCosts
from estimator.errors import require

STEP_BOUNDS = (0.5, 2.0)  # beyond, something else than the engine's speed differs from what was planned
STEP_COSTS = (
    *("gemm_factor", "block_gemm_factor", "decode_attention_factor", "latent_attention_factor"),
    *("prefill_attention_factor", "moe_factor", "block_moe_factor", "mxfp4_moe_factor", "link_factor"),
    *("elementwise_factor", "layer_s", "prefill_layer_s", "host_s", "prefill_host_s", "host_s_per_seq"),
)


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
    costs = engine.costs_on(by.architecture)
    scaled = {name: _bounded(name, by.step_time_factor * getattr(costs, name)) for name in STEP_COSTS}
    corrected: EngineCosts = replace(costs, **scaled, request_overhead_s=by.request_overhead_s)
    return replace(engine, costs={**engine.costs, by.architecture: corrected})


def _bounded(name: str, value: float) -> float:
    low, high = COST_BOUNDS[name]
    return min(max(value, low), high)
