"""What one strategy does at one rate, or at most: the answers of `bestserve estimate` and `bestserve goodput`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from estimator.cost import Bill
from estimator.errors import BestServeError, require
from estimator.goodput import Goodput, equal_part, goodput
from estimator.latency import LatencySummary, steady_window, summarise
from estimator.outcome import Infeasible, Unstable
from estimator.simulate import simulate
from estimator.simulation import Simulation
from estimator.system import System
from search.tariff import Tariff
from spaces.problem import Problem, system_of
from spaces.rules import broken_strategy
from spaces.strategy import Strategy

NUM_REQUESTS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Latencies and load at one rate; `attainment`: share of requests within every limit, `meets`: the SLO is kept."""

    strategy: str
    rate_req_s: float
    meets: bool
    attainment: float
    excesses: Mapping[str, float]
    summary: LatencySummary


def existing_system(problem: Problem, strategy: Strategy) -> System:
    """The strategy's system; a strategy that cannot exist raises `BestServeError` with the rule it breaks."""
    for pool in strategy.pools:
        problem.gpu(pool.gpu)
    system = broken_strategy(problem, strategy) or system_of(problem, strategy)
    if isinstance(system, Infeasible):
        raise BestServeError(
            "strategy", str(strategy), f"breaks {system.rule} ({system.reason})", "a strategy that keeps the rule"
        )
    return system


def estimate(
    problem: Problem, system: System, strategy: str, *, rate_req_s: float, num_requests: int = NUM_REQUESTS
) -> Estimate:
    """Simulate `num_requests` requests at `rate_req_s` and judge those after the start and before the end."""
    simulation, window, num_parts = simulate_at(problem, system, rate_req_s=rate_req_s, num_requests=num_requests)
    summary = summarise(simulation, window)
    whole = replace(
        summary,
        throughput_req_per_s=num_parts * summary.throughput_req_per_s,
        throughput_tokens_per_s=num_parts * summary.throughput_tokens_per_s,
    )
    return Estimate(
        strategy=strategy,
        rate_req_s=rate_req_s,
        meets=problem.slo.met_by(simulation, window),
        attainment=problem.slo.attainment(simulation, window),
        excesses=problem.slo.excesses(simulation, window),
        summary=whole,
    )


def simulate_at(
    problem: Problem, system: System, *, rate_req_s: float, num_requests: int = NUM_REQUESTS
) -> tuple[Simulation, slice, int]:
    """A run of the smallest part that behaves like the whole, the requests to judge, and the number of such parts."""
    require(
        math.isfinite(rate_req_s) and rate_req_s > 0,
        field="rate",
        value=rate_req_s,
        rule="must be positive and finite",
        accepted="requests per second > 0",
    )
    part, workload, num_parts = equal_part(system, problem.workload)
    simulation = simulate(part, workload.draw(rate_req_s / num_parts, num_requests, 0))
    return simulation, steady_window(num_requests), num_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedGoodput:
    """A strategy's goodput with its bill."""

    strategy: str
    goodput: Goodput
    bill: Bill
    usd_per_1m_output: float


def priced_goodput(problem: Problem, strategy: Strategy, tariff: Tariff, *, seed: int) -> PricedGoodput | Unstable:
    """Goodput and cost of a strategy that exists, or why no rate meets the SLO."""
    found = goodput(existing_system(problem, strategy), problem.workload, problem.slo, seed=seed)
    if isinstance(found, Unstable):
        return found
    costs = tariff.bill(strategy)
    return PricedGoodput(
        strategy=str(strategy),
        goodput=found,
        bill=costs,
        usd_per_1m_output=costs.usd_per_million_tokens(found.rate_req_s, problem.workload.mean_output_tokens),
    )


def plain(value: Any) -> Any:
    """Dataclasses as mappings, numbers that JSON lacks (NaN, ∞) as None: what `--json` prints."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
