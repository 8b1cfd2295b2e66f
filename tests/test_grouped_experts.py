"""Expert layers made of a library's plain products, grouped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.catalogue.gpus import load_gpu
from estimator.experts import ExpertCurve, ExpertLayer, Routing, expert_load
from estimator.grouped_experts import grouped_experts_s
from estimator.roofline import ElementwiseCurve, GemmCurve

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
