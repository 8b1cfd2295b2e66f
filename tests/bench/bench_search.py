"""How much of the exhaustive answer a study finds, by sampler and budget; a made-up goodput, so that listing is quick.

Run with `python -m tests.bench.bench_search`.
"""

from __future__ import annotations

import time

from search.executor import LocalExecutor
from search.pareto import hypervolume
from search.sampling import SamplerName
from search.study import Settings, Study
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import made_up, small_problem, usd_per_h

REFERENCE_USD_PER_H = 50.0
DEMAND_REQ_S = 30.0


def main() -> None:
    """Print one line per sampler, share of the space and seed."""
    problem = small_problem(gpus=("h100_sxm", "l40s", "h200_sxm"), max_gpus=12, tp=(1, 2, 4), max_num_seqs=(64, 256))
    space = Space(problem)
    every = [(made_up(problem, strategy, 0).goodput_req_s, usd_per_h(strategy.gpu_counts)) for strategy in space]
    best_area = hypervolume(*zip(*every, strict=True), ref_usd_per_h=REFERENCE_USD_PER_H)
    least = min(cost for goodput, cost in every if goodput >= DEMAND_REQ_S)
    print(f"{space.size} strategies, least cost {least:.2f} $/h")
    samplers: tuple[SamplerName, ...] = ("random", "tpe", "nsga2")
    for sampler in samplers:
        for trials in (128, 256, 512):
            for seed in range(3):
                started_s = time.perf_counter()
                settings = Settings(trials=trials, sampler=sampler, seed=seed, demand_req_s=DEMAND_REQ_S)
                executor = LocalExecutor(problem, seed=seed, evaluate=made_up)
                found = Study(space, executor, usd_per_h, settings).run().evaluations
                goodput = [evaluation.goodput_req_s for evaluation in found]
                cost = [usd_per_h(Strategy.parse(evaluation.strategy).gpu_counts) for evaluation in found]
                area = hypervolume(goodput, cost, ref_usd_per_h=REFERENCE_USD_PER_H)
                cheapest = min(c for g, c in zip(goodput, cost, strict=True) if g >= DEMAND_REQ_S)
                print(
                    f"{sampler:7s} {len(found):4d} evaluations ({len(found) / space.size:5.1%}) seed {seed}: "
                    f"hypervolume {area / best_area:7.3%}, least cost {cheapest / least - 1:+.1%}, "
                    f"{time.perf_counter() - started_s:.2f} s"
                )


if __name__ == "__main__":
    main()
