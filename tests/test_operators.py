"""The work of a stage: by hand, conserved under every division of the model, never decreasing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.catalogue.models import load_model, model_ids
from estimator.dtypes import Dtypes, WeightDtype
from estimator.errors import BestServeError
from estimator.model import DenseFfn, GroupedQueryAttention, LayerGroup, ModelShape, MoeFfn
from estimator.operators import (
    AllGather,
    AllReduce,
    AllToAll,
    DeltaNetOp,
    Elementwise,
    ExpertFfn,
    Gemm,
    GroupedAttention,
    LatentAttentionOp,
    Operator,
    SparseAttentionOp,
    StageTransfer,
    all_stage_operators,
    model_operators,
    pipeline_layers,
    resident_weight_bytes,
    stage_operators,
)
from estimator.parallelism import Parallelism

ATTENTION = (GroupedAttention, LatentAttentionOp, SparseAttentionOp, DeltaNetOp)


def matrix_flop(operators: Iterable[Operator], tokens: float) -> float:
    """FLOP of all weight matrices at that many tokens, every sequence sampled."""
    return sum(op.count * op.flop(tokens) for op in operators if isinstance(op, (Gemm, ExpertFfn)))


def cache_bytes(operators: Iterable[Operator]) -> float:
    """KV bytes per token over all layers."""
    return sum(op.count * op.kv_bytes_per_token for op in operators if isinstance(op, ATTENTION))


def named(operators: Iterable[Operator], name: str) -> list[Operator]:
    """Operators of that name."""
    return [op for op in operators if op.name == name]


# Matrix weights by hand: layers · (attention + feed-forward that one token visits) + head; KV bytes per token in bf16
BY_HAND = {
    "llama-3.1-8b": (
        32 * (4096 * (32 + 2 * 8) * 128 + 32 * 128 * 4096 + 3 * 4096 * 14336) + 4096 * 128256,
        32 * 2 * 8 * 128 * 2,
    ),
    "qwen3-32b": (
        64 * (5120 * (64 + 2 * 8) * 128 + 64 * 128 * 5120 + 3 * 5120 * 25600) + 5120 * 151936,
        64 * 2 * 8 * 128 * 2,
    ),
    "mixtral-8x7b-v0.1": (
        32 * (4096 * (32 + 2 * 8) * 128 + 32 * 128 * 4096 + 4096 * 8 + 2 * 3 * 4096 * 14336) + 4096 * 32000,
        32 * 2 * 8 * 128 * 2,
    ),
    "qwen3-235b-a22b": (
        94 * (4096 * (64 + 2 * 4) * 128 + 64 * 128 * 4096 + 4096 * 128 + 8 * 3 * 4096 * 1536) + 4096 * 151936,
        94 * 2 * 4 * 128 * 2,
    ),
    "deepseek-v3": (
        61 * (7168 * (1536 + 576) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168)
        + 3 * 3 * 7168 * 18432
        + 58 * (7168 * 256 + 9 * 3 * 7168 * 2048)
        + 7168 * 129280,
        61 * (512 + 64) * 2,
    ),
    "gpt-oss-120b": (
        36 * (2880 * (64 + 2 * 8) * 64 + 64 * 64 * 2880 + 2880 * 128 + 4 * 3 * 2880 * 2880) + 2880 * 201088,
        18 * 2 * 8 * 64 * 2,  # the 18 full layers; the windowed ones hold 128 tokens a sequence
    ),
    "qwen3.5-397b-a17b": (
        45 * (4096 * (2 * 2048 + 2 * 8192 + 2 * 64) + 8192 * 4096)
        + 15 * (4096 * (2 * 32 + 2 * 2) * 256 + 32 * 256 * 4096)
        + 60 * (4096 * 512 + 11 * 3 * 4096 * 1024 + 4096)  # router, ten experts and the shared one, its gate
        + 4096 * 248320,
        15 * 2 * 2 * 256 * 2,
    ),
}


@pytest.mark.parametrize(("model_id", "matrices", "kv_bytes"), [(name, *hand) for name, hand in BY_HAND.items()])
def test_flop_and_cache_by_hand(model_id: str, matrices: int, kv_bytes: int) -> None:
    """A token costs two FLOP per weight of every matrix it visits, and leaves the KV bytes worked out by hand."""
    operators = model_operators(load_model(model_id))
    assert matrix_flop(operators, 1.0) == pytest.approx(2 * matrices, rel=1e-12)
    assert cache_bytes(operators) == kv_bytes


@pytest.mark.parametrize("model_id", model_ids())
def test_weights_are_the_models(model_id: str) -> None:
    """Matrices and embedding hold all but 0.1 % of the parameters: only norms, biases, convolutions are left out."""
    model = load_model(model_id)
    held = resident_weight_bytes(model_operators(model)) / 2 + model.vocab_size * model.hidden_size
    assert model.num_parameters * 0.999 <= held <= model.num_parameters


@pytest.mark.parametrize("model_id", model_ids())
def test_one_token_visits_the_active_weights(model_id: str) -> None:
    """FLOP of a token are twice the active parameters without the embedding table, within 0.1 %."""
    model = load_model(model_id)
    visited = model.active_parameters - model.vocab_size * model.hidden_size
    assert matrix_flop(model_operators(model), 1.0) == pytest.approx(2 * visited, rel=1e-3)


def test_layer_by_hand() -> None:
    """Llama-3.1-70B on four GPUs: the shapes of one layer's operators, and how often each runs, worked out by hand."""
    operators = stage_operators(load_model("llama-3.1-70b"), Parallelism(tp=4), "bf16", "bf16")
    assert operators == (
        Elementwise(name="embedding", bytes_per_token=2 * 8192 * 2),
        AllReduce(name="embedding_all_reduce", bytes_per_token=8192 * 2, num_gpus=4),
        Elementwise(name="norm", bytes_per_token=4 * 8192 * 2, count=161),  # two a layer and a last one
        Gemm(name="qkv", n=(16 + 2 * 2) * 128, k=8192, dtype="bf16", count=80),
        Elementwise(name="rope", bytes_per_token=2 * (16 + 2) * 128 * 2, count=80),
        Elementwise(name="kv_write", bytes_per_token=2 * 2 * 128 * (2 + 2), count=80),
        GroupedAttention(name="attention", num_heads=16, num_kv_heads=2, head_dim=128, kv_dtype="bf16", count=80),
        Gemm(name="attention_out", n=8192, k=16 * 128, dtype="bf16", count=80),
        AllReduce(name="attention_all_reduce", bytes_per_token=8192 * 2, num_gpus=4, count=80),
        Gemm(name="ffn_up", n=2 * 7168, k=8192, dtype="bf16", count=80),
        Elementwise(name="ffn_activation", bytes_per_token=3 * 7168 * 2, count=80),
        Gemm(name="ffn_down", n=8192, k=7168, dtype="bf16", count=80),
        AllReduce(name="ffn_all_reduce", bytes_per_token=8192 * 2, num_gpus=4, count=80),
        Gemm(name="head", n=32064, k=8192, dtype="bf16", role="head"),
        Elementwise(name="sampling", bytes_per_token=128256 * 6, role="head"),
        AllGather(name="logits", bytes_per_token=32064 * 2, num_gpus=4, role="head"),
    )


