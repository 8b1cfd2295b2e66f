"""From a run's folder to what is shown: one reader for `plan`, `report`, terminal and page, so that they agree."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from estimator.errors import BestServeError
from search.assumptions import assumptions_of, question_line
from search.error_view import known_errors, run_error_line
from search.insight import ledger_of, money_of
from search.money_view import Money
from search.reprice import run_evaluations
from search.serving_view import serving_of
from search.simulated_view import breakdown_at, curve_of, limits_ms
from search.spec import load_run_spec
from search.tariff import Tariff, tariff_of
from search.view import BillRow, Candidate, Rejection, View
from spaces.space import Space
from spaces.strategy import Strategy

MAX_RIVALS = 2


def view_of_run(folder: Path) -> View:
    """What the finished run in `folder` answers; `BestServeError` if there is none.

    Latency curves, the step's parts and a few seconds of serving are simulated again, everything else is read.
    """
    view = read_view(folder)
    spec = load_run_spec(folder)
    problem = spec.problem()
    best, demand = view.recommended, view.demand_req_s
    shown = [best, *rivals(best, view.best_collocated, view.best_disaggregated, view.front)]
    curves = tuple(curve_of(problem, candidate) for candidate in shown if candidate is not None)
    money = money_of(spec, ledger_of(spec, problem, run_evaluations(folder)), today=datetime.now(UTC).date())
    if best is None:
        return replace(view, curves=curves, money=money)
    return replace(
        view,
        curves=curves,
        money=money,
        breakdown=breakdown_at(problem, best.strategy, demand),
        serving=serving_of(problem, best.strategy, demand),
    )


def read_view(folder: Path) -> View:
    """The same without what is simulated: in a fraction of a second."""
    manifest = _manifest(folder)
    spec = load_run_spec(folder)
    problem, tariff = spec.problem(), tariff_of(spec)
    table = pd.read_parquet(folder / "evaluations.parquet")
    mean_output = problem.workload.mean_output_tokens
    candidates = {
        str(row["strategy"]): _candidate(row, tariff, mean_output)
        for row in table[table["status"] == "ok"].to_dict("records")
    }
    front = tuple(candidates[text] for text in pd.read_csv(folder / "front.csv")["strategy"])
    demand = spec.traffic.rate_req_s
    best = candidates.get(manifest["recommended"] or "")
    one, two = (cheapest(candidates.values(), demand, is_disaggregated=kind) for kind in (False, True))
    return View(
        name=spec.name,
        question=question_line(spec, problem),
        demand_req_s=demand,
        mean_output_tokens=mean_output,
        slo_ms=limits_ms(problem),
        recommended=best,
        best_collocated=one,
        best_disaggregated=two,
        front=front,
        candidates=tuple(candidates.values()),
        num_evaluated=len(table),
        rejected=_rejected(table, Space(problem)),
        is_complete=len(table) >= int(manifest["space_size"]),
        space_size=int(manifest["space_size"]),
        errors=known_errors(problem, Strategy.parse(best.strategy)) if best else (),
        run_error=run_error_line(problem, Strategy.parse(best.strategy)) if best else "",
        assumptions=assumptions_of(spec, problem, best),
        command=str(manifest.get("command", "")),
        versions=manifest["versions"],
        money=Money(currency=spec.currency),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise BestServeError("run", str(folder), "holds no run", "the folder of a finished run")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("status") != "finished":
        raise BestServeError("run", str(folder), "is not finished", "a finished run; `bestserve plan … --resume` first")
    return manifest


def _candidate(row: dict[Any, Any], tariff: Tariff, mean_output_tokens: float) -> Candidate:
    strategy = Strategy.parse(str(row["strategy"]))
    costs = tariff.bill(strategy)
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
        is_explored=bool(row.get("is_explored", False)),
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


def _rejected(table: pd.DataFrame, space: Space) -> tuple[Rejection, ...]:
    """Layouts removed by each rule before the search, and strategies of each bad outcome in it, most first."""
    found = [
        Rejection(rule=rule, num=removed.num_shapes, what="layouts", reason=f"{removed.example}: {removed.reason}")
        for rule, removed in space.removed.items()
    ]
    for (status, rule), rows in table[table["status"] != "ok"].groupby(["status", "rule"]):
        example = rows.sort_values(["violation", "strategy"]).iloc[0]
        reason = f"{example['strategy']}: {str(example['reason']).strip().splitlines()[-1]}"
        found.append(Rejection(rule=str(rule or status), num=len(rows), what="strategies", reason=reason))
    return tuple(sorted(found, key=lambda rejection: (-rejection.num, rejection.rule)))
