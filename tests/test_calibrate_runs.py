"""Engine costs fitted on runs: the parametrisation, recovery of known costs, and leaving a group out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate_runs import (
    NAMES,
    SHIFT_STD,
    Design,
    Fit,
    FloatArray,
    IntArray,
    Key,
    Problem,
    costs_at,
    fit,
    gauss_newton_step,
    key_of,
    latencies_ms,
    position_of,
    shifts_without,
)
from estimator.catalogue.engines import load_engine
from estimator.catalogue.models import load_model
from estimator.catalogue.recipes import family_of, recipe_of
from estimator.engine import COST_BOUNDS, EngineCosts
from estimator.measured_runs import MeasuredRun, read_runs
from estimator.parallelism import Parallelism
from estimator.replay import answer, kv_dtype_of, limits_of, prepare


@pytest.fixture(scope="module")
def runs(shared: Path) -> list[MeasuredRun]:
    """Every measured run."""
    return read_runs(shared / "measured" / "measurements.csv")


@given(st.lists(st.floats(-50, 50), min_size=len(NAMES), max_size=len(NAMES)))
def test_any_position_is_within_the_bounds(position: list[float]) -> None:
    """Whatever z the fit tries, costs are legal: the logistic function cannot leave its interval."""
    costs = costs_at(np.array(position))
    assert all(COST_BOUNDS[f.name][0] <= getattr(costs, f.name) <= COST_BOUNDS[f.name][1] for f in fields(costs))


def test_position_and_costs_are_inverse() -> None:
    """costs_at undoes position_of."""
    found = costs_at(position_of(EngineCosts()))
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(EngineCosts(), name), rel=1e-9), name


def test_shifts_add_up_over_all_engine_and_architecture() -> None:
    """z of (vllm, hopper) is the default plus the shift of all, of vllm and of (vllm, hopper), and of no other."""
    design = Design.of([("vllm", "hopper"), ("vllm", "blackwell"), ("sglang", "hopper")])
    shifts = np.zeros((design.matrix.shape[1], len(NAMES)))
    shifts[:, 0] = 2.0 ** np.arange(len(shifts))
    moved = design.positions(shifts)[:, 0] - position_of(EngineCosts())[0]
    # order: all, sglang, vllm, (sglang, hopper), (vllm, blackwell), (vllm, hopper)
    np.testing.assert_allclose(moved, [1 + 2 + 8, 1 + 4 + 16, 1 + 4 + 32])


def small_problem(runs: list[MeasuredRun], truth: EngineCosts | None = None) -> Problem:
    """Every twelfth short closed-loop run of Hopper GPUs, answered by `truth` if given."""
    chosen = [r for r in runs if r.mode == "collocated" and r.concurrency and r.concurrency <= 32]
    chosen = [r for r in chosen if key_of(r)[1] == "hopper"][::12]
    prepared = [prepare(run) for run in chosen]

    def simulate(index: IntArray, costs: Mapping[Key, EngineCosts]) -> FloatArray:
        return latencies_ms([prepared[i] for i in index], costs)

    problem = Problem.of(chosen, simulate)
    if truth is None:
        return problem
    everything = np.arange(len(chosen))
    return replace(problem, measured=simulate(everything, dict.fromkeys(problem.design.keys, truth)))


@pytest.mark.shared
def test_a_fit_gives_back_the_costs_that_made_the_runs(runs: list[MeasuredRun]) -> None:
    """On runs simulated with known costs the fit comes from over 3 % of TPOT to 1 %, and of TTFT to 3 % (medians)."""
    truth = EngineCosts(gemm_factor=0.85, host_s=1.5e-3, prefill_factor=1.25, moe_factor=0.9, request_overhead_s=0.012)
    problem = small_problem(runs, truth)
    before = problem.predict(np.arange(len(problem.keys)), np.zeros_like(problem.design.std))
    after = fit(problem, num_iterations=4).predicted
    error = [np.median(np.abs(predicted / problem.measured - 1), axis=0) for predicted in (before, after)]
    assert error[0][0] > 0.03
    assert error[1][0] < 0.01
    assert error[1][1] < 0.03


def test_what_a_host_launches_differs_by_nodes_more_than_by_engines() -> None:
    """The shift of an architecture is freer than that of an engine for l_p and l_e alone: nodes have their own CPUs."""
    design = Design.of([("vllm", "hopper"), ("vllm", "blackwell"), ("trtllm", "hopper")])
    base, engine, place = design.std[0], design.std[1], design.std[-1]
    assert np.all(base == SHIFT_STD["base"])
    freer = {name for name, one, two in zip(NAMES, engine, place, strict=True) if two > one}
    assert freer == {"prefill_layer_s", "prefill_experts_s"}


@pytest.mark.shared
def test_leaving_a_group_out_is_like_a_fit_without_it(runs: list[MeasuredRun]) -> None:
    """The chord method's costs predict a held-out group within 3 % of those of a full refit without it."""
    problem = small_problem(runs)
    full = fit(problem, num_iterations=5)
    sizes = {group: sum(other == group for other in problem.groups) for group in problem.groups}
    group = max(sizes, key=lambda one: sizes[one])
    keep = np.array([other != group for other in problem.groups])
    refit: Fit = full
    for _ in range(4):
        refit = replace(refit, slopes=problem.slopes(refit.shifts, refit.predicted))
        shifts = gauss_newton_step(problem, refit, keep)
        refit = replace(refit, shifts=shifts, predicted=problem.predict(np.arange(len(keep)), shifts))
    held = np.flatnonzero(~keep)
    short = problem.predict(held, shifts_without(problem, full, group))
    assert np.median(np.abs(short / refit.predicted[held] - 1)) < 0.03


