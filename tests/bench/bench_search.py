"""How a study compares with going through everything, and what it costs: the table of `search/README.md`.

    python -m tests.bench.bench_search truth quality      hypervolume and least cost against exhaustive fronts
    python -m tests.bench.bench_search plan workers scale  time of whole plans
    python -m tests.bench.bench_search exact explored     what the bound leaves to simulate; what few requests find
    python -m tests.bench.bench_search overhead           what the study adds to the simulations
    python -m tests.bench.bench_search classes            least cost of each architecture beside a long study of it

Ground truth (every strategy of three spaces simulated, a quarter of an hour on one core) is kept in `--cache` and
extended where it was left. Times depend on the machine and its load; ratios and shares less so.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from estimator.goodput import Effort
from search.evaluate import Evaluate, Evaluation, evaluate, explore
from search.executor import LocalExecutor, RayExecutor
from search.journal import Journal
from search.pareto import hypervolume, non_dominated
from search.planner import Plan, plan
from search.screen import FloatArray, Screen
from search.spec import Spec, parse_spec
from search.study import REACH, Settings, Study
from search.tariff import Tariff, tariff_of
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy

CACHE = Path(tempfile.gettempdir()) / "bestserve-truth"
CHAT = {
    "kind": "lognormal",
    "input_tokens": {"median": 833, "sigma": 0.808, "max": 14050},
    "output_tokens": {"median": 167, "sigma": 0.683, "max": 1000},
    "correlation": 0.087,
}  # as in runs/quickstart.yaml
PROBLEMS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model": {"id": "meta-llama/Llama-3.1-8B", "weights": "bf16"},
        "traffic": {"rate_req_s": 25, "lengths": CHAT},
        "slo": {"ttft": {"p90_ms": 1000}, "tpot": {"p90_ms": 40}},
        "gpus": ["h100_sxm", "a100_sxm", "l40s"],
        "search": {"max_gpus": 14, "pp": [1, 2], "tokens": [2048, 8192], "seqs": [64, 256]},
    },
    "Qwen3-32B": {
        "model": {"id": "Qwen/Qwen3-32B", "weights": "fp8"},
        "traffic": {"rate_req_s": 12, "lengths": CHAT},
        "slo": {"ttft": {"p90_ms": 1500}, "tpot": {"p90_ms": 50}},
        "gpus": ["h100_sxm", "h200_sxm", "l40s"],
        "search": {"max_gpus": 20, "pp": [1, 2], "tokens": [8192], "seqs": [64, 256]},
    },
    "Mixtral-8x7B": {
        "model": {"id": "mistralai/Mixtral-8x7B-v0.1", "weights": "bf16"},
        "traffic": {"rate_req_s": 20, "lengths": CHAT},
        "slo": {"ttft": {"p90_ms": 1500}, "tpot": {"p90_ms": 50}},
        "gpus": ["h100_sxm", "h200_sxm"],
        "search": {"max_gpus": 16, "pp": [1], "dp": [1, 2, 4], "ep": [1, 8], "tokens": [8192], "seqs": [64, 256]},
    },
}
LONG = {
    "kind": "lognormal",
    "input_tokens": {"median": 2000, "sigma": 0.9, "max": 16000},
    "output_tokens": {"median": 500, "sigma": 0.7, "max": 4000},
}
LARGE: dict[str, dict[str, Any]] = {
    "DeepSeek-R1": {
        "model": {"id": "deepseek-ai/DeepSeek-R1", "weights": "fp8", "kv": "fp8"},
        "engine": "sglang",
        "traffic": {"rate_req_s": 15, "lengths": LONG},
        "slo": {"ttft": {"p90_ms": 3000}, "tpot": {"p90_ms": 60}},
        "gpus": ["h200_sxm", "b200_sxm"],
    },
    "Qwen3-235B": {
        "model": {"id": "Qwen/Qwen3-235B-A22B", "weights": "fp8"},
        "traffic": {"rate_req_s": 15, "lengths": LONG},
        "slo": {"ttft": {"p90_ms": 3000}, "tpot": {"p90_ms": 60}},
        "gpus": ["h100_sxm", "h200_sxm", "b200_sxm"],
    },
}
SIXTEEN = PROBLEMS["Qwen3-32B"] | {"search": {"max_gpus": 16, "screen": False, "sampler": "random", "trials": 1000}}
NARROW = {"max_gpus": 16, "pp": [1], "tokens": [8192], "seqs": [256], "screen": False, "sampler": "exhaustive"}
EVERY = PROBLEMS["Qwen3-32B"] | {"search": NARROW}
EXPLORED = (-0.017, 0.021)  # mean and deviation of log(goodput on few requests / truth), 240 strategies, 2026-11-26


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Every evaluation of one problem's space."""

    spec: Spec
    tariff: Tariff
    space: Space
    by_text: Mapping[str, Evaluation]

    def points(self, evaluations: list[Evaluation]) -> tuple[list[float], list[float]]:
        """Goodput and cost."""
        costs = [self.tariff.usd_per_h(Strategy.parse(e.strategy)) for e in evaluations]
        return [e.goodput_req_s for e in evaluations], costs


