"""Verification: every tool's file is read the same, limits decide, predictions meet what they predict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimator.errors import BestServeError
from estimator.slo import Slo, SloTarget
from search.benchmarks import LEVELS, METRICS, Measured, read_benchmark
from search.export.kit import MIN_THROUGHPUT_FRAC
from search.export.prediction import predict
from search.planner import plan
from search.spec import parse_spec
from search.verify import load_checks, met_frac, slo_checks, verify
from spaces.strategy import Strategy
from tests.test_cli import bestserve, one_object
from tests.test_export import TINY

STRATEGY = "2m-tp1@h100_sxm"
RATE = 4.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    plan(parse_spec(TINY, folder=folder.parent), out=folder, workers=0)
    return folder


@pytest.fixture(scope="module")
def predicted() -> dict[tuple[str, float | None], float]:
    """What the plan expects of each metric, mean and percentiles, in s."""
    problem = parse_spec(TINY, folder=Path()).problem()
    prediction = predict(problem, Strategy.parse(STRATEGY), rate_req_s=RATE)
    return {(metric, level): prediction.value_s(metric, level) for metric in METRICS for level in (None, *LEVELS)}


def vllm_result(latencies_s: dict[tuple[str, float | None], float], **changes: Any) -> dict[str, Any]:
    """As `vllm bench serve --save-result` writes it."""
    found: dict[str, Any] = {
        "date": "20261125-120000",
        "backend": "openai",
        "num_prompts": 800,
        "request_rate": RATE,
        "duration": 200.0,
        "completed": 800,
        "failed": 0,
        "total_input_tokens": 800 * 500,
        "total_output_tokens": 800 * 100,
        "request_throughput": RATE,
        "request_goodput": None,
    }
    for (metric, level), value in latencies_s.items():
        name = {None: "mean", 50.0: "median"}.get(level, f"p{level:g}" if level else "")
        found[f"{name}_{'e2el' if metric == 'e2e' else metric}_ms"] = 1e3 * value
    return found | changes


def guidellm_result(latencies_s: dict[tuple[str, float | None], float]) -> dict[str, Any]:
    """As GuideLLM 0.8.1 writes `benchmarks.json`."""

    def summary(metric: str, scale: float) -> dict[str, Any]:
        percentiles = {f"p{level:g}": scale * latencies_s[metric, level] for level in LEVELS}
        return {"successful": {"mean": scale * latencies_s[metric, None], "percentiles": percentiles}}

    metrics = {
        "request_totals": {"successful": 800, "incomplete": 0, "errored": 0, "total": 800},
        "requests_per_second": {"successful": {"mean": RATE}},
        "prompt_token_count": {"successful": {"mean": 500.0}},
        "output_token_count": {"successful": {"mean": 100.0}},
        "time_to_first_token_ms": summary("ttft", 1e3),
        "inter_token_latency_ms": summary("tpot", 1e3),
        "time_per_output_token_ms": summary("e2e", 1.0),  # not our TPOT: must not be read
        "request_latency": summary("e2e", 1.0),
    }
    return {"metadata": {"version": 2}, "benchmarks": [{"type_": "generative_benchmark", "metrics": metrics}]}


def inference_perf_result(latencies_s: dict[tuple[str, float | None], float]) -> dict[str, Any]:
    """As inference-perf 0.7.0 writes a stage."""

    def summary(metric: str) -> dict[str, float]:
        levels = {"p90": 90.0, "p95": 95.0, "p99": 99.0, "median": 50.0, "mean": None}
        return {name: latencies_s[metric, level] for name, level in levels.items()}

    latency = {
        "time_to_first_token": summary("ttft"),
        "time_per_output_token": summary("tpot"),
        "normalized_time_per_output_token": summary("e2e"),
        "request_latency": summary("e2e"),
    }
    successes = {
        "count": 800,
        "latency": latency,
        "throughput": {"requests_per_sec": RATE},
        "prompt_len": {"mean": 500.0},
        "output_len": {"mean": 100.0},
    }
    load = {"count": 800, "requested_rate": RATE, "achieved_rate": RATE}
    return {"load_summary": load, "successes": successes, "failures": {"count": 0}}


def aiperf_result(latencies_s: dict[tuple[str, float | None], float]) -> dict[str, Any]:
    """As aiperf 0.13 writes it, one metric in another unit than the rest."""

    def summary(metric: str, unit: str, scale: float) -> dict[str, Any]:
        percentiles = {f"p{level:g}": scale * latencies_s[metric, level] for level in LEVELS}
        return {"unit": unit, "avg": scale * latencies_s[metric, None], **percentiles}

    return {
        "schema_version": "1.4",
        "time_to_first_token": summary("ttft", "ms", 1e3),
        "inter_token_latency": summary("tpot", "us", 1e6),
        "request_latency": summary("e2e", "s", 1.0),
        "request_throughput": {"unit": "requests/sec", "avg": RATE},
        "request_count": {"unit": "requests", "avg": 800},
        "input_sequence_length": {"unit": "tokens", "avg": 500.0},
        "output_sequence_length": {"unit": "tokens", "avg": 100.0},
    }


WRITERS = {"vllm": vllm_result, "guidellm": guidellm_result, "perf": inference_perf_result, "aiperf": aiperf_result}


def saved(folder: Path, found: Any) -> Path:
    """A result file."""
    path = folder / "result.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("tool", WRITERS)
def test_all_tools_are_read_the_same(tool: str, tmp_path: Path, predicted: Any) -> None:
    """The same measurements in four formats and four units give the same latencies, rate, lengths and counts."""
    measured = read_benchmark(saved(tmp_path, WRITERS[tool](predicted)), near_req_s=RATE)
    assert measured.latencies_s == pytest.approx(predicted)
    assert (measured.num_completed, measured.num_failed) == (800, 0)
    assert measured.throughput_req_s == RATE
    assert (measured.mean_input_tokens, measured.mean_output_tokens) == (500, 100)
    assert measured.rate_req_s == (RATE if tool in ("vllm", "perf") else None)


@pytest.mark.parametrize("tool", WRITERS)
def test_a_measurement_equal_to_the_prediction_passes_without_error(
    tool: str, run: Path, tmp_path: Path, predicted: Any
) -> None:
    """Prediction error is zero by construction, every limit is kept, and the share of each limit is the SLO's own."""
    verdict = verify(run, saved(tmp_path, WRITERS[tool](predicted)), strategy=STRATEGY)
    assert verdict.passed
    assert {c.name for c in verdict.checks} == {"TTFT P90", "TPOT P90", "throughput", "failed share"}
    assert [c.limit for c in verdict.checks[:2]] == [1000.0, 40.0]
    assert len(verdict.comparisons) == 12
    assert all(abs(one.error_frac) < 1e-9 for one in verdict.comparisons)
    assert [w for w in verdict.warnings if "tokens where" not in w] == []


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"p90_ttft_ms": 1000.1}, "TTFT P90"),
        ({"p90_tpot_ms": 40.1}, "TPOT P90"),
        ({"request_throughput": MIN_THROUGHPUT_FRAC * RATE - 0.01}, "throughput"),
        ({"completed": 789, "failed": 11}, "failed share"),
    ],
)
def test_each_limit_fails_alone(change: dict[str, Any], fails: str, run: Path, tmp_path: Path, predicted: Any) -> None:
    """One broken limit is named and is enough to fail; its neighbours still pass."""
    verdict = verify(run, saved(tmp_path, vllm_result(predicted, **change)), strategy=STRATEGY)
    assert [check.name for check in verdict.checks if not check.passed] == [fails]
    assert not verdict.passed


