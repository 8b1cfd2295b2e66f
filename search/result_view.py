"""From a run's folder to what is shown: one reader for `plan`, `report`, terminal and page, so that they agree."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from estimator.build import StepPart, step_breakdown
from estimator.cost import PriceCard, bill
from estimator.dtypes import Dtypes
from estimator.errors import BestServeError
from estimator.latency import LatencySummary
from search.edge import read_yaml
from search.estimate import estimate, existing_system
from search.spec import Spec, parse_spec
from search.view import BillRow, Candidate, Curve, OperatorTime, Rejection, View
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy

CURVE_FRACS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1)  # of a strategy's goodput
CURVE_REQUESTS = 6_000
MAX_RIVALS = 2
PHASES = {"decode": "decode", "mixed": "prefill"}  # the mixed step shown holds a prompt alone
POOLS = {"m": "collocated", "p": "prefill pool", "d": "decode pool"}


def view_of_run(folder: Path) -> View:
    """What the finished run in `folder` answers; `BestServeError` if there is none.

    Latency curves are simulated again, everything else is read.
    """
    manifest = _manifest(folder)
    spec = parse_spec(read_yaml(folder / "spec.yaml"), folder=folder)
    problem, cards = spec.problem(), spec.cards()
    table = pd.read_parquet(folder / "evaluations.parquet")
    mean_output = problem.workload.mean_output_tokens
    candidates = {
        str(row["strategy"]): _candidate(row, cards, mean_output)
        for row in table[table["status"] == "ok"].to_dict("records")
    }
    front = tuple(candidates[text] for text in pd.read_csv(folder / "front.csv")["strategy"])
    demand = spec.traffic.rate_req_s
    best = candidates.get(manifest["recommended"] or "")
    one, two = (cheapest(candidates.values(), demand, is_disaggregated=kind) for kind in (False, True))
    shown = [candidate for candidate in (best, *rivals(best, one, two, front)) if candidate is not None]
    return View(
        name=spec.name,
        question=question_line(spec, problem),
        demand_req_s=demand,
        mean_output_tokens=mean_output,
        slo_ms={target.name: 1e3 * target.limit_s for target in problem.slo.targets},
        recommended=best,
        best_collocated=one,
        best_disaggregated=two,
        front=front,
        candidates=tuple(candidates.values()),
        num_evaluated=len(table),
        rejected=_rejected(table, Space(problem)),
        is_complete=len(table) >= int(manifest["space_size"]),
        space_size=int(manifest["space_size"]),
        curves=tuple(curve_of(problem, candidate) for candidate in shown),
        breakdown=_breakdown_at(problem, best, demand) if best else (),
        assumptions=assumptions_of(spec, problem, best),
        command=str(manifest.get("command", "")),
        versions=manifest["versions"],
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise BestServeError("run", str(folder), "holds no run", "the folder of a finished run")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("status") != "finished":
        raise BestServeError("run", str(folder), "is not finished", "a finished run; `bestserve plan … --resume` first")
    return manifest


def _candidate(row: dict[Any, Any], cards: dict[str, PriceCard], mean_output_tokens: float) -> Candidate:
    strategy = Strategy.parse(str(row["strategy"]))
    costs = bill(strategy.gpu_counts, cards)
    goodput = float(row["goodput_req_s"])
    return Candidate(
        strategy=str(row["strategy"]),
        is_disaggregated=strategy.is_disaggregated,
        gpu_counts=strategy.gpu_counts,
        goodput_req_s=goodput,
        low_req_s=float(row["low_req_s"]),
        high_req_s=float(row["high_req_s"]),
        binding_limit=str(row["binding_limit"]),
        usd_per_h=costs.usd_per_h,
        usd_per_1m_output=costs.usd_per_million_tokens(goodput, mean_output_tokens),
        ttft_p90_ms=1e3 * float(row["ttft_p90_s"]),
        tpot_p90_ms=1e3 * float(row["tpot_p90_s"]),
        utilisation_frac=float(row["decode_utilisation_frac"]),
        tier=str(row["tier"]),
        bill=tuple(
            BillRow(
                gpu=line.card.gpu,
                num_used=line.num_gpus,
                num_bought=line.num_bought,
                usd_per_gpu_h=line.card.usd_per_gpu_h,
                usd_per_h=line.usd_per_h,
                card=line.card.id,
                source=line.card.source,
                date=line.card.date,
            )
            for line in costs.lines
        ),
    )


def cheapest(candidates: Any, demand_req_s: float, *, is_disaggregated: bool) -> Candidate | None:
    """The cheapest of one kind that carries the demand; of equal cost the one with most goodput, then by name."""
    carrying = [c for c in candidates if c.is_disaggregated == is_disaggregated and c.goodput_req_s >= demand_req_s]
    return min(carrying, key=lambda c: (c.usd_per_h, -c.goodput_req_s, c.strategy), default=None)


def rivals(
    best: Candidate | None, one: Candidate | None, two: Candidate | None, front: tuple[Candidate, ...]
) -> list[Candidate]:
    """At most two to compare with: the best of the other kind, then those of the front that are next in cost."""
    if best is None:
        return list(front[-1:])
    dearer = [c for c in front if c.usd_per_h >= best.usd_per_h]
    cheaper = [c for c in reversed(front) if c.usd_per_h < best.usd_per_h]
    ordered = [one, two, *dearer, *cheaper]
    others = {c.strategy: c for c in ordered if c is not None and c.strategy != best.strategy}
    return list(others.values())[:MAX_RIVALS]


def curve_of(problem: Problem, candidate: Candidate) -> Curve:
    """TTFT and TPOT P90 at rates around the candidate's goodput."""
    system = existing_system(problem, Strategy.parse(candidate.strategy))
    rates = [frac * candidate.goodput_req_s for frac in CURVE_FRACS]
    summaries = [
        estimate(problem, system, candidate.strategy, rate_req_s=rate, num_requests=CURVE_REQUESTS).summary
        for rate in rates
    ]
    return Curve(
        strategy=candidate.strategy,
        is_disaggregated=candidate.is_disaggregated,
        rate_req_s=tuple(rates),
        ttft_ms=tuple(1e3 * summary.ttft.p90_s for summary in summaries),
        tpot_ms=tuple(1e3 * summary.tpot.p90_s for summary in summaries),
    )