def spec_of(name: str, given: Mapping[str, Any]) -> Spec:
    """The spec of a problem."""
    return parse_spec({"name": name.replace(" ", "-"), **given}, folder=Path())


def truth(name: str, cache: Path) -> Truth:
    """All evaluations of a problem, from the cache as far as it goes; 8,000 requests a probe instead of 20,000."""
    spec = spec_of(name, PROBLEMS[name])
    problem = spec.problem()
    space = Space(problem)
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}.jsonl"
    known, judge = {}, partial(evaluate, effort=Effort(num_requests=8_000))
    for line in path.read_text().splitlines() if path.exists() else ():
        evaluation = Evaluation.from_dict(json.loads(line))
        known[evaluation.strategy] = evaluation
    with path.open("a") as file:
        for strategy in space:
            if str(strategy) not in known:
                (evaluation,) = LocalExecutor(problem, seed=0, evaluate=judge).run([strategy])
                known[evaluation.strategy] = evaluation
                file.write(json.dumps(evaluation.as_dict()) + "\n")
    return Truth(spec=spec, tariff=tariff_of(spec), space=space, by_text={str(s): known[str(s)] for s in space})


def truths(cache: Path) -> None:
    """Complete the cache."""
    for name in PROBLEMS:
        truth(name, cache)


def quality(cache: Path) -> None:
    """Share of the exhaustive hypervolume, and least cost, of what a study has confirmed, by problem and budget.

    The whole front without a reach; with the default one, the front up to it. The study explores as `plan` does: what
    it sees before it confirms is the truth with the error of few requests (`EXPLORED`).
    """
    print("| problem | strategies | front | budget | evaluated | hypervolume, least of 5 | cost over exhaustive |")
    print("|---|---|---|---|---|---|---|")
    for name, (reach, front), share in product(PROBLEMS, ((None, "whole"), (REACH, "to the reach")), (0.05, 0.2)):
        every = truth(name, cache)
        runs = [_studied(every, int(share * every.space.size), seed, reach) for seed in range(5)]
        evaluated, areas, costs = zip(*runs, strict=True)
        evaluations = f"{min(evaluated)}-{max(evaluated)} ({max(evaluated) / every.space.size:.1%})"
        row = (
            name,
            f"{every.space.size:,}",
            front,
            f"{share:.0%}",
            evaluations,
            f"{min(areas):.4%}",
            f"{max(costs):+.2%}",
        )
        print("|", " | ".join(row), "|", flush=True)


def _studied(every: Truth, trials: int, seed: int, reach: float | None) -> tuple[int, float, float]:
    """Evaluations, share of the hypervolume, and relative cost of the least-cost answer of one study."""
    demand = every.spec.traffic.rate_req_s

    def roughly(_: object, strategy: Strategy, __: int) -> Evaluation:
        error = np.random.default_rng([seed, zlib.crc32(str(strategy).encode())]).normal(*EXPLORED)
        found, times = every.by_text[str(strategy)], float(np.exp(error))
        bounds = {name: times * getattr(found, name) for name in ("goodput_req_s", "low_req_s", "high_req_s")}
        return replace(found, **bounds)

    executor = LocalExecutor(
        every.space.problem, seed=0, evaluate=lambda _, s, __: every.by_text[str(s)], explore=roughly
    )
    settings = Settings(trials=trials, seed=seed, demand_req_s=demand, reach=reach, explores=True)
    found = list(Study(every.space, executor, every.tariff, settings).run().evaluations)
    goodput, cost = every.points(list(every.by_text.values()))
    got, paid = every.points([evaluation for evaluation in found if not evaluation.is_explored])
    ceiling = min(demand * reach if reach else np.inf, max(goodput))

    def least(goodputs: list[float], costs: list[float], carried: float) -> float:
        return min((c for g, c in zip(goodputs, costs, strict=True) if g >= carried), default=np.inf)

    reference = 1.001 * (least(goodput, cost, ceiling) if reach else max(cost))
    area, whole = (
        hypervolume(np.minimum(g, ceiling), c, ref_usd_per_h=reference) for g, c in ((got, paid), (goodput, cost))
    )
    return len(found), area / whole, least(got, paid, demand) / least(goodput, cost, demand) - 1.0


