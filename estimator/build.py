"""A layout made concrete: kernel times of its slowest stage and the engine's host costs as the tables of `StepCost`.

With factors k and fixed costs of `EngineCosts`, for n sequences (q tokens each) and T tokens of a mixed step:

    D[n] = Σ k·body(q n) − o·shared(q n) + Σ k·head(q n) + k_dec·launch(n) + h + h_seq·n
    M[T] = max(k_prefill·Σ k·body(T) + k_prefill·k_pre·(launch + s·T), l_p·layers + l_e·expert layers) + h_p + h
    H[n] = Σ k·head(n) + h_seq·n
    b[n] = k_dec·read(n)        c = k_prefill·k_pre·pair

Kernels are timed on `token_grid` and the tables are straight lines between its points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from estimator.catalogue.timing import load_timing
from estimator.dtypes import Dtypes, KvDtype, WeightDtype
from estimator.engine import Engine, EngineCosts
from estimator.errors import BestServeError
from estimator.hardware import Gpu
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.memory import kv_bytes_per_token, num_kv_blocks
from estimator.model import ModelShape
from estimator.operators import (
    AllGather,
    AllReduce,
    AllToAll,
    ExpertFfn,
    Gemm,
    GroupedAttention,
    LatentAttentionOp,
    Operator,
    SparseAttentionOp,
    StageTransfer,
    slowest_stage_operators,
)
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism
from estimator.stage import EXPERT_KINDS, StepKernels, TokenWork, step_kernels, token_grid
from estimator.tiers import operator_tiers, worst

FloatArray = NDArray[np.float64]
Phase = Literal["decode", "mixed"]
Bound = Literal["compute", "memory", "link", "host"]


def step_cost(  # noqa: PLR0913  how an engine steps has this many sides
    kernels: StepKernels,
    costs: EngineCosts,
    limits: EngineLimits,
    *,
    tokens_per_seq: int = 1,
    asynchronous: bool = True,
    mixed_graph_tokens: int = 0,
    step_time_factor: float = 1.0,
) -> StepCost:
    """The tables of one instance, indexed by sequences and by tokens; formulas in the module's docstring.

    `step_time_factor` multiplies them all; up to `mixed_graph_tokens` k_prefill of the body is 1; l_p, l_e, h_p are 0.
    """
    grid, q = kernels.tokens, tokens_per_seq
    seqs = np.arange(limits.max_num_seqs + 1, dtype=np.float64)
    tokens = np.arange(max(limits.max_num_batched_tokens, q * limits.max_num_seqs) + 1, dtype=np.float64)
    body = _work_s(kernels.body, costs, grid) + costs.expert_group_s * kernels.num_expert_groups
    hidden = costs.shared_overlap_frac * _work_s(kernels.shared, costs, grid)
    host_s_per_seq = costs.host_s_per_seq + (0.0 if asynchronous else costs.sync_host_s_per_seq)
    host_s = costs.host_s + (0.0 if asynchronous else costs.sync_host_s)
    head = np.interp(q * seqs, grid, _kernels_s(kernels.head, costs, grid)) + host_s_per_seq * seqs
    k_decode = costs.decode_attention_factor
    launch = np.interp(seqs, grid, k_decode * kernels.decode_launch_s)
    k_attention = costs.prefill_attention_factor * costs.prefill_factor
    replays = grid <= mixed_graph_tokens
    mixed = np.where(replays, 1.0, costs.prefill_factor) * body
    mixed += k_attention * (kernels.prefill_launch_s + kernels.prefill_s_per_token * grid)
    launching_s = costs.prefill_layer_s * kernels.num_layers + costs.prefill_experts_s * kernels.num_expert_layers
    mixed = np.maximum(mixed, np.where(replays, 0.0, launching_s))
    mixed += np.where(replays, 0.0, costs.prefill_host_s) + host_s
    pooled = np.where(replays, 1.0, costs.prefill_factor) * _kernels_s(kernels.body.of(EXPERT_KINDS), costs, grid)
    return StepCost(
        decode_s=np.interp(q * seqs, grid, body - hidden) + head + launch + host_s,
        mixed_s=np.interp(tokens, grid, mixed),
        head_s=head,
        kv_read_s_per_token=np.interp(seqs, grid, k_decode * kernels.read_s_per_token),
        window_read_s_per_token=np.interp(seqs, grid, k_decode * kernels.window_read_s_per_token),
        window_tokens=kernels.window_tokens,
        attention_s_per_pair=k_attention * kernels.pair_s,
        window_attention_s_per_pair=k_attention * kernels.window_pair_s,
        decode_tokens_per_seq=q,
        pooled_s=np.interp(tokens, grid, pooled),
    ).times(step_time_factor)


def step_cost_of(
    kernels: StepKernels, engine: Engine, architecture: str, limits: EngineLimits, *, tokens_per_seq: int = 1
) -> StepCost:
    """The tables of one instance under an engine on a GPU architecture."""
    return step_cost(
        kernels,
        engine.costs_on(architecture),
        limits,
        tokens_per_seq=tokens_per_seq,
        asynchronous=engine.asynchronous,
        mixed_graph_tokens=engine.mixed_graph_tokens,
        step_time_factor=engine.step_time_factor_on(architecture),
    )


def _work_s(work: TokenWork, costs: EngineCosts, grid: FloatArray) -> FloatArray:
    """Kernels and launches of the body or a part of it, (num_points,)."""
    launches = costs.gemm_launch_s * work.num_gemms + costs.elementwise_launch_s * work.num_elementwise
    return _kernels_s(work, costs, grid) + launches + costs.quantise_launch_s * work.num_quantised_gemms


def _kernels_s(work: TokenWork, costs: EngineCosts, grid: FloatArray) -> FloatArray:
    factors = {
        "gemm": costs.gemm_factor,
        "block_gemm": costs.gemm_factor * costs.block_factor,
        "moe": costs.moe_factor,
        "block_moe": costs.moe_factor * costs.block_factor,
        "mxfp4_moe": costs.moe_factor * costs.mxfp4_factor,
        "link": costs.link_factor,
        "exchange": costs.exchange_factor,
        "elementwise": 1.0,
    }
    total = np.zeros_like(grid)
    for kind, seconds in work.seconds.items():
        total += factors[kind] * seconds
    return total


def layout_kernels(
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    parallelism: Parallelism,
    dtypes: Dtypes,
    most_tokens: int,
) -> StepKernels:
    """Kernels of the slowest stage up to `most_tokens` a step; `BestServeError` where the model does not divide."""
    shape = engine.fusion.shape_of(model, gpu.architecture, parallelism)
    return step_kernels(
        slowest_stage_operators(shape, parallelism, dtypes),
        load_timing(gpu, engine.name, deepep=engine.deepep),
        token_grid(most_tokens),
        num_layers=model.num_layers / parallelism.pp,
        power_law=engine.power_law_routing,
        block_scaled=model.is_moe,
        expert_kernel=engine.expert_kernel,
        fused_norm_tokens=engine.fusion.norm_tokens_of(model, gpu.architecture, parallelism),
    )


@lru_cache(maxsize=512)
def _shared_kernels(
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    parallelism: Parallelism,
    dtypes: Dtypes,
    most_tokens: int,
) -> StepKernels | Infeasible:
    """Kernels that instances of one layout share whatever their other limits, or why there are none."""
    try:
        return layout_kernels(model, gpu, engine, parallelism, dtypes, most_tokens)
    except BestServeError as error:
        return Infeasible(rule="divides", reason=str(error))


def build_instance(  # noqa: PLR0913  a layout has this many sides
    *,
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    parallelism: Parallelism,
    limits: EngineLimits,
    weight_dtype: WeightDtype,
    kv_dtype: KvDtype,
) -> Instance | Infeasible:
    """The replica made concrete, or why it cannot exist: the model does not divide that way, or does not fit."""
    dtypes = Dtypes(weight=weight_dtype, kv=kv_dtype)
    most_tokens = max(limits.max_num_batched_tokens, limits.max_num_seqs)
    kernels = _shared_kernels(model, gpu, engine, parallelism, dtypes, most_tokens)
    if isinstance(kernels, Infeasible):
        return kernels
    return instance_of(kernels, model, gpu, engine, parallelism=parallelism, limits=limits, dtypes=dtypes)


def instance_of(  # noqa: PLR0913  a layout has this many sides
    kernels: StepKernels,
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    *,
    parallelism: Parallelism,
    limits: EngineLimits,
    dtypes: Dtypes,
    num_blocks: int | None = None,
) -> Instance | Infeasible:
    """The replica with kernels already timed; `num_blocks` replaces the memory fit where it is known."""
    blocks: int | Infeasible | None = num_blocks
    if blocks is None:
        blocks = num_kv_blocks(model, gpu, parallelism, dtypes=dtypes, limits=limits, policy=engine.memory)
    if isinstance(blocks, Infeasible):
        return blocks
    costs = engine.costs_on(gpu.architecture)
    cost = step_cost_of(kernels, engine, gpu.architecture, limits)
    operators = slowest_stage_operators(model, parallelism, dtypes)
    tiers = operator_tiers(operators, load_timing(gpu, engine.name, deepep=engine.deepep), block_scaled=model.is_moe)
    return Instance(
        cost=cost,
        limits=limits,
        parallelism=parallelism,
        gpu=gpu.name,
        num_kv_blocks=blocks,
        kv_bytes_per_token=kv_bytes_per_token(model, dtypes.kv),
        request_overhead_s=costs.request_overhead_s,
        frontend_s=costs.frontend_s,
        overhead_s_per_token=costs.overhead_s_per_token,
        looks_ahead=engine.asynchronous,
        reserves_output=engine.reserves_output,
        stage_transfer_s=float(kernels.transfer_s[0]),
        tier=worst(*tiers.values()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPart:
    """Seconds of one operator (all its runs) in a step, engine's factors included, and what bounds it."""

    operator: str
    phase: Phase
    seconds: float
    bound: Bound


