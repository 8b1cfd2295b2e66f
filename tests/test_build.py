"""Instances built from operators, timing and engine costs."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from estimator.build import build_instance, layout_kernels, step_breakdown, step_cost, step_cost_of
from estimator.catalogue.engines import engine_names, load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.catalogue.timing import load_timing
from estimator.dtypes import Dtypes
from estimator.engine import COST_BOUNDS, EngineCosts
from estimator.errors import BestServeError
from estimator.instance import EngineLimits, Instance
from estimator.model import MoeFfn
from estimator.operators import ExpertFfn, stage_operators
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism
from estimator.stage import step_kernels, token_grid, token_s
from estimator.timing import ExpertKernel

LIMITS = EngineLimits(max_num_batched_tokens=8192, max_num_seqs=256)
MODELS = ("meta-llama/Llama-3.1-70B", "deepseek-ai/DeepSeek-R1", "openai/gpt-oss-120b", "Qwen/Qwen3.5-397B-A17B")


def build(model: str, tp: int, gpu: str = "h200_sxm", engine: str = "vllm") -> Instance | Infeasible:
    """An fp8 instance."""
    return build_instance(
        model=load_model(model),
        gpu=load_gpu(gpu),
        engine=load_engine(engine),
        parallelism=Parallelism(tp=tp),
        limits=LIMITS,
        weight_dtype="fp8",
        kv_dtype="fp8",
    )


@pytest.mark.parametrize("model", MODELS)
def test_steps_grow_with_work(model: str) -> None:
    """A step never gets faster with more sequences, more tokens or more cached tokens."""
    instance = build(model, 8)
    assert isinstance(instance, Instance)
    cost = instance.cost
    assert np.all(np.diff(cost.mixed_s) >= -1e-6)
    assert np.all(np.diff(cost.decode_s) >= -1e-6)
    assert cost.decode_step_s(64, 64_000) >= cost.decode_step_s(64, 32_000)


def test_memory_and_division_are_answers() -> None:
    """A model that does not fit, or does not divide, is a value that names the rule and the size of the violation."""
    too_big = build("deepseek-ai/DeepSeek-R1", 1)
    assert isinstance(too_big, Infeasible)
    assert too_big.rule == "memory"
    assert too_big.violation > 1
    odd = build("meta-llama/Llama-3.1-70B", 7)
    assert isinstance(odd, Infeasible)
    assert odd.rule == "divides"


def test_grid_is_close_to_full_evaluation() -> None:
    """Tables interpolated from the grid lie within 0.5 % (median) and 5 % (everywhere) of a full evaluation."""
    model, gpu, engine = load_model("meta-llama/Llama-3.1-70B"), load_gpu("h100_sxm"), load_engine("vllm")
    instance = build("meta-llama/Llama-3.1-70B", 4, gpu="h100_sxm")
    assert isinstance(instance, Instance)
    layout = Parallelism(tp=4)
    full = step_kernels(
        stage_operators(model, layout, "fp8", "fp8"),
        load_timing(gpu, "vllm"),
        np.arange(1.0, 8193.0),
        num_layers=80,
        power_law=engine.power_law_routing,
        block_scaled=False,
        fused_norm_tokens=engine.fusion.norm_tokens_of(model, "hopper", layout),
    )
    exact = step_cost_of(full, engine, "hopper", LIMITS).mixed_s[1:]
    error = np.abs(instance.cost.mixed_s[1:] / exact - 1)
    assert np.median(error) < 0.005
    assert error.max() < 0.05


@pytest.mark.parametrize("prefill_tokens", [0, 2048])
@pytest.mark.parametrize(("model", "kernel"), [*((model, "of_layout") for model in MODELS), (MODELS[1], "grouped")])
def test_breakdown_adds_up_to_the_step(model: str, kernel: ExpertKernel, prefill_tokens: int) -> None:
    """The seconds by operator and host add up to the step the simulator charges, DeepGEMM's experts or not."""
    layout, dtypes = Parallelism(tp=8), Dtypes(weight="fp8", kv="fp8")
    shape, gpu = load_model(model), load_gpu("h200_sxm")
    engine = replace(load_engine("sglang"), expert_kernel=kernel)
    parts = step_breakdown(
        model=shape,
        gpu=gpu,
        engine=engine,
        parallelism=layout,
        dtypes=dtypes,
        num_seqs=32,
        cached_tokens=64_000,
        prefill_tokens=prefill_tokens,
    )
    kernels = layout_kernels(shape, gpu, engine, layout, dtypes, 8192)
    cost = step_cost(kernels, engine.costs_on(gpu.architecture), LIMITS)
    step_s = (
        cost.mixed_step_s(32, 64_000, [(prefill_tokens, 0)], 1) if prefill_tokens else cost.decode_step_s(32, 64_000)
    )
    assert sum(part.seconds for part in parts) == pytest.approx(step_s, rel=0.03)
    assert {part.bound for part in parts} <= {"compute", "memory", "link", "host"}
    assert [part.seconds for part in parts] == sorted((part.seconds for part in parts), reverse=True)


