"""Laws of a whole step, for every family of models: what a better data sheet, more tokens and more GPUs may do."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.build import build_instance, step_breakdown
from estimator.catalogue.engines import engine_names, load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.catalogue.timing import load_timing
from estimator.dtypes import Dtypes, WeightDtype
from estimator.hardware import Gpu
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.operators import stage_operators
from estimator.parallelism import Parallelism
from estimator.tiers import operator_tiers
from estimator.work import Collective, Elementwise

FAMILIES: dict[str, tuple[WeightDtype, Parallelism]] = {
    "meta-llama/Llama-3.1-8B": ("bf16", Parallelism(tp=2)),
    "openai/gpt-oss-120b": ("fp4", Parallelism(tp=4)),
    "Qwen/Qwen3-235B-A22B": ("fp8", Parallelism(tp=4, dp=2, ep=8)),
    "deepseek-ai/DeepSeek-V3": ("fp8", Parallelism(tp=8, ep=8)),
    "deepseek-ai/DeepSeek-V3.2": ("fp8", Parallelism(tp=8, ep=8)),
    "Qwen/Qwen3.5-397B-A17B": ("fp8", Parallelism(tp=8)),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": ("int4", Parallelism(tp=4)),
}
LIMITS = EngineLimits(max_num_batched_tokens=4096, max_num_seqs=128)
families = st.sampled_from(sorted(FAMILIES))
engines = st.sampled_from(engine_names())
batches = st.integers(1, 127)


@lru_cache(maxsize=512)
def cost_of(model: str, engine: str, bandwidth: float = 1.0, flop: float = 1.0) -> StepCost:
    """Step tables on B300s whose bandwidth and peaks are multiplied."""
    weight_dtype, parallelism = FAMILIES[model]
    instance = build_instance(
        model=load_model(model),
        gpu=better("b300_sxm", bandwidth, flop),
        engine=load_engine(engine),
        parallelism=parallelism,
        limits=LIMITS,
        weight_dtype=weight_dtype,
        kv_dtype="bf16",
    )
    assert isinstance(instance, Instance), instance
    return instance.cost


def better(name: str, bandwidth: float, flop: float) -> Gpu:
    """The GPU with its data sheet's rates multiplied."""
    gpu = load_gpu(name)
    peaks = {dtype: peak * flop for dtype, peak in gpu.flop_per_s.items()}
    return replace(gpu, bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * bandwidth, flop_per_s=peaks)


@settings(deadline=None)
@given(model=families, engine=engines, num_seqs=batches, cached=st.integers(1, 8192), chunk=st.integers(1, 2048))
def test_a_better_data_sheet_never_slows_a_step(
    model: str, engine: str, num_seqs: int, cached: int, chunk: int
) -> None:
    """Doubling the bandwidth or the FLOP/s leaves decode and mixed steps as fast or makes them faster."""
    cost = cost_of(model, engine)
    for faster in (cost_of(model, engine, bandwidth=2.0), cost_of(model, engine, flop=2.0)):
        tokens = num_seqs * cached
        assert faster.decode_step_s(num_seqs, tokens) <= cost.decode_step_s(num_seqs, tokens) * (1 + 1e-9)
        chunks = [(chunk, 0)]
        assert faster.mixed_step_s(num_seqs, tokens, chunks, 1) <= cost.mixed_step_s(num_seqs, tokens, chunks, 1) * (
            1 + 1e-9
        )


@settings(deadline=None)
@given(model=families, engine=engines, num_seqs=batches, cached=st.integers(1, 8192), more=st.integers(1, 512))
def test_more_work_is_never_faster(model: str, engine: str, num_seqs: int, cached: int, more: int) -> None:
    """More cached tokens or a longer chunk never shorten a step; one more sequence saves 3 % of it at most.

    (Attention of more sequences uses the GPU better: at one number of cached tokens that may save a little.)
    """
    cost = cost_of(model, engine)
    tokens = num_seqs * cached
    before = cost.decode_step_s(num_seqs, tokens)
    assert cost.decode_step_s(num_seqs, tokens + more) >= before
    assert cost.decode_step_s(num_seqs + 1, tokens) >= 0.97 * before
    short, long = (cost.mixed_step_s(num_seqs, tokens, [(chunk, 0)], 1) for chunk in (more, 2 * more))
    assert long >= short


