"""The `verify` folder: the planned load as a trace, three ways to send it, and the limits a result must keep.

`requests.jsonl` is a Mooncake-style trace (arXiv 2407.00079) of requests drawn from the plan's own traffic:
`timestamp` in s, `input_length`, `output_length`, and `hash_ids`, one per `BLOCK_TOKENS` prompt tokens. Equal ids are
equal text: the share of prompts planned to be cached is shared, and nothing else is. vLLM's benchmark (dataset
`timed_trace`) and GuideLLM (profile `replay`) send it as it is; inference-perf draws from the same distributions.
"""

from __future__ import annotations

import json
import math
from typing import Any

from estimator.requests import Requests
from estimator.slo import Slo
from search.export.deployment import Deployment
from search.export.files import render, yaml_text
from search.export.flags import Flags
from search.export.prediction import Prediction
from search.export.scripts import grouped
from search.spec import ConstantSpec, EmpiricalTokens, PoissonSpec, Spec
from spaces.problem import Problem

BLOCK_TOKENS = 128
BENCHMARK_S = 180.0
MIN_REQUESTS, MAX_REQUESTS = 500, 20_000
MIN_THROUGHPUT_FRAC = 0.95  # of the demand: below it the queue grows, whatever the latencies of what was served
MAX_FAILED_FRAC = 0.01
PERCENTILES = (50, 90, 95, 99)
SEED = 1  # not the study's: the plan is not to be judged on the requests it was fitted to


def kit_files(deployment: Deployment, spec: Spec, problem: Problem, prediction: Prediction, url: str) -> dict[str, str]:
    """The kit's files, paths within the export."""
    requests = problem.workload.draw(prediction.rate_req_s, _num_requests(prediction.rate_req_s), SEED)
    stamp = deployment.stamp("a benchmark")
    files = {
        "requests.jsonl": trace(requests),
        "limits.yaml": yaml_text(limits(deployment, problem.slo, prediction), stamp),
        "vllm-bench.sh": _vllm_script(deployment, problem.slo, len(requests), url),
        "guidellm.yaml": yaml_text(guidellm_scenario(deployment, url), stamp),
    }
    perf = inference_perf_config(deployment, spec, problem, requests, url)
    if perf is not None:
        files["inference-perf.yaml"] = yaml_text(perf, stamp)
    return {f"verify/{name}": text for name, text in files.items()}


def trace(requests: Requests) -> str:
    """One JSON object a line."""
    lines, next_id = [], 1 + int(max(requests.cached_tokens, default=0)) // BLOCK_TOKENS
    for arrival_s, inputs, outputs, cached in zip(
        requests.arrival_s.tolist(),
        requests.input_tokens.tolist(),
        requests.output_tokens.tolist(),
        requests.cached_tokens.tolist(),
        strict=True,
    ):
        shared, blocks = cached // BLOCK_TOKENS, math.ceil(inputs / BLOCK_TOKENS)
        own = range(next_id, next_id + blocks - shared)
        next_id += blocks - shared
        row = {"timestamp": round(arrival_s, 6), "input_length": inputs, "output_length": outputs}
        lines.append(json.dumps(row | {"hash_ids": [*range(shared), *own]}))
    return "\n".join(lines) + "\n"


def limits(deployment: Deployment, slo: Slo, prediction: Prediction) -> dict[str, Any]:
    """What must hold at the demand, beside what the plan expects."""
    targets = []
    for target in slo.targets:
        level = target.percentile if slo.share is None else None
        row: dict[str, Any] = {"metric": target.metric, "limit_ms": round(1e3 * target.limit_s, 3)}
        if level is not None:
            row["percentile"] = level
        row["predicted_ms"] = round(1e3 * prediction.value_s(target.metric, level), 3)
        targets.append(row)
    share = {} if slo.share is None else {"share_within_all_limits_min": slo.share}
    return {
        "run": deployment.run,
        "strategy": str(deployment.strategy),
        "rate_req_s": prediction.rate_req_s,
        "targets": targets,
        **share,
        "predicted_share_within_all_limits": round(prediction.attainment, 4),
        "throughput_req_s_min": round(MIN_THROUGHPUT_FRAC * prediction.rate_req_s, 4),
        "failed_share_max": MAX_FAILED_FRAC,
    }