def test_costs_outside_their_bounds_are_refused() -> None:
    """An engine card with a negative efficiency is refused, and the sentence names the field and the bound."""
    with pytest.raises(BestServeError, match="engine cost gemm_factor: -1"):
        EngineCosts(gemm_factor=-1.0)


def test_engine_cards_carry_source_and_date() -> None:
    """Every bundled engine loads with a source and a date, and a card without a source is refused."""
    for name in engine_names():
        engine = load_engine(name)
        assert set(COST_BOUNDS) == set(EngineCosts.__slots__)
        with pytest.raises(BestServeError, match="source"):
            replace(engine, source="")
    with pytest.raises(BestServeError, match="is not a known engine"):
        load_engine("llamacpp")


def test_host_cost_moves_every_step_by_itself() -> None:
    """One more millisecond of host time makes every step, of decodes alone or with prompts, one millisecond longer."""
    model, gpu, engine = load_model("meta-llama/Llama-3.1-8B"), load_gpu("h100_sxm"), load_engine("vllm")
    kernels = layout_kernels(model, gpu, engine, Parallelism(), Dtypes(), 8192)
    slow, fast = (step_cost(kernels, EngineCosts(host_s=host_s), LIMITS) for host_s in (2e-3, 1e-3))
    np.testing.assert_allclose(slow.decode_s - fast.decode_s, 1e-3, rtol=1e-9)
    np.testing.assert_allclose(slow.mixed_s - fast.mixed_s, 1e-3, rtol=1e-9)


def test_a_launch_costs_as_often_as_kernels_run() -> None:
    """Llama-3.1-8B has 4 matrix products in each of 32 layers: a microsecond more a launch is 128 µs more a step."""
    model, gpu, engine = load_model("meta-llama/Llama-3.1-8B"), load_gpu("h100_sxm"), load_engine("vllm")
    kernels = layout_kernels(model, gpu, engine, Parallelism(), Dtypes(), 8192)
    slow, fast = (step_cost(kernels, EngineCosts(gemm_launch_s=launch_s), LIMITS) for launch_s in (3e-6, 2e-6))
    np.testing.assert_allclose(slow.decode_s - fast.decode_s, 128e-6, rtol=1e-9)


def test_a_scheduler_that_waits_for_the_step_pays_its_host_time_too() -> None:
    """Without look-ahead a step of 100 sequences is longer by the synchronous times of a step and of 100 sequences."""
    model, gpu, engine = load_model("meta-llama/Llama-3.1-8B"), load_gpu("h100_sxm"), load_engine("vllm")
    kernels = layout_kernels(model, gpu, engine, Parallelism(), Dtypes(), 8192)
    costs = EngineCosts(sync_host_s=1e-3, sync_host_s_per_seq=20e-6)
    waits, ahead = (step_cost(kernels, costs, LIMITS, asynchronous=flag) for flag in (False, True))
    assert waits.decode_s[100] - ahead.decode_s[100] == pytest.approx(1e-3 + 100 * 20e-6)


def test_grouped_experts_take_as_long_for_few_tokens_as_for_many() -> None:
    """Experts laid out in blocks take 16 tokens in the time of one but for 10 %; of others a token leaves most idle."""
    operator = ExpertFfn(
        name="experts",
        hidden=4096,
        intermediate=768,
        num_experts=128,
        experts_per_gpu=128,
        top_k=8,
        dtype="fp8",
        bytes_per_parameter=1.0,
    )
    timing, tokens = load_timing(load_gpu("h200_sxm"), "vllm"), np.array([1.0, 16.0])
    grouped = token_s(operator, timing, tokens, expert_kernel="grouped")
    plain = token_s(operator, timing, tokens)
    assert grouped[0] < grouped[1] < 1.1 * grouped[0]
    assert plain[1] > 2.0 * plain[0]


