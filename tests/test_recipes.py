"""What launch scripts say of measured runs beside their rows: the layout that was started, its graphs, its budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from estimator.catalogue.engines import load_engine
from estimator.catalogue.models import load_model
from estimator.catalogue.recipes import Recipe, family_of, recipe_of
from estimator.measured_runs import MeasuredRun, read_runs
from estimator.parallelism import Parallelism
from estimator.replay import answer, kv_dtype_of, launched, limits_of, prepare


@pytest.fixture(scope="module")
def runs(shared: Path) -> list[MeasuredRun]:
    """Every measured run."""
    return read_runs(shared / "measured" / "measurements.csv")


def listed(run: MeasuredRun) -> Parallelism:
    return run.pools[0].parallelism


def started(run: MeasuredRun) -> Parallelism:
    return prepare(run).pools[0].parallelism


def chosen(runs: list[MeasuredRun], engine: str, family: str, **where: object) -> list[MeasuredRun]:
    """Collocated InferenceMAX runs of an engine and a kind of model."""
    found = [r for r in runs if r.mode == "collocated" and r.source == "silicon/inferencemax" and r.engine == engine]
    found = [r for r in found if family_of(load_model(r.model)) == family]
    return [r for r in found if all(getattr(r, name) == value for name, value in where.items())]


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [
        (Recipe(), Parallelism(tp=2, dp=4, ep=8)),
        (Recipe(attention_dp=False), Parallelism(tp=8, ep=8)),
        (Recipe(expert_groups="none"), Parallelism(tp=2, dp=4)),
        (Recipe(attention_dp=False, expert_groups="none"), Parallelism(tp=8)),
    ],
)
def test_a_script_without_a_flag_starts_no_such_layout(recipe: Recipe, layout: Parallelism) -> None:
    """Ranks and expert groups of a row hold where its script has flags for them; the GPUs stay the same."""
    assert launched(Parallelism(tp=2, dp=4, ep=8), recipe) == layout
    assert layout.num_gpus == 8


def test_a_script_that_always_groups_experts_does_so_over_all_gpus() -> None:
    """Whatever its rows state."""
    assert launched(Parallelism(tp=2, dp=4), Recipe(expert_groups="all")) == Parallelism(tp=2, dp=4, ep=8)


@pytest.mark.shared
def test_kimi_ran_tensor_parallel_whatever_its_rows_list(runs: list[MeasuredRun]) -> None:
    """kimik2.5_fp4_b200.sh and _b300.sh know --tensor-parallel-size alone (read 2026-11-26)."""
    mine = chosen(runs, "vllm", "latent", weight_dtype="fp4")
    assert {(listed(r).dp, listed(r).ep) for r in mine} == {(1, 1), (1, 4), (4, 4)}
    assert {started(r) for r in mine} == {Parallelism(tp=4), Parallelism(tp=8)}


@pytest.mark.shared
def test_old_servers_of_deepseek_in_fp4_grouped_experts(runs: list[MeasuredRun]) -> None:
    """--enable-ep-moe set ep to tp before rows stated it (InferenceMAX pull request 204); later ones state it."""
    mine = chosen(runs, "sglang", "latent", weight_dtype="fp4", gpu="b200_sxm")
    assert {listed(r) for r in mine if r.engine_version is None} == {Parallelism(tp=4), Parallelism(tp=8)}
    assert {started(r) for r in mine} == {Parallelism(tp=4, ep=4), Parallelism(tp=8, ep=8)}


@pytest.mark.shared
def test_data_parallel_rows_hold_where_the_script_has_a_flag_for_them(runs: list[MeasuredRun]) -> None:
    """minimaxm2.5_fp4_b300.sh reads DP_ATTENTION, minimaxm2.5_fp8_b300.sh does not."""
    mine = [r for r in chosen(runs, "vllm", "moe", gpu="b300_sxm") if listed(r).dp > 1]
    assert {listed(r) for r in mine} == {Parallelism(dp=2, ep=2), Parallelism(dp=4, ep=4)}
    assert {started(r) for r in mine if r.weight_dtype == "fp4"} == {Parallelism(dp=2, ep=2), Parallelism(dp=4, ep=4)}
    assert {started(r) for r in mine if r.weight_dtype == "fp8"} == {Parallelism(tp=2, ep=2), Parallelism(tp=4, ep=4)}


@pytest.mark.shared
def test_old_servers_of_gpt_oss_on_blackwell_chose_expert_groups_themselves(runs: list[MeasuredRun]) -> None:
    """TEP_REQUIRED of gptoss_fp4_b200_trt_slurm.sh: at TP 4 and 8, prompts of 1,024 and 16 in flight or more; its
    cache was bf16, that of later scripts fp8."""
    mine = chosen(runs, "trtllm", "mxfp4", gpu="b200_sxm", engine_version=None)
    grouped = {r.id for r in mine if started(r).ep > 1}
    busy = {r.id for r in mine if listed(r).tp >= 4 and r.input_bounds[1] == 1024 and (r.concurrency or 0) >= 16}
    assert busy
    assert grouped == busy
    assert {kv_dtype_of(r) for r in mine} == {"bf16"}


@pytest.mark.shared
def test_prompts_replay_graphs_as_far_as_the_script_captured_them(runs: list[MeasuredRun]) -> None:
    """--max-cudagraph-capture-size 2048 of the B200's later and the B300's scripts; vLLM's own 512 elsewhere."""

    def graphs(run: MeasuredRun) -> int:
        return prepare(run).engine.mixed_graph_tokens

    assert {graphs(r) for r in chosen(runs, "vllm", "moe", gpu="b300_sxm")} == {2048}
    assert {graphs(r) for r in chosen(runs, "vllm", "moe", gpu="h200_sxm")} == {512}
    kimi = chosen(runs, "vllm", "latent", weight_dtype="fp4", gpu="b200_sxm")
    assert {(listed(r).ep, graphs(r)) for r in kimi} == {(1, 2048), (4, 512)}


