"""What fits: weights, caches, states and blocks by hand, as published, and never more where there is less room."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model, model_ids
from estimator.dtypes import Dtypes, WeightDtype
from estimator.errors import BestServeError
from estimator.hardware import Gpu
from estimator.instance import BLOCK_TOKENS, EngineLimits
from estimator.memory import (
    MemoryPolicy,
    activation_bytes,
    kv_bytes_per_token,
    kv_bytes_per_token_per_gpu,
    num_kv_blocks,
    stage_memories,
    state_bytes_per_seq,
)
from estimator.model import ModelShape
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism

H100 = Gpu(
    name="h100",
    architecture="hopper",
    memory_bytes=85e9,
    bandwidth_bytes_per_s=3.35e12,
    flop_per_s={"bf16": 989e12},
    num_sms=132,
    gpus_per_node=8,
    nvlink_domain_gpus=8,
    nvlink_bytes_per_s=450e9,
    pcie_bytes_per_s=64e9,
    network_bytes_per_s=50e9,
    power_w=700,
    source="round numbers for hand arithmetic",
    date="2026-11-24",
)
LIMITS = EngineLimits(max_num_batched_tokens=8192, max_num_seqs=256)
POLICY = MemoryPolicy(utilisation_frac=0.9, reserve_bytes=1e9)
BF16, FP8, FP4, INT4 = Dtypes(), Dtypes(weight="fp8", kv="fp8"), Dtypes(weight="fp4"), Dtypes(weight="int4")


def blocks(model_id: str, *, dtypes: Dtypes = BF16, gpu: Gpu = H100, **degrees: int) -> int | Infeasible:
    """KV blocks of a model on H100s of 85 GB, 0.9 of them the engine's, 1 GB reserved."""
    model = load_model(model_id)
    return num_kv_blocks(model, gpu, Parallelism(**degrees), dtypes=dtypes, limits=LIMITS, policy=POLICY)


def test_llama_70b_on_one_gpu_is_too_big() -> None:
    """141 GB of bf16 weights exceed the 73.6 GB that one H100 offers, by 92 %; no blocks, and the reason says so."""
    matrices = 80 * (8192 * 80 * 128 + 64 * 128 * 8192 + 3 * 8192 * 28672) + 2 * 8192 * 128256
    offered = 0.9 * 85e9 - 1e9 - 8192 * 2 * (4 * 8192 + 3 * 28672)
    block = 16 * 80 * 2 * 8 * 128 * 2
    outcome = blocks("llama-3.1-70b")
    assert isinstance(outcome, Infeasible)
    assert outcome.rule == "memory"
    assert outcome.violation == pytest.approx((2 * matrices + block - offered) / offered)
    assert outcome.reason.startswith("weights of 141.1 GB and one KV block exceed the 73.6 GB")


def test_llama_70b_on_four_gpus_by_hand() -> None:
    """On four H100s each holds 35 GB of weights and 80 KiB of cache a token; the rest makes 30,009 blocks."""
    weights = (80 * (8192 * 80 * 128 + 64 * 128 * 8192 + 3 * 8192 * 28672) + 2 * 8192 * 128256) * 2 / 4
    activations = 8192 * 2 * (4 * 8192 + 3 * 28672 / 4)
    block = 16 * 80 * 2 * 2 * 128 * 2
    by_hand = int((0.9 * 85e9 - 1e9 - activations - weights) / block)
    assert blocks("llama-3.1-70b", tp=4) == by_hand == 30009


