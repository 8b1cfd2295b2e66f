"""Kernel times of one pipeline stage on one attention-dp rank, on a grid of token counts.

| symbol | name | shape, unit |
|---|---|---|
| T | `tokens` | (num_points,): token counts of a step, per attention-dp rank |
| body | `StepKernels.body.seconds[kind]` | (num_points,) s: kernels whose time depends on the step's tokens alone |
| head | `.head.seconds[kind]` | (num_points,) s: output head of that many sampled sequences |
| launch, read | `.decode_launch_s`, `.read_s_per_token` | (num_points,): decode attention of that many sequences |
| pair | `.pair_s` | s per (new, seen) pair of prefill attention |

The grid is dense where tiles make steps (up to 256) and geometric above.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from estimator.attention_lines import AttentionLines, attention_lines
from estimator.dtypes import WEIGHT_BYTES, WeightDtype
from estimator.experts import EXPERT_BLOCK, ExpertLayer
from estimator.operators import (
    AllGather,
    AllReduce,
    AllToAll,
    DeltaNetOp,
    Elementwise,
    ExpertFfn,
    Gemm,
    GroupedAttention,
    LatentAttentionOp,
    Operator,
    SparseAttentionOp,
    StageTransfer,
)
from estimator.timing import ExpertKernel, OperatorTiming

FloatArray = NDArray[np.float64]
Kind = Literal["gemm", "block_gemm", "moe", "block_moe", "mxfp4_moe", "link", "exchange", "elementwise", "attention"]
EXPERT_KINDS: tuple[Kind, ...] = ("moe", "block_moe", "mxfp4_moe")
QUANTISED: tuple[WeightDtype, ...] = ("fp8", "fp4")  # products whose activations are brought to the weights' format
NVFP4_BYTES = WEIGHT_BYTES["fp4"]
TokenOperator = Gemm | ExpertFfn | Elementwise | AllReduce | AllGather | AllToAll | StageTransfer


@lru_cache(maxsize=64)
def token_grid(most: int) -> FloatArray:
    """Token counts from 1 to `most` at which kernels are timed, (num_points,)."""
    dense = np.concatenate((np.arange(1, 17), np.arange(20, 65, 4), np.arange(72, 257, 8)))
    sparse = np.round(np.geomspace(288, max(most, 289), 60) / 32) * 32
    tiles = np.arange(128, 2561, 128)  # the step up when a tile of 128 rows is full
    grid = np.unique(np.concatenate((dense, tiles, tiles + 1, sparse, [most])))
    return np.asarray(grid[grid <= most], dtype=np.float64)


def kind_of(operator: Operator, *, block_scaled: bool = False) -> Kind:
    """The kind whose factor of `EngineCosts` scales the operator; block-scaled fp8 has kernels of its own."""
    match operator:
        case Gemm():
            return "block_gemm" if kernel_dtype(operator, block_scaled=block_scaled) == "fp8_block" else "gemm"
        case ExpertFfn():
            kernel = kernel_dtype(operator, block_scaled=block_scaled)
            return "block_moe" if kernel == "fp8_block" else "mxfp4_moe" if kernel == "mxfp4" else "moe"
        case AllReduce():
            return "link"
        case AllGather() | AllToAll() | StageTransfer():
            return "exchange"
        case Elementwise():
            return "elementwise"
        case _:
            return "attention"


@dataclass(slots=True, kw_only=True)
class TokenWork:
    """Kernels whose time depends on a step's tokens alone: seconds by kind, (num_points,) each, and how many there are.

    Matrix products and elementwise kernels are timed without their launches, which the engine's way of launching
    decides; of the products `num_quantised_gemms` take activations in a format below bf16. `num_elementwise` depends on
    the step's tokens where an all-reduce takes a norm along.
    """

    seconds: dict[Kind, FloatArray] = field(default_factory=dict)
    num_gemms: float = 0.0
    num_quantised_gemms: float = 0.0
    num_elementwise: float | FloatArray = 0.0

    def of(self, kinds: tuple[Kind, ...]) -> TokenWork:
        """The kernels of some kinds alone, without launches."""
        return TokenWork(seconds={kind: seconds for kind, seconds in self.seconds.items() if kind in kinds})

    def add(self, operator: Operator, kind: Kind, seconds: FloatArray, alone: float | FloatArray = 1.0) -> None:
        """Add an operator's runs, `seconds` long together; `alone`: the share that no other kernel takes along."""
        self.seconds[kind] = self.seconds.get(kind, np.zeros_like(seconds)) + seconds
        if isinstance(operator, Gemm):
            self.num_gemms += operator.count
            self.num_quantised_gemms += operator.count * (operator.dtype in QUANTISED)
        elif isinstance(operator, Elementwise):
            self.num_elementwise = self.num_elementwise + operator.count * alone


