"""What one operator of an engine step does on one GPU: its FLOP and its bytes.

Every shape is the share of one GPU; which operators a stage has is in `estimator.operators`. Methods take floats or
float arrays.

| symbol | meaning |
|---|---|
| tokens | tokens that one attention-dp rank puts into the step |
| pairs | Σ over prompts of (new token, token it sees) pairs |
| cached tokens | Σ over sequences of the tokens they hold |
| count | times that the operator runs in a step: layers of its kind, or once |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from estimator.collectives import ExchangeWay
from estimator.dtypes import ACTIVATION_BYTES, KV_BYTES, STATE_BYTES, WEIGHT_BYTES, KvDtype, WeightDtype

Amount = TypeVar("Amount", float, NDArray[np.float64])
INDEX_KEY_BYTES = 128 + 4  # sparse attention's index key: 128 fp8 numbers and a float32 scale (vLLM, DeepSeek-V3.2)
SHORT_WINDOW_TOKENS = (
    2048  # a window up to here is full in most sequences and counts per sequence, a longer one per token
)
SPARSE_FP8_SCALE_BYTES = 4 * 4 + 64  # fp8 latent cache: float32 scale per 128 numbers, and 64 rope numbers kept bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """C[m, n] = A[m, k]·B[k, n] with weights B in `dtype`; m = tokens, or sequences sampled where `role` is head."""

    name: str
    n: int
    k: int
    dtype: WeightDtype
    role: Literal["body", "head", "shared"] = "body"
    count: float = 1.0

    def flop(self, tokens: Amount) -> Amount:
        """2·m·n·k."""
        return 2.0 * self.n * self.k * tokens

    def bytes(self, tokens: Amount) -> Amount:
        """Weights once, activations in and out."""
        return self.weight_bytes + ACTIVATION_BYTES * (self.n + self.k) * tokens

    @property
    def weight_bytes(self) -> float:
        """Of one run of the operator, resident on this GPU."""
        return self.n * self.k * WEIGHT_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFfn:
    """The routed experts of one layer on one GPU: `experts_per_gpu` of `num_experts`, `intermediate` wide there.

    They serve the tokens of all `ranks` attention-dp ranks, of which this GPU's experts see their share.
    """

    name: str
    hidden: int
    intermediate: int
    num_experts: int
    experts_per_gpu: int
    top_k: int
    dtype: WeightDtype
    bytes_per_parameter: float
    ep: int = 1
    moe_tp: int = 1
    ranks: int = 1
    count: float = 1.0

    def flop(self, tokens: Amount) -> Amount:
        """Three matrices of hidden × intermediate per routed token, balanced routing."""
        return 6.0 * self.hidden * self.intermediate * self.routed_tokens(tokens)

    def bytes(self, tokens: Amount) -> Amount:
        """Weights of the experts touched, activations in, between and out."""
        touched = self.experts_touched(tokens) / self.experts_per_gpu
        activations = ACTIVATION_BYTES * (2 * self.hidden + 3 * self.intermediate)
        return self.weight_bytes * touched + activations * self.routed_tokens(tokens)

    def routed_tokens(self, tokens: Amount) -> Amount:
        """Token copies that reach this GPU's experts when each rank puts `tokens` into the step."""
        return tokens * (self.ranks * self.top_k * self.experts_per_gpu / self.num_experts)

    def experts_touched(self, tokens: Amount) -> Amount:
        """Expected distinct experts of this GPU with work: E·(1 − (1 − k/E)^tokens), tokens choosing at random."""
        idle: Amount = (1.0 - self.top_k / self.num_experts) ** (tokens * self.ranks)
        return self.experts_per_gpu * (1.0 - idle)

    @property
    def weight_bytes(self) -> float:
        """Of one layer, resident on this GPU."""
        return 3 * self.hidden * self.intermediate * self.experts_per_gpu * self.bytes_per_parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttention:
    """Softmax attention of the heads of one GPU; `window_tokens` 0 = full context."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv_dtype: KvDtype
    window_tokens: int = 0
    count: float = 1.0

    def flop(self, pairs: Amount) -> Amount:
        """Scores and weighted values: 4·H·d per pair inside the window."""
        return 4.0 * self.num_heads * self.head_dim * pairs

    def bytes(self, cached_tokens: Amount) -> Amount:
        """Keys and values of the cached tokens inside the window, read once."""
        return 2.0 * self.num_kv_heads * self.head_dim * KV_BYTES[self.kv_dtype] * cached_tokens

    @property
    def kv_bytes_per_token(self) -> float:
        """That a token holds as long as its sequence lives; 0 where the cache forgets what leaves the window."""
        return 0.0 if self._forgets else self.bytes(1.0)

    @property
    def state_bytes_per_seq(self) -> float:
        """That a sequence holds whatever its length: its window, where the cache forgets the rest."""
        return self.bytes(float(self.window_tokens)) if self._forgets else 0.0

    @property
    def _forgets(self) -> bool:
        return 0 < self.window_tokens <= SHORT_WINDOW_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionOp:
    """Core of latent attention (projections are `Gemm`s): every GPU reads the whole latent for its `num_heads`."""

    name: str
    num_heads: int
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_dim: int
    kv_dtype: KvDtype
    count: float = 1.0

    def flop(self, pairs: Amount) -> Amount:
        """Prefill, keys and values expanded: 2·H·(nope + rope + v) per pair."""
        return 2.0 * self.num_heads * (self.qk_nope_dim + self.qk_rope_dim + self.v_dim) * pairs

    def decode_flop(self, cached_tokens: Amount) -> Amount:
        """Decode, projections absorbed: 2·H·(2·latent + rope) per cached token."""
        return 2.0 * self.num_heads * (2 * self.kv_lora_rank + self.qk_rope_dim) * cached_tokens

    def bytes(self, cached_tokens: Amount) -> Amount:
        """Latents and rotary keys of the cached tokens, read once."""
        return (self.kv_lora_rank + self.qk_rope_dim) * KV_BYTES[self.kv_dtype] * cached_tokens

    @property
    def kv_bytes_per_token(self) -> float:
        """The same on every GPU of a tensor-parallel group."""
        return self.bytes(1.0)

    @property
    def state_bytes_per_seq(self) -> float:
        """None."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseAttentionOp:
    """Latent attention over the `index_topk` cached tokens that an indexer, run on every GPU, picks for each query."""

    name: str
    num_heads: int
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_dim: int
    index_topk: int
    index_heads: int
    index_head_dim: int
    kv_dtype: KvDtype
    count: float = 1.0

    def flop(self, pairs: Amount) -> Amount:
        """Attention proper, always absorbed: 2·H·(2·latent + rope) per picked pair."""
        return 2.0 * self.num_heads * (2 * self.kv_lora_rank + self.qk_rope_dim) * pairs

    def index_flop(self, pairs: Amount) -> Amount:
        """Scoring: 2·index heads·index dim per pair of the whole context."""
        return 2.0 * self.index_heads * self.index_head_dim * pairs

    def bytes(self, cached_tokens: Amount) -> Amount:
        """Latents of the picked tokens (at most `index_topk` a sequence), read once."""
        return self._latent_bytes * cached_tokens

    def index_bytes(self, cached_tokens: Amount) -> Amount:
        """Index keys of the whole context, read once."""
        return 1.0 * INDEX_KEY_BYTES * cached_tokens

    @property
    def _latent_bytes(self) -> float:
        width = self.kv_lora_rank + self.qk_rope_dim
        return width * KV_BYTES[self.kv_dtype] + SPARSE_FP8_SCALE_BYTES * (self.kv_dtype == "fp8")

    @property
    def kv_bytes_per_token(self) -> float:
        """Latent and index key; the same on every GPU of a tensor-parallel group."""
        return self._latent_bytes + INDEX_KEY_BYTES

    @property
    def state_bytes_per_seq(self) -> float:
        """None."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNetOp:
    """Gated delta rule and its short convolution, on the heads of one GPU (projections are `Gemm`s)."""

    name: str
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    count: float = 1.0

    def flop(self, tokens: Amount) -> Amount:
        """Recurrent form: decay, Sᵀk, rank-one update and Sᵀq make 7·key·value per value head; and the convolution."""
        per_head = 7.0 * self.key_dim * self.value_dim
        return (per_head * self.num_value_heads + 2.0 * self.conv_kernel * self._num_channels) * tokens

    def bytes(self, num_seqs: Amount) -> Amount:
        """States of the sequences, read and written once a step."""
        return 2.0 * self.state_bytes_per_seq * num_seqs

    @property
    def _num_channels(self) -> int:
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim

    @property
    def kv_bytes_per_token(self) -> float:
        """None: the state does not grow."""
        return 0.0

    @property
    def state_bytes_per_seq(self) -> float:
        """Matrix of every value head, and the convolution's last inputs."""
        matrices = self.num_value_heads * self.key_dim * self.value_dim * STATE_BYTES
        return matrices + (self.conv_kernel - 1) * self._num_channels * ACTIVATION_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise:
    """Norm, rotation, activation, KV write, residual: memory traffic alone, one kernel each."""

    name: str
    bytes_per_token: float
    role: Literal["body", "head", "shared"] = "body"
    count: float = 1.0

    def bytes(self, tokens: Amount) -> Amount:
        """Read and written."""
        return self.bytes_per_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """Sum over `num_gpus` of a message of `bytes_per_token` on each of them."""

    name: str
    bytes_per_token: float
    num_gpus: int
    count: float = 1.0

    def bytes(self, tokens: Amount) -> Amount:
        """Size of the message."""
        return self.bytes_per_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AllGather:
    """Every one of `num_gpus` ends with the parts of all; reduce-scatter, its mirror, moves the same bytes.

    `role` head: the logits of the sequences sampled.
    """

    name: str
    bytes_per_token: float
    num_gpus: int
    role: Literal["body", "head"] = "body"
    count: float = 1.0

    def bytes(self, tokens: Amount) -> Amount:
        """Size of one GPU's part; the whole is `num_gpus` times that."""
        return self.bytes_per_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll:
    """Dispatch of tokens to the GPUs of their experts, or the way back (combine)."""

    way: ExchangeWay
    bytes_per_token: float
    num_gpus: int
    count: float = 1.0

    @property
    def name(self) -> str:
        """That of its way."""
        return self.way

    def bytes(self, tokens: Amount) -> Amount:
        """Sent by one GPU to all others together."""
        return self.bytes_per_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTransfer:
    """Hand-over of activations to the next pipeline stage, each tensor-parallel GPU sending its share."""

    name: str
    bytes_per_token: float
    count: float = 1.0

    def bytes(self, tokens: Amount) -> Amount:
        """Sent by one GPU."""
        return self.bytes_per_token * tokens


AttentionOperator = GroupedAttention | LatentAttentionOp | SparseAttentionOp | DeltaNetOp
Collective = AllReduce | AllGather | AllToAll | StageTransfer
Operator = Gemm | ExpertFfn | AttentionOperator | Elementwise | Collective
