"""Operator timing: metamorphic laws on every bundled card, and the data-sheet limits that no curve may break."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.attention import STRAIGHT_TOKENS, DecodeCurve, HeadShape, PrefillCurve
from estimator.catalogue.gpus import gpu_names, load_gpu
from estimator.catalogue.timing import ENGINES, load_timing
from estimator.collectives import LinkCurve
from estimator.dtypes import KvDtype
from estimator.errors import BestServeError
from estimator.experts import ExpertLayer
from estimator.hardware import Gpu
from estimator.roofline import FloatArray, GemmCurve, RankingCurve
from estimator.timing import OperatorTiming
from estimator.work import DeltaNetOp, GroupedAttention, LatentAttentionOp

TIMINGS = [(gpu, engine) for gpu in gpu_names() for engine in ENGINES]
TOKENS = np.unique(np.geomspace(1, 32768, 60).round())
WEIGHT_DTYPES = ["bf16", "fp8", "fp8_block", "fp4", "mxfp4", "int4"]
timings = st.sampled_from(TIMINGS).map(lambda pair: load_timing(load_gpu(pair[0]), pair[1]))
dtypes = st.sampled_from(WEIGHT_DTYPES)
sizes = st.sampled_from([512, 1024, 2048, 4096, 8192, 14336, 28672, 131072])
kv_dtypes = st.sampled_from(get_args(KvDtype))


def faster(gpu: Gpu, bandwidth: float, flop: float) -> Gpu:
    """The same GPU with its data sheet's rates multiplied."""
    peaks = {dtype: peak * flop for dtype, peak in gpu.flop_per_s.items()}
    return replace(gpu, bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * bandwidth, flop_per_s=peaks)


def every_operator(timing: OperatorTiming, dtype: str, kv_dtype: KvDtype) -> dict[str, FloatArray]:
    """Seconds of one shape of each operator over `TOKENS`."""
    heads = GroupedAttention(name="", num_heads=8, num_kv_heads=2, head_dim=128, kv_dtype=kv_dtype)
    decode, prefill = timing.generation_attention(TOKENS, heads), timing.context_attention(heads)
    latent = LatentAttentionOp(
        name="", num_heads=16, kv_lora_rank=512, qk_nope_dim=128, qk_rope_dim=64, v_dim=128, kv_dtype=kv_dtype
    )
    mla, mla_prefill = timing.latent_generation_attention(TOKENS, latent), timing.latent_context_attention(latent)
    state = DeltaNetOp(name="", num_key_heads=4, num_value_heads=8, key_dim=128, value_dim=128, conv_kernel=4)
    layer = ExpertLayer(hidden=4096, intermediate=1536, num_experts=128, experts_per_gpu=16, top_k=8)
    return {
        "gemm": timing.gemm_s(TOKENS, n=8192, k=4096, dtype=dtype),
        "moe": timing.moe_s(TOKENS, layer, dtype=dtype, power_law=False),
        "moe_power_law": timing.moe_s(TOKENS, layer, dtype=dtype, power_law=True),
        "elementwise": timing.elementwise_s(TOKENS * 8192),
        "prefill": prefill.launch_s + prefill.s_per_pair * TOKENS**2 / 2 + prefill.s_per_token * TOKENS,
        "mla_prefill": mla_prefill.launch_s + mla_prefill.s_per_pair * TOKENS**2 + mla_prefill.s_per_token * TOKENS,
        "decode": decode.launch_s + (decode.s_per_cached_token + decode.s_per_held_token) * TOKENS * 1024,
        "mla": mla.launch_s + (mla.s_per_cached_token + mla.s_per_held_token) * TOKENS * 1024,
        "delta_net": timing.delta_net_generation(TOKENS, state).launch_s,
        "all_reduce": timing.all_reduce_s(TOKENS * 8192, 4),
        "all_gather": timing.all_gather_s(TOKENS * 8192, 4),
        "dispatch": timing.exchange_s(TOKENS * 8192, 4, "dispatch"),
    }


