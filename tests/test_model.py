"""Model shapes: parameter counts by hand and as published, configs as published, cards and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimator.catalogue.models import load_model, model_ids
from estimator.errors import BestServeError
from estimator.hf_config import parse_hf_config
from estimator.model import (
    DenseFfn,
    ExpertQuantization,
    GatedDeltaNet,
    GroupedQueryAttention,
    LatentAttention,
    LayerGroup,
    ModelShape,
    MoeFfn,
)

# "Number of parameters" of each repository's safetensors files on Hugging Face, without draft layers and vision towers
SAFETENSORS_PARAMETERS = {
    "01-ai/Yi-34B": 34_388_917_248,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "codellama/CodeLlama-34b-Instruct-hf": 33_743_970_304,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
}
# (total, active) in billions as the reports and model cards state them
STATED_BILLIONS = {
    "deepseek-ai/DeepSeek-V3": (671, 37),  # arXiv 2412.19437
    "moonshotai/Kimi-K2-Instruct": (1026, 32.6),  # arXiv 2507.20534: 1.04T total, 32.6B activated
    "Qwen/Qwen3-235B-A22B": (235, 22),  # arXiv 2505.09388
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),  # model card
    "Qwen/Qwen3.5-397B-A17B": (397, 17),  # model card
    "MiniMaxAI/MiniMax-M2.5": (229, 11),  # safetensors; "10B activated" counts no embeddings
    "mistralai/Mixtral-8x7B-v0.1": (46.7, 12.9),  # mistral.ai, Mixtral of experts
    "mistralai/Mixtral-8x22B-v0.1": (141, 39),  # mistral.ai, Cheaper, better, faster, stronger
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (108, 17),  # 109B with the vision tower
    "zai-org/GLM-5": (744, 40),  # model card
}


@pytest.mark.parametrize(("model_id", "num_parameters"), SAFETENSORS_PARAMETERS.items())
def test_parameters_equal_checkpoint(model_id: str, num_parameters: int) -> None:
    """Every weight of the published checkpoint is counted, to the last one."""
    assert load_model(model_id).num_parameters == num_parameters


@pytest.mark.parametrize(("model_id", "stated"), STATED_BILLIONS.items())
def test_parameters_match_reports(model_id: str, stated: tuple[float, float]) -> None:
    """Total and active parameters are those stated, within the rounding of the statement (1 %, active 5 %)."""
    model = load_model(model_id)
    assert model.num_parameters / 1e9 == pytest.approx(stated[0], rel=0.01)
    assert model.active_parameters / 1e9 == pytest.approx(stated[1], rel=0.05)


@pytest.mark.parametrize(("size", "total", "active"), [("120b", 116.83, 5.13), ("20b", 20.91, 3.61)])
def test_gpt_oss_model_card(size: str, total: float, active: float) -> None:
    """gpt-oss has the counts of its model card (arXiv 2508.10925, table 1), which counts no embedding as active."""
    model = load_model(f"openai/gpt-oss-{size}")
    without_embedding = model.active_parameters - model.vocab_size * model.hidden_size
    assert round(model.num_parameters / 1e9, 2) == total
    assert round(without_embedding / 1e9, 2) == active


def test_llama_by_hand() -> None:
    """Llama-3.1-8B, written out: two tables, 32 layers of attention, feed-forward and two norms, a last norm."""
    attention = 4096 * (32 * 128) * 2 + 4096 * (8 * 128) * 2
    layer = attention + 3 * 4096 * 14336 + 2 * 4096
    assert load_model("llama-3.1-8b").num_parameters == 2 * 128256 * 4096 + 32 * layer + 4096


def test_gpt_oss_by_hand() -> None:
    """gpt-oss-120b, written out: biased attention of 64 heads of 64, and 128 biased experts, 4 of which are active."""
    attention = 2880 * 4096 * 2 + 2880 * 512 * 2 + (4096 + 512 + 512)
    expert = 3 * 2880 * 2880 + 3 * 2880
    fixed = 2 * 201088 * 2880 + 36 * (attention + 2880 * 128 + 2 * 2880) + 2880
    model = load_model("gpt-oss-120b")
    assert model.num_parameters == fixed + 36 * 128 * expert
    assert model.active_parameters == fixed + 36 * 4 * expert


def test_deepseek_by_hand() -> None:
    """DeepSeek-V3, written out: 61 latent attentions, 3 dense blocks, 58 blocks of 256 experts and a shared one."""
    query = 7168 * 1536 + 1536 + 1536 * 128 * 192
    latent = 7168 * 576 + 512 + 512 * 128 * 256
    attention = query + latent + 128 * 128 * 7168
    expert = 3 * 7168 * 2048
    sparse = 7168 * 256 + 257 * expert
    body = 61 * (attention + 2 * 7168) + 3 * (3 * 7168 * 18432) + 58 * sparse + 7168
    assert load_model("deepseek-v3").num_parameters == 2 * 129280 * 7168 + body


def test_hybrid_by_hand() -> None:
    """Qwen3.5-397B, written out: three delta nets to each gated full attention, 512 experts and a shared one."""
    channels = 2 * 16 * 128 + 64 * 128
    delta = 4096 * (channels + 2 * 8192 + 2 * 64) + 4 * channels + 2 * 64 + 128
    full = 4096 * (2 * 32 + 2 * 2) * 256 + 32 * 256 * 4096 + 2 * 256
    experts = 4096 * 512 + 513 * 3 * 4096 * 1024 + 4096  # and the shared one's gate
    body = 45 * delta + 15 * full + 60 * (experts + 2 * 4096) + 4096
    assert load_model("qwen3.5-397b-a17b").num_parameters == 2 * 248320 * 4096 + body


def test_sparse_indexer_is_all_that_v32_adds() -> None:
    """DeepSeek-V3.2 is DeepSeek-V3 and, in each layer, an indexer of 64 heads of 128."""
    indexer = 1536 * 64 * 128 + 7168 * (128 + 64) + 2 * 128
    v3, v32 = load_model("deepseek-v3"), load_model("deepseek-v3.2")
    assert v32.num_parameters - v3.num_parameters == 61 * indexer
    assert all(isinstance(group.attention, LatentAttention) and group.attention.index_topk for group in v32.layers)


def test_layer_order() -> None:
    """Layers keep their order: gpt-oss alternates windows from layer 0, Scout and Qwen3.5 open up each fourth."""
    windows = [getattr(group.attention, "window_tokens", None) for group in load_model("gpt-oss-20b").layers]
    assert windows == [128, 0] * 12
    scout = load_model("meta-llama/Llama-4-Scout-17B-16E-Instruct").layers
    assert [(group.count, getattr(group.attention, "window_tokens", None)) for group in scout] == [
        (3, 8192),
        (1, 0),
    ] * 12
    hybrid = load_model("Qwen3.5-397B-A17B").layers
    assert [group.count for group in hybrid] == [3, 1] * 15
    assert [type(group.attention) for group in hybrid] == [GatedDeltaNet, GroupedQueryAttention] * 15
    kinds = [(group.count, type(group.ffn)) for group in load_model("kimi-k2-instruct").layers]
    assert kinds == [(1, DenseFfn), (60, MoeFfn)]


def test_quantised_experts() -> None:
    """Checkpoints that quantise only their experts are known with scales: MXFP4 4.25 bits, Kimi's int4 4.5 bits."""
    assert load_model("gpt-oss-120b").expert_quantization == ExpertQuantization(
        dtype="fp4", bytes_per_parameter=0.53125
    )
    assert load_model("kimi-k2.5").expert_quantization == ExpertQuantization(dtype="int4", bytes_per_parameter=0.5625)
    assert load_model("deepseek-r1").expert_quantization is None