def test_experts_that_cut_a_block_are_never_grouped() -> None:
    """DeepGEMM wants whole blocks of 128 columns: experts of 192 run as without it."""
    operator = ExpertFfn(
        name="experts",
        hidden=3072,
        intermediate=192,
        num_experts=256,
        experts_per_gpu=256,
        top_k=8,
        dtype="fp8",
        bytes_per_parameter=1.0,
    )
    timing, tokens = load_timing(load_gpu("h200_sxm"), "vllm"), np.array([4.0, 4096.0])
    assert (token_s(operator, timing, tokens, expert_kernel="grouped") == token_s(operator, timing, tokens)).all()


def test_grid_is_sorted_whole_and_ends_at_the_budget() -> None:
    """Grid points are whole, rising, from 1 to the budget."""
    for most in (1, 100, 2048, 8192):
        grid = token_grid(most)
        assert grid[0] == 1
        assert grid[-1] == most
        assert np.all(np.diff(grid) > 0)
        assert np.all(grid == np.round(grid))


@pytest.mark.slow
def test_an_instance_takes_milliseconds() -> None:
    """Building an instance takes under 20 ms even on a busy machine (about 3 ms on an idle one)."""
    build("meta-llama/Llama-3.1-70B", 8)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        build("meta-llama/Llama-3.1-70B", 8)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


def test_a_gather_brings_one_part() -> None:
    """Ranks that gather their tokens bring what they hold each, not what all hold together."""
    model, dtypes = load_model("deepseek-ai/DeepSeek-R1"), Dtypes(weight="fp8", kv="fp8")
    timing = load_timing(load_gpu("h200_sxm"), "sglang")
    operators = stage_operators(model, Parallelism(dp=8), dtypes.weight, dtypes.kv)
    gather = tuple(op for op in operators if op.name == "gather_tokens")
    kernels = step_kernels(gather, timing, np.array([1024.0]), num_layers=61, power_law=False, block_scaled=True)
    calls = sum(op.count for op in gather)
    expected = calls * timing.all_gather_s(1024.0 * 2 * model.hidden_size, 8)
    assert kernels.body.seconds["exchange"] == pytest.approx(expected, rel=1e-12)


def test_small_steps_with_prompts_replay_graphs() -> None:
    """Up to the graphs' size neither the prefill factor nor the host makes a step with prompts longer."""
    model, gpu, engine = load_model("meta-llama/Llama-3.1-8B"), load_gpu("h100_sxm"), load_engine("sglang")
    kernels = layout_kernels(model, gpu, engine, Parallelism(), Dtypes(weight="bf16", kv="bf16"), 8192)
    costs = EngineCosts(prefill_factor=1.5)
    launched, replayed = (step_cost(kernels, costs, LIMITS, mixed_graph_tokens=n).mixed_s for n in (0, 512))
    free = replace(costs, prefill_factor=1.0, prefill_layer_s=0.0, prefill_experts_s=0.0, prefill_host_s=0.0)
    plain = step_cost(kernels, free, LIMITS).mixed_s
    slower = replayed[1:513] - plain[1:513]  # attention keeps its factor
    assert np.all(slower >= 0)
    assert np.all(slower < 0.1 * plain[1:513])
    np.testing.assert_array_equal(replayed[513:], launched[513:])
    assert np.all(replayed[1:513] < launched[1:513])


def test_prompts_wait_for_a_host_that_launches_layers_no_faster() -> None:
    """61 layers, 58 of them with experts, take l_p each and l_e more: a step with a short prompt is that long, one of
    8,192 tokens as long as its kernels, and a decode step knows nothing of it."""
    shape, gpu, engine = load_model("deepseek-ai/DeepSeek-R1"), load_gpu("b200_sxm"), load_engine("sglang")
    kernels = layout_kernels(shape, gpu, engine, Parallelism(tp=8), Dtypes(weight="fp4", kv="fp8"), 8192)
    slow, fast = (
        step_cost(kernels, EngineCosts(prefill_layer_s=layer_s, prefill_experts_s=experts_s), LIMITS)
        for layer_s, experts_s in ((0.5e-3, 1e-3), (0.0, 0.0))
    )
    fixed_s = EngineCosts().host_s + EngineCosts().prefill_host_s
    np.testing.assert_allclose(slow.mixed_s[1:500], 61 * 0.5e-3 + 58 * 1e-3 + fixed_s, rtol=1e-9)
    assert np.all(fast.mixed_s[1:500] < slow.mixed_s[1:500])
    assert slow.mixed_s[8192] == fast.mixed_s[8192]
    np.testing.assert_array_equal(slow.decode_s, fast.decode_s)


