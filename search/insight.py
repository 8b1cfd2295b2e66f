"""Everything about money that an answer shows, from the evaluations of a run and few simulations more."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING

from estimator.cost import Bill
from search.insight_cards import card_hints
from search.insight_classes import class_rows, penalty_rows
from search.insight_demand import demand_plan
from search.insight_failures import resilience
from search.insight_links import link_break_even, link_rows
from search.insight_owning import buy_or_rent
from search.insight_tips import tipping_points
from search.insight_why import why_not
from search.ledger import Ledger
from search.money_view import CardRow, Money, UnitCosts
from search.offer import Offer
from search.prices import MAX_AGE_DAYS, PriceBook, age_days, old_card_warnings, price_book
from search.spec_money import DemandSpec
from search.tariff import tariff_of
from spaces.space import Space
from spaces.strategy import Strategy

if TYPE_CHECKING:
    from search.evaluation import Evaluation
    from search.spec import Spec
    from spaces.problem import Problem


def ledger_of(spec: Spec, problem: Problem, evaluations: Iterable[Evaluation]) -> Ledger:
    """The run's evaluations at the spec's prices; with a penalty for misses its choice is made here."""
    ledger = Ledger.of(problem, tariff_of(spec), spec.traffic.rate_req_s, spec.search.seed, evaluations)
    if spec.penalty_per_miss is not None:
        rows = penalty_rows(ledger, spec.penalty_per_miss)
        ledger.recommended = Strategy.parse(rows[0].strategy) if rows else None
    return ledger


def money_of(spec: Spec, ledger: Ledger, *, today: date) -> Money:
    """What is recommended in money: bills, owning, failures, demand, links, tipping points, why not.

    Without a recommendation only the cards and why not are told.
    """
    started_s = time.monotonic()
    book = price_book(spec)
    best = ledger.best()
    penalties = () if spec.penalty_per_miss is None else tuple(penalty_rows(ledger, spec.penalty_per_miss))
    common = {
        "currency": spec.currency,
        "cards": tuple(_card_rows(book, today)),
        "warnings": tuple(old_card_warnings(book.chosen.values(), today)),
        "penalties": penalties,
    }
    if best is None:
        return Money(**common, elapsed_s=time.monotonic() - started_s)  # type: ignore[arg-type]
    carries = best.goodput_req_s >= ledger.demand_req_s
    if carries:
        common["warnings"] = (*card_hints(book, ledger, best), *old_card_warnings(book.chosen.values(), today))
    startup_s = (spec.demand or DemandSpec.model_construct(startup_s=300.0)).startup_s
    beside = ledger.apart()
    with ThreadPoolExecutor(1) as thread:
        tips = thread.submit(tipping_points, beside, best) if carries else None
        parts = {
            "at_demand": unit_costs(ledger, best, ledger.demand_req_s),
            "at_goodput": unit_costs(ledger, best, best.goodput_req_s),
            "buy_or_rent": tuple(buy_or_rent(spec, ledger, best)),
            "why_not": tuple(why_not(ledger, best, lambda: Space(ledger.problem))) if carries else (),
            "demand": demand_plan(spec, book, ledger, best),
            "resilience": resilience(ledger, best, startup_s),
            "links": tuple(link_rows(spec, ledger)),
            "link_break_even": link_break_even(ledger),
            "classes": tuple(class_rows(spec, ledger, best)),
            "tipping_points": () if tips is None else tips.result(),
        }
    num, elapsed_s = ledger.num_simulated + beside.num_simulated, time.monotonic() - started_s
    return Money(**common, **parts, num_simulated=num, elapsed_s=elapsed_s)  # type: ignore[arg-type]


def unit_costs(ledger: Ledger, best: Offer, rate_req_s: float) -> UnitCosts:
    """The bill per good token and request at a rate; good is what keeps every target there."""
    at = ledger.probe(best.strategy, rate_req_s=rate_req_s)
    good_frac = ledger.problem.slo.attainment(at.simulation, at.window)
    workload, costs = ledger.problem.workload, ledger.tariff.bill(best.strategy)
    return _unit_costs(costs, rate_req_s, good_frac, (workload.mean_input_tokens, workload.mean_output_tokens))


def _unit_costs(costs: Bill, rate_req_s: float, good_frac: float, mean_tokens: tuple[float, float]) -> UnitCosts:
    good_req_s = good_frac * rate_req_s
    return UnitCosts(
        rate_req_s=rate_req_s,
        good_frac=good_frac,
        usd_per_h=costs.usd_per_h,
        usd_per_month=costs.usd_per_month,
        usd_per_year=costs.usd_per_year,
        usd_per_1m_input=costs.usd_per_million_tokens(good_req_s, mean_tokens[0]),
        usd_per_1m_output=costs.usd_per_million_tokens(good_req_s, mean_tokens[1]),
        usd_per_1k_requests=costs.usd_per_thousand_requests(good_req_s),
    )


def _card_rows(book: PriceBook, today: date) -> Iterable[CardRow]:
    for card in book.chosen.values():
        age = age_days(card.date, today)
        yield CardRow(
            gpu=card.gpu,
            card=card.id,
            provider=card.provider,
            kind=card.kind,
            region=card.region,
            usd_per_gpu_h=card.usd_per_gpu_h,
            gpus_per_node=card.gpus_per_node,
            date=card.date,
            age_days=age,
            is_old=age is None or age > MAX_AGE_DAYS,
            source=card.source,
        )
