"""Money from evaluations: tipping points against planning anew on both sides, why not, failures, owning.

Evaluations are made up by a law (`tests.small_problem`), so that every question costs no simulation; where latencies
decide, `tests/test_money_simulated.py` simulates.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.cost import PriceCard
from search.insight_failures import cheapest_spare, less, resilience
from search.insight_owning import buy_or_rent
from search.insight_prices import price_tips, rate_tips
from search.insight_why import complete, why_not
from search.ledger import Ledger
from search.money_view import BuyOrRent, TippingPoint, amount
from search.offer import Offer, best_offer, cheapest_front
from search.owning import ownership_of
from search.tariff import Tariff
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import USD_PER_H, made_up, small_problem
from tests.test_prices import spec_of

GPUS = ("h100_sxm", "l40s", "h200_sxm")
PRICES = st.floats(0.2, 12.0)
DEMANDS = st.floats(1.0, 14.0)


def tariff_at(prices: dict[str, float], gpus_per_node: int = 1) -> Tariff:
    """Cards of those prices."""
    cards = {
        gpu: PriceCard(
            id=f"test-{gpu}",
            provider="test",
            gpu=gpu,
            gpus_per_node=gpus_per_node,
            kind="on_demand",
            usd_per_gpu_h=usd,
            region="any",
            source="made up for this test",
            date="2026-11-01",
        )
        for gpu, usd in prices.items()
    }
    return Tariff(cards=cards, gpus=problem().gpus)


@lru_cache(maxsize=1)
def problem():  # type: ignore[no-untyped-def]
    """Three GPU types, up to four GPUs."""
    return small_problem(gpus=GPUS)


@lru_cache(maxsize=1)
def evaluations():  # type: ignore[no-untyped-def]
    """The whole space by the made-up law."""
    return {strategy: made_up(problem(), strategy, 0) for strategy in Space(problem())}


def ledger_at(demand_req_s: float, prices: dict[str, float] = USD_PER_H, gpus_per_node: int = 1) -> Ledger:
    """The space at those prices."""
    return Ledger(
        problem=problem(),
        tariff=tariff_at(prices, gpus_per_node),
        demand_req_s=demand_req_s,
        seed=0,
        known=dict(evaluations()),
        evaluate_with=made_up,
    )


def chosen(ledger: Ledger) -> Offer:
    """What planning on these evaluations recommends."""
    best = ledger.best()
    assert best is not None
    return best


@settings(max_examples=25, deadline=None)
@given(demand=DEMANDS, h100=PRICES, l40s=PRICES, h200=PRICES, factor=st.floats(0.01, 100.0))
def test_scaling_every_price_moves_no_rank(demand: float, h100: float, l40s: float, h200: float, factor: float) -> None:
    """k times every price gives k times each cost and the same order."""
    prices = {"h100_sxm": h100, "l40s": l40s, "h200_sxm": h200}
    one, two = ledger_at(demand, prices), ledger_at(demand, {gpu: factor * usd for gpu, usd in prices.items()})
    first, second = (sorted(found.offers(), key=lambda o: o.order) for found in (one, two))
    assert [o.usd_per_h for o in second] == pytest.approx([factor * o.usd_per_h for o in first])
    best, again = chosen(one), chosen(two)
    assert again.usd_per_h == pytest.approx(factor * best.usd_per_h)
    assert again.goodput_req_s == pytest.approx(best.goodput_req_s)


@settings(max_examples=25, deadline=None)
@given(demand=DEMANDS, h100=PRICES, l40s=PRICES, h200=PRICES, gpu=st.sampled_from(GPUS), factor=st.floats(1.0, 8.0))
def test_a_dearer_gpu_never_becomes_more_chosen(
    demand: float, h100: float, l40s: float, h200: float, gpu: str, factor: float
) -> None:
    """Raising one GPU type's price never raises the number of that type that the recommendation uses."""
    ledger = ledger_at(demand, {"h100_sxm": h100, "l40s": l40s, "h200_sxm": h200})
    before = chosen(ledger).strategy.gpu_counts.get(gpu, 0)
    after = chosen(ledger.at_prices(ledger.tariff.scaled(gpu, factor))).strategy.gpu_counts.get(gpu, 0)
    assert after <= before