def test_a_second_stream_hides_shared_experts() -> None:
    """With all of them hidden a decode step is as long as one without shared experts; mixed steps keep theirs."""
    shape, gpu, engine = load_model("deepseek-ai/DeepSeek-R1"), load_gpu("b200_sxm"), load_engine("sglang")
    bare = replace(
        shape,
        layers=tuple(
            replace(group, ffn=replace(group.ffn, num_shared=0) if isinstance(group.ffn, MoeFfn) else group.ffn)
            for group in shape.layers
        ),
    )
    layout, dtypes = Parallelism(tp=8), Dtypes(weight="fp8", kv="fp8")
    costs = EngineCosts(shared_overlap_frac=1.0, prefill_layer_s=0.0, prefill_experts_s=0.0)
    with_shared, without = (
        step_cost(layout_kernels(model, gpu, engine, layout, dtypes, 8192), costs, LIMITS) for model in (shape, bare)
    )
    np.testing.assert_allclose(with_shared.decode_s, without.decode_s, rtol=1e-12)
    assert np.all(with_shared.mixed_s[1:] > without.mixed_s[1:])


@pytest.mark.parametrize(("model", "per_layer"), [("Qwen/Qwen3-235B-A22B", 2), ("meta-llama/Llama-3.1-70B", 4)])
def test_products_of_fp8_and_fp4_quantise_their_activations(model: str, per_layer: int) -> None:
    """λ_q lengthens a step of fp8 or fp4 by the number of its products, and no step of bf16."""
    shape, gpu, engine = load_model(model), load_gpu("b200_sxm"), load_engine("vllm")
    num_products = per_layer * shape.num_layers
    for dtype, num in (("fp8", num_products), ("fp4", num_products), ("bf16", 0)):
        dtypes = Dtypes(weight=dtype, kv="fp8")  # type: ignore[arg-type]
        kernels = layout_kernels(shape, gpu, engine, Parallelism(tp=4), dtypes, 8192)
        slow, fast = (step_cost(kernels, EngineCosts(quantise_launch_s=s), LIMITS).decode_s for s in (3e-6, 1e-6))
        np.testing.assert_allclose(slow - fast, 2e-6 * num, rtol=1e-9, atol=1e-15)


def test_norms_that_all_reduces_take_along_cost_nothing_up_to_their_limit() -> None:
    """Two norms a layer and the last are gone from steps of up to 2,048 tokens, and longer steps keep them."""
    shape, gpu, engine = load_model("Qwen/Qwen3-235B-A22B"), load_gpu("h200_sxm"), load_engine("sglang")
    alone = replace(engine, fusion=replace(engine.fusion, norm_tokens=0))
    layout, dtypes, costs = Parallelism(tp=4), Dtypes(weight="fp8", kv="fp8"), EngineCosts(elementwise_launch_s=4e-6)
    fused, unfused = (
        step_cost(layout_kernels(shape, gpu, one, layout, dtypes, 8192), costs, LIMITS) for one in (engine, alone)
    )
    assert np.all(unfused.decode_s[1:] - fused.decode_s[1:] >= (2 * 94 + 1) * 4e-6 * (1 - 1e-9))
    assert unfused.mixed_s[2048] > fused.mixed_s[2048]
    assert unfused.mixed_s[8192] == fused.mixed_s[8192]


@pytest.mark.parametrize(
    ("model", "layout", "gpu", "tokens"),
    [
        ("meta-llama/Llama-3.1-70B", Parallelism(tp=4), "h200_sxm", 0),  # dense
        ("Qwen/Qwen3-235B-A22B", Parallelism(), "h200_sxm", 0),  # nothing to reduce
        ("Qwen/Qwen3-235B-A22B", Parallelism(tp=2, dp=2), "h200_sxm", 0),  # ranks of attention
        ("Qwen/Qwen3-235B-A22B", Parallelism(tp=4), "a100_sxm", 0),  # no such kernel
        ("Qwen/Qwen3-235B-A22B", Parallelism(tp=4), "h200_sxm", 2048),
    ],
)
def test_sglang_joins_norms_where_its_server_switches_it_on(
    model: str, layout: Parallelism, gpu: str, tokens: int
) -> None:
    """In models with experts, over tensor-parallel GPUs of Hopper and Blackwell, without ranks of attention."""
    fusion, architecture = load_engine("sglang").fusion, load_gpu(gpu).architecture
    assert fusion.norm_tokens_of(load_model(model), architecture, layout) == tokens