def vllm_bench_flags(deployment: Deployment, slo: Slo, num_requests: int, url: str) -> Flags:
    """Options of `vllm bench serve` that replay the trace."""
    percentiles = sorted({*PERCENTILES, *(target.percentile for target in slo.targets)})
    return {
        "--backend": "openai",
        "--base-url": url,
        "--model": deployment.checkpoint.path,
        "--dataset-name": "timed_trace",
        "--dataset-path": "requests.jsonl",
        "--timed-trace-chunk-hash-size": BLOCK_TOKENS,
        "--num-prompts": num_requests,
        "--ignore-eos": None,
        "--percentile-metrics": "ttft,tpot,e2el",
        "--metric-percentiles": ",".join(f"{level:g}" for level in percentiles),
        "--save-result": None,
        "--save-detailed": None,
        "--result-filename": "result-vllm.json",
    }


def guidellm_scenario(deployment: Deployment, url: str) -> dict[str, Any]:
    """For `guidellm run --config guidellm.yaml`, GuideLLM 0.8."""
    model = {"model": deployment.checkpoint.path, "request_format": "/v1/completions"}
    source = {"kind": "json_file", "path": "requests.jsonl"}
    return {
        "spec": {
            "backend": {"kind": "openai_http", "target": url, **model},
            "profile": {"kind": "replay", "schedule_turn": "timestamp"},
            "data": [{"kind": "mooncake", "source": source, "hash_id_block_size": BLOCK_TOKENS}],
            "outputs": [{"kind": "json", "path": "result-guidellm.json"}],
        }
    }


def inference_perf_config(
    deployment: Deployment, spec: Spec, problem: Problem, requests: Requests, url: str
) -> dict[str, Any] | None:
    """For `inference-perf -c inference-perf.yaml` (0.7); None for traffic that it cannot draw."""
    traffic, arrivals = spec.traffic, {PoissonSpec: "poisson", ConstantSpec: "constant"}
    kind = arrivals.get(type(traffic.arrivals))
    if kind is None or isinstance(traffic.lengths, EmpiricalTokens) or problem.workload.cached_frac > 0:
        return None
    shape = {"fixed": "fixed", "uniform": "uniform", "lognormal": "lognormal"}[traffic.lengths.kind]
    rate = spec.traffic.rate_req_s
    return {
        "api": {"type": "completion", "streaming": True},
        "data": {
            "type": "random",
            "input_distribution": _distribution(shape, requests.input_tokens),
            "output_distribution": _distribution(shape, requests.output_tokens),
        },
        "load": {"type": kind, "stages": [{"rate": rate, "duration": math.ceil(len(requests) / rate)}]},
        "server": {
            "type": "sglang" if deployment.engine.name == "sglang" else "vllm",
            "model_name": deployment.checkpoint.path,
            "base_url": url,
            "ignore_eos": True,
        },
        "report": {"request_lifecycle": {"per_stage": True, "percentiles": list(PERCENTILES)}},
        "storage": {"local_storage": {"path": "result-inference-perf"}},
    }


def _distribution(shape: str, tokens: Any) -> dict[str, Any]:
    mean, deviation = float(tokens.mean()), float(tokens.std())
    low, high = int(tokens.min()), int(tokens.max())
    return {"type": shape, "mean": round(mean, 2), "std_dev": round(deviation, 2), "min": low, "max": high}


def _vllm_script(deployment: Deployment, slo: Slo, num_requests: int, url: str) -> str:
    flags = vllm_bench_flags(deployment, slo, num_requests, url)
    return render(
        "command.sh.j2",
        stamp=deployment.stamp("a benchmark"),
        notes=[
            "Run it in this folder. The client needs vLLM 0.29 or later (dataset timed_trace), whatever the server."
        ],
        hosts="",
        environment={},
        groups=[["vllm", "bench", "serve"], *grouped(flags)],
    )


def _num_requests(rate_req_s: float) -> int:
    return int(min(max(math.ceil(rate_req_s * BENCHMARK_S), MIN_REQUESTS), MAX_REQUESTS))
