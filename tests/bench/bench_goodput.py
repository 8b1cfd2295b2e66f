"""Time of one goodput answer, warm: `python -m tests.bench.bench_goodput`.

Reach: median ≤ 20 ms collocated and ≤ 40 ms disaggregated, at most 60 simulations of 20,000 requests, and 512 instances
at most 1.2 times one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from estimator.goodput import goodput
from estimator.simulate import simulate
from estimator.system import Collocated, Disaggregated
from tests.test_goodput import CHAT, SLO, found, instance_of, pools_of

NUM_REPEATS = 15


def median_ms(call: Callable[[int], object]) -> float:
    """Median over seeds of one call's time; a first call compiles and is not counted."""
    call(0)
    times = []
    for seed in range(NUM_REPEATS):
        start = time.perf_counter()
        call(seed)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def report(name: str, system: Collocated | Disaggregated) -> float:
    """Prints and returns the median time of the goodput of `system`."""
    search_ms = median_ms(lambda seed: goodput(system, CHAT, SLO, seed=seed))
    answer = found(system)
    requests = CHAT.draw(answer.rate_req_s, 20_000, 0)
    run_ms = median_ms(lambda seed: simulate(system, requests, seed=seed))
    print(
        f"{name:>5}  goodput {search_ms:7.1f} ms  one run of 20,000 {run_ms:6.2f} ms  ratio {search_ms / run_ms:5.1f}  "
        f"{answer.num_simulated_requests:7d} requests  {answer.rate_req_s:9.2f} req/s by {answer.binding_limit}"
    )
    return search_ms


def main() -> None:
    """One line per system, then the cost of scale."""
    one_ms = report("1m", Collocated(instance=instance_of()))
    many_ms = report("512m", Collocated(instance=instance_of(), num_instances=512))
    report("1p1d", pools_of(1, 1))
    report("3p5d", pools_of(3, 5))
    print(f"512m against 1m: {many_ms / one_ms:.2f} times")


if __name__ == "__main__":
    main()