@pytest.mark.parametrize(
    ("model", "layout", "gpu", "tokens"),
    [
        ("MiniMaxAI/MiniMax-M2.5", Parallelism(tp=4), "h200_sxm", 341),  # 2 MiB of 3,072 numbers in bf16
        ("MiniMaxAI/MiniMax-M2.5", Parallelism(tp=8, ep=8), "h200_sxm", 85),  # half a MiB
        ("meta-llama/Llama-3.1-70B", Parallelism(tp=4), "b200_sxm", 2048),  # 32 MiB of 8,192
        ("meta-llama/Llama-3.1-70B", Parallelism(tp=8), "b200_sxm", 64),  # 1 MiB
        ("meta-llama/Llama-3.1-70B", Parallelism(tp=16), "b200_sxm", 0),  # no buffers over so many
        ("meta-llama/Llama-3.1-70B", Parallelism(tp=4), "a100_sxm", 0),
    ],
)
def test_vllm_joins_norms_as_far_as_its_buffers_reach(model: str, layout: Parallelism, gpu: str, tokens: int) -> None:
    """FI_ALLREDUCE_FUSION_MAX_SIZE_MB by architecture and GPUs, over the bytes of one token."""
    fusion, architecture = load_engine("vllm").fusion, load_gpu(gpu).architecture
    assert fusion.norm_tokens_of(load_model(model), architecture, layout) == tokens


@pytest.mark.parametrize(("model", "more"), [("MiniMaxAI/MiniMax-M2.5", 1), ("Qwen/Qwen3-235B-A22B", 0)])
def test_norms_that_span_heads_take_one_more_kernel_where_gpus_share_the_heads(model: str, more: int) -> None:
    """Sums of squares come before the all-reduce and the division behind it (MiniMaxText01RMSNormTP.forward_qk)."""
    shape, gpu, engine = load_model(model), load_gpu("b300_sxm"), load_engine("vllm")
    dtypes = Dtypes(weight="fp8", kv="fp8")
    alone, shared = (
        np.max(layout_kernels(shape, gpu, engine, Parallelism(tp=tp), dtypes, 8192).body.num_elementwise)
        for tp in (1, 4)
    )  # of a step so long that no norm joins an all-reduce
    assert shared - alone == more * shape.num_layers


@pytest.mark.parametrize(
    ("model", "engine", "gpu", "layout", "routed"),
    [
        ("deepseek-ai/DeepSeek-R1", "sglang", "h200_sxm", Parallelism(tp=8), (257, 9, 0)),
        ("deepseek-ai/DeepSeek-R1", "sglang", "h200_sxm", Parallelism(tp=8, ep=8), (256, 8, 1)),
        ("deepseek-ai/DeepSeek-R1", "sglang", "b200_sxm", Parallelism(tp=8), (256, 8, 1)),
        ("deepseek-ai/DeepSeek-R1", "vllm", "h200_sxm", Parallelism(tp=8), (256, 8, 1)),
        ("moonshotai/Kimi-K2.5", "sglang", "h200_sxm", Parallelism(tp=8), (384, 8, 1)),
        ("Qwen/Qwen3.5-397B-A17B", "sglang", "h200_sxm", Parallelism(tp=8), (512, 10, 1)),
    ],
)
def test_sglang_routes_to_the_shared_expert_as_to_one_more(
    model: str, engine: str, gpu: str, layout: Parallelism, routed: tuple[int, int, int]
) -> None:
    """256 experts and a shared one run as 257 of which nine serve a token; elsewhere it stays beside them."""
    shape = load_model(model)
    served = load_engine(engine).fusion.shape_of(shape, load_gpu(gpu).architecture, layout)
    ffn = served.layers[-1].ffn
    assert isinstance(ffn, MoeFfn)
    assert (ffn.num_experts, ffn.top_k, ffn.num_shared) == routed
    expert = 3 * shape.hidden_size * ffn.intermediate_size
    assert served.num_parameters - shape.num_parameters < expert  # the router's columns alone
