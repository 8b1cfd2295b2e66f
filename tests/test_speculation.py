"""Multi-token prediction: what a step gains, what its drafts cost and hold, and that a spec reaches the kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.build import build_instance
from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.drafting import build_drafting_instance, drafting_breakdown
from estimator.dtypes import Dtypes
from estimator.errors import BestServeError
from estimator.instance import EngineLimits, Instance
from estimator.memory import kv_bytes_per_token, stage_memories
from estimator.parallelism import Parallelism
from estimator.speculation import Speculation, draft_pass, with_draft_layers
from search.question import problem_of
from search.spec import load_spec
from spaces.problem import system_of
from spaces.strategy import Strategy

DEEPSEEK = load_model("deepseek-ai/DeepSeek-V3")
LIMITS = EngineLimits(max_num_batched_tokens=2048, max_num_seqs=64)
LAYOUT = Parallelism(tp=8, ep=8)
FP8 = Dtypes(weight="fp8")


def drafting(speculation: Speculation) -> Instance:
    """DeepSeek-V3 on 8 H200 under SGLang, drafting."""
    gpu, engine = load_gpu("h200_sxm"), load_engine("sglang")
    instance = build_drafting_instance(
        model=DEEPSEEK, gpu=gpu, engine=engine, parallelism=LAYOUT, limits=LIMITS, dtypes=FP8, speculation=speculation
    )
    assert isinstance(instance, Instance)
    return instance


def plain() -> Instance:
    """The same without drafts."""
    instance = build_instance(
        model=DEEPSEEK,
        gpu=load_gpu("h200_sxm"),
        engine=load_engine("sglang"),
        parallelism=LAYOUT,
        limits=LIMITS,
        weight_dtype="fp8",
        kv_dtype="bf16",
    )
    assert isinstance(instance, Instance)
    return instance


def test_expected_tokens_are_the_geometric_sum_of_leviathan() -> None:
    """One draft at 0.8 gains 1.8 tokens a step, three gain 1 + 0.8 + 0.64 + 0.512 = 2.952; 0 gains 1 and 1 gains q."""
    assert Speculation(acceptance=0.8).accepted_tokens_per_step == pytest.approx(1.8)
    assert Speculation(draft_tokens=3, acceptance=0.8).accepted_tokens_per_step == pytest.approx(2.952)
    assert Speculation(draft_tokens=3, acceptance=0.0).accepted_tokens_per_step == 1.0
    assert Speculation(draft_tokens=3, acceptance=1.0).accepted_tokens_per_step == 4.0


@pytest.mark.parametrize(
    ("drafts", "acceptance", "message"),
    [(0, 0.5, r"draft_tokens: 0 must be a whole"), (9, 0.5, "draft_tokens: 9"), (1, 1.2, "acceptance: 1.2 must be")],
)
def test_drafts_that_cannot_be_are_refused(drafts: int, acceptance: float, message: str) -> None:
    """No drafts, too many of them, and a chance above one are refused with what is accepted."""
    with pytest.raises(BestServeError, match=message):
        Speculation(draft_tokens=drafts, acceptance=acceptance)


def test_a_model_without_prediction_layers_cannot_draft() -> None:
    """Llama has none, and the error says what a model needs."""
    with pytest.raises(BestServeError, match="is a model without multi-token prediction layers"):
        with_draft_layers(load_model("meta-llama/Llama-3.1-8B"))


def test_the_draft_layer_of_deepseek_v3_has_the_published_size() -> None:
    """671B of body and 14B of prediction module (own embedding, head and projection) make the 685B published."""
    layer = with_draft_layers(DEEPSEEK).num_parameters - DEEPSEEK.num_parameters
    h = DEEPSEEK.hidden_size
    module = layer + 2 * DEEPSEEK.vocab_size * h + 2 * h * h
    assert module == pytest.approx(14e9, rel=0.04)  # README of deepseek-ai/DeepSeek-V3, 2024-12-26
    assert DEEPSEEK.num_parameters + module == pytest.approx(685e9, rel=0.002)


def test_draft_layers_hold_weights_and_cache() -> None:
    """One more layer of 62 adds its 576 numbers of cache per token and its share of experts; blocks get fewer."""
    resident = with_draft_layers(DEEPSEEK)
    assert kv_bytes_per_token(resident, "bf16") == kv_bytes_per_token(DEEPSEEK, "bf16") * 62 / 61
    (with_drafts,), (without,) = (stage_memories(model, LAYOUT, FP8) for model in (resident, DEEPSEEK))
    more = with_drafts.weight_bytes - without.weight_bytes
    assert more == pytest.approx(256 * 3 * 7168 * 2048 / 8, rel=0.06)  # its routed experts in fp8 are nearly all of it
    assert drafting(Speculation(acceptance=0.8)).num_kv_blocks < plain().num_kv_blocks


def test_a_draft_pass_is_one_layer_between_embedding_and_head() -> None:
    """It keeps the last layer's kind once and the vocabulary whole."""
    draft = draft_pass(DEEPSEEK)
    assert (draft.num_layers, draft.vocab_size, draft.layers[0].ffn) == (1, 129280, DEEPSEEK.layers[-1].ffn)


