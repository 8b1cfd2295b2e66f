"""The question in words, and what the answer takes for granted."""

from __future__ import annotations

from estimator.goodput import EXPLORING, FULL
from search.spec import SloSpec, Spec
from search.view import Candidate, gpu_label
from spaces.problem import Problem, link_of
from spaces.strategy import Strategy

TIERS = {
    "fitted": "fitted on measurements of this GPU and engine",
    "borrowed": "borrowed from a related GPU or engine",
    "data_sheet": "from data sheets with typical efficiencies: not measured",
}
POLICIES = {
    "chunked": "prompts in chunks beside the decoding sequences (chunked prefill)",
    "prefill_first": "waiting prompts before decoding",
    "static": "static batches",
    "distserve": "whole prompts first come, first served; decode admits greedily (DistServe)",
    "tetriinfer": "prompts by length in chunks, decode instances by load, room reserved ahead (TetriInfer)",
}
ROUTERS = {
    "round_robin": "instances in turn",
    "random": "a random instance",
    "least_outstanding": "the instance with the fewest requests",
    "power_of_two": "the less loaded of two random instances",
}


def question_line(spec: Spec, problem: Problem) -> str:
    """The question in one line."""
    model = problem.model.name.split("/")[-1]
    return (
        f"{model}, {spec.model.weights} weights, {spec.model.kv} KV cache, on {spec.engine}: "
        f"{spec.traffic.rate_req_s:g} requests/s, {slo_line(spec)}, up to {spec.search.max_gpus} GPUs "
        f"of {', '.join(map(gpu_label, spec.gpu_names))}"
    )


def slo_line(spec: Spec) -> str:
    """The targets in words, class by class where there are classes."""
    if spec.slo is not None:
        return slo_words(spec.slo)
    return "; ".join(f"{each.name} ({each.share:.0%}): {slo_words(each.slo)}" for each in spec.classes)


def slo_words(slo: SloSpec) -> str:
    """One SLO's targets in words."""
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
    ]
    if best is not None:
        rows += _serving_rows(problem, Strategy.parse(best.strategy))
        rows.append(("Kernel times", TIERS.get(best.tier, best.tier)))
    if spec.calibration is not None and not isinstance(spec.calibration, str):
        card = spec.calibration
        corrected = f"steps × {card.step_time_factor:g}, request overhead {card.request_overhead_ms:g} ms"
        rows.append(("Calibration", f"{corrected} on {card.architecture}: {card.source} ({card.date})"))
    rows += [
        (
            "Goodput",
            f"highest rate that keeps the targets over {FULL.num_requests:,} simulated requests or more, the same for "
            f"every strategy (seed {spec.search.seed}); the start from empty and the end are not judged. What the "
            f"answer does not rest on was looked at over {EXPLORING.num_requests:,}",
        ),
        ("Prices", "third-party records of public list prices, not quotes; whole nodes where sold so"),
        ("Not modelled", "start-up and warm-up of instances, network contention beside the KV hand-over"),
    ]
    rows += [(f"GPU {gpu_label(gpu.name)}", f"{gpu.source} ({gpu.date})") for gpu in problem.gpus.values()]
    return tuple(rows)


def _serving_rows(problem: Problem, strategy: Strategy) -> list[tuple[str, str]]:
    """How the recommended strategy schedules and routes, and what carries its KV caches."""
    rows = [
        ("Scheduling", POLICIES.get(strategy.policy, strategy.policy)),
        ("Routing", ROUTERS.get(strategy.router, strategy.router)),
    ]
    if strategy.is_disaggregated:
        link = link_of(problem, strategy)
        rate = min(link.egress_bytes_per_s, link.ingress_bytes_per_s) / 1e9
        beside = f"{1e3 * link.latency_s:.3g} ms and {link.latency_steps:.0f} decode steps of the receiver"
        rows.append(("KV hand-over", f"{rate:.3g} GB/s per instance, one transfer at a time, {beside}"))
    return rows
