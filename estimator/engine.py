"""A serving engine as parameters: default limits, memory policy, scheduling, and the time its host code adds.

The step of an engine is the kernels' time, scaled per kind of operator by what whole runs show beside lone kernels,
plus time in which the GPU waits for the host:

    step = Σ_kind k_kind · kernels_kind + l · num_layers + h + h_seq · sequences      (decode step, CUDA graph)
    step = Σ_kind k_kind · kernels_kind + l_p · num_layers + h_p + h_seq · sequences  (step that holds prefill)

| symbol | field of `EngineCosts` | unit |
|---|---|---|
| k_kind | `gemm_factor`, `decode_attention_factor`, `prefill_attention_factor`, `moe_factor`, ... | 1 |
| k_prefill | `prefill_factor`, times all kernels of a step that holds prefill | 1 |
| l, l_p | `layer_s`, `prefill_layer_s`: launch gaps and small kernels of a layer that no operator lists | s |
| h, h_p | `host_s`, `prefill_host_s`: scheduling, input preparation, sampling, detokenisation of a step | s |
| h_seq | `host_s_per_seq` | s |
| o | `request_overhead_s`: HTTP, tokenisation, queue hand-over, once a request | s |
| a | `admission_steps`: decode steps (of `ADMISSION_SEQS` sequences) before the scheduler sees a request | 1 |

The values live in `estimator/catalogue/engines.toml` (limits, memory, policy, bounds: written by hand with source and
date) and `engines_fit.json` (costs: fitted on whole runs by `estimator.calibrate_runs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from estimator.errors import require
from estimator.instance import EngineLimits
from estimator.memory import MemoryPolicy
from estimator.system import CollocatedPolicy

ADMISSION_SEQS = 16  # SGLang polls its queue every --scheduler-recv-interval steps; a step of a middling batch
COST_BOUNDS: Mapping[str, tuple[float, float]] = {
    "gemm_factor": (0.7, 1.6),
    "block_gemm_factor": (0.2, 1.6),
    "decode_attention_factor": (0.5, 2.0),
    "latent_attention_factor": (0.3, 2.0),
    "prefill_attention_factor": (0.5, 2.0),
    "moe_factor": (0.4, 2.0),
    "block_moe_factor": (0.4, 2.0),
    "mxfp4_moe_factor": (0.2, 2.0),
    "link_factor": (0.3, 3.0),
    "elementwise_factor": (0.1, 3.0),
    "prefill_factor": (0.8, 2.0),
    "layer_s": (0.0, 60e-6),
    "prefill_layer_s": (0.0, 1e-3),
    "host_s": (0.0, 6e-3),
    "prefill_host_s": (0.0, 20e-3),
    "host_s_per_seq": (0.0, 100e-6),
    "request_overhead_s": (0.0, 0.2),
    "admission_steps": (0.0, 30.0),
}  # wide enough for every engine, narrow enough that no fitted value stops meaning what it is called


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """Time an engine adds around and on top of its kernels; symbols and formula in the module's docstring."""

    gemm_factor: float = 1.0
    block_gemm_factor: float = 1.0
    decode_attention_factor: float = 1.0
    latent_attention_factor: float = 1.0
    prefill_attention_factor: float = 1.0
    moe_factor: float = 1.0
    block_moe_factor: float = 1.0
    mxfp4_moe_factor: float = 1.0
    link_factor: float = 1.0
    elementwise_factor: float = 1.0
    prefill_factor: float = 1.0
    layer_s: float = 5e-6
    prefill_layer_s: float = 10e-6
    host_s: float = 1e-3
    prefill_host_s: float = 2e-3
    host_s_per_seq: float = 5e-6
    request_overhead_s: float = 0.025
    admission_steps: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = COST_BOUNDS[field.name]
            value = getattr(self, field.name)
            require(
                low <= value <= high,
                field=f"engine cost {field.name}",
                value=value,
                rule="is outside its physical bound",
                accepted=f"{low} to {high}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One serving engine at one version.

    `limits` and `memory`: its defaults. `power_law_routing`: expert load under expert parallelism follows a power law.
    `costs` per GPU architecture, `""` for any other.
    """

    name: str
    version: str
    policy: CollocatedPolicy
    limits: EngineLimits
    memory: MemoryPolicy
    power_law_routing: bool
    costs: Mapping[str, EngineCosts]
    source: str
    date: str

    def __post_init__(self) -> None:
        for name in ("source", "date"):
            value = getattr(self, name)
            require(bool(value), field=f"engine {self.name}.{name}", value=value, rule="must be given", accepted="text")

    def costs_on(self, architecture: str) -> EngineCosts:
        """Costs on a GPU architecture, or those of any other."""
        return self.costs.get(architecture, self.costs[""])
