"""The question in words, and what the answer takes for granted."""

from __future__ import annotations

from search.spec import Spec
from search.view import Candidate
from spaces.problem import Problem


def question_line(spec: Spec, problem: Problem) -> str:
    """The question in one line."""
    model = problem.model.name.split("/")[-1]
    return (
        f"{model}, {spec.model.weights} weights, {spec.model.kv} KV cache, on {spec.engine}: "
        f"{spec.traffic.rate_req_s:g} requests/s, {slo_line(spec)}, up to {spec.search.max_gpus} GPUs "
        f"of {', '.join(spec.gpu_names)}"
    )


def slo_line(spec: Spec) -> str:
    """The targets in words."""
    slo = spec.slo
    if slo.share is not None:
        limits = {"TTFT": slo.ttft_ms, "TPOT": slo.tpot_ms, "E2E": slo.e2e_ms}
        each = " and ".join(f"{name} ≤ {ms:g} ms" for name, ms in limits.items() if ms is not None)
        return f"{each} for {slo.share:.0%} of requests"
    named = {"TTFT": slo.ttft, "TPOT": slo.tpot, "E2E": slo.e2e}
    return ", ".join(
        f"{name} P{percentile:g} ≤ {ms:g} ms"
        for name, limits in named.items()
        if limits is not None
        for percentile, ms in limits.limits()
    )


def assumptions_of(spec: Spec, problem: Problem, best: Candidate | None) -> tuple[tuple[str, str], ...]:
    """What the answer takes for granted, as (name, sentence)."""
    traffic, workload = spec.traffic, problem.workload
    tiers = {
        "fitted": "fitted on measurements of this GPU and engine",
        "borrowed": "borrowed from a related GPU or engine",
        "data_sheet": "from data sheets with typical efficiencies: not measured",
    }
    cached = f"{traffic.cached_frac:.0%} of each prompt cached" if traffic.cached_frac else "no prefix cache hits"
    rows = [
        ("Model", f"{problem.model.name}, weights {spec.model.weights}, KV cache {spec.model.kv}"),
        ("Engine", f"{problem.engine.name} {problem.engine.version}"),
        (
            "Traffic",
            f"{traffic.lengths.kind} lengths (mean {workload.mean_input_tokens:.0f} input, "
            f"{workload.mean_output_tokens:.0f} output tokens), {traffic.arrivals.kind} arrivals, {cached}",
        ),
        ("Targets", slo_line(spec)),
        ("Operator times", "none" if best is None else tiers.get(best.tier, best.tier)),
        ("Routing", "equal instances behind round robin"),
        ("Prices", "third-party records of public list prices, not quotes; whole nodes where sold so"),
        ("Not modelled", "failures and spares, start-up of instances, network contention beside KV hand-over"),
    ]
    if spec.calibration is not None and not isinstance(spec.calibration, str):
        card = spec.calibration
        corrected = f"steps × {card.step_time_factor:g}, request overhead {card.request_overhead_ms:g} ms"
        rows.append(("Calibration", f"{corrected} on {card.architecture}: {card.source} ({card.date})"))
    rows += [("GPU " + gpu.name, f"{gpu.source} ({gpu.date})") for gpu in problem.gpus.values()]
    return tuple(rows)
