"""What a study knows: evaluations by strategy with their costs, the front they form, and what it dominates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from search.evaluate import Evaluation
from search.forecast import Staircase
from search.pareto import hypervolume, non_dominated
from spaces.space import Space
from spaces.strategy import Strategy


class Known:
    """Evaluations in the order in which they were learned. `cost_of`: $/h of GPUs by type; `demand_req_s` or None."""

    def __init__(self, space: Space, cost_of: Callable[[Mapping[str, int]], float], demand_req_s: float | None) -> None:
        self.evaluations: dict[Strategy, Evaluation] = {}
        self._cost_of, self._demand_req_s = cost_of, demand_req_s
        self._costs: dict[tuple[tuple[str, int], ...], float] = {}
        gpus = {shape.gpu for shapes in space.shapes.values() for shape in shapes}
        dearest = max((self._price(((gpu, space.max_gpus(gpu)),)) for gpu in gpus), default=1.0)
        self.reference_usd_per_h = 1.001 * dearest  # just over the GPU budget spent on the dearest type

    def __len__(self) -> int:
        return len(self.evaluations)

    def __contains__(self, strategy: Strategy) -> bool:
        return strategy in self.evaluations

    def cost(self, strategy: Strategy) -> float:
        """$/h."""
        return self._price(tuple(sorted(strategy.gpu_counts.items())))

    def front(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Goodput and cost of the front, by rising cost."""
        ok = [(e.goodput_req_s, self.cost(s)) for s, e in self.evaluations.items() if e.is_ok]
        goodput, cost = np.array([g for g, _ in ok]), np.array([c for _, c in ok])
        front = non_dominated(goodput, cost)
        return goodput[front], cost[front]

    def staircase(self) -> Staircase:
        """The front as a function of cost."""
        return Staircase(*self.front(), self.reference_usd_per_h)

    def area(self) -> float:
        """Hypervolume of the front."""
        goodput, cost = self.front()
        return hypervolume(goodput, cost, ref_usd_per_h=self.reference_usd_per_h)

    def best_usd_per_h(self) -> float | None:
        """Least cost that carries the demand so far."""
        return min((self.cost(strategy) for strategy in self.evaluations if self._carries(strategy)), default=None)

    def best_and_front(self, most_carrying: int) -> list[Strategy]:
        """Strategies that carry the demand at least cost, a few, and then the front's by rising cost."""
        best = self.best_usd_per_h()
        carrying = [s for s in self.evaluations if self._carries(s) and self.cost(s) == best]
        known = list(self.evaluations)
        goodput = [self.evaluations[strategy].goodput_req_s for strategy in known]
        front = [known[i] for i in non_dominated(goodput, [self.cost(s) for s in known]) if goodput[i] > 0]
        return carrying[:most_carrying] + front

    def _carries(self, strategy: Strategy) -> bool:
        demand = self._demand_req_s
        return demand is not None and self.evaluations[strategy].goodput_req_s >= demand

    def _price(self, counts: tuple[tuple[str, int], ...]) -> float:
        if counts not in self._costs:
            self._costs[counts] = self._cost_of(dict(counts))
        return self._costs[counts]