@dataclass(slots=True, kw_only=True)
class StepKernels:
    """Kernel seconds of one stage and rank on the token grid; symbols in the module's docstring.

    `window_*` belong to windowed and top-k layers, which read at most `window_tokens` tokens a sequence.
    `prefill_launch_s` once a mixed step of that many tokens, `prefill_s_per_token` per new token. `shared`: the part
    of the body that shared experts take, beside routed ones. `num_expert_layers`: those of `num_layers` that have
    experts; `num_expert_groups`: layers whose experts are divided among groups of GPUs. `fused_norm_tokens`: in steps
    of up to so many tokens norms are part of their all-reduces.
    """

    tokens: FloatArray
    num_layers: float
    num_expert_layers: float = 0.0
    fused_norm_tokens: int = 0
    body: TokenWork = field(default_factory=TokenWork)
    shared: TokenWork = field(default_factory=TokenWork)
    head: TokenWork = field(default_factory=TokenWork)
    num_expert_groups: float = 0.0
    decode_launch_s: FloatArray
    read_s_per_token: FloatArray
    window_read_s_per_token: FloatArray
    window_tokens: int = 0
    prefill_launch_s: FloatArray
    prefill_s_per_token: float = 0.0
    pair_s: float = 0.0
    window_pair_s: float = 0.0
    transfer_s: FloatArray

    def add_lines(self, lines: AttentionLines, count: float) -> None:
        """Add `count` runs of an attention operator."""
        decode, prefill = lines.decode, lines.prefill
        self.decode_launch_s = self.decode_launch_s + count * decode.launch_s
        thin_s = prefill.thin_s(self.tokens, lines.window_tokens)
        self.prefill_launch_s = self.prefill_launch_s + count * (prefill.launch_s + thin_s)
        self.prefill_s_per_token += count * prefill.s_per_token
        self.read_s_per_token = self.read_s_per_token + count * decode.s_per_held_token
        if lines.window_tokens:
            self.window_tokens = max(self.window_tokens, lines.window_tokens)
            inside_s = decode.s_per_cached_token * (1.0 - decode.outside_frac)
            outside_s = decode.s_per_cached_token * decode.outside_frac
            self.window_read_s_per_token = self.window_read_s_per_token + count * inside_s
            self.read_s_per_token = self.read_s_per_token + count * outside_s
            self.window_pair_s += count * prefill.s_per_pair
        else:
            self.read_s_per_token = self.read_s_per_token + count * decode.s_per_cached_token
            self.pair_s += count * prefill.s_per_pair

    def add_work(self, operator: TokenOperator, kind: Kind, seconds: FloatArray, launch_s: float) -> None:
        """Add the runs of an operator that takes `seconds` each, `launch_s` of them its launch."""
        if is_head(operator):
            self.head.add(operator, kind, operator.count * seconds)
            return
        alone = np.where(self.tokens <= self.fused_norm_tokens, 0.0, 1.0) if operator.name == "norm" else 1.0
        unlaunched_s = operator.count * (seconds - launch_s) * alone
        self.body.add(operator, kind, unlaunched_s, alone)
        if isinstance(operator, Gemm | Elementwise) and operator.role == "shared":
            self.shared.add(operator, kind, unlaunched_s)
        if isinstance(operator, ExpertFfn):
            self.num_expert_layers += operator.count if self.num_layers else 0.0
            self.num_expert_groups += operator.count if operator.ep > 1 else 0.0