def exact(cache: Path) -> None:
    """Spaces gone through whole: what the bound leaves to simulate, whose front is found, goodput over the bound."""
    print("| problem | strategies | simulated | front | most over bound | median |\n|---|---|---|---|---|---|")
    for name in PROBLEMS:
        every = truth(name, cache)
        table = every.by_text
        executor = LocalExecutor(every.space.problem, seed=0, evaluate=lambda _, s, __, table=table: table[str(s)])  # type: ignore[misc]
        settings = Settings(sampler="exhaustive", demand_req_s=every.spec.traffic.rate_req_s)
        found = list(Study(every.space, executor, every.tariff, settings).run().evaluations)
        fronts = []
        for evaluations in (found, list(every.by_text.values())):
            evaluations = [evaluation for evaluation in evaluations if evaluation.is_ok]
            goodput, cost = every.points(evaluations)
            fronts.append({(goodput[i], cost[i]) for i in non_dominated(goodput, cost)})
        same = "the true one" if fronts[0] == fronts[1] else "another"
        ratios = _over_bound(every)
        row = f"| {name} | {every.space.size:,} | {len(found):,} | {len(fronts[1])} points, {same} |"
        print(row, f"{ratios.max():.3f} | {np.median(ratios):.2f} |", flush=True)


def _over_bound(every: Truth) -> FloatArray:
    """Goodput over the closed form's bound, of every strategy that has one."""
    sound = [(Strategy.parse(text), found) for text, found in every.by_text.items() if found.is_ok]
    bound = Screen(every.space, every.tariff, seed=0).rows([strategy for strategy, _ in sound]).bound_req_s
    return np.array([found.goodput_req_s for _, found in sound]) / bound


def classes(_: Path) -> None:
    """Least cost of each architecture that ordinary plans of large models find, beside a long study of it alone."""
    print("| problem | architecture | long study of it alone | plans of 200 trials, 5 seeds |\n|---|---|---|---|")
    for name, given in LARGE.items():
        long = {one: _least(given, one, 700, 1, (one,)) for one in ("collocated", "disaggregated")}
        for one, least in long.items():
            found = [_least(given, one, 200, seed, tuple(long)) for seed in range(5)]
            print(f"| {name} | {one} | ${least:.2f} | {', '.join(f'{cost / least - 1:+.1%}' for cost in found)} |")


def _least(given: Mapping[str, Any], architecture: str, trials: int, seed: int, allowed: tuple[str, ...]) -> float:
    """$/h of the architecture's cheapest strategy that carries the demand, of a study of those allowed."""
    spec = spec_of("large", {**given, "search": {"max_gpus": 64, "architectures": list(allowed)}})
    problem, tariff, demand = spec.problem(), tariff_of(spec), spec.traffic.rate_req_s
    executor = LocalExecutor(problem, seed=0, threads=os.cpu_count() or 1)
    settings = Settings(trials=trials, seed=seed, demand_req_s=demand, explores=True)
    found = Study(Space(problem), executor, tariff, settings).run().evaluations
    executor.close()
    carrying = [Strategy.parse(e.strategy) for e in found if e.goodput_req_s >= demand and not e.is_explored]
    kind = architecture == "disaggregated"
    return min((tariff.usd_per_h(s) for s in carrying if s.is_disaggregated == kind), default=np.inf)