def test_gemm_by_hand() -> None:
    """A GEMM of 4096 × 6144 weights at 10 tokens: 2·10·4096·6144 FLOP, and weights once plus activations in bytes."""
    gemm = Gemm(name="qkv", n=6144, k=4096, dtype="fp8")
    assert gemm.flop(10.0) == 2 * 10 * 4096 * 6144
    assert gemm.weight_bytes == 4096 * 6144 * (1 + 4 / 16384)
    assert gemm.bytes(10.0) == gemm.weight_bytes + 2 * 10 * (4096 + 6144)


def test_attention_by_hand() -> None:
    """Each kind of attention at one pair and one cached token, worked out by hand."""
    grouped = GroupedAttention(name="a", num_heads=32, num_kv_heads=8, head_dim=128, kv_dtype="fp8")
    assert (grouped.flop(1.0), grouped.bytes(1.0)) == (4 * 32 * 128, 2 * 8 * 128)
    (latent,) = named(model_operators(load_model("deepseek-r1")), "attention")
    assert isinstance(latent, LatentAttentionOp)
    assert latent.flop(1.0) == 2 * 128 * (192 + 128)  # scores over 192 numbers, values over 128
    assert latent.decode_flop(1.0) == 2 * 128 * (576 + 512)  # scores over latent and rope, values over the latent
    assert latent.bytes(1.0) == 576 * 2
    (sparse,) = named(model_operators(load_model("deepseek-v3.2"), "fp8", "fp8"), "attention")
    assert isinstance(sparse, SparseAttentionOp)
    assert sparse.bytes(1.0) == 656  # vLLM's fp8 layout: 512 numbers, 4 scales of 4 bytes, 64 rope numbers in bf16
    assert sparse.kv_bytes_per_token == 656 + 132
    assert (sparse.index_flop(1.0), sparse.index_bytes(1.0)) == (2 * 64 * 128, 132)


