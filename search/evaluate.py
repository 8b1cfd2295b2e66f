"""One strategy's goodput as one flat, price-free record; the same bytes on any worker."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from estimator.goodput import EXPLORING, FULL, Effort, Goodput, goodput
from estimator.latency import PoolSummary
from estimator.outcome import Infeasible, Unstable
from estimator.system import Collocated, System
from search.evaluation import NAN, Evaluation
from spaces.problem import Problem, system_of
from spaces.rules import broken_strategy
from spaces.strategy import Strategy

__all__ = ["Evaluate", "Evaluation", "evaluate", "evaluate_all", "explore", "failed"]

Evaluate = Callable[[Problem, Strategy, int], Evaluation]


def explore(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """`evaluate` on few requests, to choose by."""
    return evaluate(problem, strategy, seed, EXPLORING)


def evaluate(problem: Problem, strategy: Strategy, seed: int, effort: Effort = FULL) -> Evaluation:
    """Goodput of the strategy, or why it has none. Every strategy sees the same requests of `seed`."""
    text = str(strategy)
    broken = broken_strategy(problem, strategy)
    system = broken or system_of(problem, strategy)
    if isinstance(system, Infeasible):
        return Evaluation(
            strategy=text, status="infeasible", rule=system.rule, reason=system.reason, violation=system.violation
        )
    found = goodput(system, problem.workload, problem.slo, seed=seed, effort=effort)
    if isinstance(found, Unstable):
        return Evaluation(strategy=text, status="unstable", reason=found.reason, violation=found.violation)
    return _ok(text, system, found)


def _ok(text: str, system: System, found: Goodput) -> Evaluation:
    summary = found.summary
    latencies = {
        f"{metric}_{level}_s": getattr(getattr(summary, metric), f"{level}_s")
        for metric in ("ttft", "tpot", "e2e")
        for level in ("mean", "p50", "p90", "p99")
    }
    prefill: PoolSummary | None = summary.prefill
    return Evaluation(
        strategy=text,
        status="ok",
        goodput_req_s=found.rate_req_s,
        low_req_s=found.low_req_s,
        high_req_s=found.high_req_s,
        binding_limit=found.binding_limit,
        tier=_tier(system),
        throughput_tokens_per_s=summary.throughput_tokens_per_s,
        decode_utilisation_frac=summary.decode.utilisation_frac,
        decode_mean_batch_seqs=summary.decode.mean_batch_seqs,
        prefill_utilisation_frac=NAN if prefill is None else prefill.utilisation_frac,
        num_simulated_requests=found.num_simulated_requests,
        **latencies,
    )


def _tier(system: System) -> str:
    """The worst of what the instances' times rest on."""
    instances = [system.instance] if isinstance(system, Collocated) else [system.prefill, system.decode]
    order = ("fitted", "borrowed", "data_sheet")
    return max((instance.tier for instance in instances), key=lambda tier: order.index(tier) if tier in order else 3)


def evaluate_all(evaluate: Evaluate, problem: Problem, strategies: Sequence[Strategy], seed: int) -> list[Evaluation]:
    """Evaluations in order; one that raises is `failed`, with the end of its traceback, and the rest go on."""
    found = []
    for strategy in strategies:
        try:
            found.append(evaluate(problem, strategy, seed))
        except Exception as error:  # our bug, whatever it is: reported with the strategy, counted by the study
            found.append(failed(strategy, "".join(traceback.format_exception(error)[-3:])))
    return found


def failed(strategy: Strategy, reason: str) -> Evaluation:
    """The record of a strategy whose evaluation broke."""
    return Evaluation(strategy=str(strategy), status="failed", reason=reason, violation=1.0)
