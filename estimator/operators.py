"""Which operators one engine step runs on one GPU, for every way of dividing a model.

Weights, KV bytes per token, memory fit, roofline and bottleneck report all derive from this one list; what each
operator does is in `estimator.work`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from estimator.dtypes import ACTIVATION_BYTES, KV_BYTES, WEIGHT_BYTES, Dtypes, KvDtype, WeightDtype
from estimator.errors import require
from estimator.model import (
    Attention,
    DenseFfn,
    Ffn,
    GatedDeltaNet,
    GroupedQueryAttention,
    LatentAttention,
    LayerGroup,
    ModelShape,
    MoeFfn,
)
from estimator.parallelism import Parallelism
from estimator.work import (
    AllGather,
    AllReduce,
    AllToAll,
    AttentionOperator,
    DeltaNetOp,
    Elementwise,
    ExpertFfn,
    Gemm,
    GroupedAttention,
    LatentAttentionOp,
    Operator,
    SparseAttentionOp,
    StageTransfer,
)

__all__ = [
    "AllGather",
    "AllReduce",
    "AllToAll",
    "AttentionOperator",
    "DeltaNetOp",
    "Elementwise",
    "ExpertFfn",
    "Gemm",
    "GroupedAttention",
    "LatentAttentionOp",
    "Operator",
    "SparseAttentionOp",
    "StageTransfer",
    "all_stage_operators",
    "model_operators",
    "resident_weight_bytes",
    "stage_operators",
]


FLOAT_BYTES = 4  # of a float32 number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What a layer's operators depend on beside the layer."""

    model: ModelShape
    parallelism: Parallelism
    dtypes: Dtypes

    def share(self, field: str, whole: int, degree: int) -> int:
        """`whole` / `degree`; raises `BestServeError` where that is no whole number."""
        rule = f"does not divide {field} = {whole} of {self.model.name}"
        require(whole % degree == 0, field="parallelism", value=degree, rule=rule, accepted=f"a divisor of {whole}")
        return whole // degree

    def heads(self, num_heads: int, num_kv_heads: int) -> tuple[int, int]:
        """Query and key/value heads of one GPU; key/value heads are copied where there are fewer than GPUs."""
        tp = self.parallelism.tp
        if tp > num_kv_heads:
            self.share("tp", tp, num_kv_heads)
        return self.share("num_heads", num_heads, tp), (
            1 if tp > num_kv_heads else self.share("num_kv_heads", num_kv_heads, tp)
        )

    @property
    def body_dtype(self) -> WeightDtype:
        """Format of dense and shared feed-forward weights: bf16 where the checkpoint quantises its experts alone."""
        native = self.model.expert_quantization
        return "bf16" if native is not None and native.dtype == self.dtypes.weight else self.dtypes.weight

    def attention_dtype(self, attention: Attention) -> WeightDtype:
        """Format of attention weights; NVFP4 checkpoints of latent-attention models keep them in bf16.

        (nvidia/DeepSeek-R1-FP4 and amd/DeepSeek-R1-0528-MXFP4; NVIDIA/Model-Optimizer issue 150, 2025-03.)
        """
        if isinstance(attention, LatentAttention) and self.dtypes.weight == "fp4":
            return "bf16"
        return self.body_dtype

    @property
    def expert_bytes_per_parameter(self) -> float:
        """Of routed experts, scales included."""
        native = self.model.expert_quantization
        if native is not None and native.dtype == self.dtypes.weight:
            return native.bytes_per_parameter
        return WEIGHT_BYTES[self.dtypes.weight]


def pipeline_layers(model: ModelShape, pp: int) -> list[list[LayerGroup]]:
    """Layers of each pipeline stage, in order: equal shares, what remains to the stages before the last.

    As vLLM's `get_pp_indices` does it (the last stage has the head to do as well).
    """
    num = model.num_layers
    require(pp <= num, field="pp", value=pp, rule=f"exceeds the {num} layers of {model.name}", accepted=f"1 to {num}")
    share, rest = divmod(num, pp)
    sizes = [share + (pp - 1 - rest <= stage < pp - 1) for stage in range(pp)]
    groups, left = iter(model.layers), 0
    stages: list[list[LayerGroup]] = []
    for size in sizes:
        stage: list[LayerGroup] = []
        while size:
            if not left:
                group = next(groups)
                left = group.count
            taken = min(size, left)
            stage.append(replace(group, count=taken))
            size, left = size - taken, left - taken
        stages.append(stage)
    return stages