def test_a_drafting_step_costs_more_and_gains_more() -> None:
    """A step that verifies two tokens takes 1.02 to 1.7 times a plain one and gains 1.8: fewer seconds a token."""
    fast, slow = drafting(Speculation(acceptance=0.8)), plain()
    assert fast.cost.decode_tokens_per_seq == 2
    assert fast.cost.accepted_tokens_per_step == pytest.approx(1.8)
    for num_seqs in (1, 16, 64):
        ratio = fast.cost.decode_step_s(num_seqs, 1000 * num_seqs) / slow.cost.decode_step_s(num_seqs, 1000 * num_seqs)
        assert 1.02 < ratio < 1.7, num_seqs
    prompt = [(1024, 0)]
    assert fast.cost.mixed_step_s(0, 0, prompt, 1) > slow.cost.mixed_step_s(0, 0, prompt, 1)
    assert fast.cost.attention_s_per_pair == pytest.approx(slow.cost.attention_s_per_pair * 62 / 61, rel=1e-6)


@settings(deadline=None)
@given(drafts=st.integers(1, 7), num_seqs=st.integers(1, 64), cached=st.integers(1, 8192))
def test_every_further_draft_lengthens_the_step(drafts: int, num_seqs: int, cached: int) -> None:
    """With d + 1 drafts no step is shorter than with d, at any batch and cache."""
    fewer = COSTS[drafts].decode_step_s(num_seqs, num_seqs * cached)
    more = COSTS[drafts + 1].decode_step_s(num_seqs, num_seqs * cached)
    assert more > fewer


COSTS = {drafts: drafting(Speculation(draft_tokens=drafts, acceptance=0.7)).cost for drafts in range(1, 9)}


def test_acceptance_changes_no_step() -> None:
    """The chance of acceptance says how far a step gets, never how long it takes."""
    often, never = (drafting(Speculation(acceptance=chance)).cost for chance in (1.0, 0.0))
    for name in ("decode_s", "mixed_s", "head_s", "kv_read_s_per_token"):
        assert np.array_equal(getattr(often, name), getattr(never, name)), name


def test_a_drafting_breakdown_adds_up_to_its_step() -> None:
    """Parts and draft passes sum to the step of the instance; the passes are one layer of 62 and a head: 2 to 12 %."""
    speculation = Speculation(acceptance=0.8)
    parts = drafting_breakdown(
        model=DEEPSEEK,
        gpu=load_gpu("h200_sxm"),
        engine=load_engine("sglang"),
        parallelism=LAYOUT,
        dtypes=FP8,
        num_seqs=16,
        cached_tokens=16_000,
        speculation=speculation,
    )
    whole_s = sum(part.seconds for part in parts)
    assert whole_s == pytest.approx(drafting(speculation).cost.decode_step_s(16, 16_000), rel=0.02)
    draft_s = next(part.seconds for part in parts if part.operator == "draft")
    assert 0.02 < draft_s / whole_s < 0.12


SPEC = """
name: drafts
model: {id: deepseek-ai/DeepSeek-V3, weights: fp8, multi_token_prediction: {draft_tokens: 1, acceptance: 0.8}}
gpus: [h200_sxm]
engine: sglang
traffic: {rate_req_s: 1, lengths: {kind: fixed, input_tokens: 1000, output_tokens: 200}}
slo: {ttft: {p90_ms: 2000}, tpot: {p90_ms: 60}}
"""


def test_a_spec_reaches_the_step(tmp_path: Path) -> None:
    """The field in YAML makes the system's instance gain 1.8 tokens a step; without it a step gains one."""
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    problem = problem_of(load_spec(path))
    system = system_of(problem, Strategy.parse("1m-tp8-ep8@h200_sxm"))
    assert system.instance.cost.accepted_tokens_per_step == pytest.approx(1.8)  # type: ignore[union-attr]
    alone = system_of(replace(problem, speculation=None), Strategy.parse("1m-tp8-ep8@h200_sxm"))
    assert alone.instance.cost.accepted_tokens_per_step == 1.0  # type: ignore[union-attr]


def test_a_spec_that_drafts_with_llama_is_refused(tmp_path: Path) -> None:
    """A model without prediction layers is named at the edge."""
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("deepseek-ai/DeepSeek-V3", "meta-llama/Llama-3.1-8B"), encoding="utf-8")
    with pytest.raises(BestServeError, match=r"multi_token_prediction: 'meta-llama/Llama-3\.1-8B' is a model without"):
        problem_of(load_spec(path))
