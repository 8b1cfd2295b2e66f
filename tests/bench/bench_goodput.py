"""Speed of the collocated kernel and of goodput, as ratios: `python -m tests.bench.bench_goodput`.

Prints the table of `estimator/README.md`, section "Speed". Times are processor time of this process, the least of
several runs (for goodput the median over seeds), so that other work on the machine weighs little.
"""

from __future__ import annotations

import heapq
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from estimator.goodput import goodput
from estimator.kernels.lanes import PoolRun, run_pool
from estimator.parallelism import Parallelism
from estimator.requests import Requests
from estimator.simulate import collocated_jobs, collocated_pool, simulate
from estimator.simulation import ITL_EDGES_S
from estimator.system import TETRIINFER, Collocated, System
from estimator.workload import FixedLengths, PoissonArrivals, Workload
from tests.test_goodput import CHAT, SLO, found, instance_of, pools_of

NUM_REQUESTS = 20_000
NUM_SEEDS = 21
COMMAND = ("goodput", "runs/quickstart.yaml", "--strategy", "1m-tp1@h100_sxm", "--json")


def least_s(call: Callable[[], object], repeats: int = 7) -> float:
    """Least processor time of one call; a first one compiles and is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def keep_memory() -> None:
    """Lets malloc keep freed memory, as it does in a search, whose cost tables are larger than a simulation's arrays.

    glibc gives memory back to the system by the size of the largest block freed so far (mallopt(3), dynamic threshold,
    at most 32 MiB); getting it anew costs a simulation of 20,000 requests up to a third of its time.
    """
    np.empty(31 << 17)  # 31 MiB of float64, freed at once


@njit(cache=True)
def hold(heap: list[float], gaps: NDArray[np.float64]) -> float:
    """Pops the least of a heap and pushes it back a gap later, len(gaps) times: the cost of an event calendar."""
    last = 0.0
    for gap in gaps:
        last = heapq.heappop(heap)
        heapq.heappush(heap, last + gap)
    return last


def heap_pair_s() -> float:
    """Seconds of one push and pop on a heap of 1,000 in compiled code."""
    rng = np.random.default_rng(0)
    heap, gaps = sorted(rng.random(1_000).tolist()), rng.standard_exponential(200_000)
    return least_s(lambda: hold(list(heap), gaps)) / len(gaps)


def row(figure: str, value: str, reach: str) -> None:
    """Prints a line of the table."""
    print(f"| {figure} | {value} | {reach} |")


def plain_ratio(system: Collocated, requests: Requests, concurrency: int) -> float:
    """Time of simulating every step alone, by the same kernel, over that of fast-forwarding; the times must agree."""
    pool, jobs = collocated_pool(system, 0), collocated_jobs(system, requests, open_loop=False)
    plain = replace(pool, longest_jump=1)

    def run(which: object) -> PoolRun:
        weights = np.zeros(len(ITL_EDGES_S) - 1)
        return run_pool(plain if which == "plain" else pool, jobs, weights, concurrency=concurrency)

    np.testing.assert_allclose(run("plain").finish_s, run("fast").finish_s, rtol=1e-9)
    return least_s(lambda: run("plain"), 3) / least_s(lambda: run("fast"), 3)


def fast_forward() -> None:
    """Rows on fast-forwarding."""
    workload = Workload(lengths=FixedLengths(input_tokens=500, output_tokens=500), arrivals=PoissonArrivals())
    requests = workload.draw(1.0, 4_000, 0)
    for concurrency, reach in ((2, "≥ 5"), (10, "≥ 3"), (50, "≥ 0.8"), (250, "≥ 0.8")):
        ratio = plain_ratio(Collocated(instance=instance_of()), requests, concurrency)
        row(f"fast-forward against every step alone, 500 tokens out, {concurrency} resident", f"{ratio:.1f}×", reach)
    short = CHAT.draw(1.0, 4_000, 0)
    many_ranks, stages = Parallelism(dp=8), Parallelism(pp=4)
    for name, degrees, num in (
        ("8 attention-dp ranks", many_ranks, 200),
        ("4 stages", stages, 200),
        ("4 stages", stages, 8),
    ):
        system = Collocated(instance=replace(instance_of(), parallelism=degrees))
        row(f"the same, chat lengths, {num} in flight over {name}", f"{plain_ratio(system, short, num):.1f}×", "≥ 0.8")


def one_request() -> None:
    """Rows on the cost of a simulated request, in heap pairs."""
    pair_s, system = heap_pair_s(), Collocated(instance=instance_of())
    row("heap of 1,000 in compiled code, one push and pop", f"{1e9 * pair_s:.0f} ns", "")
    two, four = (replace(pools_of(num, num), policy=TETRIINFER) for num in (1, 4))
    cases: list[tuple[str, System, float, int]] = [("collocated", system, rate, 4) for rate in (2.0, 12.0, 23.0)]
    cases += [("DistServe 1p1d", pools_of(1, 1), 20.0, 8), ("TetriInfer 1p1d", two, 20.0, 8)]
    for name, which, rate, reach in [*cases, ("TetriInfer 4p4d", four, 60.0, 8)]:
        requests = CHAT.draw(rate, NUM_REQUESTS, 0)
        run_s = least_s(lambda which=which, requests=requests: simulate(which, requests))  # type: ignore[misc]
        pairs = run_s / NUM_REQUESTS / pair_s
        row(f"a simulated chat request, {name}, {rate:g} req/s", f"{pairs:.1f} pairs", f"≤ {reach}")


def goodput_ms(system: System) -> float:
    """Median over seeds of the processor time of one goodput, the requests of the seed drawn before."""
    times = []
    for seed in range(NUM_SEEDS):
        times.append(1e3 * least_s(lambda seed=seed: goodput(system, CHAT, SLO, seed=seed), 2))  # type: ignore[misc]
    return statistics.median(times)


def goodputs() -> None:
    """Rows on goodput."""
    one = Collocated(instance=instance_of())
    one_ms = goodput_ms(one)
    for name, system, reach in (("1m", one, "≤ 20 ms"), ("1p1d", pools_of(1, 1), "≤ 40 ms")):
        search_ms = one_ms if system is one else goodput_ms(system)
        requests = CHAT.draw(found(system).rate_req_s, NUM_REQUESTS, 0)
        run_ms = 1e3 * least_s(lambda system=system, requests=requests: simulate(system, requests))  # type: ignore[misc]
        row(f"goodput of `{name}` to ±1 %, median of {NUM_SEEDS} seeds", f"{search_ms:.1f} ms", reach)
        row(f"the same over one simulation of {NUM_REQUESTS:,} requests", f"{search_ms / run_ms:.1f}×", "≤ 60")
    many_ms = goodput_ms(Collocated(instance=instance_of(), num_instances=512))
    row("goodput of `512m` against `1m`", f"{many_ms / one_ms:.2f}×", "≤ 1.2")


def start() -> None:
    """Rows on the start of the command, with compiled code and Python's bytecode cached, and on numba's share of it."""
    lone = "import numba; f = numba.njit(lambda x: x + 1); f.compile((numba.int64,))"
    answer = command_s("-c", f"import sys; sys.argv[1:] = {COMMAND!r}; from search.cli import main; main()")
    row("`bestserve goodput` from start to answer, compiled before", f"{answer:.1f} s", "≤ 2 s")
    row("of which numba's start", f"{command_s('-c', lone):.1f} s", "")


def command_s(*arguments: str) -> float:
    """Least processor time of Python with these arguments."""
    times = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run((sys.executable, *arguments), check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> None:
    """The table."""
    keep_memory()
    print("| figure | measured | reach |\n|---|---|---|")
    fast_forward()
    one_request()
    goodputs()
    start()


if __name__ == "__main__":
    main()