@given(timing=timings, dtype=dtypes, kv_dtype=kv_dtypes, bandwidth=st.floats(1.0, 8.0), flop=st.floats(1.0, 8.0))
def test_a_better_data_sheet_never_slows_an_operator(
    timing: OperatorTiming, dtype: str, kv_dtype: KvDtype, bandwidth: float, flop: float
) -> None:
    """More bandwidth or more FLOP/s leaves every operator as fast or makes it faster."""
    better = replace(timing, gpu=faster(timing.gpu, bandwidth, flop))
    before, after = every_operator(timing, dtype, kv_dtype), every_operator(better, dtype, kv_dtype)
    for kind, seconds in before.items():
        assert (after[kind] <= seconds * (1 + 1e-9)).all(), kind


@given(timing=timings, dtype=dtypes, kv_dtype=kv_dtypes)
def test_more_tokens_are_never_faster(timing: OperatorTiming, dtype: str, kv_dtype: KvDtype) -> None:
    """Every operator's time is positive, finite and does not fall with its tokens, quantisation or not.

    Decode attention may by half a percent: the line that stands for its fill turns a little with the sequences.
    """
    for kind, seconds in every_operator(timing, dtype, kv_dtype).items():
        assert np.isfinite(seconds).all(), kind
        assert (seconds > 0).all(), kind
        turned_frac = 0.005 if kind in ("decode", "mla") else 0.0
        assert (np.diff(seconds) >= -1e-12 - turned_frac * seconds[:-1]).all(), kind


@given(timing=timings, dtype=dtypes, n=sizes, k=sizes)
def test_no_product_beats_the_data_sheet(timing: OperatorTiming, dtype: str, n: int, k: int) -> None:
    """A matrix product takes at least its FLOP at 1.05 × peak, and its weights' bytes at 1.05 × bandwidth."""
    peak = 1.05 * max(timing.gpu.flop_per_s.values())
    seconds = timing.gemm_s(TOKENS, n=n, k=k, dtype=dtype)
    assert (seconds >= 2.0 * TOKENS * n * k / peak).all()
    assert (seconds >= 0.5 * n * k / (1.05 * timing.gpu.bandwidth_bytes_per_s)).all()


@given(timing=timings, num_gpus=st.sampled_from([2, 4, 8, 16, 64, 72]))
def test_collectives_of_one_gpu_are_free_and_of_many_are_not(timing: OperatorTiming, num_gpus: int) -> None:
    """A group of one exchanges nothing; a bigger group pays a latency and no less than its bytes at the link's rate."""
    num_bytes = np.array([1e4, 1e6, 1e9])
    assert (timing.all_reduce_s(num_bytes, 1) == 0).all()
    fastest = 1.5 * max(timing.gpu.nvlink_bytes_per_s, timing.gpu.pcie_bytes_per_s)
    assert (timing.all_reduce_s(num_bytes, num_gpus) > num_bytes / fastest).all()


def test_leaving_the_node_is_slower() -> None:
    """An all-reduce over 16 H100 crosses the network and takes longer than one over 8 inside the node."""
    timing = load_timing(load_gpu("h100_sxm"), "vllm")
    assert (timing.all_reduce_s([1e4, 1e8], 16) > 1.5 * timing.all_reduce_s([1e4, 1e8], 8)).all()


def test_decode_attention_reads_the_cache_near_bandwidth() -> None:
    """A full batch on H100 reads its KV cache at 70 to 100 % of 3.35 TB/s (measured: 0.91 for FlashAttention 3)."""
    timing = load_timing(load_gpu("h100_sxm"), "vllm")
    heads = GroupedAttention(name="", num_heads=32, num_kv_heads=8, head_dim=128, kv_dtype="bf16")
    line = timing.generation_attention([256.0], heads)
    rate = 2 * 8 * 128 * 2 / line.s_per_cached_token[0]
    assert 0.7 * 3.35e12 < rate < 3.35e12


