"""Fitting operator curves, the cards they are kept in, and how far the cards are from the measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from estimator.attention import DecodeCurve, HeadShape
from estimator.calibrate import CARDS_DIR, fit_group, fit_operators
from estimator.calibrate_attention import within_bandwidth
from estimator.calibrate_groups import Group, Predict, Rows, beyond_host, version_key
from estimator.calibrate_modules import module_errors
from estimator.calibrate_tables import measured_groups
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.timing import CURVES, load_timing, read_card
from estimator.collectives import LinkCurve
from estimator.errors import BestServeError
from estimator.experts import ExpertCurve, ExpertLayer, expert_load
from estimator.hardware import Gpu
from estimator.roofline import FloatArray, GemmCurve
from estimator.work import LatentAttentionOp

GPU = load_gpu("h100_sxm")


def synthetic(curve: Any, predict: Predict, columns: dict[str, FloatArray], noise: float = 0.0) -> Group:
    """Rows that `curve` itself makes, with log-normal noise of a fixed seed."""
    seconds = predict(curve, GPU, columns)
    jitter = np.exp(noise * np.random.default_rng(7).standard_normal(seconds.shape))
    return Group(
        kind="synthetic",
        gpu=GPU,
        engine="vllm",
        dtype="bf16",
        version="1",
        kernel="none",
        curve=type(curve),
        rows={**columns, "latency_us": 1e6 * seconds * jitter},
        model=predict,
    )


def shapes(num: int, *ranges: tuple[float, float]) -> list[FloatArray]:
    """Columns of log-uniform whole numbers with a fixed seed."""
    rng = np.random.default_rng(3)
    columns = [np.exp(rng.uniform(np.log(low), np.log(high), num)) for low, high in ranges]
    return [np.asarray(np.round(column), dtype=np.float64) for column in columns]


def gemm(curve: GemmCurve, gpu: Gpu, x: Rows) -> FloatArray:
    """Products in bf16."""
    return curve.seconds(gpu, x["m"], x["n"], x["k"], "bf16")


def gemm_shapes(num: int) -> dict[str, FloatArray]:
    """Rows, columns and depths of products."""
    return dict(zip("mnk", shapes(num, (1, 32768), (128, 65536), (128, 65536)), strict=True))


def test_a_gemm_fit_gives_back_the_card_that_made_the_rows() -> None:
    """From noiseless rows of a known curve the fit finds launch and efficiencies to 3 %, and every row to 0.5 %."""
    truth = GemmCurve(launch_s=4e-6, compute_frac=0.68, memory_frac=0.83, exponent=5.0, k_half=300.0)
    fit = fit_group(synthetic(truth, gemm, gemm_shapes(500)))
    for name in ("launch_s", "compute_frac", "memory_frac"):
        assert getattr(fit.curve, name) == pytest.approx(getattr(truth, name), rel=0.03), name
    assert fit.median_error_frac < 0.005


def test_a_noisy_fit_reports_the_noise_as_its_residual() -> None:
    """With 10 % log-normal noise the median residual is 0.674 × 10 %, that of a normal distribution, within 15 %."""
    fit = fit_group(synthetic(GemmCurve(), gemm, gemm_shapes(800), noise=0.1))
    assert fit.median_error_frac == pytest.approx(0.0674, rel=0.15)


def test_held_out_shapes_of_a_noiseless_curve_are_predicted() -> None:
    """A quarter of the shapes is left out of a second fit, which finds them to 1 %; without shapes there is none."""
    group = synthetic(GemmCurve(memory_frac=0.7), gemm, gemm_shapes(200))
    fit = fit_group(replace(group, shape=("n", "k")))
    assert fit.held_out_error_frac is not None
    assert fit.held_out_error_frac < 0.01
    assert fit_group(replace(group, rows={n: c[:50] for n, c in group.rows.items()})).held_out_error_frac is None


def test_fixed_parameters_keep_their_defaults() -> None:
    """A parameter that the rows say nothing about is not moved by the fit."""
    group = synthetic(GemmCurve(), gemm, gemm_shapes(300), noise=0.05)
    fixed = fit_group(replace(group, fixed=frozenset(("tile_half", "odd_s"))))
    assert (fixed.curve.tile_half, fixed.curve.odd_s) == (GemmCurve().tile_half, GemmCurve().odd_s)


def test_attention_expert_and_link_fits_give_back_their_rows() -> None:
    """Decode attention, expert layers and all-reduce are recovered to a median of 1 % from noiseless rows."""
    n, tokens, heads, kv_heads = shapes(800, (1, 512), (128, 65536), (8, 64), (1, 8))

    def decode(curve: DecodeCurve, gpu: Gpu, x: Rows) -> FloatArray:
        heads, kv_heads = x["heads"], x["kv_heads"]
        shape = HeadShape(num_heads=heads, num_kv_heads=kv_heads, dims=256.0, kv_bytes=512.0, io_bytes=512.0 * heads)
        line = curve.line(gpu, x["n"], shape)
        return np.asarray(line.launch_s + line.s_per_cached_token * x["n"] * x["tokens"])

    def experts(curve: ExpertCurve, gpu: Gpu, x: Rows) -> FloatArray:
        layer = ExpertLayer(
            hidden=4096.0, intermediate=x["inner"], num_experts=128.0, experts_per_gpu=128 / x["ep"], top_k=8.0
        )
        return curve.seconds(gpu, expert_load(x["routed"], layer, "uniform"), layer, "fp8")

    def link(curve: LinkCurve, gpu: Gpu, x: Rows) -> FloatArray:
        return curve.seconds(gpu, "all_reduce", x["message"], 8)

    routed, ep, inner = shapes(150, (1, 16384), (1, 64), (256, 4096))
    (message,) = shapes(200, (256, 1e9))
    attention = {"n": n, "tokens": tokens, "heads": heads, "kv_heads": kv_heads}
    groups = [
        synthetic(DecodeCurve(memory_frac=0.86, split_half=3.0, block_s=1e-6), decode, attention),
        synthetic(ExpertCurve(launch_s=2e-5), experts, {"routed": routed, "ep": ep, "inner": inner}),
        synthetic(LinkCurve(launch_s=3e-6), link, {"message": message}),
    ]
    for group in groups:
        assert fit_group(group).median_error_frac < 0.01, group.curve


def test_rows_that_the_host_binds_are_left_out() -> None:
    """With a host floor of 100 µs rows of 250 and 400 µs stay; a lone spike before shorter longer rows does not."""
    rows = pd.DataFrame(
        {
            "num_heads": 16,
            "batch_size": np.repeat([1, 64], 5),
            "step": np.tile([127, 511, 2047, 8191, 32767], 2),
            "latency_us": [100.0, 650.0, 101.0, 99.0, 250.0, 100.0, 102.0, 100.0, 400.0, 900.0],
        }
    )
    kept = beyond_host(rows, "step").sort_values(["batch_size", "step"])
    assert kept["latency_us"].tolist() == [250.0, 400.0, 900.0]


def test_caches_read_faster_than_memory_are_left_out_where_no_cache_holds_them() -> None:
    """2.1 GB of keys and values in 0.9 ms are 2.4 TB/s, more than an A100 reads, in 1.1 ms less; 20 MB may be in L2."""
    table = pd.DataFrame(
        {
            "gpu": "a100_sxm",
            "batch_size": [128.0, 128.0, 1.0],
            "step": [8191.0, 8191.0, 9999.0],
            "window_size": 0.0,
            "num_key_value_heads": 4.0,
            "head_dim": 128.0,
            "latency_us": [900.0, 1100.0, 2.0],
        }
    )
    assert within_bandwidth(table, 2.0).index.tolist() == [1, 2]
    assert within_bandwidth(table, 1.0).index.tolist() == [0, 1, 2]
    assert within_bandwidth(table.assign(window_size=128.0), 2.0).index.tolist() == [0, 1, 2]


def expert_rows(inter_size: int, latency_us: float, num_experts: int = 64, dtype: str = "fp8_block") -> pd.DataFrame:
    """A table of one expert shape on H100 with 32 token counts from 512, dealt out, all of them as long."""
    columns: dict[str, Any] = {
        "gpu": "h100_sxm",
        "backend": "vllm",
        "version": "1.0",
        "kernel_source": "kernel",
        "moe_dtype": dtype,
        "num_tokens": np.arange(512, 544),
        "hidden_size": 4096,
        "inter_size": inter_size,
        "topk": 8,
        "num_experts": num_experts,
        "moe_tp_size": 1,
        "moe_ep_size": 1,
        "distribution": "balanced",
        "latency_us": latency_us,
    }
    return pd.DataFrame(columns)


def test_shapes_faster_than_their_weights_can_be_read_are_left_out(tmp_path: Path) -> None:
    """64 experts of 3 x 4,096 x 2,048 bytes take 481 us to read at 3.35 TB/s: 300 us for a shape go, 400 us stay."""
    table = pd.concat([expert_rows(2048, 300.0), expert_rows(2048, 400.0, num_experts=63)])
    table.to_parquet(tmp_path / "op_moe.parquet")
    (group,) = measured_groups(tmp_path, frozenset(("moe",)))
    assert set(group.rows["num_experts"]) == {63.0}


def test_block_scaled_experts_that_cut_a_block_are_left_out(tmp_path: Path) -> None:
    """A width of 192 is served in bf16 and not in block-scaled fp8; one of 256 in both."""
    table = pd.concat(
        [expert_rows(width, 900.0, dtype=dtype) for width in (192, 256) for dtype in ("fp8_block", "bfloat16")]
    )
    table.to_parquet(tmp_path / "op_moe.parquet")
    widths = {group.dtype: set(group.rows["inter_size"]) for group in measured_groups(tmp_path, frozenset(("moe",)))}
    assert widths == {"fp8_block": {256.0}, "bf16": {192.0, 256.0}}


def test_sliced_experts_are_a_group_of_their_own_where_another_kernel_runs_them(tmp_path: Path) -> None:
    """One kernel for whole experts, another for slices: two groups; one kernel for both: one group."""
    sliced = expert_rows(1024, 700.0).assign(moe_tp_size=2, kernel_source="triton")
    divided = pd.concat([expert_rows(1024, 400.0)] * 2).assign(moe_ep_size=2, kernel_source="cutlass")
    pd.concat([sliced, divided]).to_parquet(tmp_path / "op_moe.parquet")
    kinds = {group.kind: group.kernel for group in measured_groups(tmp_path, frozenset(("moe", "moe_sliced")))}
    assert kinds == {"moe": "cutlass", "moe_sliced": "triton"}
    pd.concat([sliced.assign(kernel_source="cutlass"), divided]).to_parquet(tmp_path / "op_moe.parquet")
    assert [group.kind for group in measured_groups(tmp_path, frozenset(("moe", "moe_sliced")))] == ["moe"]


def test_what_other_tables_say_is_taken_as_given() -> None:
    """A launch that is given keeps its value, and the other parameters are those of a kernel with that launch."""
    group = synthetic(GemmCurve(launch_s=14e-6, memory_frac=0.7), gemm, gemm_shapes(300))
    fit = fit_group(replace(group, fixed=frozenset({"launch_s"}), given={"launch_s": 14e-6}))
    assert fit.curve.launch_s == 14e-6
    assert fit.curve.memory_frac == pytest.approx(0.7, rel=0.02)


def test_newer_versions_sort_after_older_and_after_their_release_candidates() -> None:
    """1.3.0rc9 < 1.3.0rc10 < 1.3.0, and 0.5.9 < 0.5.14."""
    versions = ["1.3.0", "0.5.14", "1.3.0rc10", "0.5.9", "1.3.0rc9"]
    assert sorted(versions, key=version_key) == ["0.5.9", "0.5.14", "1.3.0rc9", "1.3.0rc10", "1.3.0"]


def measured_gpus() -> list[str]:
    """GPUs with an operator card."""
    return sorted(path.stem for path in CARDS_DIR.glob("*.json"))


def card(**changes: Any) -> dict[str, Any]:
    """A valid card of one gemm curve, with changes."""
    entry = {"kind": "gemm", "engine": "vllm", "dtype": "bf16", "version": "1", "median_error_frac": 0.05}
    parameters = {"parameters": {"launch_s": 2e-6, "compute_frac": 0.7}}
    return {"gpu": "h100_sxm", "source": "measured", "date": "2026-08", "curves": [entry | parameters]} | changes


@pytest.mark.parametrize("key", ["source", "date", "gpu"])
def test_a_card_without_origin_is_refused(key: str) -> None:
    """Fitted numbers from nowhere are not read."""
    assert read_card(card())
    with pytest.raises(BestServeError, match=rf"operator card .*\.{key}: '' must be given"):
        read_card(card(**{key: ""}))


@pytest.mark.parametrize(("name", "value"), [("compute_frac", -0.2), ("memory_frac", 3.0), ("magic", 1.0)])
def test_an_efficiency_that_cannot_be_is_refused(name: str, value: float) -> None:
    """A negative efficiency, one above the data sheet, and a parameter that no curve has stop the reader."""
    broken = card()
    broken["curves"][0]["parameters"][name] = value
    with pytest.raises(BestServeError, match=rf"operator card h100_sxm\.gemm\.{name}: {value} is outside"):
        read_card(broken)


def test_every_bundled_card_reads_and_names_its_rows() -> None:
    """The cards of all eight GPUs are valid, of at least 20 rows a curve, and cover the kinds that models need."""
    for name in measured_gpus():
        content = json.loads((CARDS_DIR / f"{name}.json").read_text(encoding="utf-8"))
        assert read_card(content)
        assert all(entry["num_rows"] >= 20 and entry["version"] for entry in content["curves"])
        kinds = {entry["kind"] for entry in content["curves"]}
        assert {"gemm", "moe", "context_attention", "generation_attention", "all_reduce", "all_to_all"} <= kinds
        assert kinds <= set(CURVES)


def test_most_curves_are_near_their_measurements() -> None:
    """Over all cards the median of the curves' median errors is below 8 %, and 9 in 10 curves are below 20 %."""
    errors = []
    for name in measured_gpus():
        content = json.loads((CARDS_DIR / f"{name}.json").read_text(encoding="utf-8"))
        errors += [entry["median_error_frac"] for entry in content["curves"]]
    assert np.median(errors) < 0.08
    assert np.quantile(errors, 0.9) < 0.20