def step_breakdown(  # noqa: PLR0913  a layout and a step have this many sides
    *,
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    parallelism: Parallelism,
    dtypes: Dtypes,
    num_seqs: int,
    cached_tokens: float,
    prefill_tokens: int = 0,
) -> list[StepPart]:
    """A step by operator, longest first: decode of `num_seqs`, or with `prefill_tokens` of a fresh prompt a mixed step.

    The parts add up to `StepCost.decode_step_s` and `mixed_step_s` of the same instance: each is the step of a stage
    that has this operator alone, and the host is what is left of the whole step.
    """
    limits = EngineLimits(max_num_batched_tokens=max(num_seqs + prefill_tokens, 1), max_num_seqs=num_seqs + 1)
    grid = np.unique([1.0, *np.array([num_seqs, num_seqs + 1, num_seqs + prefill_tokens], dtype=np.float64)])
    grid = grid[grid >= 1]
    timing = load_timing(gpu, engine.name, deepep=engine.deepep)
    shape = engine.fusion.shape_of(model, gpu.architecture, parallelism)
    operators = slowest_stage_operators(shape, parallelism, dtypes)
    fused_norm_tokens = engine.fusion.norm_tokens_of(model, gpu.architecture, parallelism)
    blocks, num_layers = model.is_moe, model.num_layers / parallelism.pp

    def seconds_of(chosen: tuple[Operator, ...], layers: float) -> float:
        kernels = step_kernels(
            chosen,
            timing,
            grid,
            num_layers=layers,
            power_law=engine.power_law_routing,
            block_scaled=blocks,
            expert_kernel=engine.expert_kernel,
            fused_norm_tokens=fused_norm_tokens,
        )
        cost = step_cost_of(kernels, engine, gpu.architecture, limits)
        if prefill_tokens:
            return cost.mixed_step_s(num_seqs, cached_tokens, [(prefill_tokens, 0)], 1)
        return cost.decode_step_s(num_seqs, cached_tokens)

    phase: Phase = "mixed" if prefill_tokens else "decode"
    whole_s, empty_s = seconds_of(operators, num_layers), seconds_of((), 0.0)
    alone = [(op, seconds_of((op,), 0.0) - empty_s) for op in operators]
    tokens = float(num_seqs + prefill_tokens)
    parts = [
        StepPart(operator=op.name, phase=phase, seconds=s, bound=bound_of(op, gpu, tokens, cached_tokens))
        for op, s in alone
    ]
    host_s = whole_s - sum(s for _, s in alone)  # also what a layer takes longer to launch than to run
    parts.append(StepPart(operator="host", phase=phase, seconds=host_s, bound="host"))
    return sorted(parts, key=lambda part: -part.seconds)


def bound_of(operator: Operator, gpu: Gpu, tokens: float, cached_tokens: float) -> Bound:
    """Which of FLOP and bytes takes longer at the data sheet's peaks; collectives are bound by their link."""
    match operator:
        case AllReduce() | AllGather() | AllToAll() | StageTransfer():
            return "link"
        case Gemm() | ExpertFfn():
            flop_s = operator.flop(tokens) / gpu.peak_flop_per_s(operator.dtype)
            bytes_s = operator.bytes(tokens) / gpu.bandwidth_bytes_per_s
        case LatentAttentionOp():
            flop_s = operator.decode_flop(cached_tokens) / gpu.peak_flop_per_s("bf16")
            bytes_s = operator.bytes(cached_tokens) / gpu.bandwidth_bytes_per_s
        case GroupedAttention() | SparseAttentionOp():
            flop_s = operator.flop(cached_tokens) / gpu.peak_flop_per_s("bf16")
            bytes_s = operator.bytes(cached_tokens) / gpu.bandwidth_bytes_per_s
        case _:
            return "memory"
    return "compute" if flop_s > bytes_s else "memory"
