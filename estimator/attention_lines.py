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
            decode, prefill = timing.generation_attention(tokens, operator), timing.context_attention(operator)
            return [AttentionLines(decode=decode, prefill=prefill, window_tokens=operator.window_tokens)]
        case LatentAttentionOp():
            decode = timing.latent_generation_attention(tokens, operator)
            return [AttentionLines(decode=decode, prefill=timing.latent_context_attention(operator))]
        case SparseAttentionOp():
            index, prefill = timing.index_generation(tokens, operator), timing.sparse_context_attention(operator)
            decode = timing.sparse_generation_attention(tokens, operator)
            return [
                AttentionLines(decode=index, prefill=timing.index_context(operator)),
                AttentionLines(decode=decode, prefill=prefill, window_tokens=operator.index_topk),
            ]
        case DeltaNetOp():
            decode = timing.delta_net_generation(tokens, operator)
            return [AttentionLines(decode=decode, prefill=timing.delta_net_context(operator))]