def test_cards_equal_published_configs(shared: Path) -> None:
    """Each bundled card gives the very shape that the published config.json gives, and none is missing."""
    configs = {path.stem.replace("--", "/", 1): path for path in (shared / "models").glob("*.json")}
    assert sorted(configs) == model_ids()
    for model_id, path in configs.items():
        assert load_model(model_id) == parse_hf_config(json.loads(path.read_text(encoding="utf-8")), model_id)


def test_ids_and_paths(tmp_path: Path) -> None:
    """A model is found by full id, by its last part in any case, by a config.json and by the folder that holds one."""
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100}
    config |= {"num_attention_heads": 4, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_model("qwen3-32b") == load_model("Qwen/Qwen3-32B") == load_model("QWEN/qwen3-32B")
    own = load_model(tmp_path)
    assert own == load_model(str(tmp_path / "config.json"))
    attention = GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=16)
    group = LayerGroup(count=2, attention=attention, ffn=DenseFfn(intermediate_size=128))
    shape = {"vocab_size": 100, "hidden_size": 64, "tied_head": False, "layers": (group,)}
    assert own == ModelShape(name=tmp_path.name, source=tmp_path.name, **shape)  # type: ignore[arg-type]


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "vocab_size": 100,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
            r"model_type: 'mamba' \(architectures: \['Mamba",
        ),
        ({"model_type": None}, "model_type: 'None' .* is no known architecture; accepted: deepseek_v3"),
        ({"hidden_size": None}, "config.json hidden_size: None must be given as a whole number"),
        ({"num_hidden_layers": 2.5}, "config.json num_hidden_layers: 2.5 must be given as a whole number"),
        ({"vocab_size": -1}, "config.json vocab_size: -1 must not be negative"),
        ({"num_hidden_layers": 0}, "model num_layers: 0 must be at least 1"),
    ],
)
def test_wrong_config_names_the_field(change: dict[str, Any], message: str) -> None:
    """A config that cannot be read is refused by the name of the field that is wrong."""
    with pytest.raises(BestServeError, match=message):
        parse_hf_config({**LLAMA, **change}, "wrong")


def test_unknown_layer_type() -> None:
    """A kind of layer that the architecture lacks is refused by its place in `layer_types`."""
    config = {**LLAMA, "model_type": "gpt_oss", "sliding_window": 128, "layer_types": ["full_attention", "ring"]}
    config |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    with pytest.raises(BestServeError, match=r"layer_types\[1\]: 'ring'"):
        parse_hf_config(config, "wrong")


def test_more_experts_per_token_than_experts() -> None:
    """A router cannot choose more experts than there are."""
    with pytest.raises(BestServeError, match="top_k: 9 must be at least 1 and at most the 8 experts"):
        MoeFfn(num_experts=8, top_k=9, intermediate_size=16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "cannot be read"),
        ("broken.json", "{", "is not JSON"),
        ("list.json", "[]", "must hold one JSON object"),
    ],
)
def test_unreadable_config(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    """A path that holds no config is refused with the reason."""
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BestServeError, match=message):
        load_model(str(tmp_path / name))


def test_unknown_model_lists_the_known() -> None:
    """An unknown id is refused with the ids that are bundled."""
    with pytest.raises(BestServeError, match=r"model: 'llama-9' is not a bundled model; .*meta-llama/Llama-3.1-8B"):
        load_model("llama-9")