@pytest.mark.shared
def test_graphs_of_prompts_pay_at_short_ones(runs: list[MeasuredRun]) -> None:
    """The same layout measured under both scripts of Kimi: with graphs to 2,048 tokens prompts of 1,024 were faster, by
    less those of 8,192, and so are ours."""
    gains: dict[int, list[tuple[float, float]]] = {1024: [], 8192: []}
    kimi = chosen(runs, "vllm", "latent", weight_dtype="fp4", gpu="b200_sxm", output_bounds=(819, 1024))
    later = {(r.input_bounds[1], r.concurrency): r for r in kimi if listed(r) == Parallelism(tp=4)}
    for run in kimi:
        other = later.get((run.input_bounds[1], run.concurrency))
        if listed(run).ep == 4 and listed(run).dp == 1 and other is not None:
            ours, theirs = (answer(r).latency_ms["tpot_mean_ms"] for r in (run, other))
            measured = run.measured_ms["tpot_mean_ms"] / other.measured_ms["tpot_mean_ms"]
            gains[run.input_bounds[1]].append((ours / theirs, measured))
    short, long = (sum(one for one, _ in gains[isl]) / len(gains[isl]) for isl in (1024, 8192))
    measured_short, measured_long = (sum(two for _, two in gains[isl]) / len(gains[isl]) for isl in (1024, 8192))
    assert measured_short > measured_long + 0.05
    assert short > long + 0.005
    assert short > 1.005


@pytest.mark.shared
def test_budgets_are_those_of_the_scripts(runs: list[MeasuredRun]) -> None:
    """--max-num-batched-tokens is twice the prompt, no more; the gap analysis adds a token for each in flight."""
    for run in chosen(runs, "vllm", "moe", gpu="b300_sxm"):
        assert limits_of(run, load_engine("vllm")).max_num_batched_tokens == 2 * run.input_bounds[1]
    gap = next(
        r for r in runs if r.source.endswith("gap_analysis") and r.engine == "vllm" and r.input_bounds[1] == 4096
    )
    assert limits_of(gap, load_engine("vllm")).max_num_batched_tokens == 4096 + (gap.concurrency or 0)


@pytest.mark.shared
def test_early_scripts_on_hopper_leave_the_cache_as_it_comes(runs: list[MeasuredRun]) -> None:
    """minimaxm2.5_fp8_h200.sh before 0.19 states neither format nor budget; later ones state both."""
    run = next(iter(chosen(runs, "vllm", "moe", gpu="h200_sxm")))
    later = replace(run, engine_version=(0, 20, 0))
    assert (kv_dtype_of(run), recipe_of(run).max_num_batched_tokens) == ("bf16", None)
    assert (kv_dtype_of(later), recipe_of(later).max_num_batched_tokens) == ("fp8", 16384)


@pytest.mark.shared
def test_norms_stay_apart_where_a_version_has_no_buffers_for_the_gpu(runs: list[MeasuredRun]) -> None:
    """vLLM joins them on B300 from 0.19 on (pull requests 37755, 37756), whatever the script asks; on B200 before."""
    kimi = chosen(runs, "vllm", "latent", weight_dtype="fp4")
    joins = {(r.gpu, r.engine_version): prepare(r).engine.fusion.norm_tokens > 0 for r in kimi}
    assert joins == {
        ("b200_sxm", (0, 17, 0)): True,
        ("b300_sxm", (0, 17, 0)): False,
        ("b300_sxm", (0, 19, 0)): True,
    }


@pytest.mark.shared
def test_tensorrt_llm_admits_whole_outputs(runs: list[MeasuredRun]) -> None:
    """Llama-3.1-70B on one H200 with 64 and 128 in flight and outputs of 8,192: 45 are served at a time, the others
    wait 80 and 370 s; without reservations ours waited 3 and 19 % of that."""
    mine = [r for r in chosen(runs, "trtllm", "dense", gpu="h200_sxm") if listed(r).tp == 1]
    mine = [r for r in mine if r.output_bounds[1] == 8192 and (r.concurrency or 0) >= 64]
    assert len(mine) == 2
    for run in mine:
        assert 0.85 < answer(run).latency_ms["ttft_mean_ms"] / run.measured_ms["ttft_mean_ms"] < 1.25
