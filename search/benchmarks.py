"""Result files of serving benchmarks, read into one form.

| tool (release whose source was read) | file | units there | their name for our TPOT |
|---|---|---|---|
| `vllm bench serve --save-result` (0.33.0) | one JSON object | ms; lists in s | tpot |
| GuideLLM (0.8.1) | `benchmarks.json`, metadata version 1 or 2 | ms, request latency s | inter_token_latency_ms |
| inference-perf (0.7.0) | `stage_N_lifecycle_metrics.json` | s | time_per_output_token |
| aiperf (0.13), genai-perf | `profile_export_aiperf.json` | the unit each metric states | inter_token_latency |

GuideLLM weighs its percentiles of inter-token latency by tokens; they are used only where the file lists no requests.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.errors import BestServeError
from estimator.slo import Metric
from search.edge import read_text

ACCEPTED = "a result of vllm bench serve, GuideLLM, inference-perf (stage file) or aiperf"
METRICS: tuple[Metric, ...] = ("ttft", "tpot", "e2e")
LEVELS = (50.0, 90.0, 95.0, 99.0)
Level = float | None  # a percentile, 0-100; None: the mean


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What a benchmark saw, in s. None where the file does not say.

    `latencies_s`: mean and percentiles by metric and level, of completed requests. `requests_s`: each metric of every
    request sent, (num,), ∞ for failed ones and NaN where undefined. `met_frac`: share of the requests sent that met
    the limits which the benchmark itself was given.
    """

    tool: str
    num_completed: int
    num_failed: int
    throughput_req_s: float
    rate_req_s: float | None
    mean_input_tokens: float | None
    mean_output_tokens: float | None
    latencies_s: Mapping[tuple[Metric, Level], float]
    requests_s: Mapping[Metric, NDArray[np.float64]] = field(default_factory=dict)
    met_frac: float | None = None

    @property
    def failed_frac(self) -> float:
        """Share of the requests that were sent and not answered."""
        return self.num_failed / max(self.num_completed + self.num_failed, 1)

    def value_s(self, metric: Metric, level: Level) -> float | None:
        """The mean or a percentile of completed requests, from single requests where the file has them."""
        values = self.requests_s.get(metric)
        if values is not None:
            finite = values[np.isfinite(values)]
            if len(finite):
                return float(finite.mean() if level is None else np.percentile(finite, level))
        return self.latencies_s.get((metric, level))


def read_benchmark(path: Path, *, near_req_s: float) -> Measured:
    """The result in a file; of several load points in one, that whose rate is nearest to `near_req_s`.

    Raises `BestServeError` for a file that is not JSON or not a result of a known tool.
    """
    found = _load(path)
    for is_ours, read in _READERS:
        if isinstance(found, Mapping) and is_ours(found):
            try:
                return read(found, near_req_s)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                reason = f"lacks a field of its own format ({error!r})"
                raise BestServeError("result", str(path), reason, ACCEPTED) from error
    raise BestServeError("result", str(path), "is no benchmark result", ACCEPTED)


def _load(path: Path) -> Any:
    text = read_text(path, field="result")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        rows = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise BestServeError("result", str(path), f"is not JSON ({error})", ACCEPTED) from error
    if len(rows) != 1:
        raise BestServeError("result", str(path), f"holds {len(rows)} results", "a file with one")
    return rows[0]


def _vllm(found: Mapping[str, Any], near_req_s: float) -> Measured:
    completed, failed = int(found["completed"]), int(found.get("failed") or 0)
    latencies: dict[tuple[Metric, Level], float] = {}
    for metric, theirs in zip(METRICS, ("ttft", "tpot", "e2el"), strict=True):
        for level in (None, *LEVELS):
            names = ("mean",) if level is None else ("median", "p50") if level == 50.0 else (f"p{level:g}",)
            value = next((found[key] for name in names if (key := f"{name}_{theirs}_ms") in found), None)
            if value is not None:
                latencies[metric, level] = float(value) / 1e3
    throughput = float(found["request_throughput"])
    rate, good = found.get("request_rate"), found.get("request_goodput")
    sent = completed + failed
    return Measured(
        tool="vllm bench serve",
        num_completed=completed,
        num_failed=failed,
        throughput_req_s=throughput,
        rate_req_s=float(rate) if isinstance(rate, int | float) and math.isfinite(rate) else None,
        mean_input_tokens=found["total_input_tokens"] / max(completed, 1),
        mean_output_tokens=found["total_output_tokens"] / max(completed, 1),
        latencies_s=latencies,
        requests_s=_vllm_requests(found),
        met_frac=None if good is None else float(good) / throughput * completed / max(sent, 1),
    )


def _vllm_requests(found: Mapping[str, Any]) -> dict[Metric, NDArray[np.float64]]:
    """From the lists that --save-detailed keeps: TPOT as the benchmark itself computes it."""
    if not all(found.get(name) for name in ("ttfts", "itls", "output_lens")):
        return {}
    num_tokens = np.asarray(found["output_lens"], np.float64)
    failed = num_tokens <= 0
    ttft = np.where(failed, np.inf, np.asarray(found["ttfts"], np.float64))
    e2e = ttft + np.asarray([math.fsum(gaps) for gaps in found["itls"]])
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(failed, np.inf, np.where(num_tokens > 1, (e2e - ttft) / (num_tokens - 1), np.nan))
    return {"ttft": ttft, "tpot": tpot, "e2e": e2e}