def test_rewriting_some_kinds_keeps_the_others(tmp_path: Path, shared: Path) -> None:
    """Fitting links alone writes cards that hold links alone; a second run with another kind keeps them."""
    fit_operators(shared / "measured", tmp_path, kinds=["all_gather"])
    fit_operators(shared / "measured", tmp_path, kinds=["delta_net_generation"])
    kinds = {entry["kind"] for entry in json.loads((tmp_path / "h100_sxm.json").read_text(encoding="utf-8"))["curves"]}
    assert kinds == {"all_gather", "delta_net_generation"}


@pytest.mark.shared
def test_fitting_a_group_again_gives_its_card(shared: Path) -> None:
    """The curve in the card of H100's delta nets under TensorRT-LLM comes back from the rows, digit for digit."""
    groups = measured_groups(shared / "measured", frozenset({"delta_net_generation"}))
    group = next(group for group in groups if (group.gpu.name, group.engine) == ("h100_sxm", "trtllm"))
    content = json.loads((CARDS_DIR / "h100_sxm.json").read_text(encoding="utf-8"))
    entry = next(e for e in content["curves"] if (e["kind"], e["engine"]) == (group.kind, "trtllm"))
    fit = fit_group(group)
    assert len(group.latency_s) == entry["num_rows"]
    assert fit.median_error_frac == pytest.approx(entry["median_error_frac"], rel=0.05, abs=1e-4)
    for name, value in entry["parameters"].items():
        assert getattr(fit.curve, name) == pytest.approx(value, rel=0.01), name


