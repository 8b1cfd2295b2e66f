"""The part of a run spec that says what may be chosen and how far to look."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from estimator.errors import BestServeError
from search.edge import Edge, validated

PositiveInt = Annotated[int, Field(ge=1)]
Policy = Literal["chunked", "prefill_first", "static", "distserve", "tetriinfer"]
Architecture = Literal["collocated", "disaggregated"]
Router = Literal["round_robin", "random", "least_outstanding", "power_of_two"]
Sampler = Literal["auto", "exhaustive", "random", "tpe", "nsga2", "nsga3"]


class Range(Edge):
    """From `min` to `max`, both included."""

    min: PositiveInt = Field(default=1, description="whole number ≥ 1")
    max: PositiveInt | None = Field(default=None, description="whole number ≥ min; left out: no limit of its own")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.max is not None and self.max < self.min:
            raise BestServeError("max", self.max, f"must not be below min = {self.min}", f"≥ {self.min}")
        return self


def listed(given: Any) -> Any:
    """One value as a list of itself, {min: …, max: …} as the powers of two between and both ends; a list as it is."""
    if isinstance(given, dict):
        ends = validated(Range, given)
        if ends.max is None:
            raise BestServeError("max", None, "must be given", "{min: 2, max: 8}")
        powers = {2**power for power in range(ends.max.bit_length()) if ends.min <= 2**power <= ends.max}
        return sorted(powers | {ends.min, ends.max})
    return [given] if isinstance(given, int) else given


POSITIVE = {"type": "integer", "minimum": 1}
Choices = Annotated[
    list[PositiveInt],
    Field(min_length=1),
    BeforeValidator(listed),
    WithJsonSchema(
        {
            "anyOf": [
                POSITIVE,
                {"type": "array", "items": POSITIVE, "minItems": 1},
                {"type": "object", "properties": {"min": POSITIVE, "max": POSITIVE}, "required": ["max"]},
            ]
        }
    ),
]


class PoolSearchSpec(Edge):
    """What one kind of pool may choose where it differs from the rest of `search`."""

    gpus: Annotated[list[str], Field(min_length=1)] | None = Field(default=None, description="GPUs it may use")
    tp: Choices | None = Field(default=None, description="tensor-parallel degrees: 4, [2, 4] or {min: 2, max: 8}")
    pp: Choices | None = Field(default=None, description="pipeline-parallel degrees, likewise")
    dp: Choices | None = Field(default=None, description="attention data-parallel degrees, likewise")
    ep: Choices | None = Field(default=None, description="expert-parallel degrees, likewise")
    expert_tp: Choices | None = Field(default=None, description="GPUs that share one expert, tp × dp / ep, likewise")
    count: Range | None = Field(default=None, description="instances of the pool, {min: 2, max: 8}")


class SearchSpec(Edge):
    """How far and how to look. Choices are one value (fixed), a list or a range; left out, the defaults hold."""

    max_gpus: PositiveInt = Field(default=32, description="GPUs of a strategy at most")
    min_gpus: PositiveInt = Field(default=1, description="GPUs of a strategy at least")
    trials: PositiveInt = Field(default=256, description="strategies evaluated at most")
    sampler: Sampler = Field(default="auto", description="who proposes")
    seed: int = Field(default=0, ge=0, description="whole number ≥ 0; the same seed repeats the study")
    screen: bool = Field(
        default=True, description="leave out strategies that the closed form already puts behind simulated ones"
    )
    reach: Annotated[float, Field(ge=1)] | None = Field(
        default=4.0, description="times the demand: goodput beyond is not looked for; null: no end, GPUs permitting"
    )
    architectures: Annotated[list[Architecture], Field(min_length=1)] = Field(
        default=["collocated", "disaggregated"], description="collocated, disaggregated or both"
    )
    tp: Choices | None = Field(default=None, description="tensor-parallel degrees: 4, [2, 4] or {min: 2, max: 8}")
    pp: Choices | None = Field(default=None, description="pipeline-parallel degrees, likewise")
    dp: Choices | None = Field(default=None, description="attention data-parallel degrees, likewise")
    ep: Choices | None = Field(default=None, description="expert-parallel degrees, likewise")
    expert_tp: Choices | None = Field(default=None, description="GPUs that share one expert, tp × dp / ep, likewise")
    tokens: Choices | None = Field(default=None, description="token budgets of a step, likewise: [2048, 8192]")
    seqs: Choices | None = Field(default=None, description="resident sequences at most, likewise: [128, 256]")
    policies: list[Policy] | None = Field(
        default=None, description="scheduling policies, for example [chunked, distserve]"
    )
    routers: Annotated[list[Router], Field(min_length=1)] | None = Field(
        default=None, description="what spreads requests over instances; left out: round_robin alone"
    )
    collocated: PoolSearchSpec | None = Field(default=None, description="choices of collocated pools alone")
    prefill: PoolSearchSpec | None = Field(default=None, description="choices of prefill pools alone, {tp: [2, 4]}")
    decode: PoolSearchSpec | None = Field(default=None, description="choices of decode pools alone, {gpus: […]}")
    prefill_gpus: list[str] | None = Field(default=None, description="GPUs that prefill pools may use")
    decode_gpus: list[str] | None = Field(default=None, description="GPUs that decode pools may use")
    owned: dict[str, PositiveInt] = Field(default_factory=dict, description="GPUs of a type at most, {h100_sxm: 16}")
    only: list[str] | None = Field(default=None, description="patterns of which a strategy must match one: ['*-tp8@*']")
    forbid: list[str] | None = Field(default=None, description="patterns that no strategy may match: ['*@l40s*']")
    whole_nodes: bool = Field(default=False, description="only strategies that fill whole nodes")

    @model_validator(mode="after")
    def _consistent(self) -> SearchSpec:
        if self.min_gpus > self.max_gpus:
            raise BestServeError("min_gpus", self.min_gpus, "must not exceed max_gpus", f"1 to {self.max_gpus}")
        return self

    def named_gpus(self) -> dict[str, list[str]]:
        """Every GPU that the search names, by field."""
        pools = {"collocated": self.collocated, "prefill": self.prefill, "decode": self.decode}
        named = {f"{name}.gpus": list(pool.gpus) for name, pool in pools.items() if pool is not None and pool.gpus}
        named |= {"prefill_gpus": self.prefill_gpus or [], "decode_gpus": self.decode_gpus or []}
        return named | {"owned": list(self.owned)}
