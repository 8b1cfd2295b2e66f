"""Decode and prefill times of the operators that read a cache or a state, as lines over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.attention import DecodeLine, PrefillLine
from estimator.operators import AttentionOperator, DeltaNetOp, GroupedAttention, LatentAttentionOp, SparseAttentionOp
from estimator.timing import OperatorTiming

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLines:
    """One operator that reads the cache or a state: decode over the grid, prefill as a line; window 0 = full."""

    decode: DecodeLine
    prefill: PrefillLine
    window_tokens: int = 0


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
