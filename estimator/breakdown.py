"""Where the time of one engine step goes, operator by operator: the sums of `estimator.build` taken apart.

| phase | step |
|---|---|
| decode | n sequences that hold S cached tokens together; the parts add up to `StepCost.decode_step_s(n, S)` |
| prefill | one whole prompt of T tokens and nothing else; they add up to `mixed_step_s(0, 0, [(T, 0)], 1)` |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from estimator.catalogue.timing import load_timing
from estimator.dtypes import KvDtype, WeightDtype
from estimator.engine import Engine, EngineCosts
from estimator.hardware import Gpu
from estimator.model import ModelShape
from estimator.operators import (
    AllGather,
    AllReduce,
    AllToAll,
    Elementwise,
    ExpertFfn,
    Gemm,
    Operator,
    StageTransfer,
    stage_operators,
)
from estimator.parallelism import Parallelism
from estimator.stage import AttentionLines, TokenOperator, attention_lines, is_head, kind_of, token_s
from estimator.timing import OperatorTiming

Bound = Literal["compute", "memory", "link", "host"]
Phase = Literal["decode", "prefill"]
TOKEN_OPERATORS = (Gemm, ExpertFfn, Elementwise, AllReduce, AllGather, AllToAll)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPart:
    """Seconds of one operator in a step, all its runs together, and what bounds it."""

    operator: str
    phase: Phase
    seconds: float
    bound: Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is run, on what, divided how."""

    model: ModelShape
    gpu: Gpu
    engine: Engine
    parallelism: Parallelism
    weight_dtype: WeightDtype
    kv_dtype: KvDtype


def decode_breakdown(layout: Layout, *, num_seqs: int, cached_tokens: float) -> tuple[StepPart, ...]:
    """Parts of a pure decode step of the slowest stage, longest first; `num_seqs` ≥ 1 per attention-dp rank."""
    costs = layout.engine.costs_on(layout.gpu.architecture)
    timing, tokens = load_timing(layout.gpu, layout.engine.name), np.array([float(num_seqs)])
    parts = []
    for operator in _operators(layout):
        if isinstance(operator, StageTransfer):  # the hand-over to the next stage is not part of the step
            continue
        if isinstance(operator, TOKEN_OPERATORS):
            seconds = operator.count * _factor(operator, costs) * _token_s(layout, operator, timing, float(num_seqs))
            parts.append(_part(layout, operator, "decode", seconds, float(num_seqs)))
            continue
        lines = attention_lines(operator, timing, tokens)
        seconds = sum(_decode_line_s(line, num_seqs, cached_tokens) for line in lines)
        scaled = operator.count * costs.decode_attention_factor * seconds
        parts.append(StepPart(operator=operator.name, phase="decode", seconds=scaled, bound="memory"))
    host_s = costs.host_s + costs.host_s_per_seq * num_seqs
    return _ordered([*parts, *_host(layout, "decode", costs.layer_s, host_s)])


def prefill_breakdown(layout: Layout, *, prompt_tokens: int) -> tuple[StepPart, ...]:
    """Parts of a step that computes one prompt whole, longest first."""
    costs = layout.engine.costs_on(layout.gpu.architecture)
    timing, tokens = load_timing(layout.gpu, layout.engine.name), np.array([float(prompt_tokens)])
    parts = []
    for operator in _operators(layout):
        if isinstance(operator, StageTransfer):  # the hand-over to the next stage is not part of the step
            continue
        if isinstance(operator, TOKEN_OPERATORS):
            num, scale = (1.0, 1.0) if is_head(operator) else (float(prompt_tokens), costs.prefill_factor)
            seconds = operator.count * scale * _factor(operator, costs) * _token_s(layout, operator, timing, num)
            parts.append(_part(layout, operator, "prefill", seconds, num))
            continue
        lines = attention_lines(operator, timing, tokens)
        scale = operator.count * costs.prefill_factor * costs.prefill_attention_factor
        seconds = scale * sum(_prefill_line_s(line, prompt_tokens) for line in lines)
        parts.append(StepPart(operator=operator.name, phase="prefill", seconds=seconds, bound="compute"))
    host_s = costs.prefill_host_s + costs.host_s_per_seq
    return _ordered([*parts, *_host(layout, "prefill", costs.prefill_layer_s, host_s)])


def _operators(layout: Layout) -> tuple[Operator, ...]:
    """Of the slowest stage."""
    return stage_operators(layout.model, layout.parallelism, layout.weight_dtype, layout.kv_dtype)


def _token_s(layout: Layout, operator: TokenOperator, timing: OperatorTiming, tokens: float) -> float:
    power_law = layout.engine.power_law_routing
    return float(token_s(operator, timing, np.array([tokens]), power_law=power_law)[0])


def _factor(operator: Operator, costs: EngineCosts) -> float:
    factors = {
        "gemm": costs.gemm_factor,
        "moe": costs.moe_factor,
        "link": costs.link_factor,
        "elementwise": costs.elementwise_factor,
    }
    return factors[kind_of(operator)]


def _decode_line_s(lines: AttentionLines, num_seqs: int, cached_tokens: float) -> float:
    in_window = min(cached_tokens, float(num_seqs * lines.window_tokens)) if lines.window_tokens else cached_tokens
    return float(lines.decode.launch_s[0]) + float(lines.decode.s_per_cached_token[0]) * in_window


def _prefill_line_s(lines: AttentionLines, tokens: int) -> float:
    seen = (tokens + 1) / 2
    pairs = tokens * (min(seen, lines.window_tokens) if lines.window_tokens else seen)
    prefill = lines.prefill
    return prefill.launch_s + prefill.s_per_token * tokens + prefill.s_per_pair * pairs


def _part(layout: Layout, operator: Operator, phase: Phase, seconds: float, tokens: float) -> StepPart:
    return StepPart(operator=operator.name, phase=phase, seconds=seconds, bound=_bound(layout.gpu, operator, tokens))


def _bound(gpu: Gpu, operator: Operator, tokens: float) -> Bound:
    """Which of the roofline's two sides is the higher at the data sheet's peaks; links for collectives."""
    if isinstance(operator, AllReduce | AllGather | AllToAll):
        return "link"
    if not isinstance(operator, Gemm | ExpertFfn):
        return "memory"
    compute_s = operator.flop(tokens) / gpu.peak_flop_per_s(operator.dtype)
    return "compute" if compute_s > operator.bytes(tokens) / gpu.bandwidth_bytes_per_s else "memory"


def _host(layout: Layout, phase: Phase, layer_s: float, host_s: float) -> list[StepPart]:
    num_layers = layout.model.num_layers / layout.parallelism.pp
    gaps = StepPart(operator="launch gaps", phase=phase, seconds=layer_s * num_layers, bound="host")
    return [gaps, StepPart(operator="scheduling and sampling", phase=phase, seconds=host_s, bound="host")]


def _ordered(parts: Iterable[StepPart]) -> tuple[StepPart, ...]:
    """Equal operators added up, longest first."""
    seconds: dict[tuple[str, Phase, Bound], float] = {}
    for part in parts:
        key = (part.operator, part.phase, part.bound)
        seconds[key] = seconds.get(key, 0.0) + part.seconds
    merged = [StepPart(operator=o, phase=p, bound=b, seconds=s) for (o, p, b), s in seconds.items()]
    return tuple(sorted(merged, key=lambda part: (-part.seconds, part.operator)))