FILLING = DecodeCurve(fill_s=15e-6, fill_bytes=50e6, outside_frac=0.1)
HEADS = HeadShape(num_heads=8.0, num_kv_heads=2.0, dims=256.0, kv_bytes=512.0, io_bytes=5120.0)


@pytest.mark.parametrize("num_seqs", [1, 2, 5, 7, 20, 100, 512])
def test_a_straight_line_stands_for_a_fill(num_seqs: int) -> None:
    """From 512 to 32,768 tokens a sequence the line is within 20 % of the bend, not all above nor all below."""
    n = np.array([float(num_seqs)])
    cached = n * STRAIGHT_TOKENS
    line = FILLING.line(load_gpu("h100_sxm"), n, HEADS)
    straight = line.launch_s + (line.s_per_cached_token + line.s_per_held_token) * cached
    share = straight / FILLING.measured_s(load_gpu("h100_sxm"), np.full(7, n[0]), cached, HEADS) - 1.0
    assert np.abs(share).max() < 0.20
    assert share.min() < 1e-9
    assert share.max() > -1e-9
    assert line.launch_s >= FILLING.launch_s


def test_a_fill_counts_tokens_outside_a_window_and_reading_a_tenth_of_them() -> None:
    """Of 4,096 cached tokens 3,968 lie outside a window of 128: read as 128 + 397, filled as all 4,096."""
    gpu, n = load_gpu("h100_sxm"), np.array([16.0])
    windowed = FILLING.measured_s(gpu, n, n * 4096.0, HEADS, n * 3968.0)
    dry = replace(FILLING, fill_s=0.0)
    read = dry.measured_s(gpu, n, n * (128.0 + 396.8), HEADS)
    filled = 16 * 4096 * 2 * 512 / 50e6
    assert windowed - read == pytest.approx(15e-6 * filled / (1 + filled**4) ** 0.25)


def test_a_head_alone_with_its_keys_has_a_kernel_of_its_own() -> None:
    """Twice the launch and half the rate for one query head per key head; grouped heads do not notice."""
    gpu, n = load_gpu("h100_sxm"), np.array([256.0])
    curve = DecodeCurve(row_tile=1.0, block_s=0.0, launch_s=5e-6, lone_s=5e-6, lone_frac=0.5)
    plain = replace(curve, lone_s=0.0, lone_frac=1.0)
    alone = replace(HEADS, num_heads=2.0)
    assert curve.line(gpu, n, HEADS).launch_s == plain.line(gpu, n, HEADS).launch_s
    slow, quick = curve.line(gpu, n, alone), plain.line(gpu, n, alone)
    assert slow.s_per_cached_token == pytest.approx(2.0 * quick.s_per_cached_token)
    assert slow.launch_s - 1e-5 == pytest.approx(2.0 * (quick.launch_s - 5e-6))


def test_blocks_beyond_one_per_sm_queue() -> None:
    """H100 has 132 SMs: 66 sequences of two key heads start at once, 264 queue three blocks deep at 2 µs each."""
    gpu, n = load_gpu("h100_sxm"), np.array([66.0, 264.0])
    curve = DecodeCurve(launch_s=5e-6, block_s=2e-6)
    heads = replace(HEADS, io_bytes=0.0)
    assert curve.line(gpu, n, heads).launch_s == pytest.approx([5e-6, 11e-6])


def test_wide_heads_and_what_a_key_costs_besides_its_dims() -> None:
    """128 dims and 32 more take 5/4 of the bytes; 256 dims and 32 more 9/8, at half the rate."""
    gpu, n = load_gpu("h100_sxm"), np.array([512.0])
    plain, curve = DecodeCurve(row_tile=1.0), DecodeCurve(row_tile=1.0, key_dims=32.0, wide_frac=0.5)
    wide = replace(HEADS, dims=512.0, kv_bytes=1024.0)
    for heads, factor in ((HEADS, 5 / 4), (wide, 9 / 8 / 0.5)):
        slow, quick = curve.line(gpu, n, heads), plain.line(gpu, n, heads)
        assert slow.s_per_cached_token == pytest.approx(factor * quick.s_per_cached_token, rel=1e-3)


