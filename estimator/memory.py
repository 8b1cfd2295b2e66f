"""What fits on a GPU: weights, KV blocks, states and activations.

    blocks = (share·memory − weights − activations − reserve − states) / (16 · KV bytes per token)      (vLLM)

taken per pipeline stage; an engine gives every stage the same number of blocks, so the fewest count. Weights, KV bytes
and states are sums over the stage's operators (`estimator.operators`).

Sliding-window layers: vLLM's hybrid KV cache manager, SGLang's hybrid pool and TensorRT-LLM's window manager free the
blocks that leave a window, so a layer with a short one (gpt-oss: 128 tokens) holds it per sequence, as state. Long
windows and chunks (Llama 4: 8192 tokens) count like full context: exact for sequences shorter than the window,
cautious for longer ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.dtypes import ACTIVATION_BYTES, Dtypes, KvDtype
from estimator.errors import require
from estimator.hardware import Gpu
from estimator.instance import BLOCK_TOKENS, EngineLimits
from estimator.model import DenseFfn, ModelShape
from estimator.operators import (
    AttentionOperator,
    DeltaNetOp,
    GroupedAttention,
    LatentAttentionOp,
    Operator,
    SparseAttentionOp,
    all_stage_operators,
    resident_weight_bytes,
)
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism

MAX_STATE_FRAC = 0.9 / 1.9  # of the memory left for caches: SGLang's --mamba-full-memory-ratio 0.9 (server_args.py)
LOGIT_COPIES_BYTES = 10.0  # per sampled sequence and word: bf16 logits, float32 logits, float32 probabilities
HIDDEN_COPIES = 4  # hidden states alive at a layer's widest point: input, residual, normed, output


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPolicy:
    """How an engine spends a GPU's memory.

    `utilisation_frac` of it is the engine's; `reserve_bytes` of that go to context, communication buffers and graphs.
    `activations_in_share`: activations come out of the share too (vLLM), or else out of what the share leaves, as far
    as that goes (SGLang's --mem-fraction-static). `share_of_free`: the fraction is that of the memory which weights,
    activations and reserve leave free, for KV blocks (TensorRT-LLM's free_gpu_memory_fraction).
    """

    utilisation_frac: float
    reserve_bytes: float = 0.0
    activations_in_share: bool = True
    share_of_free: bool = False

    def __post_init__(self) -> None:
        require(
            0 < self.utilisation_frac <= 1,
            field="memory_utilisation_frac",
            value=self.utilisation_frac,
            rule="must be a share of the GPU's memory",
            accepted="0 < share ≤ 1",
        )

    def offered_bytes(self, gpu: Gpu, activations_bytes: float) -> float:
        """Bytes of one GPU for weights and caches."""
        if self.share_of_free:
            return gpu.memory_bytes - activations_bytes - self.reserve_bytes
        share_bytes = self.utilisation_frac * gpu.memory_bytes
        outside_bytes = 0.0 if self.activations_in_share else gpu.memory_bytes - share_bytes
        return share_bytes - max(0.0, activations_bytes - outside_bytes) - self.reserve_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes of one GPU of one pipeline stage: resident weights, per cached token, per resident sequence."""

    weight_bytes: float
    kv_bytes_per_token: float
    state_bytes_per_seq: float


def stage_memories(model: ModelShape, parallelism: Parallelism, dtypes: Dtypes) -> list[StageMemory]:
    """Memory of one GPU of every pipeline stage, in order."""
    stages = all_stage_operators(model, parallelism, dtypes)
    memories = []
    for index, operators in enumerate(stages):
        attention = _attention(operators)
        embedding = _embedding_bytes(model, parallelism) if index == 0 else 0.0
        memories.append(
            StageMemory(
                weight_bytes=resident_weight_bytes(operators) + embedding,
                kv_bytes_per_token=sum(op.count * op.kv_bytes_per_token for op in attention),
                state_bytes_per_seq=sum(op.count * op.state_bytes_per_seq for op in attention),
            )
        )
    return memories


def kv_bytes_per_token_per_gpu(model: ModelShape, parallelism: Parallelism, dtypes: Dtypes) -> float:
    """KV cache of one token on a GPU of the fullest stage; windowed layers and delta nets hold none that grows.

    Key/value heads are copied where tp exceeds them, and latent caches on every GPU of the tp group.
    """
    return max(stage.kv_bytes_per_token for stage in stage_memories(model, parallelism, dtypes))


def kv_bytes_per_token(model: ModelShape, kv_dtype: KvDtype) -> float:
    """KV cache of one token over all layers, each number once: what a hand-over moves."""
    return kv_bytes_per_token_per_gpu(model, Parallelism(), Dtypes(kv=kv_dtype))


def state_bytes_per_seq(model: ModelShape, parallelism: Parallelism, dtypes: Dtypes) -> float:
    """What a sequence holds whatever its length on a GPU of the fullest stage: delta-net states and windows."""
    return max(stage.state_bytes_per_seq for stage in stage_memories(model, parallelism, dtypes))


def activation_bytes(model: ModelShape, parallelism: Parallelism, limits: EngineLimits) -> float:
    """Peak of one GPU in the largest step the limits allow: the widest layer, or the logits of every sequence."""
    widest = max(_feed_forward_width(model, parallelism, index) for index in range(len(model.layers)))
    layer = limits.max_num_batched_tokens * ACTIVATION_BYTES * (HIDDEN_COPIES * model.hidden_size + widest)
    return max(layer, limits.max_num_seqs * model.vocab_size * LOGIT_COPIES_BYTES)


def num_kv_blocks(
    model: ModelShape,
    gpu: Gpu,
    parallelism: Parallelism,
    *,
    dtypes: Dtypes,
    limits: EngineLimits,
    policy: MemoryPolicy,
) -> int | Infeasible:
    """KV blocks of `BLOCK_TOKENS` tokens per attention-dp rank, or `Infeasible` where not one is left.

    States are set aside for `max_num_seqs` sequences, at most `MAX_STATE_FRAC` of the room. The violation is the
    missing bytes relative to those that the engine has for weights and caches.
    """
    offered = policy.offered_bytes(gpu, activation_bytes(model, parallelism, limits))
    blocks = []
    for stage in stage_memories(model, parallelism, dtypes):
        room = offered - stage.weight_bytes
        if policy.share_of_free:
            room *= policy.utilisation_frac
        states = min(limits.max_num_seqs * stage.state_bytes_per_seq, MAX_STATE_FRAC * max(room, 0.0))
        block_bytes = BLOCK_TOKENS * stage.kv_bytes_per_token
        missing = block_bytes + states - room
        if missing > 0:
            return _too_big(stage, gpu, offered, missing)
        if block_bytes:  # a stage of delta nets alone binds nothing
            blocks.append(int((room - states) / block_bytes))
    return min(blocks)


def _too_big(stage: StageMemory, gpu: Gpu, offered: float, missing: float) -> Infeasible:
    reason = (
        f"weights of {stage.weight_bytes / 1e9:.1f} GB and one KV block exceed the {max(offered, 0) / 1e9:.1f} GB that"
        f" a {gpu.name} of {gpu.memory_bytes / 1e9:.1f} GB offers"
    )
    return Infeasible(rule="memory", reason=reason, violation=missing / max(offered, 0.01 * gpu.memory_bytes))


def _attention(operators: tuple[Operator, ...]) -> list[AttentionOperator]:
    return [
        op for op in operators if isinstance(op, (GroupedAttention, LatentAttentionOp, SparseAttentionOp, DeltaNetOp))
    ]


def _embedding_bytes(model: ModelShape, parallelism: Parallelism) -> float:
    """Of the first stage; a head tied to the embedding and on the same stage is already counted."""
    if model.tied_head and parallelism.pp == 1:
        return 0.0
    return -(-model.vocab_size // parallelism.tp) * model.hidden_size * ACTIVATION_BYTES


def _feed_forward_width(model: ModelShape, parallelism: Parallelism, index: int) -> float:
    """Numbers per token between the matrices of a layer group's feed-forward block on one GPU.

    Gate, up and their product; experts hold them, and their outputs, for each of a token's experts that lives here
    (k/ep on average) and for the tokens of all attention-dp ranks.
    """
    ffn = model.layers[index].ffn
    if isinstance(ffn, DenseFfn):
        return (3 if ffn.gated else 2) * ffn.intermediate_size / parallelism.tp
    copies = parallelism.dp * ffn.top_k / parallelism.ep
    return copies * (3 * ffn.intermediate_size / parallelism.moe_tp + model.hidden_size)