def test_delta_net_by_hand() -> None:
    """A delta net of Qwen3.5 on 8 GPUs keeps 8 float32 matrices of 128 × 128 and three inputs of 1536 channels."""
    operators = stage_operators(load_model("qwen3.5-397b-a17b"), Parallelism(tp=8), "fp8", "bf16")
    (delta,) = [op for op in operators if isinstance(op, DeltaNetOp)]
    assert delta.count == 45
    assert delta.state_bytes_per_seq == 8 * 128 * 128 * 4 + 3 * (2 * 2 * 128 + 8 * 128) * 2
    assert delta.bytes(5.0) == 2 * 5 * delta.state_bytes_per_seq
    assert delta.flop(1.0) == 7 * 8 * 128 * 128 + 2 * 4 * (2 * 2 * 128 + 8 * 128)


def test_experts_by_hand() -> None:
    """Two of eight experts per token: one token touches 2, four touch 8·(1 − 0.75⁴), very many touch all 8."""
    (experts,) = named(model_operators(load_model("mixtral-8x7b-v0.1")), "experts")
    assert isinstance(experts, ExpertFfn)
    assert experts.experts_touched(1.0) == pytest.approx(2)
    assert experts.experts_touched(4.0) == pytest.approx(8 * (1 - 0.75**4))
    assert experts.experts_touched(1e4) == pytest.approx(8)
    assert experts.weight_bytes == 8 * 3 * 4096 * 14336 * 2
    assert experts.bytes(1.0) == pytest.approx(2 * 3 * 4096 * 14336 * 2 + 2 * 2 * (2 * 4096 + 3 * 14336))


def test_experts_touched_is_the_mean_of_draws() -> None:
    """The expected number of experts touched is what drawing distinct experts per token gives on average."""
    (experts,) = named(model_operators(load_model("qwen3-30b-a3b")), "experts")
    assert isinstance(experts, ExpertFfn)
    rng = np.random.default_rng(0)
    draws = [len({int(e) for _ in range(6) for e in rng.permutation(128)[:8]}) for _ in range(2000)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - experts.experts_touched(6.0)) < 4 * error
    assert error < 0.01 * experts.experts_touched(6.0)