def test_prefill_multiplies_wide_heads_and_the_widest_at_rates_of_their_own() -> None:
    """Heads of 192 dims at half the rate of 128, those of 256 at half of that again."""
    gpu, curve = load_gpu("l40s"), PrefillCurve(softmax_dims=0.0, wide_frac=0.5, widest_frac=0.5)
    pairs = [float(curve.coefficients(gpu, replace(HEADS, dims=2.0 * dim))[0]) / dim for dim in (128.0, 192.0, 256.0)]
    assert np.array(pairs) / pairs[0] == pytest.approx([1.0, 2.0, 4.0])


def test_prefill_of_a_benchmark_finds_a_small_step_in_the_cache() -> None:
    """Queries and outputs of 100 tokens come at six times the bandwidth, of 100,000 at 0.8 of it; a step's line is all
    cold."""
    gpu, tokens = load_gpu("l40s"), np.array([100.0, 100_000.0])
    cold = PrefillCurve(memory_frac=0.8)
    curve = replace(cold, cache_bytes=50e6, cache_frac=6.0)
    io_s = tokens * HEADS.io_bytes / gpu.bandwidth_bytes_per_s
    spared_s = cold.measured_s(gpu, tokens, 0.0 * tokens, HEADS) - curve.measured_s(gpu, tokens, 0.0 * tokens, HEADS)
    assert spared_s[0] == pytest.approx(io_s[0] * (1 / 0.8 - 1 / 6.0))
    assert 0.0 < spared_s[1] < 1e-3 * io_s[1]
    assert curve.line(gpu, HEADS) == cold.line(gpu, HEADS)


def test_a_window_reads_the_tokens_beside_it_once_there_are_any() -> None:
    """A window of 128 that ends within blocks of keys reads 64 more of 4,096 cached tokens, and 10 of 138."""
    gpu, n = load_gpu("h100_sxm"), np.array([512.0])
    plain, curve = DecodeCurve(), DecodeCurve(window_pad=64.0)
    for cached, read in ((128.0, 128.0), (138.0, 138.0), (4096.0, 192.0)):
        padded = curve.measured_s(gpu, n, n * cached, HEADS, n * (cached - 128.0))
        assert padded == pytest.approx(plain.measured_s(gpu, n, n * read, HEADS))
    line = curve.line(gpu, n, HEADS)
    assert line.launch_s + line.s_per_cached_token * n * 128 == pytest.approx(
        plain.measured_s(gpu, n, n * 192.0, HEADS)
    )


def test_parts_of_a_split_sequence_are_joined() -> None:
    """256 tokens are walked in one part, 512 in several whose joining takes 4 µs; a step's line always joins."""
    gpu, n = load_gpu("h100_sxm"), np.array([2.0])
    plain, curve = DecodeCurve(), DecodeCurve(join_s=4e-6)
    for tokens, join_s in ((256.0, 0.0), (512.0, 4e-6)):
        longer = curve.measured_s(gpu, n, n * tokens, HEADS) - plain.measured_s(gpu, n, n * tokens, HEADS)
        assert longer == pytest.approx(join_s, abs=1e-12)
    assert curve.line(gpu, n, HEADS).launch_s == pytest.approx(plain.line(gpu, n, HEADS).launch_s + 4e-6)


