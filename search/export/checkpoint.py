"""Which weights an engine is to load for a planned number format, and whether it must quantise them itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from estimator.dtypes import WeightDtype
from estimator.errors import BestServeError
from estimator.model import ModelShape

PUBLISHED_FP8 = (
    "deepseek-ai/DeepSeek-R1",
    "deepseek-ai/DeepSeek-V3",
    "moonshotai/Kimi-K2-Instruct",
    "MiniMaxAI/MiniMax-M2",
)  # checkpoints whose `config.json` says quant_method fp8 on Hugging Face (read 2026-11-25); prefixes of the ids

QUANTISE_WHILE_LOADING = ("vllm", "sglang")  # both: --quantization fp8 on bf16 weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`path`: Hugging Face id or folder. `online_fp8`: the engine quantises bf16 weights as it loads them."""

    path: str
    online_fp8: bool = False


def checkpoint_of(
    model_id: str, model: ModelShape, weights: WeightDtype, *, engine: str, given: str | None = None
) -> Checkpoint:
    """The checkpoint to serve: `given` as it is, else the model's own where the engine can have the format from it.

    Raises `BestServeError` where the planned format needs a quantised checkpoint that nobody named.
    """
    if given is not None:
        return Checkpoint(path=given)
    path = _path(model_id, model)
    published = published_dtype(model)
    if weights == published:
        return Checkpoint(path=path)
    if weights == "fp8" and published == "bf16" and engine in QUANTISE_WHILE_LOADING:
        return Checkpoint(path=path, online_fp8=True)
    raise BestServeError(
        "checkpoint",
        None,
        f"must be given, {path} is published in {published} and the plan serves {weights} weights on {engine}",
        f"--checkpoint ORG/NAME of a {weights} checkpoint",
    )


def published_dtype(model: ModelShape) -> WeightDtype:
    """The format in which the model's own repository holds its weights."""
    if model.expert_quantization is not None:
        return model.expert_quantization.dtype
    if model.name.startswith(PUBLISHED_FP8) or "fp8" in model.name.lower():
        return "fp8"
    return "bf16"


def _path(model_id: str, model: ModelShape) -> str:
    local = Path(model_id)
    if local.exists():
        return str(local.parent if local.suffix == ".json" else local)
    return model.name
