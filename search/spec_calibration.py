"""A calibration card: what `bestserve verify --calibrate` writes and a spec's `calibration` names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from estimator.recalibrate import Recalibration
from search.edge import Edge, read_yaml, validated


class CalibrationSpec(Edge):
    """One engine on one GPU architecture, corrected by a measurement of one's own."""

    engine: Literal["vllm", "sglang", "trtllm"] = Field(description="whose costs are corrected")
    architecture: str = Field(min_length=1, description="GPU architecture, for example hopper")
    step_time_factor: float = Field(ge=0.5, le=2.0, description="measured over modelled time of a step, 0.5 to 2")
    request_overhead_ms: float = Field(ge=0, le=150, description="time of a request outside steps, 0 to 150 ms")
    source: str = Field(min_length=1, description="what was measured")
    date: Annotated[str, BeforeValidator(str), Field(min_length=1)] = Field(description="when, 2026-11-25")

    def recalibration(self) -> Recalibration:
        """In SI units."""
        return Recalibration(
            architecture=self.architecture,
            step_time_factor=self.step_time_factor,
            request_overhead_s=self.request_overhead_ms / 1e3,
        )


def load_calibration(path: Path) -> CalibrationSpec:
    """The card in a file; `BestServeError` names what is wrong with it."""
    return validated(CalibrationSpec, read_yaml(path, field="calibration"), field="calibration")
