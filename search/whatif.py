"""A finished run asked again with something changed, simulating only what the change touches.

| change | simulated again |
|---|---|
| prices, ownership, demand curve, penalty | a penalty's misses |
| request rate | nothing: goodput does not depend on the demand |
| link | disaggregated strategies that hand over on the network: the best of them, a bounded set |
| lengths, targets, arrivals, classes | the front and its rivals, then a small study from there |

Besides, what the run had only explored on few requests is confirmed where the new answer rests on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from search.changes import Change, apply_changes
from search.evaluation import Evaluation
from search.executor import LocalExecutor
from search.insight import ledger_of
from search.insight_demand import demand_plan
from search.insight_owning import buy_or_rent
from search.ledger import Ledger
from search.offer import Offer, cheapest_front
from search.prices import price_book
from search.reprice import offer_json, run_evaluations
from search.spec import Spec, load_run_spec, parse_spec
from search.study import Settings, Study
from search.tariff import tariff_of
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy

NUM_FRONT = 16  # of the front, nearest to the demand, asked again
NUM_BEST = 8  # per architecture, most goodput per money
NUM_MORE = 32  # that the study may look at beside those asked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WhatIf:
    """The answer before and after. `before_now`: what was recommended, under the change (None: it serves none).

    `told`: sentences about owning and demand over time, before and after, where these were changed.
    """

    changes: tuple[Change, ...]
    currency: str
    demand_req_s: tuple[float, float]
    before: Offer | None
    before_now: Offer | None
    after: Offer | None
    front: tuple[Offer, ...]
    num_known: int
    num_simulated: int
    told: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {
            "changes": [
                {"path": c.path, "before": c.before, "after": c.after, "touches": c.touches} for c in self.changes
            ],
            "currency": self.currency,
            "demand_req_s": {"before": self.demand_req_s[0], "after": self.demand_req_s[1]},
            "before": offer_json(self.before),
            "before_under_the_change": offer_json(self.before_now),
            "after": offer_json(self.after),
            "front": [offer_json(offer) for offer in self.front],
            "told": [{"before": before, "after": after} for before, after in self.told],
            "num_known": self.num_known,
            "num_simulated": self.num_simulated,
        }


def whatif(folder: Path, sets: list[str]) -> WhatIf:
    """The run in `folder` with each `path=value` of `sets` applied. Raises `BestServeError` for what cannot be set."""
    spec, evaluations = load_run_spec(folder), run_evaluations(folder)
    problem = spec.problem()
    old = ledger_of(spec, problem, evaluations)
    before = old.best()
    given = spec.model_dump(mode="json", exclude_none=True)
    changed, changes = apply_changes(given, sets, values_now(spec, problem))
    after_spec = parse_spec(changed, folder=folder)
    touched = {change.touches for change in changes}
    new_problem = after_spec.problem() if touched & {"link", "requests"} else problem
    kept = evaluations if not touched & {"link", "requests"} else _kept(old, touched)
    ledger = ledger_of(after_spec, new_problem, kept)
    asked = _to_ask(old, touched, None if before is None else before.strategy)
    if "requests" in touched:
        studied = _studied(ledger, asked)
        ledger = ledger_of(after_spec, new_problem, studied)
        ledger.num_simulated += len(studied)
    else:
        for strategy in asked:
            ledger.evaluation(strategy)
    ledger.settle()
    told_before, told_after = _told(spec, old, changes), _told(after_spec, ledger, changes)
    return WhatIf(
        changes=tuple(changes),
        currency=after_spec.currency,
        demand_req_s=(spec.traffic.rate_req_s, after_spec.traffic.rate_req_s),
        before=before,
        before_now=None if before is None else ledger.offer(before.strategy),
        after=ledger.best(),
        front=tuple(cheapest_front(ledger.offers())),
        num_known=len(kept),
        num_simulated=ledger.num_simulated,
        told=tuple(zip_longest(told_before, told_after, fillvalue="-")),
    )


def _told(spec: Spec, ledger: Ledger, changes: Iterable[Change]) -> list[str]:
    """What is said about owning and demand over time, for those of the two that are changed."""
    best, heads = ledger.best(), {change.path.split(".")[0] for change in changes}
    if best is None:
        return []
    lines = []
    if "ownership" in heads:
        lines += [row.sentence(spec.currency) for row in buy_or_rent(spec, ledger, best)]
    if "demand" in heads:
        plan = demand_plan(spec, price_book(spec), ledger, best)
        lines += ["no demand over time"] if plan is None else [plan.sentence(spec.currency)]
    return lines


def values_now(spec: Spec, problem: Problem) -> Mapping[str, float]:
    """What a factor refers to where the spec leaves it open."""
    cards = tariff_of(spec).cards
    slowest = min(gpu.network_bytes_per_s for gpu in problem.gpus.values())
    return {
        **{f"prices.{gpu}": card.usd_per_gpu_h for gpu, card in cards.items()},
        **{f"gpus_per_node.{gpu}": float(card.gpus_per_node) for gpu, card in cards.items()},
        "link.gbit_s_per_gpu": slowest * 8 / 1e9,
        "traffic.input_tokens": problem.workload.mean_input_tokens,
        "traffic.output_tokens": problem.workload.mean_output_tokens,
    }


def _kept(old: Ledger, touched: Iterable[str]) -> list[Evaluation]:
    """Evaluations that the change leaves as they are."""
    if "requests" in touched:
        return []
    return [e for strategy, e in old.known.items() if not old.hands_over_network(strategy)]


def _to_ask(old: Ledger, touched: Iterable[str], recommended: Strategy | None) -> list[Strategy]:
    """Strategies to simulate again: what was recommended, the front near the demand, the best per money."""
    if "requests" not in touched and "link" not in touched:
        return []
    offers = [o for o in old.offers() if "requests" in touched or old.hands_over_network(o.strategy)]
    front = sorted(cheapest_front(offers), key=lambda o: abs(o.goodput_req_s - old.demand_req_s))[:NUM_FRONT]
    found = [offer.strategy for offer in front]
    for is_disaggregated in (False, True):
        of_kind = (o for o in offers if o.strategy.is_disaggregated == is_disaggregated)
        best = sorted(of_kind, key=lambda o: -o.goodput_req_s / max(o.usd_per_h, 1e-9))
        found += [offer.strategy for offer in best[:NUM_BEST]]
    asked = [] if recommended is None or ("requests" not in touched and recommended not in found) else [recommended]
    return list(dict.fromkeys((*asked, *found)))


def _studied(ledger: Ledger, asked: list[Strategy]) -> tuple[Evaluation, ...]:
    """The strategies asked, and what a small study that starts from them finds to carry the demand for less."""
    problem = ledger.problem
    study = Study(
        space=Space(problem),
        executor=LocalExecutor(problem, seed=ledger.seed),
        tariff=ledger.tariff,
        settings=Settings(
            trials=len(asked) + NUM_MORE, seed=ledger.seed, demand_req_s=ledger.demand_req_s, warm=tuple(asked)
        ),
    )
    return study.run().evaluations
