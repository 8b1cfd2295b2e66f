"""The local and the Ray executor under one contract, and Ray's own troubles."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from search.evaluate import Evaluation
from search.executor import EagerExecutor, Executor, LocalExecutor, RayExecutor
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import made_up, small_problem

FLAG = "BESTSERVE_TEST_FLAG"


def troubled(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """Raises for one strategy, kills its worker once for another, hangs once for a third."""
    text = str(strategy)
    flag = Path(os.environ[FLAG])
    if text.startswith("3m-tp1@l40s,tokens=2048,seqs=64"):
        raise ZeroDivisionError("poison")
    if text.startswith("2m-tp1@l40s,tokens=2048,seqs=64") and not (flag / "killed").exists():
        (flag / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if text.startswith("1m-tp1@l40s,tokens=2048,seqs=64") and not (flag / "hung").exists():
        (flag / "hung").touch()
        time.sleep(120)
    return made_up(problem, strategy, seed)


def halved(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """What exploring finds here: half the goodput."""
    exact = made_up(problem, strategy, seed)
    return replace(exact, goodput_req_s=exact.goodput_req_s / 2)


def slowly(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """Slow enough that Ray starts in the middle of the work."""
    time.sleep(0.02)
    return made_up(problem, strategy, seed)


@pytest.fixture(
    params=[
        "local",
        "threads",
        pytest.param("ray", marks=pytest.mark.ray),
        pytest.param("eager", marks=pytest.mark.ray),
    ]
)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Each executor in turn, on made-up evaluations."""
    problem = small_problem()
    if request.param in ("local", "threads"):
        threads = 3 if request.param == "threads" else 1
        started: Executor = LocalExecutor(problem, seed=0, evaluate=made_up, explore=halved, threads=threads)
    elif request.param == "ray":
        started = RayExecutor(problem, seed=0, evaluate=made_up, explore=halved, workers=2)
    else:
        here = LocalExecutor(problem, seed=0, evaluate=slowly, explore=halved, threads=2)
        started = EagerExecutor(here, lambda: RayExecutor(problem, seed=0, evaluate=slowly, explore=halved, workers=2))
    yield started
    started.close()


def test_contract(executor: Executor) -> None:
    """Every strategy comes back once, equal to its evaluation here; in order or explored if asked; none for none."""
    problem = small_problem()
    strategies = list(Space(problem))
    expected = {str(strategy): made_up(problem, strategy, 0) for strategy in strategies}
    found = list(executor.run(strategies))
    assert len(found) == len(strategies)
    assert {e.strategy: repr(e) for e in found} == {text: repr(e) for text, e in expected.items()}
    ordered = list(executor.run(strategies[::-1], in_order=True))
    assert [e.strategy for e in ordered] == [str(strategy) for strategy in strategies[::-1]]
    assert list(executor.run([])) == []
    explored = list(executor.run(strategies, in_order=True, exploring=True))
    assert [e.goodput_req_s for e in explored] == [expected[str(s)].goodput_req_s / 2 for s in strategies]


def test_threads_find_what_one_thread_finds() -> None:
    """Simulated goodputs of strategies that share instances are the same bytes in three threads as in one."""
    problem = small_problem()
    strategies = list(Space(problem))[::40]
    one, three = (LocalExecutor(problem, seed=0, threads=threads) for threads in (1, 3))
    found = [list(executor.run(strategies, exploring=True)) for executor in (one, three)]
    three.close()
    assert len(found[0]) > 5
    assert [repr(e) for e in found[0]] == [repr(e) for e in found[1]]