@lru_cache(maxsize=256)
def all_stage_operators(
    model: ModelShape, parallelism: Parallelism, dtypes: Dtypes
) -> tuple[tuple[Operator, ...], ...]:
    """Operators of one GPU of every pipeline stage, equal ones merged and counted.

    Raises `BestServeError` where a degree does not divide heads, widths or experts.
    """
    layout = _Layout(model=model, parallelism=parallelism, dtypes=dtypes)
    stages = pipeline_layers(model, parallelism.pp)
    result = []
    for index, layers in enumerate(stages):
        operators: list[Operator] = []
        if index == 0:
            operators += _embedding_operators(layout)
        for (attention, ffn), count in _counted(layers).items():
            operators += [replace(op, count=op.count * count) for op in _layer_operators(layout, attention, ffn)]
        if index == parallelism.pp - 1:
            operators += _head_operators(layout)
        if parallelism.pp > 1:
            operators.append(StageTransfer(name="stage_transfer", bytes_per_token=_row(model) * 2 / parallelism.tp))
        result.append(_merged(operators))
    return tuple(result)


def stage_operators(
    model: ModelShape, parallelism: Parallelism, weight_dtype: WeightDtype, kv_dtype: KvDtype
) -> tuple[Operator, ...]:
    """Operators of one GPU of the slowest pipeline stage: the one with the most weights to read."""
    return slowest_stage_operators(model, parallelism, Dtypes(weight=weight_dtype, kv=kv_dtype))


def slowest_stage_operators(model: ModelShape, parallelism: Parallelism, dtypes: Dtypes) -> tuple[Operator, ...]:
    """The same with every format as `dtypes` says."""
    return max(all_stage_operators(model, parallelism, dtypes), key=resident_weight_bytes)


def model_operators(
    model: ModelShape, weight_dtype: WeightDtype = "bf16", kv_dtype: KvDtype = "bf16"
) -> tuple[Operator, ...]:
    """Operators of the undivided model."""
    return stage_operators(model, Parallelism(), weight_dtype, kv_dtype)


def resident_weight_bytes(operators: tuple[Operator, ...]) -> float:
    """Weights of the operators of one GPU; norms, biases, convolutions (< 0.1 % of a model) are left out."""
    return sum(op.count * op.weight_bytes for op in operators if isinstance(op, (Gemm, ExpertFfn)))


def _row(model: ModelShape) -> float:
    """Bytes of one token's hidden state."""
    return model.hidden_size * ACTIVATION_BYTES


def _counted(layers: list[LayerGroup]) -> dict[tuple[Attention, Ffn], int]:
    """How many layers of each kind there are."""
    counts: dict[tuple[Attention, Ffn], int] = {}
    for group in layers:
        kind = group.attention, group.ffn
        counts[kind] = counts.get(kind, 0) + group.count
    return counts


def _merged(operators: list[Operator]) -> tuple[Operator, ...]:
    """Equal operators as one, their counts added."""
    counts: dict[Operator, float] = {}
    for op in operators:
        key = replace(op, count=0.0)
        counts[key] = counts.get(key, 0.0) + op.count
    return tuple(replace(op, count=count) for op, count in counts.items())


def _embedding_operators(layout: _Layout) -> list[Operator]:
    row, tp = _row(layout.model), layout.parallelism.tp
    lookup: list[Operator] = [Elementwise(name="embedding", bytes_per_token=2 * row)]
    return lookup + _all_reduce("embedding", row, tp)