def test_gpt_oss_on_one_gpu_by_hand() -> None:
    """gpt-oss-120b in MXFP4 fits one H100: 18 full layers make the blocks, 18 windows of 128 tokens 256 sequences."""
    experts = 36 * 128 * 3 * 2880 * 2880 * (0.5 + 1 / 32)
    rest = 36 * (2880 * 80 * 64 + 64 * 64 * 2880 + 2880 * 128) + 2 * 201088 * 2880
    activations = max(8192 * 2 * (4 * 2880 + 4 * (3 * 2880 + 2880)), 256 * 201088 * 10)
    states = 256 * 18 * 128 * 2 * 8 * 64 * 2
    room = 0.9 * 85e9 - 1e9 - activations - experts - 2 * rest - states
    assert blocks("gpt-oss-120b", dtypes=FP4) == int(room / (16 * 18 * 2 * 8 * 64 * 2))


def weight_bytes_per_gpu(model: ModelShape, parallelism: Parallelism, dtypes: Dtypes) -> float:
    """Resident weights of a GPU of the fullest pipeline stage."""
    return max(stage.weight_bytes for stage in stage_memories(model, parallelism, dtypes))


def test_deepseek_by_hand() -> None:
    """DeepSeek-R1 in fp8 over 8 attention ranks: an eighth of the experts, and all else, on every GPU."""
    fp8 = 1 + 4 / 128**2
    attention = (7168 * 2112 + 1536 * 128 * 192 + 128 * 128 * 7168) * fp8 + 512 * 128 * 256 * 2
    experts = 58 * (32 + 1) * 3 * 7168 * 2048 * fp8
    rest = 3 * 3 * 7168 * 18432 * fp8 + 58 * 7168 * 256 * 2 + 2 * 2 * 129280 * 7168
    model = load_model("deepseek-r1")
    per_gpu = weight_bytes_per_gpu(model, Parallelism(dp=8, ep=8), FP8)
    assert per_gpu == pytest.approx(61 * attention + experts + rest, rel=1e-12)


# Published weight files in GB (Hugging Face; gpt-oss: 60.8 and 12.8 GiB, arXiv 2508.10925, table 1), and what they hold
# besides: a vision tower of 0.4B (Kimi), a draft layer of 11.5B fp8 with its own copies of both tables (DeepSeek)
CHECKPOINT_GB = [
    ("meta-llama/Llama-3.1-70B", BF16, 141.1, 0.0),
    ("openai/gpt-oss-120b", FP4, 60.8 * 1.0737, 0.0),
    ("openai/gpt-oss-20b", FP4, 12.8 * 1.0737, 0.0),
    ("moonshotai/Kimi-K2.5", INT4, 595.0, 0.9),
    ("mistralai/Mixtral-8x7B-v0.1", BF16, 93.4, 0.0),
    ("deepseek-ai/DeepSeek-R1", FP8, 688.6, 11.5 + 2 * 2 * 0.927),
]


@pytest.mark.parametrize(("model_id", "dtypes", "checkpoint_gb", "besides_gb"), CHECKPOINT_GB)
def test_weights_match_published_files(model_id: str, dtypes: Dtypes, checkpoint_gb: float, besides_gb: float) -> None:
    """Weights with their scales are as large as the published files, within 1 %."""
    held_gb = weight_bytes_per_gpu(load_model(model_id), Parallelism(), dtypes) / 1e9
    assert held_gb == pytest.approx(checkpoint_gb - besides_gb, rel=0.01)


@pytest.mark.parametrize(
    ("model_id", "tp", "kv_bytes"),
    [
        ("llama-3.1-8b", 1, 131072),  # 128 KiB
        ("llama-2-7b-hf", 1, 524288),  # 512 KiB: no sharing of heads
        ("qwen3-235b-a22b", 4, 94 * 2 * 1 * 128 * 2),
        ("qwen3-235b-a22b", 8, 94 * 2 * 1 * 128 * 2),  # 4 heads on 8 GPUs: each held twice
        ("deepseek-r1", 8, 61 * 576 * 2),  # the latent is on every GPU
        ("glm-5", 8, 78 * (576 * 2 + 132)),  # and so is the index key
        ("qwen3.5-397b-a17b", 2, 15 * 2 * 1 * 256 * 2),
        ("llama-4-scout-17b-16e-instruct", 8, 48 * 2 * 1 * 128 * 2),  # chunks of 8192 tokens count as full context
        ("gpt-oss-20b", 1, 12 * 2 * 8 * 64 * 2),  # windows of 128 tokens do not
    ],
)
def test_cache_per_token(model_id: str, tp: int, kv_bytes: int) -> None:
    """KV bytes of a token on one GPU, by hand."""
    assert kv_bytes_per_token_per_gpu(load_model(model_id), Parallelism(tp=tp), BF16) == kv_bytes


