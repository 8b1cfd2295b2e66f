"""The numbers behind each figure, as rows; figures draw them and the CSV files hold them."""

from __future__ import annotations

from collections.abc import Callable

from search.view import Candidate, View

Row = dict[str, str | float | int]


def front_rows(view: View) -> list[Row]:
    """Every feasible strategy that was evaluated, cheapest first, with whether it is on the front."""
    front = {candidate.strategy for candidate in view.front}
    by_cost = sorted(view.candidates, key=lambda c: (c.usd_per_h, -c.goodput_req_s, c.strategy))
    return [_candidate_row(candidate) | {"on_front": int(candidate.strategy in front)} for candidate in by_cost]


def _candidate_row(candidate: Candidate) -> Row:
    return {
        "strategy": candidate.strategy,
        "architecture": candidate.architecture,
        "num_gpus": candidate.num_gpus,
        "usd_per_h": candidate.usd_per_h,
        "goodput_req_s": candidate.goodput_req_s,
        "goodput_low_req_s": candidate.low_req_s,
        "goodput_high_req_s": candidate.high_req_s,
        "usd_per_1m_output": candidate.usd_per_1m_output,
        "ttft_p90_ms": candidate.ttft_p90_ms,
        "tpot_p90_ms": candidate.tpot_p90_ms,
        "binding_limit": candidate.binding_limit,
    }


def latency_rows(view: View) -> list[Row]:
    """One row per strategy and rate."""
    return [
        {"strategy": curve.strategy, "rate_req_s": rate, "ttft_ms": ttft, "tpot_ms": tpot}
        for curve in view.curves
        for rate, ttft, tpot in zip(curve.rate_req_s, curve.ttft_ms, curve.tpot_ms, strict=True)
    ]


def breakdown_rows(view: View) -> list[Row]:
    """One row per pool, phase and operator."""
    return [
        {"pool": t.pool, "phase": t.phase, "operator": t.operator, "ms": t.ms, "bound": t.bound} for t in view.breakdown
    ]


def cost_rows(view: View) -> list[Row]:
    """The recommended strategy's bill: used and stranded GPUs of each type."""
    if view.recommended is None:
        return []
    return [
        {
            "gpu": row.gpu,
            "num_used": row.num_used,
            "num_bought": row.num_bought,
            "usd_per_gpu_h": row.usd_per_gpu_h,
            "usd_per_h_used": row.num_used * row.usd_per_gpu_h,
            "usd_per_h_stranded": (row.num_bought - row.num_used) * row.usd_per_gpu_h,
            "card": row.card,
            "source": row.source,
            "date": row.date,
        }
        for row in view.recommended.bill
    ]


TABLES: dict[str, Callable[[View], list[Row]]] = {
    "front": front_rows,
    "latency": latency_rows,
    "breakdown": breakdown_rows,
    "cost": cost_rows,
}