def test_recipes_fill_what_rows_leave_open(runs: list[MeasuredRun]) -> None:
    """An InferenceMAX run of gpt-oss under TensorRT-LLM takes the script's 20,000 tokens and 512 sequences; on Hopper
    its cache stays bf16, on Blackwell fp8 (gptoss_fp4_h200_trt.sh, gptoss_fp4_b200_trt.sh)."""
    mine = [r for r in runs if r.model.endswith("gpt-oss-120b") and r.source == "silicon/inferencemax"]
    mine = [r for r in mine if r.gpu == "h200_sxm" or r.engine_version is not None]
    seen = {r.gpu: (limits_of(r, load_engine(r.engine)).max_num_batched_tokens, kv_dtype_of(r)) for r in mine}
    assert seen == {"b200_sxm": (20_000, "fp8"), "h200_sxm": (20_000, "bf16")}
    assert {recipe_of(r).max_num_seqs for r in mine if r.gpu == "b200_sxm"} == {512}


@pytest.mark.shared
def test_servers_without_measured_runs_follow_their_scripts(runs: list[MeasuredRun]) -> None:
    """gpt-oss under vLLM and DeepSeek-R1 under TensorRT-LLM take budgets, seats and caches from InferenceMAX's scripts
    (gptoss_fp4_h100.sh, gptoss_fp4_b200.sh, dsr1_fp8_h200_trt.sh): a step holds 8,192 tokens, or a longer prompt and
    what is in flight."""
    gpt = next(r for r in runs if r.model.endswith("gpt-oss-120b") and r.source == "silicon/inferencemax")
    r1 = next(
        r for r in runs if r.model.endswith("DeepSeek-R1") and r.input_bounds[1] == 8192 and r.mode == "collocated"
    )
    short = replace(r1, input_bounds=(819, 1024))

    def settings(run: MeasuredRun, gpu: str, engine: str) -> tuple[int, int | None, str]:
        told = replace(run, gpu=gpu, engine=engine, engine_version=None, concurrency=64)
        return recipe_of(told).max_num_batched_tokens or 0, recipe_of(told).max_num_seqs, kv_dtype_of(told)

    assert settings(gpt, "h100_sxm", "vllm") == (8192, 64, "bf16")
    assert settings(gpt, "b200_sxm", "vllm") == (8192, 512, "fp8")
    assert settings(short, "h200_sxm", "trtllm") == (8192, None, "fp8")
    assert settings(r1, "b200_sxm", "trtllm") == (8192 + 64, None, "fp8")


