"""A small complete answer with made-up numbers: for tests of what is shown."""

from __future__ import annotations

from typing import Any

from search.error_view import KnownError
from search.money_view import (
    BuyOrRent,
    DemandPlan,
    HourRow,
    LossRow,
    Money,
    Resilience,
    TippingPoint,
    UnitCosts,
    WhyNot,
)
from search.serving_view import PoolLoad, RequestSpan, Serving
from search.view import BillRow, Candidate, Curve, OperatorTime, Rejection, View


def candidate(strategy: str, goodput_req_s: float, usd_per_h: float, **changes: Any) -> Candidate:
    """A candidate with plausible numbers."""
    gpu_counts = {"h100_sxm": max(1, round(usd_per_h / 4))}
    row = BillRow(
        gpu="h100_sxm",
        num_used=gpu_counts["h100_sxm"],
        num_bought=gpu_counts["h100_sxm"] + 1,
        usd_per_gpu_h=4.0,
        usd_per_h=usd_per_h,
        card="cloud-h100",
        source="a price list",
        date="2026-11-09",
    )
    given: dict[str, Any] = {
        "strategy": strategy,
        "is_disaggregated": "+" in strategy,
        "gpu_counts": gpu_counts,
        "goodput_req_s": goodput_req_s,
        "low_req_s": 0.98 * goodput_req_s,
        "high_req_s": 1.02 * goodput_req_s,
        "binding_limit": "tpot p90",
        "usd_per_h": usd_per_h,
        "usd_per_1m_output": usd_per_h / goodput_req_s,
        "ttft_p90_ms": 400.0,
        "tpot_p90_ms": 49.0,
        "utilisation_frac": 0.8,
        "tier": "fitted",
        "bill": (row,),
    }
    return Candidate(**(given | changes))


def view() -> View:
    """A small complete answer; the name carries what must be escaped."""
    front = (
        candidate("1m-tp1@h100_sxm", 6.0, 8.0),
        candidate("2m-tp2@h100_sxm", 24.0, 20.0),
        candidate("2p-tp1@h100_sxm+3d-tp2@h100_sxm", 45.0, 36.0),
    )
    rest = tuple(candidate(f"{n}m-tp4@h100_sxm,tokens={t}", 4.0 * n, 18.0 * n) for n in (1, 2, 3) for t in (2048, 8192))
    rates = (5.0, 10.0, 20.0, 30.0)
    curves = tuple(
        Curve(
            strategy=c.strategy,
            is_disaggregated=c.is_disaggregated,
            rate_req_s=rates,
            gpus=c.gpus,
            latency_ms={"ttft p90": (100.0, 120.0, 300.0, float("inf")), "tpot p90": (20.0, 25.0, 40.0, 90.0)},
        )
        for c in front[1:]
    )
    times = tuple(
        OperatorTime(pool="m", phase=phase, operator=operator, ms=ms, bound=bound)
        for phase in ("decode", "prefill")
        for operator, ms, bound in (
            ("mlp", 9.0, "memory"),
            ("attention", 4.0, "memory"),
            ("projections", 5.0, "compute"),
            ("all_reduce", 2.0, "link"),
            ("host", 1.0, "host"),
        )
    )
    return View(
        name="small",
        question="Qwen3-32B </script><b>x</b>, 20 requests/s",
        demand_req_s=20.0,
        mean_output_tokens=211.0,
        slo_ms={"ttft p90": 1500.0, "tpot p90": 50.0},
        recommended=front[1],
        best_collocated=front[1],
        best_disaggregated=front[2],
        front=front,
        candidates=front + rest,
        num_evaluated=40,
        rejected=(Rejection(rule="memory", num=12, what="layouts", reason="1m-tp1@l40s: 64 GB of weights"),),
        is_complete=False,
        space_size=1234,
        curves=curves,
        breakdown=times,
        assumptions=(("Model", "Qwen3-32B, fp8 weights"), ("Times", "fitted")),
        command="bestserve plan small.yaml --trials 40",
        versions={"bestserve": "0.1.0", "python": "3.11"},
    )


