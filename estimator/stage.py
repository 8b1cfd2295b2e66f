"""Kernel times of one pipeline stage on one attention-dp rank, on a grid of token counts.

| symbol | name | shape, unit |
|---|---|---|
| T | `tokens` | (num_points,): token counts of a step, per attention-dp rank |
| body | `StepKernels.body_s[kind]` | (num_points,) s: kernels whose time depends on the step's tokens alone |
| head | `.head_s[kind]` | (num_points,) s: output head of that many sampled sequences |
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

from estimator.attention import DecodeLine, PrefillLine
from estimator.dtypes import WEIGHT_BYTES
from estimator.operators import (
    AllGather,
    AllReduce,
    AllToAll,
    AttentionOperator,
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
from estimator.timing import OperatorTiming

FloatArray = NDArray[np.float64]
Kind = Literal["gemm", "block_gemm", "moe", "block_moe", "mxfp4_moe", "link", "elementwise", "attention"]
NVFP4_BYTES = WEIGHT_BYTES["fp4"]
EXPERT_BLOCK = 128
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
        case AllReduce() | AllGather() | AllToAll() | StageTransfer():
            return "link"
        case Elementwise():
            return "elementwise"
        case _:
            return "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLines:
    """One operator that reads the cache or a state: decode over the grid, prefill as a line; window 0 = full."""

    decode: DecodeLine
    prefill: PrefillLine
    window_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class StepKernels:
    """Kernel seconds of one stage and rank on the token grid; symbols in the module's docstring.

    `window_*` belong to windowed and top-k layers, which read at most `window_tokens` tokens a sequence.
    `is_latent`: attention reads one latent for all heads. `prefill_launch_s` once a mixed step of that many tokens,
    `prefill_s_per_token` per new token. Matrix products and elementwise kernels of the body are timed without their
    launches, which depend on how the engine launches them: `num_gemms` and `num_elementwise` count them.
    `num_expert_groups`: layers whose experts are divided among groups of GPUs.
    """

    tokens: FloatArray
    num_layers: float
    body_s: dict[Kind, FloatArray] = field(default_factory=dict)
    head_s: dict[Kind, FloatArray] = field(default_factory=dict)
    num_gemms: float = 0.0
    num_elementwise: float = 0.0
    num_expert_groups: float = 0.0
    num_block_gemms: float = 0.0
    shared_s: dict[Kind, FloatArray] = field(default_factory=dict)
    num_shared_gemms: float = 0.0
    num_shared_elementwise: float = 0.0
    decode_launch_s: FloatArray
    read_s_per_token: FloatArray
    window_read_s_per_token: FloatArray
    window_tokens: int = 0
    is_latent: bool = False
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


def step_kernels(  # noqa: PLR0913  what a stage runs, on what, how divided and in which formats
    operators: Iterable[Operator],
    timing: OperatorTiming,
    tokens: FloatArray,
    *,
    num_layers: float,
    power_law: bool,
    block_scaled: bool,
    pads_experts: bool = False,
) -> StepKernels:
    """Time every operator on the grid and add equal kinds up; `block_scaled`: fp8 weights are scaled in blocks.

    `pads_experts`: every block-scaled expert fills a tile of rows, chosen or not.
    """
    zeros = np.zeros_like(tokens)
    kernels = StepKernels(
        tokens=tokens,
        num_layers=num_layers,
        decode_launch_s=zeros,
        read_s_per_token=zeros,
        window_read_s_per_token=zeros,
        prefill_launch_s=zeros,
        transfer_s=zeros,
    )
    operators = tuple(operators)
    kernels.is_latent = any(isinstance(operator, LatentAttentionOp | SparseAttentionOp) for operator in operators)
    for operator in operators:
        match operator:
            case GroupedAttention() | LatentAttentionOp() | SparseAttentionOp() | DeltaNetOp():
                for lines in attention_lines(operator, timing, tokens):
                    kernels.add_lines(lines, operator.count)
            case StageTransfer():
                kernels.transfer_s = kernels.transfer_s + operator.count * token_s(operator, timing, tokens)
            case _:
                part = kernels.head_s if is_head(operator) else kernels.body_s
                seconds = operator.count * token_s(
                    operator,
                    timing,
                    tokens,
                    power_law=power_law,
                    block_scaled=block_scaled,
                    pads_experts=pads_experts,
                )
                kind = kind_of(operator, block_scaled=block_scaled)
                if isinstance(operator, ExpertFfn) and operator.ep > 1:
                    kernels.num_expert_groups += operator.count
                if part is kernels.body_s and isinstance(operator, Gemm | Elementwise):
                    seconds = seconds - operator.count * _launch_s(operator, timing, block_scaled=block_scaled)
                    if isinstance(operator, Gemm):
                        kernels.num_gemms += operator.count
                        kernels.num_block_gemms += operator.count * (kind == "block_gemm")
                    else:
                        kernels.num_elementwise += operator.count
                part[kind] = part.get(kind, zeros) + seconds
                if isinstance(operator, Gemm | Elementwise) and operator.role == "shared":
                    kernels.shared_s[kind] = kernels.shared_s.get(kind, zeros) + seconds
                    kernels.num_shared_gemms += operator.count * isinstance(operator, Gemm)
                    kernels.num_shared_elementwise += operator.count * isinstance(operator, Elementwise)
    return kernels


def _launch_s(operator: Gemm | Elementwise, timing: OperatorTiming, *, block_scaled: bool) -> float:
    """Launch inside the measured time of one call."""
    if isinstance(operator, Gemm):
        return timing.launch_s("gemm", kernel_dtype(operator, block_scaled=block_scaled))
    return timing.launch_s("elementwise", "")


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
    pads_experts: bool = False,
) -> FloatArray:
    """Seconds per call of an operator whose time depends on the rank's tokens alone, (num_points,)."""
    match operator:
        case Gemm():
            dtype = kernel_dtype(operator, block_scaled=block_scaled)
            return timing.gemm_s(tokens, n=operator.n, k=operator.k, dtype=dtype)
        case ExpertFfn():
            dtype = kernel_dtype(operator, block_scaled=block_scaled)
            seconds = timing.moe_s(
                tokens * operator.ranks,
                hidden=operator.hidden,
                intermediate=operator.intermediate,
                num_experts=operator.num_experts,
                experts_per_gpu=operator.experts_per_gpu,
                top_k=operator.top_k,
                dtype=dtype,
                power_law=power_law,
            )
            if pads_experts and dtype == "fp8_block" and operator.intermediate % EXPERT_BLOCK == 0:
                padded_s = timing.padded_moe_s(
                    hidden=operator.hidden,
                    intermediate=operator.intermediate,
                    num_experts=operator.num_experts,
                    experts_per_gpu=operator.experts_per_gpu,
                    top_k=operator.top_k,
                    dtype=dtype,
                )
                seconds = np.maximum(seconds, padded_s)
            return seconds
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