@pytest.mark.shared
@pytest.mark.slow
def test_cards_hold_on_rows_they_were_not_fitted_on(shared: Path) -> None:
    """On H100 products drawn afresh from the measurements, the bundled card's median error is below 11 % per group."""
    table = pd.read_parquet(shared / "measured" / "op_gemm.parquet", filters=[("gpu", "==", "h100_sxm")])
    curves = read_card(json.loads((CARDS_DIR / "h100_sxm.json").read_text(encoding="utf-8")))
    names = {"bfloat16": "bf16", "fp8": "fp8"}
    for engine, version in (("vllm", "0.24.0"), ("sglang", "0.5.14"), ("trtllm", "1.2.0rc5")):
        for measured_name, dtype in names.items():
            rows = table[(table["backend"] == engine) & (table["version"] == version)]
            rows = rows[(rows["gemm_dtype"] == measured_name) & (rows["n"] >= 128) & (rows["k"] >= 128)]
            rows = rows[rows["m"] >= 1].sample(2000, random_state=99)
            m, n, k = (rows[name].to_numpy(dtype=np.float64) for name in ("m", "n", "k"))
            predicted = curves[engine, "gemm", dtype].curve.measured_s(GPU, m, n, k, dtype)
            assert np.median(np.abs(predicted / (rows["latency_us"] * 1e-6) - 1)) < 0.11, (engine, dtype)