@pytest.mark.ray
def test_ray_survives_poison_a_killed_worker_and_a_hung_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One strategy raises, one kills its worker, one hangs past the deadline: all come back, one failed."""
    monkeypatch.setenv(FLAG, str(tmp_path))
    problem = small_problem(architectures=("collocated",))
    strategies = list(Space(problem))
    executor = RayExecutor(problem, seed=0, evaluate=troubled, workers=2, deadline_s=15.0)
    try:
        found = list(executor.run(strategies, in_order=True))
    finally:
        executor.close()
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "hung").exists()
    assert [e.strategy for e in found] == [str(strategy) for strategy in strategies]
    broken = {e.strategy: e.reason for e in found if e.status == "failed"}
    assert list(broken) == ["3m-tp1@l40s,tokens=2048,seqs=64"]
    assert "ZeroDivisionError: poison" in broken["3m-tp1@l40s,tokens=2048,seqs=64"]


def test_a_short_study_never_starts_ray() -> None:
    """Until the patience is spent all work is done here."""
    problem = small_problem()

    def never() -> RayExecutor:
        raise AssertionError("Ray was started")

    executor = EagerExecutor(LocalExecutor(problem, seed=0, evaluate=made_up), never, planned=1000)
    assert len(list(executor.run(list(Space(problem))))) == Space(problem).size
    executor.close()


@pytest.mark.filterwarnings("ignore:Ray did not start")
@pytest.mark.parametrize(("planned", "starts"), [(300, 0), (100_000, 1)])
def test_ray_is_started_where_the_work_left_repays_it(planned: int, starts: int) -> None:
    """At 1 ms an evaluation 300 are done before Ray runs; 100,000 are not, and it is started once."""
    problem = small_problem()
    started: list[int] = []

    def start() -> RayExecutor:
        started.append(1)
        raise OSError("no Ray in this test")

    def quickly(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        time.sleep(0.002)
        return made_up(problem, strategy, seed)

    here = LocalExecutor(problem, seed=0, evaluate=quickly, threads=2)
    executor = EagerExecutor(here, start, planned=planned)
    assert len(list(executor.run(list(Space(problem))[:60]))) == 60
    executor.close()
    assert len(started) == starts


@pytest.mark.ray
def test_ray_started_beside_work_stays_up() -> None:
    """A second after it has started in the background, every server of Ray still runs, and evaluates."""
    import ray

    problem = small_problem()
    here = LocalExecutor(problem, seed=0, evaluate=slowly)
    executor = EagerExecutor(here, lambda: RayExecutor(problem, seed=0, evaluate=slowly, workers=1))
    strategies = list(Space(problem))
    while not ray.is_initialized() or executor.is_local:
        assert len(list(executor.run(strategies[:20]))) == 20
    time.sleep(1.0)
    servers = [one.process for group in ray._private.worker._global_node.all_processes.values() for one in group]
    assert len(servers) >= 2
    assert all(server.poll() is None for server in servers)
    assert len(list(executor.run(strategies[:20]))) == 20
    executor.close()


@pytest.mark.filterwarnings("always:Ray did not start")
def test_where_ray_cannot_start_the_study_goes_on_here(recwarn: pytest.WarningsRecorder) -> None:
    """A failed start is a warning with its reason; every strategy is evaluated all the same."""
    problem = small_problem()

    def broken() -> RayExecutor:
        raise OSError("no room for Ray. More of it")

    executor = EagerExecutor(LocalExecutor(problem, seed=0, evaluate=made_up), broken)
    assert len(list(executor.run(list(Space(problem))))) == Space(problem).size
    executor.close()
    assert [str(w.message) for w in recwarn] == ["Ray did not start (no room for Ray); this process evaluates alone"]


def ports_open_to_others() -> set[str]:
    """Listening TCP sockets of this process and those it started, as the kernel lists them, not bound to loopback."""
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    ours = sockets_of({os.getpid()} | descendants(os.getpid()))
    return {row[1] for row in rows if row[3] == "0A" and row[1].split(":")[0] not in loopback and row[9] in ours}


def descendants(pid: int) -> set[int]:
    """Processes that this one started, and theirs."""
    found: set[int] = set()
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        children = {int(child) for child in listed.read_text().split()}
        found |= children.union(*(descendants(child) for child in children))
    return found


def sockets_of(pids: set[int]) -> set[str]:
    """Inodes of what these hold open; a process that has just ended holds nothing."""
    inodes: set[str] = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(file).removeprefix("socket:[").removesuffix("]"))
    return inodes


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel lists no sockets here")
def test_ray_keeps_to_itself() -> None:
    """Ray runs without dashboard and usage reports, listening on this machine alone."""
    executor = RayExecutor(small_problem(), seed=0, evaluate=made_up, workers=1)
    try:
        import ray

        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
        assert ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
        assert executor.workers == 1
        assert len(sockets_of(descendants(os.getpid()))) > 10
        assert ports_open_to_others() == set()
    finally:
        executor.close()


FORKING = """
import subprocess, time, warnings
import numpy as np
from search.executor import EagerExecutor, LocalExecutor

def start():
    for _ in range(200):
        subprocess.run(["true"], preexec_fn=lambda: None, check=True)
    raise RuntimeError("done forking")

warnings.simplefilter("ignore")
executor = EagerExecutor(LocalExecutor(None, seed=0), start)
tall = np.random.default_rng(0).normal(size=(200, 60))
until = time.monotonic() + 5
while time.monotonic() < until:
    np.linalg.inv(tall.T @ tall)
executor.close()
"""


def test_products_do_not_hang_while_ray_forks() -> None:
    """OpenBLAS takes its threads down before a fork: a product just begun by another thread must still end."""
    subprocess.run([sys.executable, "-c", FORKING], check=True, timeout=60)
