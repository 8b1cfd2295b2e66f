"""Number formats of weights, KV cache and activations, and what each costs in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from estimator.errors import require

WeightDtype = Literal["bf16", "fp8", "fp4", "int4"]
KvDtype = Literal["bf16", "fp8"]

WEIGHT_BYTES: Mapping[WeightDtype, float] = {
    "bf16": 2.0,
    "fp8": 1.0 + 4 / 128**2,  # one float32 scale per block of 128 × 128 (DeepSeek-V3 report, arXiv 2412.19437, 3.3)
    "fp4": 0.5 + 1 / 16,  # NVFP4: one fp8 scale per 16 parameters (NVIDIA Blackwell architecture brief)
    "int4": 0.5 + 2.5 / 128,  # AWQ: bf16 scale and 4-bit zero point per 128 parameters (arXiv 2306.00978)
}  # per parameter, scales included
KV_BYTES: Mapping[KvDtype, float] = {"bf16": 2.0, "fp8": 1.0}  # per number; fp8 scales are one per layer
ACTIVATION_BYTES = 2.0  # activations travel in bf16 between operators
STATE_BYTES = 4.0  # recurrent states are kept in float32 (`mamba_ssm_dtype` of Qwen3.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtypes:
    """Formats of one deployment.

    `weight` holds for the linear layers of the body; embeddings, head, router, norms and short convolutions stay bf16
    in every published checkpoint, and `estimator.operators` knows the models that keep more. `latent_out`: of the
    product behind latent attention where a checkpoint treats it unlike the rest of attention.
    """

    weight: WeightDtype = "bf16"
    kv: KvDtype = "bf16"
    latent_out: WeightDtype | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("weight_dtype", self.weight, WeightDtype), ("kv_dtype", self.kv, KvDtype)):
            accepted = ", ".join(get_args(known))
            require(value in get_args(known), field=name, value=value, rule="is not a known format", accepted=accepted)
