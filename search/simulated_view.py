"""What a view shows that no run leaves behind and is simulated again: latency curves, where a step's time goes."""

from __future__ import annotations

from functools import partial

from estimator.build import StepPart, step_breakdown
from estimator.drafting import drafting_breakdown
from estimator.dtypes import Dtypes
from estimator.latency import LatencySummary
from search.estimate import estimate, existing_system
from search.view import Candidate, Curve, OperatorTime
from spaces.problem import Problem
from spaces.strategy import Strategy

CURVE_FRACS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1)  # of a strategy's goodput
CURVE_REQUESTS = 6_000
PHASES = {"decode": "decode", "mixed": "prefill"}  # the mixed step shown holds a prompt alone
POOLS = {"m": "collocated", "p": "prefill pool", "d": "decode pool"}


def curve_of(problem: Problem, candidate: Candidate) -> Curve:
    """Every target's latency at rates around the candidate's goodput."""
    system = existing_system(problem, Strategy.parse(candidate.strategy))
    rates = [frac * candidate.goodput_req_s for frac in CURVE_FRACS]
    excesses = [
        estimate(problem, system, candidate.strategy, rate_req_s=rate, num_requests=CURVE_REQUESTS).excesses
        for rate in rates
    ]
    return Curve(
        strategy=candidate.strategy,
        is_disaggregated=candidate.is_disaggregated,
        gpus=candidate.gpus,
        rate_req_s=tuple(rates),
        latency_ms={
            name: tuple(limit_ms * excess[name] for excess in excesses) for name, limit_ms in limits_ms(problem).items()
        },
    )


def limits_ms(problem: Problem) -> dict[str, float]:
    """Limit of each target in ms, by the name under which `Slo.excesses` tells how far it is."""
    return {name: 1e3 * limit_s for name, limit_s in problem.slo.limits_s.items()}


def breakdown_at(problem: Problem, strategy: str, rate_req_s: float) -> tuple[OperatorTime, ...]:
    """Where the time of a typical step goes when `strategy` serves `rate_req_s`."""
    parsed = Strategy.parse(strategy)
    system = existing_system(problem, parsed)
    answer = estimate(problem, system, strategy, rate_req_s=rate_req_s, num_requests=CURVE_REQUESTS)
    return breakdown_of(problem, parsed, answer.summary)


def breakdown_of(problem: Problem, strategy: Strategy, summary: LatencySummary) -> tuple[OperatorTime, ...]:
    """Where the time of each pool's typical step goes: a decode step and a prompt of mean length.

    The decode step is that of the sequences that a rank has in one micro-batch on average.
    """
    input_tokens, output_tokens = problem.workload.mean_input_tokens, problem.workload.mean_output_tokens
    times: list[OperatorTime] = []
    for pool in strategy.pools:
        step = partial(
            step_breakdown,
            model=problem.model,
            gpu=problem.gpu(pool.gpu),
            engine=problem.engine,
            parallelism=pool.parallelism,
            dtypes=Dtypes(weight=problem.weight_dtype, kv=problem.kv_dtype),
        )
        parts: list[StepPart] = []
        if pool.role != "p":
            num_batches = pool.parallelism.dp * pool.parallelism.pp
            num_seqs = max(1, round(summary.decode.mean_batch_seqs / num_batches))
            cached_tokens = num_seqs * (input_tokens + output_tokens / 2)
            if problem.speculation is None:
                parts += step(num_seqs=num_seqs, cached_tokens=cached_tokens)
            else:
                drafting = partial(drafting_breakdown, **step.keywords, speculation=problem.speculation)
                parts += drafting(num_seqs=num_seqs, cached_tokens=cached_tokens)
        if pool.role != "d":
            computed = round(input_tokens * (1 - problem.workload.cached_frac))
            budget = pool.limits(problem.engine.limits).max_num_batched_tokens
            parts += step(num_seqs=0, cached_tokens=0.0, prefill_tokens=max(1, min(computed, budget)))
        times += [
            OperatorTime(
                pool=POOLS[pool.role], phase=PHASES[p.phase], operator=p.operator, ms=1e3 * p.seconds, bound=p.bound
            )
            for p in parts
        ]
    return tuple(times)
