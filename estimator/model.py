"""The shape of a transformer: what its layers are made of, and how many parameters that is.

Symbols of the formulas: h hidden size, H query heads, K key/value heads, d head dimension, f feed-forward width,
E experts of which k serve a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from estimator.dtypes import WeightDtype
from estimator.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryAttention:
    """Softmax attention whose query heads share key/value heads (Ainslie et al. 2023, arXiv 2305.13245).

    `window_tokens` 0: every token sees all before it; else at most the last `window_tokens` (attention in chunks of
    that size sees up to its chunk's start, half as much on average in long contexts, and is counted as a window).
    `output_gate`: a second query-sized projection gates the output. `norm_spans_heads`: q/k norms divide by the mean
    square over all heads, which tensor-parallel GPUs must sum first.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window_tokens: int = 0
    bias: bool = False
    qk_norm: bool = False
    output_gate: bool = False
    norm_spans_heads: bool = False

    def num_parameters(self, hidden_size: int) -> int:
        """h·d·(H·(2 + gate) + 2K), biases of query, key and value, two norms over d."""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        projections = hidden_size * self.head_dim * (heads * (2 + self.output_gate) + 2 * kv_heads)
        biases = self.head_dim * (heads + 2 * kv_heads) * self.bias
        return projections + biases + 2 * self.head_dim * self.qk_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, 2.1): the cache holds one latent for all heads.

    `index_topk` > 0: a light indexer picks that many cached tokens for each query (DeepSeek sparse attention,
    DeepSeek-V3.2 report, arXiv 2512.02556, 2.1).
    """

    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_dim: int
    index_topk: int = 0
    index_heads: int = 0
    index_head_dim: int = 0

    def num_parameters(self, hidden_size: int) -> int:
        """Down and up projections of query and key/value with their norms, output projection, indexer."""
        heads, q_rank, kv_rank = self.num_heads, self.q_lora_rank, self.kv_lora_rank
        query = hidden_size * q_rank + q_rank + q_rank * heads * (self.qk_nope_dim + self.qk_rope_dim)
        latent = hidden_size * (kv_rank + self.qk_rope_dim) + kv_rank
        expand = kv_rank * heads * (self.qk_nope_dim + self.v_dim)
        output = heads * self.v_dim * hidden_size
        return query + latent + expand + output + self._num_index_parameters(hidden_size)

    def _num_index_parameters(self, hidden_size: int) -> int:
        if not self.index_topk:
            return 0
        queries = self.q_lora_rank * self.index_heads * self.index_head_dim
        return queries + hidden_size * (self.index_head_dim + self.index_heads) + 2 * self.index_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet:
    """Linear attention with a gated delta rule (Yang et al. 2024, arXiv 2412.06464): a fixed state instead of a cache.

    The state is a key_dim × value_dim matrix per value head and the last conv_kernel − 1 inputs of a short convolution
    over queries, keys and values.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int

    @property
    def num_channels(self) -> int:
        """Width of queries, keys and values together."""
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim

    def num_parameters(self, hidden_size: int) -> int:
        """Inputs, output gate, two scalars a head, output projection, convolution, decay, norm."""
        value_size = self.num_value_heads * self.value_dim
        projections = hidden_size * (self.num_channels + 2 * value_size + 2 * self.num_value_heads)
        return projections + self.num_channels * self.conv_kernel + 2 * self.num_value_heads + self.value_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFfn:
    """Feed-forward block; gated = three matrices (SwiGLU, Shazeer 2020, arXiv 2002.05202), else two."""

    intermediate_size: int
    gated: bool = True

    def num_parameters(self, hidden_size: int) -> int:
        """h·f per matrix."""
        return (3 if self.gated else 2) * hidden_size * self.intermediate_size

    num_active_parameters = num_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeFfn:
    """`num_experts` gated experts behind a router, `top_k` per token, and `num_shared` experts that see every token.

    `shared_gate`: a sigmoid of one more product, a single column wide, scales what the shared experts add.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    num_shared: int = 0
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        require(
            1 <= self.top_k <= self.num_experts,
            field="top_k",
            value=self.top_k,
            rule=f"must be at least 1 and at most the {self.num_experts} experts",
            accepted=f"1 to {self.num_experts}",
        )

    def num_parameters(self, hidden_size: int) -> int:
        """Router, shared experts and all routed experts."""
        return self._num_parameters(hidden_size, self.num_experts)

    def num_active_parameters(self, hidden_size: int) -> int:
        """Router, shared experts and the experts of one token."""
        return self._num_parameters(hidden_size, self.top_k)

    def _num_parameters(self, hidden_size: int, num_experts: int) -> int:
        expert = 3 * hidden_size * self.intermediate_size + (2 * self.intermediate_size + hidden_size) * self.bias
        shared = 3 * hidden_size * self.shared_intermediate_size * self.num_shared + hidden_size * self.shared_gate
        return hidden_size * self.num_experts + num_experts * expert + shared


Attention = GroupedQueryAttention | LatentAttention | GatedDeltaNet
Ffn = DenseFfn | MoeFfn


def _shared_routed(ffn: Ffn) -> Ffn:
    """The block with shared experts of a routed one's width among the routed; as it is where widths differ."""
    if not isinstance(ffn, MoeFfn) or ffn.shared_gate or ffn.shared_intermediate_size != ffn.intermediate_size:
        return ffn
    num_experts, top_k = ffn.num_experts + ffn.num_shared, ffn.top_k + ffn.num_shared
    return replace(ffn, num_experts=num_experts, top_k=top_k, num_shared=0, shared_intermediate_size=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """`count` equal layers in a row."""

    count: int
    attention: Attention
    ffn: Ffn


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertQuantization:
    """The checkpoint is published with its routed experts alone in `dtype`, at `bytes_per_parameter` with scales."""

    dtype: WeightDtype
    bytes_per_parameter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder-only transformer; `layers` run-length coded in their order.

    `tied_head`: the output head reuses the embedding. `num_mtp_layers`: draft layers for multi-token prediction,
    outside every count here. Vision towers are left out.
    """

    name: str
    source: str
    vocab_size: int
    hidden_size: int
    tied_head: bool
    layers: tuple[LayerGroup, ...]
    num_mtp_layers: int = 0
    expert_quantization: ExpertQuantization | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers"):
            value = getattr(self, name)
            require(value >= 1, field=f"model {name}", value=value, rule="must be at least 1", accepted="≥ 1")

    @property
    def num_layers(self) -> int:
        """Layers of the body."""
        return sum(group.count for group in self.layers)

    @property
    def is_moe(self) -> bool:
        """Whether any layer has experts."""
        return any(isinstance(group.ffn, MoeFfn) for group in self.layers)

    def with_shared_experts_routed(self) -> ModelShape:
        """The same weights with every shared expert as one more routed one that each token visits."""
        layers = tuple(replace(group, ffn=_shared_routed(group.ffn)) for group in self.layers)
        return replace(self, layers=layers)

    @property
    def num_parameters(self) -> int:
        """All parameters of body, embedding and head."""
        return self._num_parameters(lambda ffn: ffn.num_parameters(self.hidden_size))

    @property
    def active_parameters(self) -> int:
        """Parameters without the experts that a token does not visit; the embedding table counts in full."""
        return self._num_parameters(lambda ffn: ffn.num_active_parameters(self.hidden_size))

    def _num_parameters(self, ffn_parameters: Callable[[Ffn], int]) -> int:
        h = self.hidden_size
        tables = (1 if self.tied_head else 2) * self.vocab_size * h
        body = sum(g.count * (g.attention.num_parameters(h) + ffn_parameters(g.ffn) + 2 * h) for g in self.layers)
        return tables + body + h