@pytest.mark.parametrize("model_id", ["llama-3.1-8b", "qwen3-32b", "mixtral-8x7b-v0.1", "gpt-oss-120b"])
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallel_divides(model_id: str, tp: int) -> None:
    """tp GPUs hold the matrices once together (routers apart) and the cache once, and share the FLOP evenly."""
    model = load_model(model_id)
    whole = [op for op in model_operators(model) if op.name != "router"]
    share = [op for op in stage_operators(model, Parallelism(tp=tp), "bf16", "bf16") if op.name != "router"]
    assert tp * resident_weight_bytes(tuple(share)) == pytest.approx(resident_weight_bytes(tuple(whole)), rel=1e-12)
    assert tp * matrix_flop(share, 7.0) == pytest.approx(matrix_flop(whole, 7.0), rel=1e-12)
    assert tp * cache_bytes(share) == pytest.approx(cache_bytes(whole), rel=1e-12)


def test_what_tensor_parallel_copies() -> None:
    """Four KV heads on 8 GPUs are held twice; a latent cache and the down projections are on every GPU."""
    moe = load_model("qwen3-235b-a22b")
    assert 8 * cache_bytes(stage_operators(moe, Parallelism(tp=8), "bf16", "bf16")) == 2 * cache_bytes(
        model_operators(moe)
    )
    latent = load_model("deepseek-v3")
    share = stage_operators(latent, Parallelism(tp=8), "bf16", "bf16")
    assert cache_bytes(share) == cache_bytes(model_operators(latent))
    assert named(share, "qkv_down") == named(model_operators(latent), "qkv_down")


@pytest.mark.parametrize("model_id", ["llama-3.1-70b", "deepseek-r1", "qwen3.5-397b-a17b"])
@pytest.mark.parametrize("pp", [2, 3, 4])
def test_stages_make_the_model(model_id: str, pp: int) -> None:
    """The stages together hold every matrix and cache once, and the slowest is the one with the most weights."""
    model = load_model(model_id)
    stages = all_stage_operators(model, Parallelism(pp=pp), Dtypes())
    whole = model_operators(model)
    assert sum(map(resident_weight_bytes, stages)) == pytest.approx(resident_weight_bytes(whole), rel=1e-12)
    assert sum(map(cache_bytes, stages)) == cache_bytes(whole)
    slowest = stage_operators(model, Parallelism(pp=pp), "bf16", "bf16")
    assert resident_weight_bytes(slowest) == max(map(resident_weight_bytes, stages))
    assert all(isinstance(op, StageTransfer) for stage in stages for op in named(stage, "stage_transfer"))


@pytest.mark.parametrize(
    ("pp", "sizes"), [(1, [61]), (2, [31, 30]), (3, [20, 21, 20]), (4, [15, 15, 16, 15]), (8, [7, 7, 8, 8, 8, 8, 8, 7])]
)
def test_pipeline_split(pp: int, sizes: list[int]) -> None:
    """61 layers split as vLLM splits them: what remains goes to the stages before the last, in order."""
    model = load_model("deepseek-r1")
    stages = pipeline_layers(model, pp)
    assert [sum(group.count for group in stage) for stage in stages] == sizes
    kinds = [group.ffn for stage in stages for group in stage for _ in range(group.count)]
    assert kinds == [group.ffn for group in model.layers for _ in range(group.count)]


@pytest.mark.parametrize(("dp", "tp", "ep"), [(8, 1, 8), (4, 2, 8), (1, 8, 8), (1, 8, 2), (8, 1, 1), (2, 4, 4)])
def test_expert_parallel_conserves(dp: int, tp: int, ep: int) -> None:
    """However a stage's 8 GPUs divide the experts, they hold them once and do every routed token's work once."""
    model = load_model("deepseek-v3")
    (whole,) = named(model_operators(model), "experts")
    (share,) = named(stage_operators(model, Parallelism(dp=dp, tp=tp, ep=ep), "bf16", "bf16"), "experts")
    assert isinstance(whole, ExpertFfn)
    assert isinstance(share, ExpertFfn)
    assert 8 * share.weight_bytes == whole.weight_bytes
    assert 8 * share.flop(3.0) == pytest.approx(whole.flop(3.0 * dp), rel=1e-12)


