"""Money where latencies decide: tips, links, classes and penalties, against goodput searched anew."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from estimator.goodput import Goodput, goodput
from estimator.workload import ScaledLengths
from search.evaluate import evaluate
from search.insight_classes import class_rows, penalty_rows
from search.insight_links import link_break_even, link_rows
from search.insight_tips import boundary, tipping_points
from search.ledger import Ledger
from search.money_view import TippingPoint
from search.spec import Spec, parse_spec
from search.tariff import tariff_of
from spaces.problem import Problem
from spaces.strategy import Strategy

ONES = ("h100_sxm", "l40s")
COLLOCATED = [f"{n}m-tp1@{gpu},tokens=8192,seqs=256" for gpu in ONES for n in (1, 2, 3)]
PAIRS = ["1p-tp1@h100_sxm,tokens=8192+1d-tp1@l40s,seqs=256", "1p-tp1@h100_sxm,tokens=8192+2d-tp1@l40s,seqs=256"]
SIDE = 0.04  # how far on either side planning anew is tried
OVER = 1.012  # a goodput is found to 1 %


@lru_cache(maxsize=4)
def spec_with(*, classes: bool = False) -> Spec:
    """8B on H100 at 4 $ and L40S at 1 $, 6 requests/s."""
    own = {
        gpu: {"usd_per_gpu_h": usd, "source": "t", "date": "2026-11-01"}
        for gpu, usd in zip(ONES, (4.0, 1.0), strict=True)
    }
    slo = {"ttft": {"p90_ms": 1000}, "tpot": {"p90_ms": 40}}
    batch = {"kind": "fixed", "input_tokens": 3000, "output_tokens": 50}
    asked = (
        {"slo": slo}
        if not classes
        else {
            "classes": [
                {"name": "chat", "share": 0.8, "slo": slo},
                {"name": "batch", "share": 0.2, "slo": {"e2e": {"p50_ms": 20000}}, "lengths": batch},
            ]
        }
    )
    lengths = {"kind": "uniform", "input_tokens": {"min": 200, "max": 1000}, "output_tokens": {"min": 50, "max": 200}}
    given = {
        "name": "money",
        "model": {"id": "llama-3.1-8b"},
        "traffic": {"rate_req_s": 6, "lengths": lengths},
        "gpus": list(ONES),
        "prices": own,
        "search": {"max_gpus": 4, "tp": [1], "pp": [1], "dp": [1], "ep": [1]},
    }
    return parse_spec(given | asked, folder=Path("."))


@lru_cache(maxsize=4)
def ledger_with(*, classes: bool = False) -> Ledger:
    """A few strategies evaluated."""
    spec = spec_with(classes=classes)
    problem = spec.problem()
    known = [evaluate(problem, Strategy.parse(text), 0) for text in (*COLLOCATED, *PAIRS)]
    return Ledger.of(problem, tariff_of(spec), spec.traffic.rate_req_s, 0, known)


def tips() -> tuple[TippingPoint, ...]:
    """Every tipping point of the small ledger."""
    ledger = ledger_with()
    best = ledger.best()
    assert best is not None
    return tipping_points(ledger, best)


def changed(problem: Problem, tip: TippingPoint, factor: float) -> Problem:
    """The problem with what the tip is about multiplied."""
    if tip.group == "length":
        side = "input_factor" if "input" in tip.name else "output_factor"
        lengths = ScaledLengths(base=problem.workload.lengths, **{side: factor})
        return replace(problem, workload=replace(problem.workload, lengths=lengths))
    if tip.group == "link":
        return replace(problem, network_bytes_per_s=tip.now * factor * 1e9 / 8)
    name = next(name for name in problem.slo.limits_s if tip.name.lower().startswith(name))
    return replace(problem, slo=problem.slo.scaled(name, factor))


def test_simulated_tips_hold_on_both_sides() -> None:
    """A little before each simulated tip planning anew on the same strategies changes nothing, beyond it it does.

    A goodput is found to 1 %, so within that of the demand a strategy may count as carrying it or not.
    """
    ledger = ledger_with()
    best = ledger.best()
    assert best is not None
    found = [tip for tip in tips() if tip.is_simulated]
    assert {tip.group for tip in found} >= {"length", "slo"}
    for tip in found:
        sign = 1.0 if tip.change_frac > 0 else -1.0
        before, beyond = (
            changed(ledger.problem, tip, tip.tip / tip.now * (1.0 + sign * side)) for side in (-SIDE, SIDE)
        )
        assert_recommended(before, best.strategy, tip)
        if tip.takes_over is not None:
            assert_recommended(beyond, Strategy.parse(tip.takes_over), tip)
        else:
            assert all(evaluate(beyond, s, 0).goodput_req_s <= OVER * ledger.demand_req_s for s in ledger.known), tip


def assert_recommended(problem: Problem, strategy: Strategy, tip: TippingPoint) -> None:
    """The strategy carries the demand of the problem, and none that is cheaper clearly does."""
    ledger = ledger_with()
    price = ledger.tariff.usd_per_h(strategy)
    assert evaluate(problem, strategy, 0).goodput_req_s >= ledger.demand_req_s / OVER, tip
    cheaper = (s for s in ledger.known if ledger.tariff.usd_per_h(s) < price - 1e-9)
    assert all(evaluate(problem, s, 0).goodput_req_s <= OVER * ledger.demand_req_s for s in cheaper), tip


def test_tips_are_sorted_by_nearness() -> None:
    """The first tip needs the smallest change, halving counting as much as doubling."""
    away = [max(tip.tip / tip.now, tip.now / tip.tip) for tip in tips() if tip.tip > 0]
    assert away == sorted(away)


@pytest.mark.parametrize(("at", "sign"), [(1.07, 1), (2.2, 1), (3.9, 1), (1.4, -1)])
def test_boundary_is_found_outwards(at: float, sign: int) -> None:
    """The change of a step function is found within 1 % on its side, and just beyond it the function has changed."""

    def past(factor: float) -> bool:
        return (factor > at) if sign > 0 else (factor < 1 / at)

    found = boundary(past, sign)
    assert found is not None
    assert found[0] == pytest.approx(at**sign, rel=0.01)
    assert past(found[1])
    assert boundary(lambda factor: False, sign) is None


def test_least_link_rate_is_where_goodput_per_money_meets() -> None:
    """5 % above the least rate the disaggregated pair has more goodput per money than collocated, 5 % below less."""
    ledger = ledger_with()
    cheap = ledger.at_prices(ledger.tariff.scaled("l40s", 0.2).scaled("h100_sxm", 0.25))
    found = link_break_even(cheap)
    assert found is not None
    assert found.verdict
    if found.least_gbit_s_per_gpu is None:
        assert "No network" in found.verdict or "on any network" in found.verdict
        return
    one = cheap.offer(Strategy.parse(found.collocated))
    two = cheap.offer(Strategy.parse(found.disaggregated))
    assert one is not None
    assert two is not None
    for side, wins in ((0.95, False), (1.05, True)):
        system = cheap.system(two.strategy, found.least_gbit_s_per_gpu * side * 1e9 / 8)
        rate = goodput(system, cheap.problem.workload, cheap.problem.slo, seed=0)
        assert isinstance(rate, Goodput)
        assert (rate.rate_req_s / two.usd_per_h > one.goodput_req_s / one.usd_per_h) == wins


def test_a_slow_link_costs_goodput_and_a_priced_one_money() -> None:
    """Over 12.5 Gbit/s the pair carries no more than over 400, to the 1 % of a goodput; 0.069 $ are added per GPU."""
    ledger, spec = ledger_with(), spec_with()
    rows = {row.link: row for row in link_rows(spec, ledger)}
    assert rows["as planned"].is_used
    assert rows["ethernet-100-shared"].goodput_req_s <= 1.01 * rows["infiniband-ndr-400"].goodput_req_s
    strategy = Strategy.parse(rows["as planned"].strategy or "")
    added = (rows["infiniband-ndr-400"].usd_per_h or 0.0) - (rows["as planned"].usd_per_h or 0.0)
    assert added == pytest.approx(0.069 * strategy.num_gpus)


def test_pools_side_by_side_in_a_node_are_among_the_links() -> None:
    """Two L40S of one node hand over by PCIe: the table has them as used, at the port's rate and without a price."""
    ledger, spec = ledger_with(), spec_with()
    strategy = Strategy.parse("1p-tp1@l40s,tokens=8192+1d-tp1@l40s,seqs=256")
    ledger.known[strategy] = evaluate(ledger.problem, strategy, 0)
    row = {row.link: row for row in link_rows(spec, ledger)}["PCIe of a node"]
    assert (row.strategy, row.is_used, row.usd_per_gpu_h) == (str(strategy), True, 0.0)
    assert row.gbit_s_per_gpu == pytest.approx(ledger.problem.gpu("l40s").pcie_bytes_per_s * 8 / 1e9)


