"""A hint where GPUs sold in smaller units serve for less than the whole nodes an answer pays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimator.cost import PriceCard
from search.insight_cards import card_hints, smaller_units
from search.ledger import Ledger
from search.prices import OWN, PriceBook
from search.tariff import Tariff
from search.view import Rejection
from spaces.space import Space
from tests.small_problem import made_up, small_problem
from tests.small_view import view

NODE = PriceCard(
    id="node",
    provider="big",
    gpu="h100_sxm",
    gpus_per_node=8,
    kind="on_demand",
    usd_per_gpu_h=2.0,
    region="any",
    source="made up for this test",
    date="2026-11-01",
)
SINGLE = replace(NODE, id="single", provider="small", gpus_per_node=1, usd_per_gpu_h=3.0)


def book_of(*cards: PriceCard, chosen: PriceCard = NODE) -> PriceBook:
    return PriceBook(currency="USD", cards={card.id: card for card in cards}, chosen={"h100_sxm": chosen})


def hints_of(demand_req_s: float, book: PriceBook) -> list[str]:
    """What is said of the whole space of one GPU type, up to four GPUs, by a made-up law."""
    problem = small_problem(gpus=("h100_sxm",))
    ledger = Ledger(
        problem=problem,
        tariff=Tariff(cards=book.chosen, gpus=problem.gpus),
        demand_req_s=demand_req_s,
        seed=0,
        known={strategy: made_up(problem, strategy, 0) for strategy in Space(problem)},
        evaluate_with=made_up,
    )
    best = ledger.best()
    assert best is not None
    return list(card_hints(book, ledger, best))


def test_one_gpu_of_a_node_of_eight() -> None:
    """A demand of one GPU: a node of eight at $2 is $16, one at $3 is $3 and 81 % less, and the sentence says so."""
    (hint,) = hints_of(0.01, book_of(NODE, SINGLE))
    assert hint.startswith("node sells h100_sxm by 8. By single, each for $3.00/h, 1m-tp1@h100_sxm")
    assert " costs $3.00/h, 81% less: plan with `prices: {h100_sxm: single}`" in hint


@pytest.mark.parametrize("usd", [16.0, 15.9])
def test_no_hint_where_nothing_is_saved(usd: float) -> None:
    """A single GPU at the price of the node, or within a per cent of it, is not worth a sentence."""
    assert hints_of(0.01, book_of(NODE, replace(SINGLE, usd_per_gpu_h=usd))) == []


def test_only_cards_of_the_kind_chosen_count() -> None:
    """Spot can be taken away, so it is no alternative to on demand; a price of the user's own has none at all."""
    spot = replace(SINGLE, id="spot", kind="spot", usd_per_gpu_h=0.5)
    assert smaller_units(book_of(NODE, spot)) == {}
    own = replace(NODE, provider=OWN)
    assert smaller_units(book_of(own, SINGLE, chosen=own)) == {}
    assert smaller_units(book_of(NODE, SINGLE, spot)) == {"h100_sxm": SINGLE}


def test_pipeline_stages_are_told_as_unmeasured() -> None:
    """An answer with pipeline stages says that no measured run has any; one without does not."""
    shown = view()
    assert shown.recommended is not None
    staged = replace(shown, recommended=replace(shown.recommended, strategy="1m-tp2-pp4@h100_sxm"))
    assert "No measured run has pipeline stages" in staged.certainty
    assert "pipeline" not in shown.certainty


def test_targets_that_nothing_meets_leave_how_much_was_tried() -> None:
    """Where no strategy meets the targets at any rate, how much was tried is all there is to be sure of."""
    none = replace(view(), recommended=None, front=(), candidates=())
    assert none.certainties == ("40 strategies evaluated of 1,234 in the space.",)


def test_targets_that_nothing_meets_name_the_nearest() -> None:
    """Where no strategy meets the targets, the answer names the one that misses them least, and by how much."""
    reason = "1m-tp8@h100_sxm: tpot p90 of lone requests is 9 times its limit"
    left_out = Rejection(rule="unstable", num=12, what="strategies", reason=reason)
    none = replace(view(), recommended=None, front=(), candidates=(), rejected=(left_out,))
    assert none.answer == f"No strategy tried meets the targets at any rate (40 tried); the nearest is {reason}."
