"""How tokens spread over experts, against exact expectations and against draws; and what an expert layer takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.timing import load_timing
from estimator.experts import TILE_ROWS, ExpertCurve, ExpertLayer, Routing, expert_load, power_law_loads
from estimator.roofline import FloatArray

ROUTINGS: tuple[Routing, ...] = ("dealt", "uniform", "power_law")
counts = st.integers(1, 20_000)


def layer_of(num_experts: int, ep: int, top_k: int) -> ExpertLayer:
    """A layer of DeepSeek's sizes with other experts."""
    return ExpertLayer(
        hidden=7168.0, intermediate=2048.0, num_experts=num_experts, experts_per_gpu=num_experts / ep, top_k=top_k
    )


def drawn_counts(tokens: int, num_experts: int, top_k: int, rng: np.random.Generator) -> FloatArray:
    """Tokens of each expert when every token picks `top_k` different ones at random."""
    picks = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
    loads: FloatArray = np.bincount(picks.ravel(), minlength=num_experts).astype(np.float64)
    return loads


def skewed_counts(tokens: int, num_experts: int, top_k: int, rng: np.random.Generator, skew: float) -> FloatArray:
    """Tokens of each expert drawn from the power law, scaled to the pairs and rounded, the rest to idle experts."""
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > num_experts else (0.01, 2.0)
    power = 1.0 - skew
    drawn = ((high**power - low**power) * rng.random(num_experts) + low**power) ** (1.0 / power)
    counts = np.round(drawn / drawn.sum() * tokens * top_k)
    missing = int(tokens * top_k - counts.sum())
    counts[np.argsort(counts, kind="stable")[: max(missing, 0) % num_experts]] += 1
    return np.asarray(np.minimum(counts, tokens), dtype=np.float64)


def busiest(counts: FloatArray, ep: int) -> FloatArray:
    """Rows of the experts of the rank with most of them."""
    ranks = counts.reshape(ep, -1)
    return np.asarray(ranks[ranks.sum(axis=1).argmax()])


def test_dealt_tokens_touch_as_many_experts_as_there_are_pairs() -> None:
    """3 tokens of top-8 over 256 experts on one GPU touch 24; 8 ranks see 3 each; 512 tokens touch all 32 of a rank."""
    assert expert_load(np.array([3.0]), layer_of(256, 1, 8), "dealt").touched == pytest.approx(24.0)
    assert expert_load(np.array([3.0]), layer_of(256, 8, 8), "dealt").touched == pytest.approx(3.0)
    load = expert_load(np.array([512.0]), layer_of(256, 8, 8), "dealt")
    assert (float(load.touched[0]), float(load.rows[0])) == (32.0, 512.0)
    assert load.tiles[0] == pytest.approx([32.0] * 5)  # 16 rows an expert: one tile of every height


@pytest.mark.parametrize(("tokens", "num_experts", "top_k"), [(4, 256, 8), (64, 128, 8), (300, 8, 2)])
def test_uniform_routing_touches_what_draws_touch(tokens: int, num_experts: int, top_k: int) -> None:
    """On one GPU the touched experts are the mean over 300 draws within 3 %."""
    rng = np.random.default_rng(1)
    drawn = [np.count_nonzero(drawn_counts(tokens, num_experts, top_k, rng)) for _ in range(300)]
    load = expert_load(np.array([float(tokens)]), layer_of(num_experts, 1, top_k), "uniform")
    assert load.touched[0] == pytest.approx(np.mean(drawn), rel=0.03)
    assert load.rows[0] == tokens * top_k


@pytest.mark.parametrize("tokens", [32, 512, 4096])
@pytest.mark.parametrize("ep", [2, 8, 32])
def test_the_busiest_rank_has_the_rows_that_draws_give_it(tokens: int, ep: int) -> None:
    """Rows and touched experts of the busiest of ep ranks are the mean over 60 draws within 20 %, both routings."""
    rng, layer = np.random.default_rng(2), layer_of(256, ep, 8)
    draws = {
        "uniform": [busiest(drawn_counts(tokens, 256, 8, rng), ep) for _ in range(60)],
        "power_law": [busiest(skewed_counts(tokens, 256, 8, rng, 1.01), ep) for _ in range(60)],
    }
    for routing in ROUTINGS[1:]:
        load = expert_load(np.array([float(tokens)]), layer, routing)
        assert load.rows[0] == pytest.approx(np.mean([rows.sum() for rows in draws[routing]]), rel=0.20), routing
        touched = np.mean([np.count_nonzero(rows) for rows in draws[routing]])
        assert load.touched[0] == pytest.approx(touched, rel=0.25), routing


@settings(deadline=None)
@given(
    tokens=counts,
    ep=st.sampled_from([1, 2, 8, 64]),
    top_k=st.sampled_from([1, 2, 8]),
    routing=st.sampled_from(ROUTINGS),
)
def test_loads_stay_within_what_there_is(tokens: int, ep: int, top_k: int, routing: Routing) -> None:
    """The busiest rank has an even share at least and all pairs at most; its tiles hold its rows, one per expert."""
    load = expert_load(np.array([float(tokens)]), layer_of(128, ep, top_k), routing)
    rows, touched = load.rows[0], load.touched[0]
    assert tokens * top_k / ep - 1e-9 <= rows <= max(tokens * min(128 / ep, top_k), 1.0) + 1e-9
    assert 0 < touched <= 128 / ep + 1e-9
    assert touched <= rows + 1e-6 or ep > 1  # the busiest rank's experts and rows are expectations of their own
    assert (load.tiles >= touched - 1e-9).all()
    assert (np.diff(load.tiles[0]) <= 1e-9).all()  # higher tiles, fewer of them
    assert (load.tiles[0] * TILE_ROWS >= 0.9 * rows).all()