def explored(cache: Path) -> None:
    """What few requests find beside the truth: mean and deviation of the log, 80 strategies of each problem."""
    print("| problem | strategies | mean | deviation |\n|---|---|---|---|")
    for name in PROBLEMS:
        every = truth(name, cache)
        sound = [found for found in every.by_text.values() if found.is_ok]
        drawn = np.random.default_rng(1).choice(len(sound), 80, replace=False)
        pairs = [(explore(every.space.problem, Strategy.parse(sound[k].strategy), 0), sound[k]) for k in drawn]
        logs = np.log([rough.goodput_req_s / exact.goodput_req_s for rough, exact in pairs if rough.is_ok])
        print(f"| {name} | {len(logs)} | {logs.mean():+.3f} | {logs.std():.3f} |", flush=True)


def timed_plan(given: Mapping[str, Any], workers: int | None) -> tuple[float, Plan]:
    """Seconds that a whole plan takes in a folder of its own, and the plan."""
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        found = plan(spec_of("bench", given), out=Path(folder) / "run", workers=workers)
        return time.perf_counter() - started_s, found


class Timed(NamedTuple):
    """The whole command from start to report, the part of it up to the answer, and the strategies evaluated."""

    command_s: float
    answer_s: float
    num: int


def timed_command(given: Mapping[str, Any], workers: int | None) -> Timed:
    """`bestserve plan` in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        spec, run = Path(folder) / "bench.yaml", Path(folder) / "run"
        spec.write_text(json.dumps({"name": "bench", **given}))
        command = [sys.executable, "-m", "search.cli", "plan", str(spec), "--out", str(run)]
        command += [] if workers is None else ["--workers", str(workers)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        started_s = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        took_s = time.perf_counter() - started_s
        manifest = json.loads((run / "manifest.json").read_text())
        return Timed(took_s, manifest["elapsed_s"], manifest["num_evaluated"])


def plans(_: Path) -> None:
    """Whole plans of a 16-GPU problem: an ordinary one, and one of 1,925 evaluations that shows throughput."""
    cores = os.cpu_count()
    ordinary = PROBLEMS["Qwen3-32B"] | {"search": {"max_gpus": 16}}
    timed_command(ordinary, 0)  # compiled kernels
    print("| plan | command | up to the answer | evaluated | CPU |\n|---|---|---|---|---|")
    for name, given, workers in (
        ("ordinary, `auto`", ordinary, None),
        ("ordinary, `--workers 0`", ordinary, 0),
        (f"ordinary, {cores} Ray workers", ordinary, cores),
        ("every strategy of a narrow space, `auto`", EVERY, None),
        (f"the same, {cores} Ray workers", EVERY, cores),
    ):
        cpu_s = _cpu_s()
        took = timed_command(given, workers)
        used_s, rate = _cpu_s() - cpu_s, took.num / took.answer_s
        times = f"{took.command_s:.1f} s | {took.answer_s:.1f} s"
        print(f"| {name} | {times} | {took.num:,}, {rate:.0f}/s | {used_s:.1f} s |", flush=True)


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def workers(_: Path) -> None:
    """Two workers against one, Ray running; and what Ray and the study add to the simulations."""
    spec = spec_of("bench", SIXTEEN)
    problem, space = spec.problem(), Space(spec.problem())
    space = Space(problem)
    chosen = list(space)[:: max(1, space.size // 400)][:400]
    rates = {}
    for number in (1, 2):
        executor = RayExecutor(problem, seed=0, workers=number)
        list(executor.run(chosen[:40]))  # imports, compiled kernels
        started_s = time.perf_counter()
        list(executor.run(chosen))
        rates[number] = len(chosen) / (time.perf_counter() - started_s)
        executor.close()
    started_s = time.process_time()
    list(LocalExecutor(problem, seed=0).run(chosen))
    alone = len(chosen) / (time.process_time() - started_s)
    print(f"| 1 worker | {rates[1]:.0f}/s |\n| 2 workers | {rates[2]:.0f}/s, {rates[2] / rates[1]:.2f} times as many |")
    print(f"| simulation alone, per second of CPU | {alone:.0f}/s |")


def overhead(_: Path) -> None:
    """What is not simulation: of this process's CPU where it works alone, and of the time of two Ray workers.

    Two workers' time holds Ray's, the study's between generations, and waiting for the last of a generation.
    """
    spec = spec_of("bench", SIXTEEN)
    problem, tariff, space = spec.problem(), tariff_of(spec), Space(spec.problem())
    for explores, trials in product((True, False), (256, 1000)):
        settings = Settings(trials=trials, demand_req_s=spec.traffic.rate_req_s, reach=None, explores=explores)
        with tempfile.TemporaryDirectory() as folder:
            watch = Watch(Path(folder) / "spent")
            judges = (watch.over(evaluate), watch.over(explore))
            shares: list[float] = []
            for executor, clock in (
                (LocalExecutor(problem, seed=0, evaluate=judges[0], explore=judges[1]), time.process_time),
                (RayExecutor(problem, seed=0, evaluate=judges[0], explore=judges[1], workers=2), time.perf_counter),
            ):
                list(executor.run(list(space)[:200:2]))  # imports, compiled kernels, instances
                watch.reset()
                journal = Journal(Path(folder) / f"journal-{len(shares)}", "bench")
                started_s = clock()
                num = len(Study(space, executor, tariff, settings, journal).run().evaluations)
                num_workers = len(shares) + 1
                shares.append(1 - watch.spent_s(clock is time.process_time) / num_workers / (clock() - started_s))
                executor.close()
        effort = "few requests" if explores else "full effort"
        print(
            f"| {num} evaluations, {effort} | beside simulation {shares[0]:.0%} of CPU, {shares[1]:.0%} of 2 workers |"
        )


@dataclass(frozen=True, slots=True)
class Watch:
    """Adds up, in a file, the seconds that evaluations take in any process."""

    path: Path

    def over(self, judge: Evaluate) -> Evaluate:
        """The same, watched."""

        def watched(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
            cpu_s, started_s = time.process_time(), time.perf_counter()
            found = judge(problem, strategy, seed)
            with self.path.open("a") as file:
                file.write(f"{time.process_time() - cpu_s} {time.perf_counter() - started_s}\n")
            return found

        return watched

    def reset(self) -> None:
        """From nothing."""
        self.path.write_text("")

    def spent_s(self, cpu: bool) -> float:
        """CPU seconds, or seconds."""
        return sum(float(line.split()[0 if cpu else 1]) for line in self.path.read_text().splitlines())


def scale(_: Path) -> None:
    """Plans for up to 4,096 GPUs against one for up to 32: a like demand, and one of the larger cluster's size."""
    timed_plan(_scaled(32, 20, 8), 0)  # compiled kernels
    for trials in (64, 256):
        small, num_small, least = _timed_cpu(_scaled(32, 20, trials))
        for demand in (20, 2560):
            took, num, cost = _timed_cpu(_scaled(4096, demand, trials))
            print(
                f"| {trials} trials, {demand} req/s | {num} evaluated | {took / small:.2f} times the CPU of 32 GPUs, "
                f"{small:.1f} s for {num_small} | ${cost:,.2f}/h; 32 GPUs for 20 req/s: ${least:,.2f}/h |",
                flush=True,
            )


