"""A space of over 100,000 strategies gone through whole, killed at random points and resumed.

    python -m tests.bench.bench_sweep law     goodput by a law in place of simulation: nothing ruled out, then the bound
    python -m tests.bench.bench_sweep real    simulated, but for what the bound rules out

Each sweep runs undisturbed, then again with three `kill -9` at random sizes of its journal: both must leave the same
front, byte for byte. By the law that front is compared with brute force. The simulated sweep that is killed takes its
goodputs from the undisturbed one. Times depend on the machine and its load.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from search.evaluate import Evaluate, Evaluation, evaluate
from search.executor import LocalExecutor
from search.journal import Journal
from search.pareto import non_dominated
from search.screen import Screen
from search.study import Settings, Study
from search.tariff import Tariff, tariff_of
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy
from tests.bench.bench_search import PROBLEMS, spec_of

MAX_GPUS = 40  # 120,735 strategies
NUM_KILLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One space gone through whole; `screens`: but for what the bound rules out."""

    problem: Problem
    tariff: Tariff
    judge: Evaluate
    screens: bool

    def run(self, folder: Path) -> None:
        """Goes on from the folder's journal and leaves the front and what it took."""
        started_s, space = time.perf_counter(), Space(self.problem)
        settings = Settings(sampler="exhaustive", screen=self.screens)
        executor = LocalExecutor(self.problem, seed=0, evaluate=self.judge)
        journal = Journal(folder / "journal", "sweep")
        found = Study(space, executor, self.tariff, settings, journal).run()
        (folder / "front.json").write_bytes(front_bytes(found.evaluations, self.tariff))
        taken: dict[str, float] = {
            "size": space.size,
            "evaluated": len(found.evaluations),
            "ruled_out": found.num_ruled_out,
        }
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        taken |= {"seconds": time.perf_counter() - started_s, "cpu_s": time.process_time(), "gb": memory}
        (folder / "taken.json").write_text(json.dumps(taken))

    def spawned(self, folder: Path, kill_at_bytes: float = float("inf")) -> None:
        """`run` in a process of its own, killed once the journal is that large."""
        child = multiprocessing.get_context("fork").Process(target=self.run, args=(folder,))
        child.start()
        journal = folder / "journal"
        while child.is_alive():
            if journal.exists() and journal.stat().st_size >= kill_at_bytes:
                os.kill(child.pid or 0, signal.SIGKILL)
            child.join(0.02)


def front_bytes(evaluations: tuple[Evaluation, ...], tariff: Tariff) -> bytes:
    """The front by rising cost, every field of its members."""
    evaluations = tuple(evaluation for evaluation in evaluations if evaluation.is_ok)
    costs = [tariff.usd_per_h(Strategy.parse(evaluation.strategy)) for evaluation in evaluations]
    front = non_dominated([evaluation.goodput_req_s for evaluation in evaluations], costs)
    return json.dumps([evaluations[i].as_dict() | {"usd_per_h": costs[i]} for i in front]).encode()


def swept(name: str, sweep: Sweep, again: Evaluate | None = None) -> bytes:
    """The front of an undisturbed sweep, after one that was killed has left the same."""
    with tempfile.TemporaryDirectory() as left, tempfile.TemporaryDirectory() as right:
        whole, killed = Path(left), Path(right)
        sweep.spawned(whole)
        taken, size = json.loads((whole / "taken.json").read_text()), (whole / "journal").stat().st_size
        front = (whole / "front.json").read_bytes()
        taken |= {"journal_mb": size / 1e6, "front": len(json.loads(front))}
        print(f"| {name} | {', '.join(f'{key} {value:,.6g}' for key, value in taken.items())} |", flush=True)
        disturbed = replace(sweep, judge=again or replayed(whole / "journal"))
        draws = random.Random(name)
        at = sorted(draws.random() for _ in range(NUM_KILLS))
        for share in at:
            disturbed.spawned(killed, share * size)
        disturbed.spawned(killed)
        same = (killed / "front.json").read_bytes() == front
        places = ", ".join(f"{share:.0%}" for share in at)
        print(f"| … killed at {places} of the journal | the same front byte for byte: {same} |", flush=True)
        return front


def replayed(journal: Path) -> Evaluate:
    """Goodputs of a finished sweep, simulated where it has none."""
    known = {evaluation.strategy: evaluation for evaluation in Journal(journal, "sweep").read().values()}
    return lambda problem, strategy, seed: known.get(str(strategy)) or evaluate(problem, strategy, seed)


def law_of(screen: Screen) -> Evaluate:
    """Goodput as the bound less a share that the written form fixes."""

    def judged(_: Problem, strategy: Strategy, __: int) -> Evaluation:
        text = str(strategy)
        bound = float(screen.rows([strategy]).bound_req_s[0])
        goodput = bound * (0.7 + 0.3 * zlib.crc32(text.encode()) / 2**32)
        return Evaluation(strategy=text, status="ok" if goodput > 0 else "unstable", goodput_req_s=goodput)

    return judged


def question() -> tuple[Problem, Tariff]:
    """The problem and its prices."""
    given = PROBLEMS["Qwen3-32B"] | {"search": {"max_gpus": MAX_GPUS}}
    spec = spec_of("sweep", given)
    return spec.problem(), tariff_of(spec)


def law() -> None:
    """Both sweeps by the law, and brute force."""
    problem, tariff = question()
    judge = law_of(Screen(Space(problem), tariff))
    fronts = {
        swept(name, Sweep(problem=problem, tariff=tariff, judge=judge, screens=screens), judge)
        for name, screens in (("a law, nothing ruled out", False), ("a law, the bound rules out", True))
    }
    brute = front_bytes(tuple(judge(problem, strategy, 0) for strategy in Space(problem)), tariff)
    print(f"| … both fronts are brute force's: {points(fronts) == points({brute})} |")


def points(fronts: set[bytes]) -> set[tuple[tuple[float, float], ...]]:
    """Goodput and cost of each different front."""
    return {tuple((e["goodput_req_s"], e["usd_per_h"]) for e in json.loads(front)) for front in fronts}


def real() -> None:
    """The simulated sweep."""
    problem, tariff = question()
    swept("simulated, the bound rules out", Sweep(problem=problem, tariff=tariff, judge=evaluate, screens=True))


def main() -> None:
    """Run the parts named, in that order."""
    parts: Mapping[str, Callable[[], None]] = {"law": law, "real": real}
    for name in sys.argv[1:]:
        parts[name]()


if __name__ == "__main__":
    main()
