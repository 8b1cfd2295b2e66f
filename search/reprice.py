"""A finished run at other prices: the same evaluations ranked again, nothing simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from estimator.catalogue.prices import read_price_file
from estimator.cost import PriceCard, default_cards
from estimator.errors import BestServeError
from search.evaluation import Evaluation
from search.offer import Offer, best_offer, cheapest_front
from search.prices import ANY_KIND
from search.spec import Spec, load_run_spec
from search.tariff import Tariff, tariff_of
from spaces.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repriced:
    """What the run recommends at its own prices and at the new ones. `changed`: cards before and after, by GPU."""

    demand_req_s: float
    currency: str
    before: Offer | None
    after: Offer | None
    before_at_new_prices: float | None
    changed: Mapping[str, tuple[PriceCard, PriceCard]]
    front: tuple[Offer, ...]
    offers: tuple[Offer, ...]
    num_evaluations: int

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {
            "demand_req_s": self.demand_req_s,
            "currency": self.currency,
            "before": offer_json(self.before),
            "after": offer_json(self.after),
            "before_at_new_prices_usd_per_h": self.before_at_new_prices,
            "prices": {
                gpu: {"before": old.usd_per_gpu_h, "after": new.usd_per_gpu_h, "card": new.id}
                for gpu, (old, new) in self.changed.items()
            },
            "front": [offer_json(offer) for offer in self.front],
            "num_evaluations": self.num_evaluations,
            "num_simulated": 0,
        }


def reprice(folder: Path, prices: Path) -> Repriced:
    """The run in `folder` ranked at the cards of the file `prices`; GPUs it does not price keep the run's own.

    Raises `BestServeError` for no finished run, a wrong file, mixed currencies, or a run whose choice needs simulation.
    """
    spec, evaluations = load_run_spec(folder), run_evaluations(folder)
    if spec.penalty_per_miss is not None:
        accepted = "`bestserve whatif RUN --set prices.GPU=…`, which simulates the misses"
        raise BestServeError("reprice", str(folder), "weighs misses, which depend on the rate", accepted)
    old = tariff_of(spec)
    new = retariffed(spec, old, prices)
    before = best_offer(offers_at(evaluations, old), spec.traffic.rate_req_s)
    offers = offers_at(evaluations, new)
    return Repriced(
        demand_req_s=spec.traffic.rate_req_s,
        currency=new.currency,
        before=before,
        after=best_offer(offers, spec.traffic.rate_req_s),
        before_at_new_prices=None if before is None else new.usd_per_h(before.strategy),
        changed={gpu: (old.cards[gpu], card) for gpu, card in new.cards.items() if card != old.cards[gpu]},
        front=tuple(cheapest_front(offers)),
        offers=tuple(sorted(offers, key=lambda offer: offer.order)),
        num_evaluations=len(evaluations),
    )


def retariffed(spec: Spec, old: Tariff, prices: Path) -> Tariff:
    """The run's prices with those of a file before them."""
    file = read_price_file(prices)
    cards = dict(old.cards)
    for gpu in cards:
        of_file = default_cards((card for card in file.cards.values() if card.gpu == gpu), ANY_KIND)
        if gpu in file.chosen:
            cards[gpu] = file.cards[file.chosen[gpu]]
        elif gpu in of_file:
            cards[gpu] = of_file[gpu]
    if cards == old.cards and not any(card.gpu in cards for card in file.cards.values()):
        raise BestServeError("prices", str(prices), "prices none of the run's GPUs", ", ".join(spec.gpu_names))
    currencies = sorted({card.currency for card in cards.values()})
    if len(currencies) > 1:
        rule = f"mixes {' and '.join(currencies)} with the run's prices"
        raise BestServeError("prices", str(prices), rule, f"cards in {spec.currency}, or cards of every GPU")
    return replace(old, cards=cards, currency=currencies[0])


def run_evaluations(folder: Path) -> list[Evaluation]:
    """Every evaluation of a finished run, without loading more than the table's reader."""
    path = folder / "evaluations.parquet"
    if not path.is_file():
        raise BestServeError("run", str(folder), "holds no finished run", "the folder of a finished run")
    import pyarrow.parquet

    return [Evaluation.from_dict(row) for row in pyarrow.parquet.ParquetFile(path).read().to_pylist()]


def offers_at(evaluations: list[Evaluation], tariff: Tariff) -> list[Offer]:
    """Every strategy that serves something, at those prices."""
    served = ((Strategy.parse(e.strategy), e) for e in evaluations if e.is_ok)
    return [Offer(strategy=s, evaluation=e, usd_per_h=tariff.usd_per_h(s)) for s, e in served]


def offer_json(offer: Offer | None) -> dict[str, Any] | None:
    """Strategy, GPUs, goodput, cost."""
    if offer is None:
        return None
    return {
        "strategy": str(offer.strategy),
        "gpus": dict(offer.strategy.gpu_counts),
        "goodput_req_s": offer.goodput_req_s,
        "usd_per_h": offer.usd_per_h,
        "binding_limit": offer.evaluation.binding_limit,
        "is_explored": offer.evaluation.is_explored,
    }