@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_a_breakdown_adds_up_to_the_step_and_names_what_binds(model: str) -> None:
    """For every family the parts sum to the step of the same instance; collectives are bound by the link."""
    weight_dtype, parallelism = FAMILIES[model]
    for prefill_tokens in (0, 1024):
        parts = step_breakdown(
            model=load_model(model),
            gpu=load_gpu("b300_sxm"),
            engine=load_engine("vllm"),
            parallelism=parallelism,
            dtypes=Dtypes(weight=weight_dtype),
            num_seqs=32,
            cached_tokens=64_000,
            prefill_tokens=prefill_tokens,
        )
        cost = cost_of(model, "vllm")
        whole_s = cost.decode_step_s(32, 64_000)
        if prefill_tokens:
            whole_s = cost.mixed_step_s(32, 64_000, [(prefill_tokens, 0)], 1)
        assert sum(part.seconds for part in parts) == pytest.approx(whole_s, rel=0.02)  # tables are lines on a grid
        bounds = {part.operator: part.bound for part in parts}
        links = {name for name in bounds if "all_reduce" in name or name in ("dispatch", "combine")}
        assert links
        assert {bounds[name] for name in links} == {"link"}
        assert bounds["host"] == "host"


def test_an_unmeasured_gpu_is_answered_from_its_data_sheet() -> None:
    """MI300X, of an architecture without measurements, and a GPU of one's own are built and say `data_sheet`."""
    own = replace(load_gpu("mi300x"), name="own", architecture="own", source="me", date="2026-11-25")
    for gpu in (load_gpu("mi300x"), own):
        instance = build_instance(
            model=load_model("meta-llama/Llama-3.1-8B"),
            gpu=gpu,
            engine=load_engine("vllm"),
            parallelism=Parallelism(),
            limits=LIMITS,
            weight_dtype="bf16",
            kv_dtype="bf16",
        )
        assert isinstance(instance, Instance)
        assert instance.tier == "data_sheet"
        step_s = instance.cost.decode_step_s(1, 1000)
        assert 16e9 / 5.3e12 < step_s < 4 * 16e9 / 5.3e12 + 3e-3  # the weights once, and a few launches


def test_every_operator_says_what_it_rests_on() -> None:
    """Llama in fp8 on A100 borrows its products, its attention is measured; the instance is as good as its worst."""
    model, gpu, engine = load_model("meta-llama/Llama-3.1-8B"), load_gpu("a100_sxm"), load_engine("vllm")
    operators = stage_operators(model, Parallelism(), "fp8", "bf16")
    tiers = operator_tiers(operators, load_timing(gpu, "vllm"), block_scaled=False)
    assert {tiers[name] for name in ("qkv", "attention_out", "ffn_up", "ffn_down")} == {"borrowed"}
    assert {tiers[name] for name in ("attention", "head")} == {"fitted"}
    for weight_dtype, tier in (("fp8", "borrowed"), ("bf16", "fitted")):
        instance = build_instance(
            model=model,
            gpu=gpu,
            engine=engine,
            parallelism=Parallelism(),
            limits=LIMITS,
            weight_dtype=weight_dtype,  # type: ignore[arg-type]
            kv_dtype="bf16",
        )
        assert isinstance(instance, Instance)
        assert instance.tier == tier


@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_no_operator_that_matters_is_without_a_tier(model: str) -> None:
    """Every product, expert layer and attention of every family is covered, on a measured GPU by measurements."""
    weight_dtype, parallelism = FAMILIES[model]
    shape = load_model(model)
    operators = stage_operators(shape, parallelism, weight_dtype, "bf16")
    tiers = operator_tiers(operators, load_timing(load_gpu("h200_sxm"), "sglang"), block_scaled=shape.is_moe)
    assert {op.name for op in operators if not isinstance(op, Elementwise | Collective)} == set(tiers)
    assert set(tiers.values()) <= {"fitted", "borrowed"}