def test_hand_over_moves_each_number_once() -> None:
    """The cache of a token over all layers counts copies once: 4 KV heads in Qwen3-235B, one latent in DeepSeek."""
    assert kv_bytes_per_token(load_model("qwen3-235b-a22b"), "bf16") == 94 * 2 * 4 * 128 * 2
    assert kv_bytes_per_token(load_model("deepseek-r1"), "fp8") == 61 * 576


def test_state_per_sequence() -> None:
    """Qwen3.5 keeps 45 float32 states a sequence, shared by tp; Llama keeps none."""
    per_layer = 64 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 64 * 128) * 2
    hybrid = load_model("qwen3.5-397b-a17b")
    assert state_bytes_per_seq(hybrid, Parallelism(), BF16) == 45 * per_layer
    assert state_bytes_per_seq(hybrid, Parallelism(tp=8), BF16) == 45 * per_layer / 8
    assert state_bytes_per_seq(load_model("llama-3.1-8b"), Parallelism(), BF16) == 0


def test_states_take_at_most_their_share() -> None:
    """However many sequences are allowed, states leave 1.0/1.9 of the room to the KV blocks."""
    model, parallelism = load_model("qwen3.5-397b-a17b"), Parallelism(tp=8)
    dtypes = Dtypes(weight="fp8")
    limits = EngineLimits(max_num_seqs=1024)
    room = 0.9 * 85e9 - 1e9 - activation_bytes(model, parallelism, limits)
    room -= weight_bytes_per_gpu(model, parallelism, dtypes)
    assert 1024 * state_bytes_per_seq(model, parallelism, dtypes) > room
    num = num_kv_blocks(model, H100, parallelism, dtypes=dtypes, limits=limits, policy=POLICY)
    assert num == int(room * (1 - 0.9 / 1.9) / (16 * kv_bytes_per_token_per_gpu(model, parallelism, dtypes)))


def test_fullest_stage_decides() -> None:
    """Blocks of a pipeline are those of its fullest stage: the last of Llama-3.1-70B's two, as both hold one table."""
    stage = (40 * (8192 * 80 * 128 + 64 * 128 * 8192 + 3 * 8192 * 28672) + 8192 * 128256) * 2 / 2
    model = load_model("llama-3.1-70b")
    assert weight_bytes_per_gpu(model, Parallelism(tp=2, pp=2), BF16) == stage
    activations = 8192 * 2 * (4 * 8192 + 3 * 28672 / 2)
    by_hand = int((0.9 * 85e9 - 1e9 - activations - stage) / (16 * 40 * 2 * 4 * 128 * 2))
    assert blocks("llama-3.1-70b", tp=2, pp=2) == by_hand


def test_tied_head_is_held_once() -> None:
    """A head tied to the embedding costs nothing on the same stage, and a second table where stages part them."""
    model = load_model("qwen3-8b")
    tied, table = replace(model, tied_head=True), 2 * model.vocab_size * model.hidden_size
    separate = weight_bytes_per_gpu(model, Parallelism(), BF16)
    assert separate - weight_bytes_per_gpu(tied, Parallelism(), BF16) == table
    assert weight_bytes_per_gpu(tied, Parallelism(pp=2), BF16) == weight_bytes_per_gpu(model, Parallelism(pp=2), BF16)