def test_prediction_error_is_relative_to_the_measurement(run: Path, tmp_path: Path, predicted: Any) -> None:
    """Measured at half of what was predicted, the error is +100 %; at twice, −50 %."""
    for factor, error in ((0.5, 1.0), (2.0, -0.5)):
        scaled = {key: factor * value for key, value in predicted.items()}
        verdict = verify(run, saved(tmp_path, vllm_result(scaled)), strategy=STRATEGY)
        assert [one.error_frac for one in verdict.comparisons] == pytest.approx([error] * 12)


def test_single_requests_count_failures_as_misses(tmp_path: Path) -> None:
    """Ten requests, one of them failed: P90 is the ninth latency and P95 is infinite; TPOT as vLLM computes it."""
    ttfts = [0.1 * n for n in range(1, 10)] + [0.0]
    found = vllm_result({}, completed=9, failed=1, num_prompts=10)
    found |= {"ttfts": ttfts, "itls": [[0.02, 0.04]] * 9 + [[]], "output_lens": [3] * 9 + [0]}
    measured = read_benchmark(saved(tmp_path, found), near_req_s=RATE)
    assert measured.failed_frac == 0.1
    assert measured.requests_s["tpot"][:9] == pytest.approx([0.03] * 9)
    assert measured.requests_s["e2e"][0] == pytest.approx(0.16)
    targets = [SloTarget(metric="ttft", limit_s=0.9, percentile=level) for level in (90, 95)]
    values = [check.measured for check in slo_checks(Slo(targets=tuple(targets)), measured, tmp_path)]
    assert values == [pytest.approx(900.0), math.inf]


