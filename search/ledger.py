"""Known evaluations at a run's prices: what every question of money is answered from.

An evaluation that is not known is simulated once and kept; `num_simulated` counts them, so that an answer can say what
it cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from estimator.goodput import Probe, probe
from estimator.outcome import Infeasible
from estimator.system import Disaggregated, System
from estimator.workload import Workload
from search.confirming import to_confirm
from search.evaluate import Evaluate, evaluate
from search.evaluation import Evaluation
from search.offer import Offer, best_offer
from search.tariff import Tariff
from spaces.problem import Problem, kv_medium, link_of, system_of
from spaces.strategy import Strategy

MOST_REQUESTS = 65_536  # of a probe: goodput judges large data-parallel instances on up to 200,000


@dataclass(slots=True, kw_only=True, eq=False)
class Ledger:
    """One problem's evaluations, prices and demand."""

    problem: Problem
    tariff: Tariff
    demand_req_s: float
    seed: int
    known: dict[Strategy, Evaluation]
    evaluate_with: Evaluate = evaluate
    num_simulated: int = 0
    recommended: Strategy | None = None
    _offers: dict[Strategy, Offer] = field(default_factory=dict)
    _beyond: dict[Strategy, Evaluation] = field(default_factory=dict)
    _lifted: Problem | None = None

    @classmethod
    def of(
        cls, problem: Problem, tariff: Tariff, demand_req_s: float, seed: int, evaluations: Iterable[Evaluation]
    ) -> Ledger:
        """A ledger of finished evaluations."""
        known = {Strategy.parse(evaluation.strategy): evaluation for evaluation in evaluations}
        return cls(problem=problem, tariff=tariff, demand_req_s=demand_req_s, seed=seed, known=known)

    def evaluation(self, strategy: Strategy) -> Evaluation:
        """The strategy's evaluation, simulated if it is not known."""
        if strategy not in self.known:
            self.known[strategy] = self.evaluate_with(self.problem, strategy, self.seed)
            self.num_simulated += 1
        return self.known[strategy]

    def offer(self, strategy: Strategy) -> Offer | None:
        """The strategy with its price; None if it serves nothing."""
        evaluation = self.evaluation(strategy)
        if not evaluation.is_ok:
            return None
        if strategy not in self._offers:
            price = self.tariff.usd_per_h(strategy)
            self._offers[strategy] = Offer(strategy=strategy, evaluation=evaluation, usd_per_h=price)
        return self._offers[strategy]

    def offers(self) -> Iterator[Offer]:
        """Every known strategy that serves something."""
        for strategy in list(self.known):
            offer = self.offer(strategy)
            if offer is not None:
                yield offer

    def confirmed(self, choose: Callable[[], Offer | None]) -> Offer | None:
        """What `choose` takes of the offers, once it rests on full effort."""
        while (chosen := choose()) is not None and chosen.evaluation.is_explored:
            self.confirm(chosen.strategy)
        return chosen

    def settle(self) -> None:
        """Confirm all that an answer to this demand at these prices rests on (`search.confirming`)."""
        while doubted := to_confirm(list(self.offers()), self.demand_req_s):
            for strategy in doubted:
                self.confirm(strategy)

    def confirm(self, strategy: Strategy) -> None:
        """Evaluate a strategy that is only explored at full effort."""
        self.known[strategy] = self.evaluate_with(self.problem, strategy, self.seed)
        self._offers.pop(strategy, None)
        self.num_simulated += 1

    def apart(self) -> Ledger:
        """The same evaluations, for another thread: what either learns from here on it learns alone."""
        return replace(self, known=dict(self.known), num_simulated=0, _offers=dict(self._offers), _beyond={})

    def best(self) -> Offer | None:
        """What is recommended: the strategy set so, else the cheapest that carries the demand."""
        if self.recommended is not None:
            return self.offer(self.recommended)
        return best_offer(self.offers(), self.demand_req_s)

    def goodput_req_s(self, strategy: Strategy) -> float:
        """The strategy's goodput, 0 if it serves nothing; the limits of the search (GPUs, patterns) do not count."""
        known = self.known.get(strategy) or self._beyond.get(strategy)
        if known is None or known.status == "infeasible":
            known = self._beyond[strategy] = self.evaluate_with(self._without_limits(), strategy, self.seed)
            self.num_simulated += 1
        return known.goodput_req_s if known.is_ok else 0.0

    def _without_limits(self) -> Problem:
        if self._lifted is None:
            space = replace(self.problem.space, max_gpus=1_000_000, owned={}, only=(), forbid=(), whole_nodes=False)
            self._lifted = replace(self.problem, space=space)
        return self._lifted

    def probe(
        self,
        strategy: Strategy,
        *,
        rate_req_s: float | None = None,
        workload: Workload | None = None,
        network_bytes_per_s: float | None = None,
    ) -> Probe:
        """An existing strategy at the demand or another rate, under another workload or network."""
        self.num_simulated += 1
        system = self.system(strategy, network_bytes_per_s)
        rate = self.demand_req_s if rate_req_s is None else rate_req_s
        problem = self.problem
        return probe(system, workload or problem.workload, problem.slo, rate, seed=self.seed, most=MOST_REQUESTS)

    def system(self, strategy: Strategy, network_bytes_per_s: float | None = None) -> System:
        """The strategy's system, on another network if one is given."""
        system = system_of(self.problem, strategy)
        assert not isinstance(system, Infeasible)  # asked of evaluated strategies alone
        if network_bytes_per_s is not None and isinstance(system, Disaggregated):
            other = replace(self.problem, network_bytes_per_s=network_bytes_per_s)
            return replace(system, link=link_of(other, strategy))
        return system

    def hands_over_network(self, strategy: Strategy) -> bool:
        """Whether its KV caches leave the node."""
        return strategy.is_disaggregated and kv_medium(self.problem.gpus, strategy) == "network"

    def network_bytes_per_s(self, strategy: Strategy) -> float:
        """The network's rate in one direction per GPU: the problem's, or the slowest of the strategy's GPUs."""
        given = self.problem.network_bytes_per_s
        return given or min(self.problem.gpu(gpu).network_bytes_per_s for gpu in strategy.gpu_counts)

    def at_prices(self, tariff: Tariff) -> Ledger:
        """The same evaluations at other prices."""
        return replace(self, tariff=tariff, _offers={})


def enlarged(strategy: Strategy, needed: float) -> Strategy:
    """The strategy with every pool `needed` times as large, counts rounded up."""
    pools = tuple(replace(pool, count=max(1, math.ceil(pool.count * needed - 1e-9))) for pool in strategy.pools)
    return replace(strategy, pools=pools)


def with_counts(strategy: Strategy, counts: Mapping[int, int]) -> Strategy:
    """The strategy with the pools at those positions resized."""
    pools = tuple(replace(pool, count=counts.get(index, pool.count)) for index, pool in enumerate(strategy.pools))
    return replace(strategy, pools=pools)