def test_a_kernel_without_a_choice_takes_large_tiles() -> None:
    """256 rows and 128 columns in two tiles of 128 × 128 on two SMs: each walks k alone at its share of the peak.

    A kernel that may cut the same product into smaller tiles and split k is faster; 16 rows take any tile.
    """
    gpu, k = load_gpu("h100_sxm"), 65536.0
    free = GemmCurve(launch_s=0.0, exponent=12.0, k_half=0.0, tile_half=0.0, sm_share=12.0, compute_frac=0.5)
    fixed = replace(free, least_tile=16384.0, split_s=1.0)
    sm_flop_per_s = 0.5 * gpu.peak_flop_per_s("bf16") / gpu.num_sms
    shape = (np.array([256.0]), np.array([128.0]), np.array([k]))
    assert fixed.seconds(gpu, *shape, "bf16") == pytest.approx(2 * 128 * 128 * k / sm_flop_per_s, rel=1e-2)
    assert free.seconds(gpu, *shape, "bf16") < 0.2 * fixed.seconds(gpu, *shape, "bf16")
    few = (np.array([16.0]), np.array([8192.0]), np.array([8192.0]))
    assert fixed.seconds(gpu, *few, "bf16") == pytest.approx(replace(fixed, least_tile=0.0).seconds(gpu, *few, "bf16"))


def test_a_short_row_costs_a_whole_one_to_quantise() -> None:
    """Rows of 128 numbers cost what `quantise_row` = 2,048 do: 16 times their bytes; rows of 32,768 cost their own."""
    gpu = load_gpu("h100_sxm")
    curve = GemmCurve(quantise_row=2048.0)
    for k, width in ((128.0, 2048.0), (32768.0, 32768.0)):
        m, n = np.array([4096.0]), np.array([128.0])
        longer = curve.seconds(gpu, m, n, np.array([k]), "fp8") - replace(
            curve, quantise_frac=1e9, quantise_row=0.0
        ).seconds(gpu, m, n, np.array([k]), "fp8")
        moved = 4096 * width * 3 / (curve.quantise_frac * gpu.bandwidth_bytes_per_s)
        assert longer == pytest.approx(moved, rel=1e-4)


def test_ranking_one_long_sequence_takes_one_sm_and_many_the_bandwidth() -> None:
    """131,072 keys at 0.4 ns each take 52 µs for one sequence; 1,024 such sequences take what their bytes do."""
    gpu = load_gpu("b200_sxm")
    curve = RankingCurve(step_s=0.4e-9, memory_frac=0.5)
    alone, many = curve.s_per_token(gpu, np.array([1.0, 1024.0]), 132.0)
    assert alone * 131072 == pytest.approx(52.4e-6, rel=5e-3)
    assert many == pytest.approx(132 / (0.5 * gpu.bandwidth_bytes_per_s), rel=5e-3)


def test_messages_beyond_the_one_shot_buffers_take_two_shots() -> None:
    """Up to 256 KiB one pass, 6 µs + 7·256 KiB over half the link; one byte more pays the second pass's 10 µs too."""
    gpu = load_gpu("b200_sxm")
    curve = LinkCurve(launch_s=6e-6, one_shot_frac=0.5, extra_s=10e-6, two_shot_frac=0.5, one_shot_bytes=262144.0)
    within, beyond = curve.seconds(gpu, "all_reduce", np.array([262144.0, 262145.0]), 8)
    rate = 0.5 * gpu.nvlink_bytes_per_s
    assert within == pytest.approx(6e-6 + 7 * 262144 / rate)
    assert beyond == pytest.approx(16e-6 + 1.75 * 262145 / rate)


def test_tokens_go_to_their_experts_by_deepep_or_by_nccl() -> None:
    """Where DeepEP is in use H100 has its dispatch and combine, which differ; else, as on A100, NCCL exchanges."""
    h100, a100 = (load_timing(load_gpu(name), "sglang", deepep=True) for name in ("h100_sxm", "a100_sxm"))
    assert h100.exchange_s([1e6], 8, "dispatch") != h100.exchange_s([1e6], 8, "combine")
    assert a100.exchange_s([1e6], 8, "dispatch") == a100.exchange_s([1e6], 8, "combine")
    plain = load_timing(load_gpu("h100_sxm"), "sglang")
    assert plain.exchange_s([1e6], 8, "dispatch") == plain.exchange_s([1e6], 8, "combine")