def test_share_of_requests_within_all_limits(tmp_path: Path) -> None:
    """Counted over single requests, a failed one misses and one token has no TPOT to miss; else the tool's goodput."""
    slo = Slo(targets=(SloTarget(metric="ttft", limit_s=1.0), SloTarget(metric="tpot", limit_s=0.05)), share=0.6)
    requests = {
        "ttft": np.array([0.5, 0.5, 2.0, 0.5, math.inf]),
        "tpot": np.array([0.04, 0.06, 0.04, math.nan, math.inf]),
    }
    base: dict[str, Any] = {
        "tool": "vllm bench serve",
        "num_completed": 4,
        "num_failed": 1,
        "throughput_req_s": 4.0,
        "rate_req_s": 4.0,
        "mean_input_tokens": None,
        "mean_output_tokens": None,
        "latencies_s": {},
    }
    exact = Measured(**base, requests_s=requests)  # type: ignore[arg-type]
    assert met_frac(slo, exact) == pytest.approx(2 / 5)
    (check,) = slo_checks(slo, exact, tmp_path)
    assert (check.passed, check.name) == (False, "share with TTFT ≤ 1000 ms and TPOT ≤ 50 ms")
    goodput = read_benchmark(
        saved(tmp_path, vllm_result({}, completed=4, failed=1, request_goodput=3.0)), near_req_s=RATE
    )
    assert met_frac(slo, goodput) == pytest.approx(3.0 / 4.0 * 4 / 5)
    with pytest.raises(
        BestServeError, match=r"does not say which requests meet all limits; accepted: .*--save-detailed"
    ):
        slo_checks(slo, read_benchmark(saved(tmp_path, vllm_result({})), near_req_s=RATE), tmp_path)


def test_listed_requests_replace_guidellms_token_weights(tmp_path: Path, predicted: Any) -> None:
    """With every request listed, TPOT percentiles are over requests; with a sample only, the summary stands."""
    found = guidellm_result(predicted)
    listed = [
        {"time_to_first_token_ms": 100.0, "inter_token_latency_ms": tpot, "request_latency": 1.0}
        for tpot in (10.0, 10.0, 10.0, 90.0)
    ]
    (benchmark,) = found["benchmarks"]
    benchmark["requests"] = {"successful": listed}
    sampled = read_benchmark(saved(tmp_path, found), near_req_s=RATE)
    assert sampled.value_s("tpot", 50.0) == pytest.approx(predicted["tpot", 50.0])
    benchmark["metrics"]["request_totals"] = {"successful": 4, "errored": 0, "incomplete": 0}
    whole = read_benchmark(saved(tmp_path, found), near_req_s=RATE)
    assert whole.value_s("tpot", None) == pytest.approx(0.03)
    assert whole.value_s("tpot", 50.0) == pytest.approx(0.01)


def test_nearest_load_point_of_a_sweep(tmp_path: Path, predicted: Any) -> None:
    """Of several benchmarks in one GuideLLM file, the one nearest to the demand is judged."""
    found = guidellm_result(predicted)
    other = json.loads(json.dumps(found["benchmarks"][0]))
    other["metrics"]["requests_per_second"]["successful"]["mean"] = 9.0
    found["benchmarks"].append(other)
    assert read_benchmark(saved(tmp_path, found), near_req_s=8.0).throughput_req_s == 9.0
    assert read_benchmark(saved(tmp_path, found), near_req_s=5.0).throughput_req_s == RATE