def attention_lines(operator: AttentionOperator, timing: OperatorTiming, tokens: FloatArray) -> list[AttentionLines]:
    """Decode and prefill lines of an operator; sparse attention has two, choosing (full) and reading (top-k)."""
    match operator:
        case GroupedAttention():
            return [_grouped_lines(operator, timing, tokens)]
        case LatentAttentionOp():
            return [_latent_lines(operator, timing, tokens)]
        case SparseAttentionOp():
            return _sparse_lines(operator, timing, tokens)
        case DeltaNetOp():
            return [_delta_lines(operator, timing, tokens)]


def _grouped_lines(op: GroupedAttention, timing: OperatorTiming, tokens: FloatArray) -> AttentionLines:
    decode = timing.generation_attention(
        tokens,
        num_heads=op.num_heads,
        num_kv_heads=op.num_kv_heads,
        head_dim=op.head_dim,
        window_tokens=op.window_tokens,
        kv_dtype=op.kv_dtype,
    )
    prefill = timing.context_attention(
        num_heads=op.num_heads,
        num_kv_heads=op.num_kv_heads,
        head_dim=op.head_dim,
        window_tokens=op.window_tokens,
        kv_dtype=op.kv_dtype,
    )
    return AttentionLines(decode=decode, prefill=prefill, window_tokens=op.window_tokens)


def _latent_lines(op: LatentAttentionOp, timing: OperatorTiming, tokens: FloatArray) -> AttentionLines:
    decode = timing.latent_generation_attention(
        tokens,
        num_heads=op.num_heads,
        kv_lora_rank=op.kv_lora_rank,
        qk_nope_dim=op.qk_nope_dim,
        qk_rope_dim=op.qk_rope_dim,
        v_dim=op.v_dim,
        kv_dtype=op.kv_dtype,
    )
    prefill = timing.latent_context_attention(
        num_heads=op.num_heads,
        kv_lora_rank=op.kv_lora_rank,
        qk_nope_dim=op.qk_nope_dim,
        qk_rope_dim=op.qk_rope_dim,
        v_dim=op.v_dim,
        kv_dtype=op.kv_dtype,
    )
    return AttentionLines(decode=decode, prefill=prefill)


def _sparse_lines(op: SparseAttentionOp, timing: OperatorTiming, tokens: FloatArray) -> list[AttentionLines]:
    index_decode = timing.index_generation(tokens, index_heads=op.index_heads, index_head_dim=op.index_head_dim)
    index_prefill = timing.index_context(index_heads=op.index_heads, index_head_dim=op.index_head_dim)
    decode = timing.sparse_generation_attention(
        tokens,
        num_heads=op.num_heads,
        kv_lora_rank=op.kv_lora_rank,
        qk_rope_dim=op.qk_rope_dim,
        index_topk=op.index_topk,
        kv_dtype=op.kv_dtype,
    )
    prefill = timing.sparse_context_attention(
        num_heads=op.num_heads,
        kv_lora_rank=op.kv_lora_rank,
        qk_rope_dim=op.qk_rope_dim,
        index_topk=op.index_topk,
        kv_dtype=op.kv_dtype,
    )
    return [
        AttentionLines(decode=index_decode, prefill=index_prefill),
        AttentionLines(decode=decode, prefill=prefill, window_tokens=op.index_topk),
    ]


def _delta_lines(op: DeltaNetOp, timing: OperatorTiming, tokens: FloatArray) -> AttentionLines:
    decode = timing.delta_net_generation(
        tokens,
        num_key_heads=op.num_key_heads,
        num_value_heads=op.num_value_heads,
        key_dim=op.key_dim,
        value_dim=op.value_dim,
        conv_kernel=op.conv_kernel,
    )
    prefill = timing.delta_net_context(
        num_key_heads=op.num_key_heads,
        num_value_heads=op.num_value_heads,
        key_dim=op.key_dim,
        value_dim=op.value_dim,
        conv_kernel=op.conv_kernel,
    )
    return AttentionLines(decode=decode, prefill=prefill)
