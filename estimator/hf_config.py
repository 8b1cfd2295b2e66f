"""Model shapes from the `config.json` that Hugging Face repositories publish.

Which layers a `model_type` has follows the modeling files of transformers 4.57 and 5.0; field names are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from estimator.errors import BestServeError, require
from estimator.model import (
    Attention,
    DenseFfn,
    ExpertQuantization,
    Ffn,
    GatedDeltaNet,
    GroupedQueryAttention,
    LatentAttention,
    LayerGroup,
    ModelShape,
    MoeFfn,
)

Config = Mapping[str, Any]
MTP_FIELDS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")


def parse_hf_config(config: Config, name: str) -> ModelShape:
    """Shape of the model called `name`; `BestServeError` names the field that is unknown, missing or not a number.

    A multimodal config is read through its `text_config`.
    """
    text = {**config, **config.get("text_config", {})}
    attention, ffn = _family(text, config)
    layers = [(attention(text, index), ffn(text, index)) for index in range(_int(text, "num_hidden_layers"))]
    return ModelShape(
        name=name,
        source=str(config.get("source", name)),
        vocab_size=_int(text, "vocab_size"),
        hidden_size=_int(text, "hidden_size"),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        layers=tuple(
            LayerGroup(count=len(list(run)), attention=kinds[0], ffn=kinds[1]) for kinds, run in groupby(layers)
        ),
        num_mtp_layers=next((int(text[field]) for field in MTP_FIELDS if field in text), 0),
        expert_quantization=_expert_quantization(text),
    )


def _family(text: Config, config: Config) -> tuple[LayerAttention, LayerFfn]:
    model_type = str(text.get("model_type"))
    if model_type in _FAMILIES:
        return _FAMILIES[model_type]
    rule = f"(architectures: {config.get('architectures')}) is no known architecture"
    raise BestServeError("config.json model_type", model_type, rule, ", ".join(sorted(_FAMILIES)))


def _int(config: Config, field: str) -> int:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BestServeError(f"config.json {field}", value, "must be given as a whole number", "a whole number")
    require(value >= 0, field=f"config.json {field}", value=value, rule="must not be negative", accepted="≥ 0")
    return value


def _grouped(
    text: Config, *, window_tokens: int = 0, bias: bool = False, qk_norm: bool = False
) -> GroupedQueryAttention:
    num_heads = _int(text, "num_attention_heads")
    has_head_dim = text.get("head_dim") is not None
    return GroupedQueryAttention(
        num_heads=num_heads,
        num_kv_heads=_int(text, "num_key_value_heads") if "num_key_value_heads" in text else num_heads,
        head_dim=_int(text, "head_dim") if has_head_dim else _int(text, "hidden_size") // num_heads,
        window_tokens=window_tokens,
        bias=bias,
        qk_norm=qk_norm,
        output_gate=bool(text.get("attn_output_gate", False)),
    )


def _llama(text: Config, _: int) -> Attention:
    return _grouped(text, bias=bool(text.get("attention_bias", False)))


def _mistral(text: Config, _: int) -> Attention:
    return _grouped(text, window_tokens=int(text.get("sliding_window") or 0))


def _qwen_window(text: Config, index: int) -> int:
    windowed = bool(text.get("use_sliding_window", False)) and index >= _int(text, "max_window_layers")
    return _int(text, "sliding_window") if windowed else 0


def _qwen2(text: Config, index: int) -> Attention:
    return _grouped(text, window_tokens=_qwen_window(text, index), bias=True)


def _qwen3(text: Config, index: int) -> Attention:
    return _grouped(text, window_tokens=_qwen_window(text, index), qk_norm=True)


def _minimax(text: Config, _: int) -> Attention:
    """`qk_norm_type` per_layer: one norm over the heads of a layer (vLLM's MiniMaxText01RMSNormTP)."""
    attention = _grouped(text, qk_norm=bool(text.get("use_qk_norm", False)))
    return replace(attention, norm_spans_heads=attention.qk_norm and text.get("qk_norm_type") == "per_layer")


def _gpt_oss(text: Config, index: int) -> Attention:
    """Even layers see the last `sliding_window` tokens, odd ones all; `layer_types` says so where given."""
    windowed = _layer_type(text, index, "sliding_attention", "full_attention", other=index % 2 == 1)
    window_tokens = _int(text, "sliding_window") if windowed == "sliding_attention" else 0
    return _grouped(text, window_tokens=window_tokens, bias=bool(text.get("attention_bias", True)))


def _llama4(text: Config, index: int) -> Attention:
    """Each fourth layer sees all tokens, the others a chunk (`no_rope_layers`: 1 = rotary and chunked)."""
    no_rope = text.get("no_rope_layers") or [(layer + 1) % 4 != 0 for layer in range(_int(text, "num_hidden_layers"))]
    window_tokens = _int(text, "attention_chunk_size") if no_rope[index] else 0
    return _grouped(text, window_tokens=window_tokens)  # its q/k norm has no weights


def _latent(text: Config, _: int) -> Attention:
    sparse = bool(text.get("index_topk"))
    return LatentAttention(
        num_heads=_int(text, "num_attention_heads"),
        q_lora_rank=_int(text, "q_lora_rank"),
        kv_lora_rank=_int(text, "kv_lora_rank"),
        qk_nope_dim=_int(text, "qk_nope_head_dim"),
        qk_rope_dim=_int(text, "qk_rope_head_dim"),
        v_dim=_int(text, "v_head_dim"),
        index_topk=_int(text, "index_topk") if sparse else 0,
        index_heads=_int(text, "index_n_heads") if sparse else 0,
        index_head_dim=_int(text, "index_head_dim") if sparse else 0,
    )


def _qwen_hybrid(text: Config, index: int) -> Attention:
    """Gated delta nets, and full attention each `full_attention_interval`-th layer."""
    interval = _int(text, "full_attention_interval")
    kind = _layer_type(text, index, "linear_attention", "full_attention", other=(index + 1) % interval == 0)
    if kind == "full_attention":
        return _grouped(text, qk_norm=True)
    return GatedDeltaNet(
        num_key_heads=_int(text, "linear_num_key_heads"),
        num_value_heads=_int(text, "linear_num_value_heads"),
        key_dim=_int(text, "linear_key_head_dim"),
        value_dim=_int(text, "linear_value_head_dim"),
        conv_kernel=_int(text, "linear_conv_kernel_dim"),
    )


def _layer_type(text: Config, index: int, first: str, second: str, *, other: bool) -> str:
    """Entry of `layer_types`, or by the architecture's rule `second` where `other`."""
    if "layer_types" not in text:
        return second if other else first
    value = text["layer_types"][index]
    require(
        value in (first, second),
        field=f"config.json layer_types[{index}]",
        value=value,
        rule="is not a kind of layer that this architecture has",
        accepted=f"{first}, {second}",
    )
    return str(value)


def _dense(text: Config, _: int) -> Ffn:
    return DenseFfn(intermediate_size=_int(text, "intermediate_size"))


def _local_experts(text: Config, _: int) -> Ffn:
    return MoeFfn(
        num_experts=_int(text, "num_local_experts"),
        top_k=_int(text, "num_experts_per_tok"),
        intermediate_size=_int(text, "intermediate_size"),
        bias=text["model_type"] == "gpt_oss",
    )


def _qwen_experts(text: Config, index: int) -> Ffn:
    sparse_step = int(text.get("decoder_sparse_step", 1))
    if index in text.get("mlp_only_layers", []) or (index + 1) % sparse_step:
        return _dense(text, index)
    shared = int(text.get("shared_expert_intermediate_size", 0))
    return MoeFfn(
        num_experts=_int(text, "num_experts"),
        top_k=_int(text, "num_experts_per_tok"),
        intermediate_size=_int(text, "moe_intermediate_size"),
        num_shared=1 if shared else 0,
        shared_intermediate_size=shared,
        shared_gate=bool(shared),  # transformers' Qwen2MoeSparseMoeBlock: sigmoid(shared_expert_gate(x))
    )


def _llama4_experts(text: Config, index: int) -> Ffn:
    if (index + 1) % _int(text, "interleave_moe_layer_step"):
        return DenseFfn(intermediate_size=_int(text, "intermediate_size_mlp"))
    width = _int(text, "intermediate_size")
    return MoeFfn(
        num_experts=_int(text, "num_local_experts"),
        top_k=_int(text, "num_experts_per_tok"),
        intermediate_size=width,
        num_shared=1,
        shared_intermediate_size=width,
    )


def _deepseek_experts(text: Config, index: int) -> Ffn:
    if index < _int(text, "first_k_dense_replace") or index % int(text.get("moe_layer_freq", 1)):
        return _dense(text, index)
    num_shared, width = int(text.get("n_shared_experts") or 0), _int(text, "moe_intermediate_size")
    return MoeFfn(
        num_experts=_int(text, "n_routed_experts"),
        top_k=_int(text, "num_experts_per_tok"),
        intermediate_size=width,
        num_shared=num_shared,
        shared_intermediate_size=width if num_shared else 0,
    )


def _expert_quantization(text: Config) -> ExpertQuantization | None:
    """Of checkpoints whose experts alone are quantised: MXFP4 (gpt-oss), grouped int4 that skips attention (Kimi)."""
    quantization = text.get("quantization_config") or {}
    if quantization.get("quant_method") == "mxfp4":
        return ExpertQuantization(dtype="fp4", bytes_per_parameter=0.5 + 1 / 32)  # OCP MX 1.0: 8-bit scale per 32
    weights = quantization.get("config_groups", {}).get("group_0", {}).get("weights") or {}
    if weights.get("num_bits") == 4 and any("self_attn" in pattern for pattern in quantization.get("ignore", [])):
        return ExpertQuantization(dtype="int4", bytes_per_parameter=0.5 + 2 / _int(weights, "group_size"))
    return None


LayerAttention = Callable[[Config, int], Attention]
LayerFfn = Callable[[Config, int], Ffn]
_FAMILIES: Mapping[str, tuple[LayerAttention, LayerFfn]] = {
    "llama": (_llama, _dense),
    "mistral": (_mistral, _dense),
    "qwen2": (_qwen2, _dense),
    "qwen3": (_qwen3, _dense),
    "mixtral": (_mistral, _local_experts),
    "minimax_m2": (_minimax, _local_experts),
    "gpt_oss": (_gpt_oss, _local_experts),
    "qwen3_moe": (_qwen3, _qwen_experts),
    "qwen3_5_moe_text": (_qwen_hybrid, _qwen_experts),
    "qwen3_next": (_qwen_hybrid, _qwen_experts),
    "llama4_text": (_llama4, _llama4_experts),
    "deepseek_v3": (_latent, _deepseek_experts),
    "deepseek_v32": (_latent, _deepseek_experts),
    "kimi_k2": (_latent, _deepseek_experts),
    "glm_moe_dsa": (_latent, _deepseek_experts),
}