def test_unfair_comparisons_are_warned_of(run: Path, tmp_path: Path, predicted: Any) -> None:
    """Other lengths than planned, or less load than the demand, are said; throughput is judged by the load offered."""
    short = vllm_result(predicted, total_output_tokens=800 * 50)
    verdict = verify(run, saved(tmp_path, short), strategy=STRATEGY)
    assert verdict.warnings == ("mean output of 50 tokens, planned 100: not the planned load",)
    light = vllm_result(predicted, request_rate=2.0, request_throughput=2.0)
    verdict = verify(run, saved(tmp_path, light), strategy=STRATEGY)
    assert verdict.rate_req_s == 2.0
    assert verdict.passed
    assert "does not verify the plan" in verdict.warnings[0]
    measured = read_benchmark(saved(tmp_path, light), near_req_s=RATE)
    assert [check.passed for check in load_checks(measured, 2.0)] == [True, True]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("not json", "is not JSON"),
        ("{}", "is no benchmark result"),
        ('{"a": 1}\n{"a": 2}\n', "holds 2 results"),
        (
            '{"completed": 0, "request_throughput": 0.0, "total_input_tokens": 0, "total_output_tokens": 0}',
            "no request",
        ),
        ('{"completed": 5, "request_throughput": 1.0}', "lacks a field of its own format"),
        (
            '{"completed": 5, "request_throughput": 4.0, "total_input_tokens": 2500, "total_output_tokens": 500}',
            "lacks TTFT P90; accepted: a result with that percentile (vllm bench serve --metric-percentiles 90)",
        ),
    ],
)
def test_bad_results_are_one_sentence(content: str, rule: str, run: Path, tmp_path: Path) -> None:
    """What cannot be judged raises, naming the file, what is wrong with it, and what would do."""
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(BestServeError) as error:
        verify(run, path, strategy=STRATEGY)
    assert rule in str(error.value)
    assert "; accepted: " in str(error.value)


def test_exit_codes_and_output(run: Path, tmp_path: Path, predicted: Any) -> None:
    """0 where all limits are kept, 1 where one is not, 2 with one line on standard error for bad input."""
    good = saved(tmp_path, vllm_result(predicted))
    ran = bestserve("verify", str(run), str(good), "-s", STRATEGY)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{STRATEGY} keeps the plan's limits at 4 requests/s (vllm bench serve).")
    assert "+0.0%" in ran.stdout
    assert one_object(bestserve("verify", str(run), str(good), "-s", STRATEGY, "--json"))["passed"] is True
    ran = bestserve(
        "verify", str(run), str(saved(tmp_path, vllm_result(predicted, p90_ttft_ms=2000.0))), "-s", STRATEGY
    )
    assert ran.returncode == 1
    assert "FAIL  TTFT P90: 2000 ms, limit ≤ 1000 ms" in ran.stdout
    ran = bestserve("verify", str(run), str(tmp_path / "none.json"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("Error: result: ")
    assert ran.stderr.count("\n") == 1


def test_export_command(run: Path, tmp_path: Path) -> None:
    """`export` prints what it wrote, as text or JSON; a refusal is exit code 2, one line, and no folder."""
    ran = bestserve("export", str(run), "--target", "dynamo", "--out", str(tmp_path / "dynamo"), "-s", STRATEGY)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"{STRATEGY} for dynamo: 2 × 1 h100_sxm (serve) = 2 GPUs. Generated, not run.")
    found = one_object(bestserve("export", str(run), "-t", "llm-d", "--out", str(tmp_path / "d"), "--json"))
    assert "kustomization.yaml" in found["files"]
    assert found["generated_not_run"] is True
    ran = bestserve("export", str(run), "-t", "sglang", "--out", str(tmp_path / "no"))
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "planned for vllm, sglang runs sglang); accepted: --target vllm or ray-serve-llm or dynamo" in ran.stderr
    assert not (tmp_path / "no").exists()