@pytest.mark.shared
def test_a_layout_with_room_for_less_than_a_request_is_answered(runs: list[MeasuredRun]) -> None:
    """70 GB of weights leave an H100 room for 3,000 tokens; a run of longer requests happened, so it is answered with
    room for four of them and marked, as one without any room is."""
    mine = next(r for r in runs if r.model.endswith("Llama-3.1-70B") and r.engine == "vllm" and r.weight_dtype == "fp8")
    tp1 = replace(mine.pools[0], parallelism=Parallelism())
    run = replace(mine, gpu="h100_sxm", source="silicon/nvidia_internal_gap_analysis", pools=(tp1,), concurrency=4)
    for input_tokens in (1024, 8192):
        long = replace(run, input_bounds=(input_tokens, input_tokens), output_bounds=(8192, 8192), num_requests=8)
        found = answer(long)
        assert found.relaxed
        assert all(np.isfinite(found.latency_ms[name]) for name in ("ttft_mean_ms", "tpot_mean_ms"))


@pytest.mark.shared
def test_scripts_and_versions_say_what_norms_join(runs: list[MeasuredRun]) -> None:
    """The scripts of vLLM fuse norms for Llama-3.1-70B on B200 and not on H200; later versions do so of themselves, as
    do TensorRT-LLM's models; SGLang's Qwen3.5 does where its script says so, on H200 and for bf16."""
    joined: dict[tuple[str, str, str, str], set[bool]] = {}
    for run in runs:
        if run.mode == "collocated":
            key = run.model.split("/")[1], run.gpu, run.engine, run.weight_dtype
            joined.setdefault(key, set()).add(prepare(run).engine.fusion.norm_tokens > 0)
    assert joined["Llama-3.1-70B", "b200_sxm", "vllm", "fp8"] == {True}
    assert joined["Llama-3.1-70B", "h200_sxm", "vllm", "fp8"] == {False}
    assert joined["MiniMax-M2.5", "b300_sxm", "vllm", "fp8"] == {True}  # 0.19
    assert joined["Qwen3-32B", "h100_sxm", "vllm", "bf16"] == {False}  # 0.12
    assert joined["Llama-3.1-70B", "h200_sxm", "trtllm", "fp8"] == {True}
    assert joined["Qwen3.5-397B-A17B", "h200_sxm", "sglang", "fp8"] == {True}
    assert joined["Qwen3.5-397B-A17B", "b200_sxm", "sglang", "fp8"] == {False}
    assert joined["Qwen3.5-397B-A17B", "b200_sxm", "sglang", "bf16"] == {True}


@pytest.mark.shared
def test_bursts_wait_for_kernels_that_are_compiled_when_they_first_run(runs: list[MeasuredRun]) -> None:
    """Fresh servers of SGLang before 0.5.10 do; of TensorRT-LLM those alone whose experts are Triton's, of vLLM those
    on Hopper with experts and those on B200 before 0.19."""
    cold = {
        (r.model.split("/")[1], r.gpu, r.engine) for r in runs if r.mode == "collocated" and recipe_of(r).starts_cold
    }
    assert {key for key in cold if key[2] == "trtllm"} == {("gpt-oss-120b", "h200_sxm", "trtllm")}
    assert {key for key in cold if key[2] == "vllm"} == {
        ("MiniMax-M2.5", "h200_sxm", "vllm"),
        ("Kimi-K2.5", "b200_sxm", "vllm"),
        ("Llama-3.1-70B", "b200_sxm", "vllm"),
    }
    sglang = {key[:2] for key in cold if key[2] == "sglang"}
    assert {model for model, _ in sglang} == {"DeepSeek-R1", "Qwen3.5-397B-A17B"}  # of GLM-5 they compile before
    assert ("DeepSeek-R1", "b300_sxm") not in sglang  # 0.5.10 runs every kernel as it captures prompts' graphs