def test_how_tokens_reach_experts() -> None:
    """One rank sums over its GPUs; ranks without expert groups gather and scatter; with groups they dispatch."""
    model = load_model("qwen3-30b-a3b")

    def links(**degrees: int) -> set[str]:
        operators = stage_operators(model, Parallelism(**degrees), "fp8", "bf16")
        return {op.name for op in operators if isinstance(op, AllReduce | AllGather | AllToAll)}

    assert links() == set()
    assert links(tp=4, ep=4) == {"embedding_all_reduce", "attention_all_reduce", "experts_all_reduce", "logits"}
    assert links(dp=4) == {"gather_tokens", "scatter_outputs"}
    assert links(dp=4, ep=4) == {"dispatch", "combine"}
    both = {"embedding_all_reduce", "attention_all_reduce", "logits", "dispatch", "combine", "gather_outputs"}
    assert links(dp=2, tp=2, ep=4) == both


def test_dispatch_by_hand() -> None:
    """With 2 expert groups and top-8, a token goes to 2·(1 − 2⁻⁸) groups, half of them elsewhere; fp8 out, bf16 in."""
    operators = stage_operators(load_model("qwen3-30b-a3b"), Parallelism(dp=2, ep=2), "fp8", "bf16")
    (dispatch,), (combine,) = named(operators, "dispatch"), named(operators, "combine")
    assert isinstance(dispatch, AllToAll)
    assert isinstance(combine, AllToAll)
    assert dispatch.bytes_per_token == pytest.approx(2048 * 1 * (1 - 2**-8))
    assert combine.bytes_per_token == pytest.approx(2048 * 2 * (1 - 2**-8))


def test_what_stays_bf16() -> None:
    """Router and head are bf16 in any format; so is gpt-oss's attention, and latent attention beside fp4."""

    def formats(model_id: str, dtype: WeightDtype) -> dict[str, str]:
        operators = model_operators(load_model(model_id), dtype)
        return {op.name: op.dtype for op in operators if isinstance(op, Gemm | ExpertFfn)}

    assert formats("mixtral-8x7b-v0.1", "fp8") == {
        "qkv": "fp8",
        "attention_out": "fp8",
        "router": "bf16",
        "experts": "fp8",
        "head": "bf16",
    }
    assert formats("gpt-oss-120b", "fp4")["qkv"] == "bf16"
    assert formats("gpt-oss-120b", "fp4")["experts"] == "fp4"
    deepseek = formats("deepseek-r1", "fp4")
    assert (deepseek["q_up"], deepseek["ffn_up"], deepseek["shared_up"]) == ("bf16", "fp4", "fp4")
    assert formats("llama-3.1-70b", "fp4")["qkv"] == "fp4"
    assert formats("kimi-k2.5", "int4")["shared_up"] == "bf16"


@pytest.mark.parametrize(
    ("model_id", "degrees", "message"),
    [
        ("llama-4-scout-17b-16e-instruct", {"tp": 16}, "parallelism: 16 does not divide num_heads = 40"),
        ("mixtral-8x7b-v0.1", {"tp": 16, "ep": 16}, "16 does not divide num_experts = 8 of mistralai/Mixtral"),
        ("qwen3-30b-a3b", {"dp": 512}, "512 does not divide intermediate_size = 768"),
        ("qwen3.5-397b-a17b", {"tp": 32}, "32 does not divide num_key_heads = 16"),
        ("llama-3.1-8b", {"pp": 33}, "pp: 33 exceeds the 32 layers of meta-llama/Llama-3.1-8B"),
    ],
)
def test_impossible_divisions(model_id: str, degrees: dict[str, int], message: str) -> None:
    """A degree that does not divide the model is refused with the number it should divide."""
    with pytest.raises(BestServeError, match=message):
        stage_operators(load_model(model_id), Parallelism(**degrees), "bf16", "bf16")


