"""What the time of each operator of a stage rests on: measured here, borrowed, or a data sheet."""

from __future__ import annotations

from collections.abc import Iterable

from estimator.stage import kernel_dtype
from estimator.timing import TIERS, OperatorTiming, Tier
from estimator.work import (
    DeltaNetOp,
    ExpertFfn,
    Gemm,
    GroupedAttention,
    LatentAttentionOp,
    Operator,
    SparseAttentionOp,
)


def operator_tiers(operators: Iterable[Operator], timing: OperatorTiming, *, block_scaled: bool) -> dict[str, Tier]:
    """By operator name, the worst of its kernels; elementwise kernels and links, small in a step, are left out."""
    tiers: dict[str, Tier] = {}
    for operator in operators:
        kernels = [timing.tier(kind, dtype) for kind, dtype in _kernels(operator, block_scaled=block_scaled)]
        if kernels:
            tiers[operator.name] = worst(*kernels, tiers.get(operator.name, "fitted"))
    return tiers


def worst(*tiers: Tier) -> Tier:
    """The tier that rests on least; `fitted` of none."""
    return max(tiers, key=TIERS.index, default="fitted")


def _kernels(operator: Operator, *, block_scaled: bool) -> list[tuple[str, str]]:
    """(kind, format) of the curves that time an operator."""
    match operator:
        case Gemm():
            return [("gemm", kernel_dtype(operator, block_scaled=block_scaled))]
        case ExpertFfn():
            return [("moe", kernel_dtype(operator, block_scaled=block_scaled))]
        case GroupedAttention():
            suffix = "_windowed" if operator.window_tokens else ""
            return [(f"{phase}_attention{suffix}", operator.kv_dtype) for phase in ("context", "generation")]
        case LatentAttentionOp():
            return [(f"latent_{phase}_attention", operator.kv_dtype) for phase in ("context", "generation")]
        case SparseAttentionOp():
            return [(f"sparse_{phase}_attention", operator.kv_dtype) for phase in ("context", "generation")]
        case DeltaNetOp():
            return [(f"delta_net_{phase}", "bf16") for phase in ("context", "generation")]
        case _:
            return []
