"""Multi-token prediction: a step verifies drafted tokens beside the sure one, and gains those that are accepted.

| symbol | meaning |
|---|---|
| d | `draft_tokens`: drafted per sequence and step |
| α | `acceptance`: chance that a draft is accepted, given that all before it were |
| q | 1 + d: tokens that a decoding sequence puts into a step |
| a | (1 − α^q)/(1 − α): tokens it gains on average (Leviathan et al. 2023, arXiv 2211.17192, eq. 1) |

The drafts come from the model's own prediction layers (DeepSeek-V3 report, arXiv 2412.19437, 2.2): a projection of
the hidden state joined with the embedding of the next token (2h → h), one layer like the body's last, and the shared
head. The first pass runs over the step's tokens, so that the layer has a cache of its own; each further draft is a pass
over the sequences. A model with fewer layers than drafts runs its last one again, as vLLM and SGLang do.

    D' = D_q + P_q + head + (d − 1)·P_1     M'[T] = M[T] + P_T     H' = H + head + (d − 1)·P_1 in a step with prefill

with P_q, P_T the draft's first pass without its head and P_1 a further pass with it, none with the engine's host code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from estimator.errors import require
from estimator.iteration import FloatArray, StepCost
from estimator.model import LayerGroup, ModelShape

MOST_DRAFTS = 8  # beyond it no published layer keeps an acceptance worth its pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How many tokens are drafted per step and how often one is accepted; symbols in the module's docstring."""

    draft_tokens: int = 1
    acceptance: float

    def __post_init__(self) -> None:
        require(
            1 <= self.draft_tokens <= MOST_DRAFTS,
            field="multi_token_prediction.draft_tokens",
            value=self.draft_tokens,
            rule="must be a whole number of drafts that pays",
            accepted=f"1 to {MOST_DRAFTS}",
        )
        require(
            0.0 <= self.acceptance <= 1.0,
            field="multi_token_prediction.acceptance",
            value=self.acceptance,
            rule="must be a chance",
            accepted="0 to 1",
        )

    @property
    def tokens_per_seq(self) -> int:
        """q."""
        return 1 + self.draft_tokens

    @property
    def accepted_tokens_per_step(self) -> float:
        """a = Σ α^i over i = 0 … d: 1 where nothing is accepted, q where everything is."""
        return float(sum(self.acceptance**drafted for drafted in range(self.tokens_per_seq)))


def require_draft_layers(model: ModelShape) -> None:
    """Raises `BestServeError` for a model that is published without prediction layers."""
    require(
        model.num_mtp_layers >= 1,
        field="multi_token_prediction",
        value=model.name,
        rule="is a model without multi-token prediction layers",
        accepted="a model whose config.json has num_nextn_predict_layers or mtp_num_hidden_layers",
    )


def with_draft_layers(model: ModelShape) -> ModelShape:
    """The model with its prediction layers among the others: what weights, caches and states must hold."""
    require_draft_layers(model)
    last = model.layers[-1]
    drafts = LayerGroup(count=model.num_mtp_layers, attention=last.attention, ffn=last.ffn)
    return replace(model, layers=(*model.layers, drafts))


def draft_pass(model: ModelShape) -> ModelShape:
    """What one draft pass runs: embedding, one layer like the last, head."""
    require_draft_layers(model)
    return replace(model, name=f"{model.name} draft", layers=(replace(model.layers[-1], count=1),))


def without_host(full: StepCost, empty: StepCost) -> StepCost:
    """The step without what a stage that runs nothing takes."""
    return replace(
        full,
        decode_s=full.decode_s - empty.decode_s,
        mixed_s=full.mixed_s - empty.mixed_s,
        head_s=full.head_s - empty.head_s,
    )


def with_drafts(body: StepCost, verify: StepCost, draft: StepCost, speculation: Speculation) -> StepCost:
    """The step of a model that drafts; `body` verifies q tokens a sequence.

    `verify` is the draft pass over q tokens a sequence, `draft` over one, both without host code.
    """
    further = speculation.draft_tokens - 1
    heads = draft.head_s + further * draft.decode_s

    def read(name: str) -> FloatArray:
        tables: list[FloatArray] = [getattr(cost, name) for cost in (body, verify, draft)]
        return np.asarray(tables[0] + tables[1] + further * tables[2])

    return replace(
        body,
        decode_s=body.decode_s + verify.decode_s - verify.head_s + heads,  # a draft's head sees one token a sequence
        mixed_s=body.mixed_s + verify.mixed_s,
        head_s=body.head_s + heads,
        kv_read_s_per_token=read("kv_read_s_per_token"),
        window_read_s_per_token=read("window_read_s_per_token"),
        window_tokens=max(body.window_tokens, verify.window_tokens),
        attention_s_per_pair=body.attention_s_per_pair + verify.attention_s_per_pair,
        window_attention_s_per_pair=body.window_attention_s_per_pair + verify.window_attention_s_per_pair,
        decode_tokens_per_seq=speculation.tokens_per_seq,
        accepted_tokens_per_step=speculation.accepted_tokens_per_step,
    )