@settings(deadline=None)
@given(tokens=counts, top_k=st.sampled_from([1, 2, 8]), skew=st.floats(1.01, 1.5))
def test_power_law_loads_keep_the_pairs(tokens: int, top_k: int, skew: float) -> None:
    """Mean load is tokens·k/E within rounding; no expert has more than every token; quantiles rise."""
    one = [np.array([float(value)]) for value in (tokens, 256, top_k, skew)]
    loads = power_law_loads(*one)[0]
    assert loads.mean() == pytest.approx(tokens * top_k / 256, rel=0.1, abs=0.55)
    assert loads.max() <= tokens
    assert (np.diff(loads) >= -1e-9).all()


def test_skewed_routing_is_slower_where_ranks_wait_and_faster_where_experts_idle() -> None:
    """DeepSeek-V3 on 8 H200: at 4,096 tokens the busiest rank makes a power law slower, at 64 idle experts faster."""
    timing = load_timing(load_gpu("h200_sxm"), "vllm")

    def seconds(tokens: float, local: int, power_law: bool) -> float:
        layer = ExpertLayer(hidden=7168, intermediate=2048, num_experts=256, experts_per_gpu=local, top_k=8)
        return float(timing.moe_s([tokens], layer, dtype="fp8_block", power_law=power_law)[0])

    assert seconds(4096, 32, True) > 1.15 * seconds(4096, 32, False)
    assert seconds(64, 256, True) < seconds(64, 256, False)


def test_pairs_that_rounding_leaves_go_to_experts_without_a_token() -> None:
    """As measured on B200 (SGLang, fp8): 8 tokens of top 10 touch 80 of 512 experts, 32 of top 8 touch 131 of 256.

    The first takes as long as balanced routing (174 µs), the second 715 of the 1,395 µs that all 256 take.
    """
    few = expert_load(np.array([8.0]), layer_of(512, 1, 10), "power_law", 1.01)
    assert few.touched[0] == pytest.approx(80, rel=0.02)
    more = expert_load(np.array([32.0]), layer_of(256, 1, 8), "power_law", 1.01)
    assert more.touched[0] == pytest.approx(715 / 1395 * 256, rel=0.05)


def test_few_rows_an_expert_run_in_a_faster_kernel() -> None:
    """Products alone: at a mean of 1 pair an expert 1.5 times as fast with a gain of 0.5 up to 8, at 64 as fast."""
    bare = ExpertCurve(launch_s=2e-6, routing_frac=20.0, local_frac=5.0, expert_s=0.0, pair_s=0.0, fill_bytes=0.0)
    plain, narrow = (replace(bare, narrow_rows=8.0, narrow_gain=gain) for gain in (0.0, 0.5))
    layer, gpu = layer_of(256, 1, 8), load_gpu("b200_sxm")

    def ratio(tokens: float) -> float:
        load = expert_load(np.array([tokens]), layer, "dealt")
        slow, fast = (float(curve.seconds(gpu, load, layer, "fp8_block")[0]) for curve in (plain, narrow))
        return slow / fast

    assert ratio(32) == pytest.approx(1.5, rel=0.02)
    assert ratio(2048) == pytest.approx(1.0, rel=0.001)
    assert 1.2 < ratio(256) < 1.3  # where a mean of 8 rows is reached: half of the gain


def test_ranks_count_the_pairs_of_all_for_their_own_experts() -> None:
    """On one of 8 ranks the mean that chooses a kernel is 8 times that of one GPU, as FlashInfer counts it."""
    curve = ExpertCurve(narrow_rows=8.0, narrow_gain=1.0)
    plain, gpu = ExpertCurve(), load_gpu("b200_sxm")

    def gain(ep: int) -> float:
        layer = layer_of(256, ep, 8)
        load = expert_load(np.array([64.0]), layer, "dealt")
        slow, fast = (float(c.seconds(gpu, load, layer, "fp8_block")[0]) for c in (plain, curve))
        return slow / fast

    assert gain(1) > 1.5
    assert gain(8) == pytest.approx(1.0, rel=0.02)


def test_a_kernel_without_high_tiles_is_slower_for_many_rows_alone() -> None:
    """Tiles of at most 64 rows cost 32,768 tokens of 8 experts more, and 8 tokens nothing."""
    layer, gpu = layer_of(8, 1, 2), load_gpu("h200_sxm")
    load = expert_load(np.array([8.0, 32768.0]), layer, "dealt")
    high, low = (
        ExpertCurve(tile_half=40.0, most_rows=most).seconds(gpu, load, layer, "bf16") for most in (256.0, 64.0)
    )
    assert low[0] == high[0]
    assert low[1] > 1.1 * high[1]


def test_every_rank_passes_the_tokens_of_all() -> None:
    """16,384 tokens of 7,168 bf16, in and out at half of the bandwidth, cost a rank of 256 what they cost one alone."""
    gpu, tokens = load_gpu("b200_sxm"), np.array([16384.0])
    for ep in (1, 256):
        layer = layer_of(256, ep, 8)
        load = expert_load(tokens, layer, "dealt")
        free, passed = (ExpertCurve(token_frac=frac).seconds(gpu, load, layer, "fp8_block") for frac in (20.0, 0.5))
        extra_s = 2 * 16384 * 7168 * 2 * (1 / 0.5 - 1 / 20.0) / gpu.bandwidth_bytes_per_s
        assert float(passed[0] - free[0]) == pytest.approx(extra_s, rel=1e-6)
