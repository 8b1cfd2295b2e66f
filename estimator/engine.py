"""A serving engine as parameters: default limits, memory policy, scheduling, and the time its host code adds.

The step of an engine is the kernels' time, scaled per kind of operator by what whole runs show beside lone kernels,
plus launches and time in which the GPU waits for the host:

    decode step (CUDA graph):  K − s · K_shared + h + h_seq · sequences,  K = Σ_kind k_kind · kernels_kind
                                   + λ_g · gemms + λ_q · fp8 and fp4 gemms + λ_e · elementwise
                                   + ε · layers of expert groups
    step that holds prefill:   max(k_p · K, l_p · layers + l_e · expert layers) + h_p + h + h_seq · sequences sampled

| symbol | field of `EngineCosts` | unit |
|---|---|---|
| k_kind | `gemm_factor`, `moe_factor`, `decode_attention_factor`, `prefill_attention_factor`, `link_factor` | 1 |
| | `block_factor`, `mxfp4_factor`: times those of block-scaled fp8 kernels, of MXFP4 experts | 1 |
| k_p | `prefill_factor`, times all kernels of a step that holds prefill | 1 |
| λ_g, λ_e | `gemm_launch_s`, `elementwise_launch_s`: a matrix product's or small kernel's share of launches | s |
| λ_q | `quantise_launch_s`: activations are brought to fp8 or fp4 before each product of such weights | s |
| s | `shared_overlap_frac`: share of the shared experts' kernels that a second stream hides in a decode step | 1 |
| ε | `expert_group_s`: a layer of expert groups sorts tokens by group and joins unfused, once a layer | s |
| h, h_seq | `host_s`, `host_s_per_seq`: host time of a step, of a sequence, that no overlap hides | s |
| | `sync_host_s`, `sync_host_s_per_seq`: more of both where the scheduler waits for the step to end | s |
| h_p | `prefill_host_s` | s |
| l_p, l_e | `prefill_layer_s`, `prefill_experts_s`: the host launches a layer no faster, one of experts by more | s |
| o, o_t | `request_overhead_s`, `overhead_s_per_token`: HTTP, tokenisation, queue hand-over, many at a time | s |
| f | `frontend_s`: what the front end does for one request after another | s |
| | `cold_start_s`: kernels compiled and tuned for the first prompts of a server that nobody has warmed up | s |
| | `delta_cold_s`: what those of delta nets (Triton's, tuned by shape when they first run) take beside | s |
| | `hand_over_s`: router, second front end and KV connector between two pools, beside the transfer | s |
| | `hand_over_steps`: decode steps between whose ends the receiver agrees to, fetches and admits a hand-over | 1 |

The values live in `estimator/catalogue/engines.toml` (limits, memory, policy, bounds: written by hand with source and
date) and `engines_fit.json` (costs: fitted on whole runs by `estimator.calibrate_runs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from estimator.dtypes import ACTIVATION_BYTES
from estimator.errors import require
from estimator.instance import EngineLimits
from estimator.memory import MemoryPolicy
from estimator.model import ModelShape, MoeFfn
from estimator.parallelism import Parallelism
from estimator.system import CollocatedPolicy
from estimator.timing import ExpertKernel

MIB = 2**20

COST_BOUNDS: Mapping[str, tuple[float, float]] = {
    "gemm_factor": (0.6, 1.6),
    "moe_factor": (0.5, 2.0),
    "decode_attention_factor": (0.5, 2.0),
    "prefill_attention_factor": (0.3, 3.0),
    "link_factor": (0.3, 3.0),
    "prefill_factor": (0.6, 2.0),
    "gemm_launch_s": (0.0, 10e-6),
    "elementwise_launch_s": (0.0, 10e-6),
    "expert_group_s": (0.0, 150e-6),
    "host_s": (0.0, 6e-3),
    "host_s_per_seq": (0.0, 60e-6),
    "sync_host_s": (0.0, 6e-3),
    "sync_host_s_per_seq": (0.0, 100e-6),
    "prefill_layer_s": (0.0, 1.5e-3),
    "prefill_experts_s": (0.0, 3e-3),
    "prefill_host_s": (0.0, 30e-3),
    "request_overhead_s": (0.0, 0.15),
    "frontend_s": (0.0, 20e-3),
    "cold_start_s": (0.0, 4.0),
    "delta_cold_s": (0.0, 4.0),
    "overhead_s_per_token": (0.0, 10e-6),
    "hand_over_s": (0.0, 0.6),
    "hand_over_steps": (0.0, 20.0),
    "exchange_factor": (0.2, 3.0),
    "mxfp4_factor": (0.6, 1.8),
    "block_factor": (0.6, 1.8),
    "shared_overlap_frac": (0.0, 1.0),
    "quantise_launch_s": (0.0, 8e-6),
}  # wide enough for every engine, narrow enough that no fitted value stops meaning what it is called


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """Time an engine adds around and on top of its kernels; symbols and formula in the module's docstring.

    Defaults: of an engine and architecture without measured runs, a round mean over those that have them (2026-11-25).
    """

    gemm_factor: float = 0.9
    moe_factor: float = 0.95
    decode_attention_factor: float = 0.95
    prefill_attention_factor: float = 0.75
    link_factor: float = 0.8
    prefill_factor: float = 1.25
    gemm_launch_s: float = 2e-6
    elementwise_launch_s: float = 4e-6
    expert_group_s: float = 15e-6
    host_s: float = 0.5e-3
    host_s_per_seq: float = 8e-6
    sync_host_s: float = 0.7e-3
    sync_host_s_per_seq: float = 28e-6
    prefill_layer_s: float = 0.3e-3
    prefill_experts_s: float = 0.4e-3
    prefill_host_s: float = 2.5e-3
    request_overhead_s: float = 0.007
    frontend_s: float = 1e-3
    cold_start_s: float = 0.2
    delta_cold_s: float = 0.4
    overhead_s_per_token: float = 1.5e-6
    hand_over_s: float = 0.1
    hand_over_steps: float = 8.0
    exchange_factor: float = 0.7
    mxfp4_factor: float = 1.0
    block_factor: float = 1.0
    shared_overlap_frac: float = 0.5
    quantise_launch_s: float = 1.5e-6

    def __post_init__(self) -> None:
        for cost in fields(self):
            low, high = COST_BOUNDS[cost.name]
            value = getattr(self, cost.name)
            require(
                low <= value <= high,
                field=f"engine cost {cost.name}",
                value=value,
                rule="is outside its physical bound",
                accepted=f"{low} to {high}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSupport:
    """Layouts an engine can be started in.

    `splits_experts`: any ep that divides the experts, else 1 or the whole stage. `joins_tp_and_dp`: attention both
    tensor-parallel and data-parallel. `staged_prefill`, `staged_decode`: a pool of that phase may have pipeline stages
    and still hand its KV caches over.
    """

    splits_experts: bool = True
    joins_tp_and_dp: bool = True
    staged_prefill: bool = True
    staged_decode: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFusion:
    """Kernels that an engine joins with others, on the GPU architectures named.

    `norm_tokens`: in steps of up to so many tokens an all-reduce over tensor-parallel GPUs adds the residual and norms
    the sum as well, without data-parallel attention; 0 = never. `norm_mib`: (architecture, tp, MiB) of the longest
    message that it does so for, if it limits that; over other numbers of GPUs it then never does. `norm_needs_experts`:
    in models with experts alone.
    `shared_among`: beside so many routed experts a shared one runs as one more of them, unless ranks divide experts.
    """

    norm_tokens: int = 0
    norm_mib: tuple[tuple[str, int, float], ...] = ()
    norm_needs_experts: bool = False
    norm_on: tuple[str, ...] = ()
    shared_among: tuple[int, ...] = ()
    shared_on: tuple[str, ...] = ()

    def norm_tokens_of(self, model: ModelShape, architecture: str, parallelism: Parallelism) -> int:
        """Tokens of a step up to which norms cost nothing beside their all-reduces."""
        joined = parallelism.tp > 1 and parallelism.dp == 1 and architecture in self.norm_on
        if not joined or (self.norm_needs_experts and not model.is_moe):
            return 0
        if not self.norm_mib:
            return self.norm_tokens
        longest = {(arch, tp): mib for arch, tp, mib in self.norm_mib}.get((architecture, parallelism.tp), 0.0)
        return min(self.norm_tokens, int(longest * MIB // (ACTIVATION_BYTES * model.hidden_size)))

    def shape_of(self, model: ModelShape, architecture: str, parallelism: Parallelism) -> ModelShape:
        """The model as the engine runs it."""
        counts = {group.ffn.num_experts for group in model.layers if isinstance(group.ffn, MoeFfn)}
        if parallelism.ep > 1 or architecture not in self.shared_on or not counts & set(self.shared_among):
            return model
        return model.with_shared_experts_routed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One serving engine at one version.

    `limits` and `memory`: its defaults. `power_law_routing`: expert load under expert parallelism follows a power law.
    `asynchronous`: the next step is scheduled while this one runs. `reserves_output`: a request is admitted where
    blocks for its whole output are left. `mixed_graph_tokens`: steps with prompts replay CUDA graphs up to so many
    tokens. `expert_kernel`: what runs experts (`OperatorTiming.moe_s`). `deepep`: ranks exchange tokens by DeepEP and
    multiply them by DeepGEMM. `fusion`: kernels it joins. `support`: layouts it can be started in.
    `step_time_factors`: by architecture, what one's own measurement says of every step (`estimator.recalibrate`).
    `costs` per GPU architecture, `""` for any other.
    """

    name: str
    version: str
    policy: CollocatedPolicy
    limits: EngineLimits
    memory: MemoryPolicy
    power_law_routing: bool
    asynchronous: bool
    reserves_output: bool = False
    mixed_graph_tokens: int = 0
    expert_kernel: ExpertKernel = "of_layout"
    deepep: bool = False
    fusion: KernelFusion = KernelFusion()
    support: LayoutSupport = LayoutSupport()
    step_time_factors: Mapping[str, float] = field(default_factory=dict, hash=False)
    costs: Mapping[str, EngineCosts] = field(hash=False)
    source: str
    date: str

    def __post_init__(self) -> None:
        for name in ("source", "date"):
            value = getattr(self, name)
            require(bool(value), field=f"engine {self.name}.{name}", value=value, rule="must be given", accepted="text")

    def costs_on(self, architecture: str) -> EngineCosts:
        """Costs on a GPU architecture, or those of any other."""
        return self.costs.get(architecture, self.costs[""])

    def step_time_factor_on(self, architecture: str) -> float:
        """How many times as long a step takes there as the costs say."""
        return self.step_time_factors.get(architecture, 1.0)
