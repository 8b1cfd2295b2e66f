"""The breakdown of a step into operators."""

from __future__ import annotations

import pytest

from estimator.breakdown import Layout, decode_breakdown, prefill_breakdown
from estimator.build import build_instance
from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.instance import EngineLimits, Instance
from estimator.parallelism import Parallelism

CASES = [
    ("qwen3-32b", "h100_sxm", Parallelism(tp=2)),
    ("llama-3.1-70b", "h200_sxm", Parallelism(tp=4, pp=2)),
    ("mixtral-8x7b-v0.1", "h100_sxm", Parallelism(tp=2, dp=2, ep=4)),
    ("deepseek-r1", "h200_sxm", Parallelism(dp=8, ep=8)),
    ("gpt-oss-120b", "b200_sxm", Parallelism(tp=1)),
]


def layout_and_instance(model: str, gpu: str, parallelism: Parallelism) -> tuple[Layout, Instance]:
    """A layout and the instance built of it."""
    layout = Layout(
        model=load_model(model),
        gpu=load_gpu(gpu),
        engine=load_engine("vllm"),
        parallelism=parallelism,
        weight_dtype="fp8",
        kv_dtype="bf16",
    )
    built = build_instance(
        model=layout.model,
        gpu=layout.gpu,
        engine=layout.engine,
        parallelism=parallelism,
        limits=EngineLimits(),
        weight_dtype="fp8",
        kv_dtype="bf16",
    )
    assert isinstance(built, Instance)
    return layout, built


@pytest.mark.parametrize(("model", "gpu", "parallelism"), CASES)
@pytest.mark.parametrize("num_seqs", [1, 16, 64])
def test_parts_add_up_to_the_decode_step(model: str, gpu: str, parallelism: Parallelism, num_seqs: int) -> None:
    """The operators of a decode step sum to the step that the kernels look up, at every grid point."""
    layout, instance = layout_and_instance(model, gpu, parallelism)
    cached_tokens = 1500.0 * num_seqs
    parts = decode_breakdown(layout, num_seqs=num_seqs, cached_tokens=cached_tokens)
    expected_s = instance.cost.decode_step_s(num_seqs, cached_tokens)
    assert sum(part.seconds for part in parts) == pytest.approx(expected_s, rel=1e-9)
    assert [part.seconds for part in parts] == sorted((part.seconds for part in parts), reverse=True)


@pytest.mark.parametrize(("model", "gpu", "parallelism"), CASES)
def test_parts_add_up_to_the_prefill_step(model: str, gpu: str, parallelism: Parallelism) -> None:
    """The operators of a prompt of 256 tokens sum to the mixed step that computes it."""
    layout, instance = layout_and_instance(model, gpu, parallelism)
    parts = prefill_breakdown(layout, prompt_tokens=256)
    assert sum(part.seconds for part in parts) == pytest.approx(
        instance.cost.mixed_step_s(0, 0.0, [(256, 0)], 1), rel=1e-9
    )


def test_bounds_follow_the_roofline() -> None:
    """Weights of a dense model bound few sequences by memory and a long prompt by compute; all-reduce by link."""
    layout, _ = layout_and_instance("qwen3-32b", "h100_sxm", Parallelism(tp=2))
    decode = {part.operator: part.bound for part in decode_breakdown(layout, num_seqs=8, cached_tokens=8e3)}
    prefill = {part.operator: part.bound for part in prefill_breakdown(layout, prompt_tokens=4096)}
    assert (decode["qkv"], prefill["qkv"]) == ("memory", "compute")
    assert "link" in decode.values()
    assert decode["launch gaps"] == "host"