def test_deepep_brings_the_block_scaled_experts_of_deepgemm() -> None:
    """With DeepEP block-scaled experts take what they take under TensorRT-LLM, other formats what they took."""
    layer = ExpertLayer(hidden=7168, intermediate=2048, num_experts=256, experts_per_gpu=32, top_k=8)
    own, deepep, trtllm = (
        load_timing(load_gpu("gb200"), engine, deepep=deepep)
        for engine, deepep in (("sglang", False), ("sglang", True), ("trtllm", False))
    )

    def seconds(timing: OperatorTiming, dtype: str) -> float:
        return float(timing.moe_s([4096.0], layer, dtype=dtype, power_law=False)[0])

    assert seconds(deepep, "fp8_block") == seconds(trtllm, "fp8_block") != seconds(own, "fp8_block")
    assert seconds(deepep, "fp4") == seconds(own, "fp4")


def test_an_expert_layer_reads_only_the_experts_it_touches() -> None:
    """One token of top-8 touches 8 of 128 experts: its memory time is a fraction of that of a large batch."""
    timing = load_timing(load_gpu("h100_sxm"), "vllm")
    layer = ExpertLayer(hidden=4096, intermediate=1536, num_experts=128, experts_per_gpu=128, top_k=8)
    one, many = timing.moe_s([1.0, 512.0], layer, dtype="bf16", power_law=False)
    assert one < 0.25 * many


def test_tiers_tell_what_a_time_rests_on() -> None:
    """H100 under vLLM is fitted in bf16 and borrows fp4; a GPU of an architecture without cards has its data sheet."""
    timing = load_timing(load_gpu("h100_sxm"), "vllm")
    assert timing.tier("gemm", "bf16") == "fitted"
    assert timing.tier("gemm", "fp4") == "borrowed"
    unknown = replace(load_gpu("h100_sxm"), name="next", architecture="next")
    assert load_timing(unknown, "vllm").tier("gemm") == "data_sheet"
    assert load_timing(unknown, "vllm").residual_frac("gemm") is None


def test_a_data_sheet_alone_borrows_its_architecture_or_nothing() -> None:
    """H20 and A100 PCIe borrow Hopper's and Ampere's curves; MI300X, of an architecture nobody measured, has none.

    H20 decodes between H100 and H200 (its bandwidth) and multiplies large products 4 to 9 times slower than H100.
    """
    for name, tier in (
        ("h20", "borrowed"),
        ("h100_nvl", "borrowed"),
        ("a100_pcie", "borrowed"),
        ("mi300x", "data_sheet"),
    ):
        timing = load_timing(load_gpu(name), "vllm")
        assert {timing.tier(kind) for kind in ("gemm", "context_attention", "generation_attention")} == {tier}, name
    h20, h100, h200 = (load_timing(load_gpu(name), "vllm") for name in ("h20", "h100_sxm", "h200_sxm"))

    def one_s(timing: OperatorTiming, m: float) -> float:
        return float(timing.gemm_s([m], n=28672, k=8192, dtype="bf16")[0])

    assert one_s(h200, 1) < one_s(h20, 1) < one_s(h100, 1)
    assert 4 < one_s(h20, 8192) / one_s(h100, 8192) < 9


def test_a_sister_gpu_is_scaled_by_its_data_sheet() -> None:
    """A Hopper with 10 % more bandwidth than any card borrows Hopper's curves and decodes faster than H200."""
    custom = replace(load_gpu("h200_sxm"), name="h300", bandwidth_bytes_per_s=5.28e12)
    timing, h200 = load_timing(custom, "vllm"), load_timing(load_gpu("h200_sxm"), "vllm")
    assert timing.tier("gemm", "bf16") == "borrowed"
    assert timing.gemm_s([8.0], n=8192, k=8192, dtype="bf16") < h200.gemm_s([8.0], n=8192, k=8192, dtype="bf16")


def test_an_engine_without_timings_is_refused() -> None:
    """An engine that nobody measured is named together with those that were."""
    with pytest.raises(BestServeError, match="engine: 'ollama' has no timings; accepted: vllm, sglang, trtllm"):
        load_timing(load_gpu("h100_sxm"), "ollama")