HEADS = st.sampled_from([(8, 8), (16, 8), (32, 8), (64, 8)])
FFN = st.one_of(
    st.builds(DenseFfn, intermediate_size=st.sampled_from([512, 1024, 4096])),
    st.builds(
        MoeFfn,
        num_experts=st.sampled_from([8, 16, 64]),
        top_k=st.integers(1, 8),
        intermediate_size=st.sampled_from([512, 1024]),
    ),
)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """A small transformer that 1, 2, 4 and 8 GPUs divide."""
    num_heads, num_kv_heads = draw(HEADS)
    window_tokens = draw(st.sampled_from([0, 128]))
    attention = GroupedQueryAttention(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=64, window_tokens=window_tokens
    )
    group = LayerGroup(count=draw(st.integers(1, 9)), attention=attention, ffn=draw(FFN))
    return ModelShape(name="drawn", source="", vocab_size=1024, hidden_size=512, tied_head=False, layers=(group,))


@settings(deadline=None)
@given(model=shapes(), tp=st.sampled_from([1, 2, 4, 8]), tokens=st.floats(1, 1e5), more=st.floats(0, 1e5))
def test_more_tokens_never_less_work(model: ModelShape, tp: int, tokens: float, more: float) -> None:
    """More tokens never cost fewer FLOP or bytes, in any operator."""
    for op in stage_operators(model, Parallelism(tp=tp), "bf16", "bf16"):
        assert op.bytes(tokens + more) >= op.bytes(tokens)
        if isinstance(op, Gemm | ExpertFfn | GroupedAttention):
            assert op.flop(tokens + more) >= op.flop(tokens)


@settings(deadline=None)
@given(model=shapes(), tp=st.sampled_from([2, 4, 8]), pp=st.integers(1, 3))
def test_more_gpus_never_hold_more(model: ModelShape, tp: int, pp: int) -> None:
    """Dividing a model further never adds weights or cache to a GPU, and tp divides all matrices but the router."""
    pp = min(pp, model.num_layers)
    single = stage_operators(model, Parallelism(), "bf16", "bf16")
    divided = stage_operators(model, Parallelism(tp=tp, pp=pp), "bf16", "bf16")
    assert resident_weight_bytes(divided) <= resident_weight_bytes(single)
    assert cache_bytes(divided) <= cache_bytes(single)
    sharded = [op for op in stage_operators(model, Parallelism(tp=tp), "bf16", "bf16") if op.name != "router"]
    whole = [op for op in single if op.name != "router"]
    assert tp * resident_weight_bytes(tuple(sharded)) == pytest.approx(resident_weight_bytes(tuple(whole)))


@settings(deadline=None)
@given(model=shapes(), num_tokens=st.lists(st.integers(1, 9000), min_size=1, max_size=5))
def test_arrays_equal_floats(model: ModelShape, num_tokens: list[int]) -> None:
    """An array of token counts gives what its entries give one by one."""
    tokens = np.array(num_tokens, dtype=np.float64)
    for op in model_operators(model):
        assert op.bytes(tokens) == pytest.approx([op.bytes(float(num)) for num in num_tokens])
        if isinstance(op, Gemm | ExpertFfn):
            assert op.flop(tokens) == pytest.approx([op.flop(float(num)) for num in num_tokens])


@settings(deadline=None)
@given(model=shapes())
def test_narrower_formats_hold_less(model: ModelShape) -> None:
    """bf16 weights take more bytes than fp8, those more than NVFP4, those more than grouped int4."""
    formats: tuple[WeightDtype, ...] = ("bf16", "fp8", "fp4", "int4")
    held = [resident_weight_bytes(model_operators(model, dtype)) for dtype in formats]
    assert held == sorted(held, reverse=True)
    assert len(set(held)) == len(held)