@settings(max_examples=25, deadline=None)
@given(demand=DEMANDS, h100=PRICES, l40s=PRICES, h200=PRICES, node=st.sampled_from((1, 2, 4)))
def test_price_tips_hold_on_both_sides(demand: float, h100: float, l40s: float, h200: float, node: int) -> None:
    """Just before a price tip planning anew recommends the same strategy, just beyond it the one named."""
    ledger = ledger_at(demand, {"h100_sxm": h100, "l40s": l40s, "h200_sxm": h200}, node)
    best = chosen(ledger)
    for tip in price_tips(ledger, best):
        gpu = tip.name.removeprefix("price of ")
        if abs(tip.change_frac) < 1e-5:
            continue  # a tie now: nothing lies between
        sign = 1.0 if tip.change_frac > 0 else -1.0
        factor = tip.tip / tip.now
        before, beyond = (
            chosen(ledger.at_prices(ledger.tariff.scaled(gpu, factor * (1.0 + sign * side)))) for side in (-1e-6, 1e-6)
        )
        assert before.strategy == best.strategy
        assert str(beyond.strategy) == tip.takes_over
        assert beyond.usd_per_h == pytest.approx(tip.usd_per_h, rel=1e-4)


def test_price_tips_by_hand() -> None:
    """One H100 carries 4/s for 3 $; three L40S carry 3.84/s for 3.30 $: they meet at 3.30 $ per H100, 1 $ per L40S."""
    ledger = ledger_at(3.0, {**USD_PER_H, "l40s": 1.1})
    best = chosen(ledger)
    assert best.strategy.gpu_counts == {"h100_sxm": 1}
    tips = {(tip.name, tip.change_frac > 0): tip for tip in price_tips(ledger, best)}
    up, down = tips["price of h100_sxm", True], tips["price of l40s", False]
    assert up.tip == pytest.approx(3.3)
    assert down.tip == pytest.approx(1.0)
    for tip in (up, down):
        assert Strategy.parse(tip.takes_over or "").gpu_counts == {"l40s": 3}
    assert up.sentence("USD").startswith("price of h100_sxm above $3.30/h (+10%): ")
    assert up.sentence("USD").endswith("takes over at $3.30/h")


@settings(max_examples=25, deadline=None)
@given(demand=DEMANDS, h100=PRICES, l40s=PRICES, h200=PRICES)
def test_rate_tips_hold_on_both_sides(demand: float, h100: float, l40s: float, h200: float) -> None:
    """Between the two rates planning anew recommends the same strategy, just beyond either the one named."""
    ledger = ledger_at(demand, {"h100_sxm": h100, "l40s": l40s, "h200_sxm": h200})
    best = chosen(ledger)
    for tip in rate_tips(ledger, best):
        sign = 1.0 if tip.change_frac >= 0 else -1.0
        offers = list(ledger.offers())
        assert best_offer(offers, tip.tip * (1 - sign * 1e-9)) == best
        beyond = best_offer(offers, tip.tip * (1 + sign * 1e-9))
        assert (None if beyond is None else str(beyond.strategy)) == tip.takes_over


@settings(max_examples=30, deadline=None)
@given(demand=DEMANDS, h100=PRICES, l40s=PRICES, h200=PRICES)
def test_why_not_names_the_best_of_each_class(demand: float, h100: float, l40s: float, h200: float) -> None:
    """Every architecture and GPU type not chosen is there, with the cheapest of it that carries the demand."""
    ledger = ledger_at(demand, {"h100_sxm": h100, "l40s": l40s, "h200_sxm": h200})
    best = chosen(ledger)
    rows = {row.name: row for row in why_not(ledger, best, lambda: Space(problem()))}
    other = "collocated" if best.strategy.is_disaggregated else "disaggregated"
    assert set(rows) == {other} | {gpu for gpu in GPUS if gpu not in best.strategy.gpu_counts}

    def differs(strategy: Strategy) -> bool:
        return strategy.is_disaggregated != best.strategy.is_disaggregated

    for row in rows.values():
        kind = (lambda s, row=row: row.name in s.gpu_counts) if row.kind == "gpu" else differs
        members = [offer for offer in ledger.offers() if kind(offer.strategy)]
        cheapest = best_offer(members, demand)
        if cheapest is None:
            assert not row.carries
            assert "serves at most" in row.reason
        else:
            assert row.strategy == str(cheapest.strategy)
            assert row.gap_usd_per_h is not None
            assert row.gap_usd_per_h == pytest.approx(cheapest.usd_per_h - best.usd_per_h)
            assert row.gap_usd_per_h >= 0