def test_activations_by_hand() -> None:
    """The widest layer decides for many tokens, the logits for many sequences, dispatched copies for experts."""
    dense = load_model("llama-3.1-8b")
    assert activation_bytes(dense, Parallelism(), LIMITS) == 8192 * 2 * (4 * 4096 + 3 * 14336)
    many = EngineLimits(max_num_batched_tokens=512, max_num_seqs=1024)
    assert activation_bytes(dense, Parallelism(), many) == 1024 * 128256 * 10
    experts = 2 * 8 / 16 * (3 * 1536 + 4096)  # 2 ranks' tokens, 8 copies of each, a 16th of them here
    by_hand = 8192 * 2 * (4 * 4096 + experts)
    moe = load_model("qwen3-235b-a22b")
    assert activation_bytes(moe, Parallelism(dp=16, ep=16), LIMITS) == pytest.approx(
        8192 * 2 * (4 * 4096 + 16 * 8 / 16 * (3 * 1536 + 4096))
    )
    assert activation_bytes(moe, Parallelism(dp=2, tp=8, ep=16), LIMITS) == pytest.approx(by_hand)


def test_engines_share_memory_differently() -> None:
    """vLLM takes activations from its share, SGLang from what the share leaves, TensorRT-LLM shares what is free."""
    model, limits, dtypes = load_model("llama-3.1-8b"), LIMITS, BF16
    weights, activations = weight_bytes_per_gpu(model, Parallelism(), dtypes), 8192 * 2 * (4 * 4096 + 3 * 14336)
    rooms = {
        POLICY: 0.9 * 85e9 - 1e9 - activations - weights,
        MemoryPolicy(utilisation_frac=0.85, reserve_bytes=1e9, activations_in_share=False): 0.85 * 85e9 - 1e9 - weights,
        MemoryPolicy(utilisation_frac=0.9, reserve_bytes=1e9, share_of_free=True): 0.9
        * (85e9 - 1e9 - activations - weights),
    }
    for policy, room in rooms.items():
        num = num_kv_blocks(model, H100, Parallelism(), dtypes=dtypes, limits=limits, policy=policy)
        assert num == int(room / (16 * 131072))


def test_activations_beyond_the_rest_come_out_of_the_share() -> None:
    """Where the share leaves too little for activations (SGLang at 0.99), the missing part is taken from the cache."""
    policy = MemoryPolicy(utilisation_frac=0.99, activations_in_share=False)
    activations = 8192 * 2 * (4 * 4096 + 3 * 14336)
    assert activations > 0.01 * 85e9
    room = 85e9 - activations - weight_bytes_per_gpu(load_model("llama-3.1-8b"), Parallelism(), BF16)
    model = load_model("llama-3.1-8b")
    num = num_kv_blocks(model, H100, Parallelism(), dtypes=BF16, limits=LIMITS, policy=policy)
    assert num == int(room / (16 * 131072))


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_share_must_be_a_share(share: float) -> None:
    """A memory share outside (0, 1] is refused by name."""
    with pytest.raises(BestServeError, match=r"memory_utilisation_frac: .* must be a share of the GPU's memory"):
        MemoryPolicy(utilisation_frac=share)


def test_formats_are_checked() -> None:
    """An unknown number format is refused with those that are known."""
    with pytest.raises(
        BestServeError, match="weight_dtype: 'fp6' is not a known format; accepted: bf16, fp8, fp4, int4"
    ):
        Dtypes(weight="fp6")  # type: ignore[arg-type]
    with pytest.raises(BestServeError, match="kv_dtype: 'int8' is not a known format; accepted: bf16, fp8"):
        Dtypes(kv="int8")  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    model_id=st.sampled_from(model_ids()),
    memory_bytes=st.floats(20e9, 2e12),
    more=st.floats(1.0, 3.0),
    weight=st.sampled_from(["bf16", "fp8"]),
)
def test_more_memory_never_holds_less(model_id: str, memory_bytes: float, more: float, weight: WeightDtype) -> None:
    """A larger GPU never holds fewer blocks, and what does not fit it misses by a positive, smaller share."""
    dtypes = Dtypes(weight=weight)
    small = blocks(model_id, dtypes=dtypes, gpu=replace(H100, memory_bytes=memory_bytes))
    large = blocks(model_id, dtypes=dtypes, gpu=replace(H100, memory_bytes=memory_bytes * more))
    if isinstance(large, Infeasible):
        assert isinstance(small, Infeasible)
        assert 0 < large.violation <= small.violation
    elif isinstance(small, Infeasible):
        assert small.violation > 0
        assert large >= 1
    else:
        assert large >= small >= 1