@pytest.mark.shared
@pytest.mark.slow
def test_groups_hold_one_engine_version_and_positive_times(shared: Path) -> None:
    """Every group read from the tables has finite positive times, and a default curve that predicts finite ones."""
    kinds = {"latent_context_attention", "index_generation", "delta_net_context", "all_reduce", "dispatch"}
    for group in measured_groups(shared / "measured", frozenset(kinds)):
        assert group.kind in kinds
        assert np.isfinite(group.latency_s).all()
        assert (group.latency_s > 0).all()
        assert np.isfinite(group.predict(group.curve())).all()


@pytest.mark.shared
def test_the_parts_of_latent_attention_add_up_to_the_whole(shared: Path) -> None:
    """On H200 under TensorRT-LLM the module's operators, nothing fitted, are within 6 % (decode) and 9 % (prefill).

    In fp8 with an fp8 cache; both tables hold the module whole, of which no card was made.
    """
    found = {
        error.phase: error
        for error in module_errors(shared / "measured", frozenset({"h200_sxm"}))
        if (error.engine, error.weight, error.kv) == ("trtllm", "fp8", "fp8")
    }
    assert found["generation"].median_frac < 0.06
    assert found["context"].median_frac < 0.09


@pytest.mark.shared
def test_modules_say_what_decode_attention_takes_where_the_host_hides_its_kernel(shared: Path) -> None:
    """vLLM's latent attention over an fp8 cache grows on H200 as TensorRT-LLM's does, within 10 %.

    The first is fitted on whole modules, the second on lone kernels.
    """
    line = {
        engine: load_timing(load_gpu("h200_sxm"), engine).latent_generation_attention(
            [128.0],
            LatentAttentionOp(
                name="", num_heads=16, kv_lora_rank=512, qk_nope_dim=128, qk_rope_dim=64, v_dim=128, kv_dtype="fp8"
            ),
        )
        for engine in ("vllm", "trtllm")
    }
    assert line["vllm"].s_per_cached_token == pytest.approx(line["trtllm"].s_per_cached_token, rel=0.10)
    groups = measured_groups(shared / "measured", frozenset({"latent_generation_attention"}))
    group = next(
        group for group in groups if (group.gpu.name, group.engine, group.dtype) == ("h200_sxm", "vllm", "fp8")
    )
    curve = read_card(json.loads((CARDS_DIR / "h200_sxm.json").read_text(encoding="utf-8")))["vllm", group.kind, "fp8"]
    assert np.median(np.abs(group.predict(curve.curve) / group.latency_s - 1.0)) < 0.03