def _scaled(most: int, demand_req_s: float, trials: int) -> dict[str, Any]:
    traffic = {"rate_req_s": demand_req_s, "lengths": CHAT}
    return PROBLEMS["Qwen3-32B"] | {"search": {"max_gpus": most, "trials": trials}, "traffic": traffic}


def _timed_cpu(given: Mapping[str, Any]) -> tuple[float, int, float]:
    """CPU seconds, evaluations and cost of what a plan in this process recommends."""
    cpu_s = _cpu_s()
    _, found = timed_plan(given, 0)
    assert found.recommended is not None
    return _cpu_s() - cpu_s, len(found.table), found.tariff.usd_per_h(Strategy.parse(found.recommended.strategy))


def main() -> None:
    """Run the parts named, in that order."""
    arguments = sys.argv[1:]
    cache = Path(arguments.pop(arguments.index("--cache") + 1)) if "--cache" in arguments else CACHE
    parts: dict[str, Callable[[Path], None]] = {
        "quality": quality,
        "plan": plans,
        "workers": workers,
        "overhead": overhead,
        "scale": scale,
        "truth": truths,
        "exact": exact,
        "classes": classes,
        "explored": explored,
    }
    for name in (argument for argument in arguments if not argument.startswith("--")):
        parts[name](cache)


if __name__ == "__main__":
    main()