def test_classes_have_their_own_requests_and_verdicts() -> None:
    """Shares are as asked, the batch class has its own lengths, and each attainment reaches its percentile."""
    ledger, spec = ledger_with(classes=True), spec_with(classes=True)
    best = ledger.best()
    assert best is not None
    rows = {row.name: row for row in class_rows(spec, ledger, best)}
    assert rows["chat"].attainment_frac >= 0.8
    assert rows["batch"].attainment_frac >= 0.5
    requests = ledger.problem.workload.draw(1.0, 20_000, 0)
    assert (requests.input_tokens == 3000).mean() == pytest.approx(0.2, abs=0.01)
    assert ledger.problem.workload.mean_input_tokens == pytest.approx(0.8 * 600 + 0.2 * 3000, rel=0.02)
    assert best.evaluation.binding_limit.endswith(
        (" of chat", " of batch", "throughput", "max_num_seqs", "kv capacity")
    )


def test_a_penalty_buys_what_it_is_worth() -> None:
    """A miss at next to nothing keeps the cheapest cluster that does not pile up; at 10 $ the misses are bought off.

    The bill of the choice never falls and its misses never rise with the penalty.
    """
    ledger = ledger_with()
    choices = [penalty_rows(ledger, penalty)[0] for penalty in (1e-6, 1e-3, 10.0)]
    assert [row.usd_per_h for row in choices] == sorted(row.usd_per_h for row in choices)
    assert [row.missed_frac for row in choices] == sorted((row.missed_frac for row in choices), reverse=True)
    for penalty in (1e-6, 10.0):
        totals = [row.total_usd_per_h for row in penalty_rows(ledger, penalty)]
        assert totals == sorted(totals)