def test_why_not_looks_where_the_study_did_not() -> None:
    """A GPU type without any evaluation is tried, enlarged to the demand, and compared."""
    known = [e for e in evaluations().values() if "l40s" not in e.strategy]
    ledger = Ledger.of(problem(), tariff_at(USD_PER_H), 3.0, 0, known)
    ledger.evaluate_with = made_up
    rows = {row.name: row for row in why_not(ledger, chosen(ledger), lambda: Space(problem()))}
    assert rows["l40s"].carries
    assert rows["l40s"].goodput_req_s >= 3.0
    assert 1 <= ledger.num_simulated <= 8


def test_completing_finds_what_a_small_study_missed() -> None:
    """With H100 too dear and L40S never tried, the class is tried, and the recommendation is cheaper than before."""
    prices = {"h100_sxm": 9.0, "l40s": 0.5, "h200_sxm": 9.0}
    known = {s: e for s, e in evaluations().items() if "l40s" not in e.strategy}
    ledger = Ledger(
        problem=problem(), tariff=tariff_at(prices), demand_req_s=3.0, seed=0, known=dict(known), evaluate_with=made_up
    )
    before = chosen(ledger)
    complete(ledger, Space(problem()))
    after = chosen(ledger)
    assert after.usd_per_h < before.usd_per_h
    assert set(after.strategy.gpu_counts) == {"l40s"}
    num = ledger.num_simulated
    complete(ledger, Space(problem()))
    assert ledger.num_simulated == num


def test_why_not_tells_the_rule_that_removed_a_class() -> None:
    """70B weights in bf16 do not fit two L40S: the memory rule is the reason."""
    asked = small_problem("llama-3.1-70b", gpus=("h100_sxm", "l40s"), tp=(2,), pp=(1,), max_gpus=8)
    ledger = Ledger.of(asked, tariff_at(USD_PER_H), 1.0, 0, [])
    ledger.evaluate_with = made_up
    strategy = Strategy.parse("2m-tp2@h100_sxm,tokens=2048,seqs=64")
    ledger.evaluation(strategy)
    best = chosen(ledger)
    rows = {row.name: row for row in why_not(ledger, best, lambda: Space(asked))}
    assert rows["l40s"].strategy is None
    assert rows["l40s"].reason.startswith("memory: ")


@settings(max_examples=25, deadline=None)
@given(demand=DEMANDS, h100=PRICES, l40s=PRICES, node=st.sampled_from((1, 4, 8)))
def test_a_spare_never_carries_less(demand: float, h100: float, l40s: float, node: int) -> None:
    """N+1 carries at least what N does, costs no less, and still carries the demand with any one instance down."""
    ledger = ledger_at(demand, {"h100_sxm": h100, "l40s": l40s, "h200_sxm": 5.0}, node)
    best = chosen(ledger)
    found = resilience(ledger, best, startup_s=120.0)
    assert found.spare is not None
    spare = Strategy.parse(found.spare)
    assert found.spare_goodput_req_s >= best.goodput_req_s * (1 - 1e-12)
    assert found.added_usd_per_h is not None
    assert found.added_usd_per_h >= 0
    for index in range(len(spare.pools)):
        left = less(spare, {index: 1})
        assert left is not None
        assert ledger.goodput_req_s(left) >= demand
    assert all(0.0 <= loss.left_frac <= 1.0 + 1e-9 for loss in found.losses)
    assert found.restart_min == pytest.approx(2.0 * sum(pool.count for pool in best.strategy.pools))


def test_losses_by_hand() -> None:
    """Of 2 prefill and 1 decode instance one prefill may fail; without the decode instance nothing is left."""
    ledger = ledger_at(3.0)
    best = ledger.offer(Strategy.parse("2p-tp1@h100_sxm,tokens=8192+1d-tp1@h100_sxm,seqs=256"))
    assert best is not None
    losses = {loss.what: loss for loss in resilience(ledger, best, startup_s=0.0).losses}
    assert losses["one prefill instance"].strategy == "1p-tp1@h100_sxm,tokens=8192+1d-tp1@h100_sxm,seqs=256"
    assert losses["one decode instance"].strategy is None
    assert losses["one decode instance"].left_frac == 0.0
    assert losses["one node"].strategy is None
    assert losses["one instance at a time (rolling restart)"].left_frac == 0.0