def step_kernels(  # noqa: PLR0913  what a stage runs, on what, how divided and in which formats
    operators: Iterable[Operator],
    timing: OperatorTiming,
    tokens: FloatArray,
    *,
    num_layers: float,
    power_law: bool,
    block_scaled: bool,
    expert_kernel: ExpertKernel = "of_layout",
    fused_norm_tokens: int = 0,
) -> StepKernels:
    """Time every operator on the grid and add equal kinds up; `block_scaled`: fp8 weights are scaled in blocks.

    `expert_kernel`: grouped is for block-scaled experts of whole blocks alone. `fused_norm_tokens`: steps of up to
    so many tokens run no norm of their own.
    """
    zeros = np.zeros_like(tokens)
    kernels = StepKernels(
        tokens=tokens,
        num_layers=num_layers,
        fused_norm_tokens=fused_norm_tokens,
        decode_launch_s=zeros,
        read_s_per_token=zeros,
        window_read_s_per_token=zeros,
        prefill_launch_s=zeros,
        transfer_s=zeros,
    )
    for operator in operators:
        match operator:
            case GroupedAttention() | LatentAttentionOp() | SparseAttentionOp() | DeltaNetOp():
                for lines in attention_lines(operator, timing, tokens):
                    kernels.add_lines(lines, operator.count)
            case StageTransfer():
                kernels.transfer_s = kernels.transfer_s + operator.count * token_s(operator, timing, tokens)
            case _:
                kernels.add_work(
                    operator,
                    kind_of(operator, block_scaled=block_scaled),
                    token_s(
                        operator,
                        timing,
                        tokens,
                        power_law=power_law,
                        block_scaled=block_scaled,
                        expert_kernel=expert_kernel,
                    ),
                    _launch_s(operator, timing, block_scaled=block_scaled),
                )
    return kernels


def _launch_s(operator: TokenOperator, timing: OperatorTiming, *, block_scaled: bool) -> float:
    """Launch inside the measured time of one call that serving pays for in its own way; 0 for other kernels."""
    match operator:
        case Gemm():
            return timing.launch_s("gemm", kernel_dtype(operator, block_scaled=block_scaled))
        case Elementwise():
            return timing.launch_s("elementwise", "")
        case _:
            return 0.0


def is_head(operator: Operator) -> bool:
    """Whether the operator runs on sampled sequences instead of tokens."""
    return isinstance(operator, Gemm | Elementwise | AllGather) and operator.role == "head"


def kernel_dtype(operator: Gemm | ExpertFfn, *, block_scaled: bool) -> str:
    """Format that names the kernel.

    fp8 of models with experts is scaled in blocks of 128 × 128 (their published checkpoints: DeepSeek, Qwen3, MiniMax,
    GLM), of dense ones per tensor; 4-bit experts that are smaller than NVFP4 are MXFP4, as gpt-oss is published.
    """
    if operator.dtype == "fp8" and (block_scaled or isinstance(operator, ExpertFfn)):
        return "fp8_block"
    if isinstance(operator, ExpertFfn) and operator.dtype == "fp4" and operator.bytes_per_parameter < NVFP4_BYTES:
        return "mxfp4"
    return operator.dtype


def token_s(
    operator: TokenOperator,
    timing: OperatorTiming,
    tokens: FloatArray,
    *,
    power_law: bool = False,
    block_scaled: bool = False,
    expert_kernel: ExpertKernel = "of_layout",
) -> FloatArray:
    """Seconds per call of an operator whose time depends on the rank's tokens alone, (num_points,)."""
    match operator:
        case Gemm():
            dtype = kernel_dtype(operator, block_scaled=block_scaled)
            return timing.gemm_s(tokens, n=operator.n, k=operator.k, dtype=dtype)
        case ExpertFfn():
            dtype = kernel_dtype(operator, block_scaled=block_scaled)
            layer = ExpertLayer(
                hidden=operator.hidden,
                intermediate=operator.intermediate,
                num_experts=operator.num_experts,
                experts_per_gpu=operator.experts_per_gpu,
                top_k=operator.top_k,
            )
            grouped = dtype == "fp8_block" and operator.intermediate % EXPERT_BLOCK == 0
            kernel = "of_layout" if expert_kernel == "grouped" and not grouped else expert_kernel
            counts = tokens * operator.ranks
            return timing.moe_s(counts, layer, dtype=dtype, power_law=power_law, kernel=kernel)
        case Elementwise():
            return timing.elementwise_s(operator.bytes(tokens))
        case AllReduce():
            return timing.all_reduce_s(operator.bytes(tokens), operator.num_gpus)
        case AllGather():
            return timing.all_gather_s(operator.bytes(tokens), operator.num_gpus)
        case AllToAll():
            return timing.exchange_s(operator.bytes(tokens), operator.num_gpus, operator.way)
        case StageTransfer():
            return timing.point_to_point_s(operator.bytes(tokens), across_nodes=False)