def _guidellm(found: Mapping[str, Any], near_req_s: float) -> Measured:
    def rate_of(benchmark: Mapping[str, Any]) -> float:
        return float(benchmark["metrics"]["requests_per_second"]["successful"]["mean"])

    benchmark = min(found["benchmarks"], key=lambda one: abs(rate_of(one) - near_req_s))
    metrics, totals = benchmark["metrics"], benchmark["metrics"]["request_totals"]
    names: dict[Metric, tuple[str, float]] = {
        "ttft": ("time_to_first_token_ms", 1e-3),
        "tpot": ("inter_token_latency_ms", 1e-3),
        "e2e": ("request_latency", 1.0),
    }
    latencies: dict[tuple[Metric, Level], float] = {}
    for metric, (theirs, scale) in names.items():
        of_successful = metrics[theirs]["successful"]
        latencies[metric, None] = scale * float(of_successful["mean"])
        for level in LEVELS:
            latencies[metric, level] = scale * float(of_successful["percentiles"][f"p{level:g}"])
    return Measured(
        tool="guidellm",
        num_completed=int(totals["successful"]),
        num_failed=int(totals["errored"]) + int(totals.get("incomplete") or 0),
        throughput_req_s=rate_of(benchmark),
        rate_req_s=_guidellm_rate(benchmark),
        mean_input_tokens=_mean(metrics, "prompt_token_count"),
        mean_output_tokens=_mean(metrics, "output_token_count"),
        latencies_s=latencies,
        requests_s=_guidellm_requests(benchmark, names, int(totals["errored"])),
    )


def _guidellm_requests(
    benchmark: Mapping[str, Any], names: Mapping[Metric, tuple[str, float]], num_failed: int
) -> dict[Metric, NDArray[np.float64]]:
    """Only where every successful request is listed: the file may hold a sample."""
    listed = (benchmark.get("requests") or {}).get("successful") or []
    if len(listed) != int(benchmark["metrics"]["request_totals"]["successful"]) or not listed:
        return {}
    found: dict[Metric, NDArray[np.float64]] = {}
    for metric, (theirs, scale) in names.items():
        if not all(theirs in one for one in listed):
            return {}
        values = [math.nan if one[theirs] is None else scale * float(one[theirs]) for one in listed]
        found[metric] = np.asarray([*values, *[math.inf] * num_failed], np.float64)
    return found


def _guidellm_rate(benchmark: Mapping[str, Any]) -> float | None:
    """The rate asked for, where the strategy has one."""
    rate = ((benchmark.get("config") or {}).get("strategy") or {}).get("rate")
    return float(rate) if isinstance(rate, int | float) else None


def _mean(metrics: Mapping[str, Any], name: str) -> float | None:
    value = ((metrics.get(name) or {}).get("successful") or {}).get("mean")
    return None if value is None else float(value)


def _inference_perf(found: Mapping[str, Any], near_req_s: float) -> Measured:
    load, ok, failures = found["load_summary"], found["successes"], found["failures"]
    names: dict[Metric, str] = {
        "ttft": "time_to_first_token",
        "tpot": "time_per_output_token",
        "e2e": "request_latency",
    }
    latencies: dict[tuple[Metric, Level], float] = {}
    for metric, theirs in names.items():
        latencies |= _levels(metric, ok["latency"].get(theirs) or {}, 1.0)
    requested = load.get("requested_rate")
    return Measured(
        tool="inference-perf",
        num_completed=int(ok["count"]),
        num_failed=int(failures["count"]),
        throughput_req_s=float(ok["throughput"]["requests_per_sec"]),
        rate_req_s=None if requested is None else float(requested),
        mean_input_tokens=ok.get("prompt_len", {}).get("mean"),
        mean_output_tokens=ok.get("output_len", {}).get("mean"),
        latencies_s=latencies,
    )


def _aiperf(found: Mapping[str, Any], near_req_s: float) -> Measured:
    names: dict[Metric, str] = {
        "ttft": "time_to_first_token",
        "tpot": "inter_token_latency",
        "e2e": "request_latency",
    }
    latencies: dict[tuple[Metric, Level], float] = {}
    for metric, theirs in names.items():
        values = found.get(theirs) or {}
        scale = {"ms": 1e-3, "s": 1.0, "us": 1e-6, "ns": 1e-9}[values.get("unit", "ms")]
        latencies |= _levels(metric, values | ({"mean": values["avg"]} if "avg" in values else {}), scale)
    errors = (found.get("error_request_count") or {}).get("avg") or 0
    return Measured(
        tool="aiperf",
        num_completed=int(found["request_count"]["avg"]),
        num_failed=int(errors),
        throughput_req_s=float(found["request_throughput"]["avg"]),
        rate_req_s=None,
        mean_input_tokens=(found.get("input_sequence_length") or {}).get("avg"),
        mean_output_tokens=(found.get("output_sequence_length") or {}).get("avg"),
        latencies_s=latencies,
    )


def _levels(metric: Metric, values: Mapping[str, Any], scale: float) -> dict[tuple[Metric, Level], float]:
    """Of a summary with `mean` and `p90`-like keys (`median` for p50)."""
    names: Iterable[tuple[Level, tuple[str, ...]]] = [
        (None, ("mean",)),
        (50.0, ("median", "p50")),
        *((level, (f"p{level:g}",)) for level in LEVELS[1:]),
    ]
    found: dict[tuple[Metric, Level], float] = {}
    for level, keys in names:
        value = next((values[key] for key in keys if values.get(key) is not None), None)
        if value is not None:
            found[metric, level] = scale * float(value)
    return found


_READERS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any], float], Measured]], ...] = (
    (lambda found: "request_throughput" in found and "completed" in found, _vllm),
    (lambda found: "benchmarks" in found and "metadata" in found, _guidellm),
    (lambda found: "load_summary" in found and "successes" in found, _inference_perf),
    (lambda found: isinstance(found.get("request_throughput"), Mapping), _aiperf),
)