def _head_operators(layout: _Layout) -> list[Operator]:
    model, tp = layout.model, layout.parallelism.tp
    vocab = -(-model.vocab_size // tp)
    operators: list[Operator] = [
        Elementwise(name="norm", bytes_per_token=4 * _row(model)),
        Gemm(name="head", n=vocab, k=model.hidden_size, dtype="bf16", role="head"),
        Elementwise(name="sampling", bytes_per_token=model.vocab_size * (ACTIVATION_BYTES + 4), role="head"),
    ]  # logits become float32 for the sampler
    if tp > 1:
        size = vocab * ACTIVATION_BYTES
        operators.append(AllGather(name="logits", bytes_per_token=size, num_gpus=tp, role="head"))
    return operators


def _layer_operators(layout: _Layout, attention: Attention, ffn: Ffn) -> list[Operator]:
    row = _row(layout.model)
    norms: list[Operator] = [
        Elementwise(name="norm", bytes_per_token=4 * row, count=2)
    ]  # input and residual, in and out
    return norms + _attention_operators(layout, attention) + _ffn_operators(layout, ffn)


def _attention_operators(layout: _Layout, attention: Attention) -> list[Operator]:
    match attention:
        case GroupedQueryAttention():
            operators = _grouped_operators(layout, attention)
        case LatentAttention():
            operators = _latent_operators(layout, attention)
        case GatedDeltaNet():
            operators = _delta_operators(layout, attention)
    return operators + _all_reduce("attention", _row(layout.model), layout.parallelism.tp)


def _grouped_operators(layout: _Layout, attention: GroupedQueryAttention) -> list[Operator]:
    heads, kv_heads = layout.heads(attention.num_heads, attention.num_kv_heads)
    d, h = attention.head_dim, layout.model.hidden_size
    dtype, kv_dtype = layout.attention_dtype(attention), layout.dtypes.kv
    queries, keys = heads * d, kv_heads * d
    rotated = 2 * ACTIVATION_BYTES * (queries + keys)
    written = 2 * keys * (ACTIVATION_BYTES + KV_BYTES[kv_dtype])
    operators: list[Operator] = [
        Gemm(name="qkv", n=queries * (1 + attention.output_gate) + 2 * keys, k=h, dtype=dtype),
        Elementwise(name="rope", bytes_per_token=rotated),
        Elementwise(name="kv_write", bytes_per_token=written),
        GroupedAttention(
            name="attention",
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=d,
            kv_dtype=kv_dtype,
            window_tokens=attention.window_tokens,
        ),
        Gemm(name="attention_out", n=h, k=queries, dtype=dtype),
    ]
    if attention.qk_norm:
        operators.append(Elementwise(name="qk_norm", bytes_per_token=rotated))
    if attention.norm_spans_heads and layout.parallelism.tp > 1:
        sums = 2.0 * FLOAT_BYTES  # of squares, of queries and of keys, by a kernel of their own
        operators.append(Elementwise(name="qk_norm_sums", bytes_per_token=ACTIVATION_BYTES * (queries + keys) + sums))
        operators += _all_reduce("qk_norm", sums, layout.parallelism.tp)
    if attention.output_gate:
        operators.append(Elementwise(name="output_gate", bytes_per_token=3 * ACTIVATION_BYTES * queries))
    return operators


def _latent_operators(layout: _Layout, attention: LatentAttention) -> list[Operator]:
    h, heads = layout.model.hidden_size, layout.share("num_heads", attention.num_heads, layout.parallelism.tp)
    dtype, kv_dtype = layout.attention_dtype(attention), layout.dtypes.kv
    q_rank, latent = attention.q_lora_rank, attention.kv_lora_rank + attention.qk_rope_dim
    nope, rope, v = attention.qk_nope_dim, attention.qk_rope_dim, attention.v_dim
    cached = latent * (ACTIVATION_BYTES + KV_BYTES[kv_dtype])
    return [
        Gemm(name="qkv_down", n=q_rank + latent, k=h, dtype=dtype),
        Elementwise(name="latent_norm", bytes_per_token=2 * ACTIVATION_BYTES * (q_rank + attention.kv_lora_rank)),
        Gemm(name="q_up", n=heads * (nope + rope), k=q_rank, dtype=dtype),
        Gemm(
            name="kv_up", n=heads * (nope + v), k=attention.kv_lora_rank, dtype="bf16"
        ),  # absorbed: same FLOP, per head
        Elementwise(name="rope", bytes_per_token=2 * ACTIVATION_BYTES * (heads + 1) * rope),
        Elementwise(name="kv_write", bytes_per_token=cached),
        *_latent_core(layout, attention, heads),
        Gemm(name="attention_out", n=h, k=heads * v, dtype=layout.dtypes.latent_out or dtype),
    ]


def _latent_core(layout: _Layout, attention: LatentAttention, heads: int) -> list[Operator]:
    h, kv_dtype = layout.model.hidden_size, layout.dtypes.kv
    q_rank, latent = attention.q_lora_rank, attention.kv_lora_rank
    nope, rope, v = attention.qk_nope_dim, attention.qk_rope_dim, attention.v_dim
    if not attention.index_topk:
        return [
            LatentAttentionOp(
                name="attention",
                num_heads=heads,
                kv_lora_rank=latent,
                qk_nope_dim=nope,
                qk_rope_dim=rope,
                v_dim=v,
                kv_dtype=kv_dtype,
            )
        ]
    index_heads, index_dim = attention.index_heads, attention.index_head_dim
    return [
        Gemm(name="index_query", n=index_heads * index_dim, k=q_rank, dtype=layout.attention_dtype(attention)),
        Gemm(name="index_key", n=index_dim + index_heads, k=h, dtype="bf16"),
        Elementwise(name="index_work", bytes_per_token=2 * ACTIVATION_BYTES * index_dim * (index_heads + 1), count=6),
        SparseAttentionOp(
            name="attention",
            num_heads=heads,
            kv_lora_rank=latent,
            qk_nope_dim=nope,
            qk_rope_dim=rope,
            v_dim=v,
            index_topk=attention.index_topk,
            index_heads=index_heads,
            index_head_dim=index_dim,
            kv_dtype=kv_dtype,
        ),
    ]


def _delta_operators(layout: _Layout, attention: GatedDeltaNet) -> list[Operator]:
    h, tp, dtype = layout.model.hidden_size, layout.parallelism.tp, layout.attention_dtype(attention)
    key_heads = layout.share("num_key_heads", attention.num_key_heads, tp)
    value_heads = layout.share("num_value_heads", attention.num_value_heads, tp)
    keys, values = key_heads * attention.key_dim, value_heads * attention.value_dim
    return [
        Gemm(name="delta_in", n=2 * keys + 2 * values, k=h, dtype=dtype),
        Gemm(name="delta_gates", n=2 * value_heads, k=h, dtype="bf16"),
        DeltaNetOp(
            name="attention",
            num_key_heads=key_heads,
            num_value_heads=value_heads,
            key_dim=attention.key_dim,
            value_dim=attention.value_dim,
            conv_kernel=attention.conv_kernel,
        ),
        Elementwise(name="delta_split", bytes_per_token=4 * ACTIVATION_BYTES * (keys + values)),
        Elementwise(name="output_gate", bytes_per_token=3 * ACTIVATION_BYTES * values),
        Gemm(name="attention_out", n=h, k=values, dtype=dtype),
    ]


def _ffn_operators(layout: _Layout, ffn: Ffn) -> list[Operator]:
    match ffn:
        case DenseFfn():
            dense = _dense_operators(layout, ffn, "ffn")
            return dense + _all_reduce("ffn", _row(layout.model), layout.parallelism.tp)
        case MoeFfn():
            return _moe_operators(layout, ffn)


def _dense_operators(layout: _Layout, ffn: DenseFfn, name: str) -> list[Operator]:
    h, dtype = layout.model.hidden_size, layout.body_dtype
    width = layout.share("intermediate_size", ffn.intermediate_size, layout.parallelism.tp)
    matrices = 2 if ffn.gated else 1
    return [
        Gemm(name=f"{name}_up", n=matrices * width, k=h, dtype=dtype),
        Elementwise(name=f"{name}_activation", bytes_per_token=(matrices + 1) * ACTIVATION_BYTES * width),
        Gemm(name=f"{name}_down", n=h, k=width, dtype=dtype),
    ]


def _moe_operators(layout: _Layout, ffn: MoeFfn) -> list[Operator]:
    degrees, h = layout.parallelism, layout.model.hidden_size
    operators: list[Operator] = [
        Gemm(name="router", n=ffn.num_experts, k=h, dtype="bf16"),
        Elementwise(name="top_k", bytes_per_token=8.0 * ffn.num_experts),  # float32 scores, in and out
        ExpertFfn(
            name="experts",
            hidden=h,
            intermediate=layout.share("intermediate_size", ffn.intermediate_size, degrees.moe_tp),
            num_experts=ffn.num_experts,
            experts_per_gpu=layout.share("num_experts", ffn.num_experts, degrees.ep),
            top_k=ffn.top_k,
            dtype=layout.dtypes.weight,
            bytes_per_parameter=layout.expert_bytes_per_parameter,
            ep=degrees.ep,
            moe_tp=degrees.moe_tp,
            ranks=degrees.dp,
        ),
    ]
    if ffn.num_shared:
        shared = DenseFfn(intermediate_size=ffn.num_shared * ffn.shared_intermediate_size)
        beside: list[Operator] = [
            *_dense_operators(layout, shared, "shared"),
            Elementwise(name="shared_sum", bytes_per_token=3 * _row(layout.model)),
        ]
        if ffn.shared_gate:
            beside += [
                Gemm(name="shared_gate", n=1, k=h, dtype="bf16"),
                Elementwise(name="shared_scale", bytes_per_token=2 * _row(layout.model), count=2),
            ]  # sigmoid, then product
        operators += [replace(op, role="shared") for op in beside if isinstance(op, Gemm | Elementwise)]
    return operators + _moe_collectives(layout, ffn)


def _moe_collectives(layout: _Layout, ffn: MoeFfn) -> list[Operator]:
    """How tokens reach their experts and come back.

    One rank: every GPU of the group has all tokens already, one sum joins the experts' outputs. More ranks without
    expert groups: tokens are gathered from all ranks, outputs scattered back and summed over tp. With expert groups:
    each token goes to the distinct groups of its k experts, ep·(1 − (1 − 1/ep)^k) on average, one ep-th of them at
    home; the tp GPUs of a rank send a share of the tokens each and gather the result.
    """
    degrees, row = layout.parallelism, _row(layout.model)
    if degrees.dp == 1:
        return _all_reduce("experts", row, degrees.tp)
    if degrees.ep == 1:
        gathered: list[Operator] = [
            AllGather(name="gather_tokens", bytes_per_token=row, num_gpus=degrees.dp),
            AllGather(name="scatter_outputs", bytes_per_token=row, num_gpus=degrees.dp),
        ]
        return gathered + _all_reduce("experts", row, degrees.tp)
    distinct = degrees.ep * (1.0 - (1.0 - 1.0 / degrees.ep) ** ffn.top_k)
    copies = distinct * (degrees.ep - 1) / degrees.ep * degrees.moe_tp / degrees.tp
    sent = layout.model.hidden_size * (1.0 if layout.dtypes.weight in ("fp8", "fp4") else ACTIVATION_BYTES)
    num_gpus = degrees.tp * degrees.dp
    operators: list[Operator] = [
        AllToAll(way="dispatch", bytes_per_token=sent * copies, num_gpus=num_gpus),
        AllToAll(way="combine", bytes_per_token=row * copies, num_gpus=num_gpus),
    ]
    if degrees.tp > 1:
        operators.append(AllGather(name="gather_outputs", bytes_per_token=row / degrees.tp, num_gpus=degrees.tp))
    return operators


def _all_reduce(name: str, bytes_per_token: float, num_gpus: int) -> list[Operator]:
    if num_gpus == 1:
        return []
    return [AllReduce(name=f"{name}_all_reduce", bytes_per_token=bytes_per_token, num_gpus=num_gpus)]