def test_a_node_takes_its_instances() -> None:
    """32 H100 in nodes of 8 as TP2: one node down takes 4 of 16 instances; a spare is one instance more."""
    ledger = ledger_at(40.0)
    strategy = Strategy.parse("16m-tp2@h100_sxm,tokens=8192,seqs=256")
    evaluation = made_up(small_problem(gpus=GPUS, max_gpus=64), strategy, 0)
    best = Offer(strategy=strategy, evaluation=evaluation, usd_per_h=96.0)
    losses = {loss.what: loss for loss in resilience(ledger, best, startup_s=0.0).losses}
    assert losses["one node"].strategy == "12m-tp2@h100_sxm,tokens=8192,seqs=256"
    assert losses["one instance"].strategy == "15m-tp2@h100_sxm,tokens=8192,seqs=256"
    spare = cheapest_spare(ledger, strategy)
    assert spare == strategy  # 15 instances carry 40/s


def test_the_front_by_cost_is_the_pareto_front() -> None:
    """Along the front cost and goodput rise together, and no offer is cheaper and stronger than one of it."""
    ledger = ledger_at(3.0)
    front = cheapest_front(ledger.offers())
    assert all(a.usd_per_h < b.usd_per_h and a.goodput_req_s < b.goodput_req_s for a, b in pairwise(front))
    for offer in ledger.offers():
        assert any(o.usd_per_h <= offer.usd_per_h and o.goodput_req_s >= offer.goodput_req_s for o in front)


def test_buying_by_hand(tmp_path: Path) -> None:
    """8 H100 rented at 4 $ against a server of 300 k$ in use all the time: 17.2 months, as for one GPU."""
    server = {"price": 300_000.0, "gpus": 8, "kw_idle_per_gpu": 0.0, "source": "quote", "date": "2026-11-01"}
    spec = spec_of(tmp_path, ownership={"servers": {"h100_sxm": server}})
    ledger = ledger_at(3.0, {**USD_PER_H, "h100_sxm": 4.0, "l40s": 50.0, "h200_sxm": 50.0}, gpus_per_node=8)
    best = chosen(ledger)
    (row,) = buy_or_rent(spec, ledger, best)
    assert row.num_gpus == 8
    assert row.purchase_usd == pytest.approx(8 * 43_125)
    assert row.break_even_months == pytest.approx(17.2, abs=0.05)
    assert sum(row.parts_usd_per_gpu_h.values()) == pytest.approx(row.own_usd_per_gpu_h)
    assert row.buying_is_cheaper
    assert not row.is_estimate
    assert row.sentence("USD").startswith("Buying 8 h100_sxm is cheaper over 4 years")


def test_an_estimated_server_is_told_and_only_in_dollars(tmp_path: Path) -> None:
    """Without a quote the catalogue's estimate stands in, in dollars alone; a GPU without one gets no row."""
    spec = spec_of(tmp_path)
    found = ownership_of(spec, "h100_sxm")
    assert found is not None
    assert found[1]
    assert ownership_of(spec, "l40s") is None
    assert ownership_of(spec.model_copy(update={"currency": "EUR"}), "h100_sxm") is None


def test_sentences_name_the_currency() -> None:
    """Amounts carry the run's symbol or code; what never pays back says so."""
    assert [amount(1234.5, c) for c in ("USD", "EUR", "CHF")] == ["$1,234.50", "€1,234.50", "CHF 1,234.50"]
    assert amount(-3.0, "EUR") == "-€3.00"
    row = BuyOrRent(
        gpu="l40s",
        num_gpus=2,
        num_owned=4,
        years=3.0,
        utilisation_frac=0.5,
        rent_usd_per_gpu_h=0.5,
        own_usd_per_gpu_h=1.0,
        parts_usd_per_gpu_h={},
        purchase_usd=20_000.0,
        break_even_months=float("inf"),
        break_even_utilisation_frac=2.0,
        is_estimate=True,
        source="s",
        date="2026",
    )
    assert row.sentence("EUR") == (
        "Renting 2 l40s (in servers of 4 GPUs together) used 50% of the time is cheaper over 3 years: "
        "own €1.00 against rent €0.25 per GPU and hour, rent paid for the hours used; "
        "a purchase of €20,000 never pays back; the server's price is an estimate."
    )
    tip = TippingPoint(
        group="rate",
        name="request rate",
        unit="req/s",
        now=10.0,
        tip=15.0,
        change_frac=0.5,
        takes_over=None,
        gpus="",
        usd_per_h=None,
        is_simulated=False,
    )
    assert tip.sentence("EUR") == "request rate above 15 req/s (+50%): nothing tried serves the demand"
    assert replace(tip, takes_over="x", usd_per_h=2.0).sentence("EUR").endswith("x takes over at €2.00/h")
