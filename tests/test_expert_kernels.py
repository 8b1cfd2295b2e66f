"""Which kernel runs an expert layer, and what one made of a library's plain products takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.timing import load_timing
from estimator.experts import ExpertCurve, ExpertLayer, Routing, expert_load
from estimator.grouped_experts import grouped_experts_s
from estimator.replay import prepare
from estimator.roofline import ElementwiseCurve, GemmCurve
from estimator.timing import ExpertKernel
from tests.small_run import small_run

GPU, CURVE = load_gpu("h200_sxm"), GemmCurve(k_half=250.0, sm_share=2.0, exponent=2.0)


def layer_of(num_experts: int, intermediate: float = 768.0, ep: int = 1, top_k: int = 8) -> ExpertLayer:
    """A layer of Qwen3's hidden size."""
    return ExpertLayer(
        hidden=4096.0,
        intermediate=intermediate,
        num_experts=num_experts,
        experts_per_gpu=num_experts / ep,
        top_k=min(top_k, num_experts),
    )


def seconds(tokens: float, layer: ExpertLayer, routing: Routing = "uniform") -> float:
    """Time of the layer."""
    load = expert_load(np.array([tokens]), layer, routing)
    return float(grouped_experts_s(GPU, CURVE, load, layer, "fp8_block")[0])


def test_one_expert_is_two_plain_products() -> None:
    """With one expert and whole blocks the layer is two products, its launches and the bytes around them.

    By hand for 1,024 tokens, hidden 4,096, width 768: 2 + 1 bytes of a token's element in, 2 out, its rows copied
    (1 + 1) and summed (2), the gate over 1,024 + 127 rows of 2·2 + 1 bytes a column.
    """
    m, hidden, width = np.array([1024.0]), np.array(4096.0), np.array(768.0)
    moved = 1024 * 4096 * (5 + 4) + (1024 + 127) * 768 * 5
    products_s = 0.0
    for n, k in ((2 * width, hidden), (hidden, width)):
        plain_s = CURVE.seconds(GPU, m, n, k, "fp8_block") - CURVE.launch_s
        quantise_s = float(m[0] * k * 3 / (GPU.bandwidth_bytes_per_s * CURVE.quantise_frac))
        products_s += float(plain_s[0]) - quantise_s
    around_s = ExpertCurve().launch_s + moved / (GPU.bandwidth_bytes_per_s * ElementwiseCurve().memory_frac)
    assert seconds(1024, layer_of(1), "dealt") == pytest.approx(products_s + around_s, rel=1e-9)


def test_blocks_of_idle_experts_are_read_all_the_same() -> None:
    """One token on 128 experts takes at least what reading all of their weights takes, 8 of them touched or not."""
    layer = layer_of(128)
    weights = 3 * 128 * 4096 * 768
    assert seconds(1, layer) > weights / GPU.bandwidth_bytes_per_s
    assert seconds(1, layer) > 0.9 * seconds(16, layer)


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(1, 16_384), ep=st.sampled_from([1, 2, 4, 8]))
def test_more_experts_on_a_gpu_are_never_faster(tokens: int, ep: int) -> None:
    """A GPU that holds one ep-th of the experts is never slower than one that holds them all."""
    assert seconds(tokens, layer_of(128, ep=ep)) <= seconds(tokens, layer_of(128)) * (1 + 1e-9)


def test_vllm_on_hopper_slices_experts_with_a_faster_kernel() -> None:
    """Qwen3-235B's experts at TP4 on H200, 8,192 tokens: 1.73 to 1.79 ms measured of vLLM 0.24 (Triton), within 10 %.

    The kernel for divided experts, which runs a quarter of them in 1.79 to 1.88 ms, would take half as long again.
    """
    timing, layer = load_timing(load_gpu("h200_sxm"), "vllm"), layer_of(128, intermediate=384.0)
    sliced, divided = (
        float(timing.moe_s([8192.0], layer, dtype="fp8_block", power_law=True, kernel=kernel)[0])
        for kernel in ("of_layout", "divided")
    )
    assert sliced == pytest.approx(1.76e-3, rel=0.10)
    assert divided > 1.5 * sliced
    quarter = layer_of(128, intermediate=1536.0, ep=4)
    assert timing.moe_s([8192.0], quarter, dtype="fp8_block", power_law=True)[0] == pytest.approx(1.85e-3, rel=0.10)


@pytest.mark.parametrize(("gpu", "engine"), [("h200_sxm", "sglang"), ("h200_sxm", "trtllm"), ("b200_sxm", "vllm")])
def test_no_other_engine_or_architecture_borrows_that_kernel(gpu: str, engine: str) -> None:
    """What vLLM does on Hopper says nothing about other engines there or about vLLM on Blackwell."""
    curves = load_timing(load_gpu(gpu), engine).curves
    assert not [key for key in curves if key[0] == "moe_sliced"]


@pytest.mark.parametrize(
    ("version", "gpu", "kernel"),
    [
        ((0, 12, 0), "h200_sxm", "grouped"),
        ((0, 12, 0), "b200_sxm", "of_layout"),
        ((0, 16, 0), "h200_sxm", "divided"),
        ((0, 18, 0), "h200_sxm", "of_layout"),
        (None, "h200_sxm", "of_layout"),
    ],
)
def test_runs_take_the_kernel_of_their_version(version: tuple[int, ...] | None, gpu: str, kernel: ExpertKernel) -> None:
    """vLLM on Hopper ran DeepGEMM before 0.14, CUTLASS to 0.16, then by layout; elsewhere it is by layout."""
    prepared = prepare(small_run(engine_version=version, gpu=gpu))
    assert prepared.engine.expert_kernel == kernel
    assert load_engine("vllm").expert_kernel == "of_layout"