@settings(deadline=None)
@given(
    model_id=st.sampled_from(
        ["llama-3.1-70b", "mixtral-8x22b-v0.1", "qwen3-235b-a22b", "deepseek-v3", "qwen3.5-397b-a17b"]
    ),
    degree=st.sampled_from([1, 2, 4]),
    axis=st.sampled_from(["tp", "pp"]),
)
def test_more_gpus_hold_fewer_bytes_each(model_id: str, degree: int, axis: str) -> None:
    """Twice the tensor- or pipeline-parallel degree leaves each GPU less weight, and never more cache."""
    model = load_model(model_id)
    few, many = Parallelism(**{axis: degree}), Parallelism(**{axis: 2 * degree})
    assert weight_bytes_per_gpu(model, many, FP8) < weight_bytes_per_gpu(model, few, FP8)
    assert kv_bytes_per_token_per_gpu(model, many, FP8) <= kv_bytes_per_token_per_gpu(model, few, FP8)


@pytest.mark.parametrize(
    ("model", "engine", "utilisation", "tp", "tokens"),
    [
        # sgl-project/sglang and vllm-project/vllm issue 21348 (2025-07-22), 4 H100
        ("Qwen/Qwen3-235B-A22B", "sglang", 0.93, 4, 367_404),
        # vllm-project/vllm pull request 12569 (2025-01-30): 1,381 blocks of Llama-3.1-70B in 8 bits on one GPU of 80 GB
        ("meta-llama/Llama-3.1-70B", "vllm", 0.98, 1, 1381 * 16),
    ],
)
def test_blocks_are_those_that_engines_print(model: str, engine: str, utilisation: float, tp: int, tokens: int) -> None:
    """The KV cache that engines logged (8-bit weights) is met within 2 % of the GPU's memory, 12 % of that cache."""
    card, shape = load_engine(engine), load_model(model)
    limits = EngineLimits(max_num_batched_tokens=2048, max_num_seqs=256) if engine == "vllm" else card.limits
    dtypes, parallelism = Dtypes(weight="fp8"), Parallelism(tp=tp)
    policy = replace(card.memory, utilisation_frac=utilisation)
    gpu = load_gpu("h100_sxm")
    blocks = num_kv_blocks(shape, gpu, parallelism, dtypes=dtypes, limits=limits, policy=policy)
    assert isinstance(blocks, int)
    assert pytest.approx(tokens, rel=0.12) == BLOCK_TOKENS * blocks
    per_token = kv_bytes_per_token_per_gpu(shape, parallelism, dtypes)
    assert abs(BLOCK_TOKENS * blocks - tokens) * per_token < 0.02 * gpu.memory_bytes


def test_sparse_attention_holds_what_sglang_prints() -> None:
    """DeepSeek-V3.2 with an fp8 cache: 975,424 tokens in 43.67 GiB, index keys included (sglang pull request 11309)."""
    per_token = kv_bytes_per_token(load_model("deepseek-ai/DeepSeek-V3.2"), "fp8")
    assert per_token == 61 * (512 + 16 + 128 + 128 + 4)
    assert per_token * 975_424 / 2**30 == pytest.approx(43.67, abs=0.01)