@pytest.mark.shared
def test_prompts_that_a_server_splits_finer_than_its_client_arrive_longer(runs: list[MeasuredRun]) -> None:
    """SGLang 0.5.10 counts 35,921 tokens in 7,140 of a client under transformers 5, of DeepSeek's tokenizer alone; with
    that the TTFT of two prompts in three of 8,192 tokens is within a third, without it none reaches a half."""
    longer = [r for r in runs if recipe_of(r).input_factor != 1.0]
    assert {(r.engine, family_of(load_model(r.model)), r.engine_version) for r in longer} == {
        ("sglang", "latent", (0, 5, 10))
    }
    sent, meant = prepare(longer[0]).requests, longer[0].requests()
    assert sent.input_tokens.sum() / meant.input_tokens.sum() == pytest.approx(35_921 / 7140, rel=2e-3)
    assert np.array_equal(sent.output_tokens, meant.output_tokens)
    long = [r for r in longer if r.input_bounds[1] == 8192]
    ratio = np.array([answer(r).latency_ms["ttft_mean_ms"] / r.measured_ms["ttft_mean_ms"] for r in long])
    assert np.mean(np.abs(ratio - 1.0) < 1 / 3) > 2 / 3
    early = [replace(r, engine_version=(0, 5, 9)) for r in long]
    ratio = np.array([answer(r).latency_ms["ttft_mean_ms"] / r.measured_ms["ttft_mean_ms"] for r in early])
    assert (ratio < 0.5).all()


@pytest.mark.shared
def test_no_gpu_holds_a_part_of_a_block_of_an_expert(runs: list[MeasuredRun]) -> None:
    """Experts of 1,536 columns in fp8 blocks of 128 divide over four GPUs; over eight, 192 each, they go whole."""
    mine = {
        (r.pools[0].parallelism.tp, r.weight_dtype): prepare(r).pools[0].parallelism
        for r in runs
        if r.model.endswith("MiniMax-M2.5") and r.pools[0].parallelism.dp == 1
    }
    assert mine[4, "fp8"] == Parallelism(tp=4)
    assert mine[8, "fp8"] == Parallelism(tp=8, ep=8)
    assert mine[8, "fp4"] == Parallelism(tp=8)  # scaled by 16


@pytest.mark.shared
def test_runs_of_sweeps_with_drafts_draft(runs: list[MeasuredRun]) -> None:
    """The scripts' EAGLE settings reach the runs of their layouts alone, and these gain more than a token a step."""
    drafting = [run for run in runs if recipe_of(run).speculation is not None]
    layouts = {(r.model.split("/")[1], r.pools[0].parallelism.tp, r.pools[0].parallelism.ep) for r in drafting}
    assert layouts == {("DeepSeek-R1", 8, 1), ("Qwen3.5-397B-A17B", 4, 1)}
    assert {r.weight_dtype for r in drafting} == {"fp8"}
    run = min((r for r in drafting if r.model.startswith("deepseek")), key=lambda r: r.concurrency or 0)
    plain = replace(run, note="label_V3_is_same_run_as_R1;")
    assert recipe_of(plain).speculation is None
    assert answer(run).latency_ms["tpot_mean_ms"] < 0.8 * answer(plain).latency_ms["tpot_mean_ms"]


@pytest.mark.shared
def test_a_front_end_that_streams_every_token_holds_first_ones_back(runs: list[MeasuredRun]) -> None:
    """With 128 in flight at TP8 first tokens of Llama-3.1-8B wait behind 10,000 tokens a second, which brings TTFT from
    a sixth to about half of the measured one (median); InferenceMAX's servers send 20 tokens in a message."""
    mine = [r for r in runs if r.model.endswith("Llama-3.1-8B") and r.engine == "trtllm" and r.concurrency == 128]
    mine = [r for r in mine if r.pools[0].parallelism.tp == 8]
    ratio = [answer(r).latency_ms["ttft_mean_ms"] / r.measured_ms["ttft_mean_ms"] for r in mine]
    assert 0.35 < np.median(ratio) < 1.5
    assert {recipe_of(r).output_s_per_token for r in mine} == {100e-6}
    assert {recipe_of(r).output_s_per_token for r in runs if r.source == "silicon/inferencemax"} == {0.0}


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("meta-llama/Llama-3.1-70B", "dense"),
        ("MiniMaxAI/MiniMax-M2.5", "moe"),
        ("openai/gpt-oss-120b", "mxfp4"),
        ("deepseek-ai/DeepSeek-R1", "latent"),
        ("zai-org/GLM-5", "sparse"),
        ("Qwen/Qwen3.5-397B-A17B", "hybrid"),
    ],
)
def test_families_are_told_by_their_layers(model: str, family: str) -> None:
    """Attention and experts alone decide, not names."""
    assert family_of(load_model(model)) == family