def serving() -> Serving:
    """Four moments of one prefill and one decode pool, and two requests."""
    spans = tuple(
        RequestSpan(
            arrival_s=start,
            prefill_start_s=start + 0.2,
            first_token_s=start + 0.5,
            kv_arrival_s=start + 0.6,
            finish_s=start + 4.0,
            input_tokens=900,
            output_tokens=150,
        )
        for start in (0.1, 0.7)
    )
    prefill = PoolLoad(name="prefill", waiting=(0, 1, 2, 0), prefill=(1, 1, 2, 1), decode=(0,) * 4, kv_frac=(0.1,) * 4)
    decode = PoolLoad(name="decode", waiting=(0,) * 4, prefill=(0,) * 4, decode=(9, 9, 8, 9), kv_frac=(0.4,) * 4)
    return Serving(
        strategy="2p-tp1@h100_sxm+3d-tp2@h100_sxm",
        part="2 prefill and 3 decode instances",
        rate_req_s=20.0,
        time_s=(0.5, 1.5, 2.5, 3.5),
        pools=(prefill, decode),
        moving=(0.0, 0.5, 0.2, 0.1),
        requests=spans,
        num_preemptions=0,
    )


def errors() -> tuple[KnownError, ...]:
    """One fitted, one never measured."""
    return (
        KnownError(
            what="matrix products, fp8", gpu="h100_sxm", tier="fitted", median_frac=0.07, origin="h100_sxm vllm"
        ),
        KnownError(what="experts, fp4", gpu="h100_sxm", tier="data_sheet", median_frac=None, origin=""),
    )


def money() -> Money:
    """Every part that the report draws."""
    at_demand = UnitCosts(
        rate_req_s=20.0,
        good_frac=0.991,
        usd_per_h=20.0,
        usd_per_month=14_600.0,
        usd_per_year=175_200.0,
        usd_per_1m_input=0.24,
        usd_per_1m_output=1.32,
        usd_per_1k_requests=0.28,
    )
    tips = tuple(
        TippingPoint(
            group="price" if "price" in name else "rate",
            name=name,
            unit=unit,
            now=now,
            tip=now * (1 + change),
            change_frac=change,
            takes_over=takes_over,
            gpus="8 h200_sxm",
            usd_per_h=31.92 if takes_over else None,
            is_simulated=False,
        )
        for name, unit, now, change, takes_over in (
            ("price of h100_sxm", "$/h", 4.0, 0.28, "8m-tp1@h200_sxm"),
            ("demand", "req/s", 20.0, 0.2, "2p-tp1@h100_sxm+3d-tp2@h100_sxm"),
            ("TPOT P90 target", "ms", 50.0, -0.35, None),
        )
    )
    why = WhyNot(
        kind="architecture",
        name="disaggregated",
        strategy="2p-tp1@h100_sxm+3d-tp2@h100_sxm",
        carries=True,
        goodput_req_s=45.0,
        usd_per_h=36.0,
        gap_usd_per_h=16.0,
        gap_frac=0.8,
        binding_limit="ttft p90",
        reason="costs $16.00/h more",
    )
    own = BuyOrRent(
        gpu="h100_sxm",
        num_gpus=8,
        num_owned=8,
        years=4.0,
        utilisation_frac=1.0,
        rent_usd_per_gpu_h=4.0,
        own_usd_per_gpu_h=1.9,
        parts_usd_per_gpu_h={"capital": 1.3, "power": 0.2, "hosting": 0.25, "maintenance": 0.15},
        purchase_usd=300_000.0,
        break_even_months=14.0,
        break_even_utilisation_frac=0.47,
        is_estimate=True,
        source="an estimate",
        date="2026-11-01",
    )
    losses = tuple(
        LossRow(what=what, strategy="1m-tp2@h100_sxm", goodput_req_s=rate, left_frac=rate / 24.0, carries=rate >= 20)
        for what, rate in (("one instance", 12.0), ("nothing", 24.0))
    )
    hours = tuple(
        HourRow(hour=hour, rate_req_s=10.0 + hour % 12, num_units=2, num_base=1, usd=20.0, missed_frac=0.001)
        for hour in range(24)
    )
    demand = DemandPlan(
        name="a day",
        unit="1m-tp2@h100_sxm",
        unit_req_s=12.0,
        mean_req_s=15.0,
        peak_req_s=21.0,
        num_base=1,
        num_peak=2,
        base_card="cloud-h100-1y",
        burst_card="cloud-h100",
        usd_per_day=400.0,
        always_peak_usd_per_day=480.0,
        mean_sized_usd_per_day=300.0,
        missed_frac=0.001,
        startup_s=120.0,
        scaling="ahead",
        hours=hours,
    )
    return Money(
        at_demand=at_demand,
        at_goodput=at_demand,
        tipping_points=tips,
        why_not=(why,),
        buy_or_rent=(own,),
        resilience=Resilience(
            losses=losses,
            spare="3m-tp2@h100_sxm",
            spare_usd_per_h=30.0,
            added_usd_per_h=10.0,
            spare_goodput_req_s=36.0,
            restart_min=12.0,
        ),
        demand=demand,
        warnings=("price cloud-h100 is 70 days old",),
    )
