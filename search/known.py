"""What a study knows: evaluations by strategy with their costs, the front they form, and what it dominates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from search.classes import StrategyClass
from search.evaluate import Evaluation
from search.forecast import Staircase
from search.pareto import hypervolume, non_dominated
from search.screen import Screen
from search.tariff import Tariff
from spaces.strategy import Strategy


class Known:
    """Evaluations in the order in which they were learned, and their front.

    The front counts up to `most_usd_per_h`, and goodput over `ceiling_req_s` counts as the ceiling. `demand_req_s` or
    None.
    """

    def __init__(self, tariff: Tariff, demand_req_s: float | None, most_usd_per_h: float) -> None:
        self.evaluations: dict[Strategy, Evaluation] = {}
        self.most_usd_per_h, self.ceiling_req_s = most_usd_per_h, np.inf
        self._tariff, self._demand_req_s = tariff, demand_req_s
        self._costs: dict[Strategy, float] = {}
        self._place_all()

    def __len__(self) -> int:
        return len(self.evaluations)

    def __contains__(self, strategy: Strategy) -> bool:
        return strategy in self.evaluations

    def learn(self, found: Mapping[Strategy, Evaluation]) -> None:
        """More evaluations, or better ones of strategies that are known."""
        are_new = not any(strategy in self.evaluations for strategy in found)
        self.evaluations.update(found)
        if not are_new:
            self._place_all()
            return
        for strategy, evaluation in found.items():
            if evaluation.is_ok:
                self._place(strategy)

    def measure_by(self, screen: Screen) -> None:
        """From now on the front counts as far as the screen looks."""
        self.most_usd_per_h, self.ceiling_req_s = screen.most_usd_per_h, screen.ceiling_req_s
        self._place_all()

    def _place_all(self) -> None:
        self._staircase, self.best_usd_per_h = Staircase(np.zeros(0), np.zeros(0), self.most_usd_per_h), np.inf
        for strategy, evaluation in self.evaluations.items():
            if evaluation.is_ok:
                self._place(strategy)

    def _place(self, strategy: Strategy) -> None:
        cost, counted = self.cost(strategy), self._counted(strategy)
        if counted > float(self._staircase.at(np.array([cost]))[0]):
            self._staircase = self._staircase.with_point(counted, cost)
        if self._carries(strategy):
            self.best_usd_per_h = min(self.best_usd_per_h, cost)

    def cost(self, strategy: Strategy) -> float:
        """$/h."""
        if strategy not in self._costs:
            self._costs[strategy] = self._tariff.usd_per_h(strategy)
        return self._costs[strategy]

    def staircase(self) -> Staircase:
        """The front as a function of cost."""
        return self._staircase

    def area(self) -> float:
        """Hypervolume of the front."""
        return hypervolume(self._staircase.goodput, self._staircase.cost, ref_usd_per_h=self.most_usd_per_h)

    def cheapest(self, most: int) -> list[Strategy]:
        """Some of the strategies that carry the demand, the cheapest first, of each choice of shapes one."""
        carrying = sorted((s for s in self.evaluations if self._carries(s)), key=self.cost)
        by_shapes = {
            tuple((p.gpu, p.parallelism, p.max_num_batched_tokens, p.max_num_seqs) for p in s.pools): s
            for s in reversed(carrying)
        }
        return sorted(by_shapes.values(), key=self.cost)[:most]

    def best_of(self, members: StrategyClass) -> float:
        """$/h of the cheapest of a class that carries the demand; infinite where none does."""
        return min((self.cost(s) for s in self.evaluations if self._carries(s) and s in members), default=np.inf)

    def best_and_front(self, most_carrying: int) -> list[Strategy]:
        """Strategies that carry the demand at least cost, a few, and then the front's by rising cost."""
        best = [s for s in self.evaluations if self._carries(s) and self.cost(s) == self.best_usd_per_h]
        sound = [strategy for strategy, evaluation in self.evaluations.items() if evaluation.is_ok]
        front = non_dominated([self._counted(s) for s in sound], [self.cost(s) for s in sound])
        return best[:most_carrying] + [sound[i] for i in front]

    def _counted(self, strategy: Strategy) -> float:
        return min(self.evaluations[strategy].goodput_req_s, self.ceiling_req_s)

    def _carries(self, strategy: Strategy) -> bool:
        demand = self._demand_req_s
        return demand is not None and self.evaluations[strategy].goodput_req_s >= demand