def _breakdown_at(problem: Problem, best: Candidate, rate_req_s: float) -> tuple[OperatorTime, ...]:
    strategy = Strategy.parse(best.strategy)
    system = existing_system(problem, strategy)
    answer = estimate(problem, system, best.strategy, rate_req_s=rate_req_s, num_requests=CURVE_REQUESTS)
    return breakdown_of(problem, strategy, answer.summary)


def _rejected(table: pd.DataFrame, space: Space) -> tuple[Rejection, ...]:
    """Layouts removed by each rule before the search, and strategies of each bad outcome in it, most first."""
    found = [
        Rejection(rule=rule, num=removed.num_shapes, what="layouts", reason=f"{removed.example}: {removed.reason}")
        for rule, removed in space.removed.items()
    ]
    for (status, rule), rows in table[table["status"] != "ok"].groupby(["status", "rule"]):
        example = rows.iloc[0]
        reason = f"{example['strategy']}: {str(example['reason']).strip().splitlines()[-1]}"
        found.append(Rejection(rule=str(rule or status), num=len(rows), what="strategies", reason=reason))
    return tuple(sorted(found, key=lambda rejection: (-rejection.num, rejection.rule)))


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
    rows += [("GPU " + gpu.name, f"{gpu.source} ({gpu.date})") for gpu in problem.gpus.values()]
    return tuple(rows)


def breakdown_of(problem: Problem, strategy: Strategy, summary: LatencySummary) -> tuple[OperatorTime, ...]:
    """Where the time of each pool's typical step goes: its mean decode batch, and a prompt of mean length."""
    input_tokens, output_tokens = problem.workload.mean_input_tokens, problem.workload.mean_output_tokens
    times: list[OperatorTime] = []
    for pool in strategy.pools:
        step = partial(
            step_breakdown,
            model=problem.model,
            gpu=problem.gpu(pool.gpu),
            engine=problem.engine,
            parallelism=pool.parallelism,
            dtypes=Dtypes(weight=problem.weight_dtype, kv=problem.kv_dtype),
        )
        parts: list[StepPart] = []
        if pool.role != "p":
            num_seqs = max(1, round(summary.decode.mean_batch_seqs / pool.parallelism.dp))
            parts += step(num_seqs=num_seqs, cached_tokens=num_seqs * (input_tokens + output_tokens / 2))
        if pool.role != "d":
            computed = round(input_tokens * (1 - problem.workload.cached_frac))
            budget = pool.limits(problem.engine.limits).max_num_batched_tokens
            parts += step(num_seqs=0, cached_tokens=0.0, prefill_tokens=max(1, min(computed, budget)))
        times += [
            OperatorTime(
                pool=POOLS[pool.role], phase=PHASES[p.phase], operator=p.operator, ms=1e3 * p.seconds, bound=p.bound
            )
            for p in parts
        ]
    return tuple(times)
