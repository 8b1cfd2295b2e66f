"""What may go wrong under a study: the driver killed, the disk full, a node lost. Nothing is lost or counted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from search.evaluate import Evaluation
from search.executor import RayExecutor
from search.journal import Journal
from search.run import RunFolder
from search.study import Progress, Settings, Study
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import made_up, made_up_screen, small_problem, tariff
from tests.test_study import front, make_study

ROOT = Path(__file__).parent.parent
SETTINGS = Settings(trials=200, sampler="tpe", demand_req_s=10.0, screen=False)
DRIVER = """
import resource, sys, time
from pathlib import Path
from search.journal import Journal
from tests.halting import halt_after
from tests.small_problem import made_up, small_problem
from tests.test_faults import SETTINGS
from tests.test_study import make_study

def told(problem, strategy, seed):
    time.sleep(0.005)
    with open(sys.argv[2], "a") as file:
        file.write(f"{strategy}\\n")
    return made_up(problem, strategy, seed)

if room := int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
if halt := int(sys.argv[4]):
    halt_after(halt)
make_study(small_problem(), SETTINGS, Journal(Path(sys.argv[1]), "faults"), told).run()
"""


def drive(folder: Path, *, room_bytes: int = 0, halt: int = 0) -> subprocess.Popen[str]:
    """A study in a process of its own; what it evaluates is written down beside its journal.

    `room_bytes`: what a file may hold; `halt`: evaluations after which it waits to be killed; 0: no end, never.
    """
    files = [str(folder / "study.journal"), str(folder / "calls.txt")]
    command = [sys.executable, "-c", DRIVER, *files, str(room_bytes), str(halt)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def num_lines(path: Path) -> int:
    """Lines of a file that may not exist yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check_same_as_undisturbed(folder: Path, most_repeated: int) -> None:
    """The journal holds each evaluation of an undisturbed study once; at most so many were evaluated twice."""
    alone = make_study(small_problem(), SETTINGS).run().evaluations
    found = Journal(folder / "study.journal", "faults").read()
    assert {text: repr(e) for text, e in found.items()} == {e.strategy: repr(e) for e in alone}
    assert front(list(found.values())) == front(alone)
    calls = Counter((folder / "calls.txt").read_text().splitlines())
    assert set(calls) == set(found)
    assert sum(calls.values()) - len(calls) <= most_repeated


@pytest.mark.slow
def test_a_driver_killed_at_ten_random_points_ends_with_the_same_front(tmp_path: Path) -> None:
    """Ten times SIGKILL after a random number of evaluations, resumed each time: one evaluation a kill is repeated."""
    rng = random.Random(5)
    for kill in range(10):
        driver = drive(tmp_path, halt=12)
        goal = num_lines(tmp_path / "calls.txt") + rng.randint(1, 8)
        while num_lines(tmp_path / "calls.txt") < goal:
            assert driver.poll() is None, f"the study ended before kill {kill}"
            time.sleep(0.001)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert drive(tmp_path).wait() == 0
    check_same_as_undisturbed(tmp_path, most_repeated=10)


def test_a_full_disk_stops_the_study_in_one_sentence_and_it_resumes(tmp_path: Path) -> None:
    """When the journal may not grow any more the study stops, keeps what it has, and ends the same with room again."""
    driver = drive(tmp_path, room_bytes=60_000)
    said = driver.communicate()[1]
    assert driver.returncode != 0
    assert "study.journal' cannot be written (File too large); accepted: free space, then --resume" in said
    kept = len(Journal(tmp_path / "study.journal", "faults").read())
    assert 5 < kept < len(make_study(small_problem(), SETTINGS).run().evaluations)
    assert drive(tmp_path).wait() == 0
    check_same_as_undisturbed(tmp_path, most_repeated=1)


def test_two_drivers_do_not_share_a_folder(tmp_path: Path) -> None:
    """While a driver holds a run's folder another is refused; when it is gone the folder is free."""
    held = RunFolder.open(tmp_path / "run", "name: x", resume=False)
    script = "import sys; from pathlib import Path; from search.run import RunFolder\n"
    script += "RunFolder.open(Path(sys.argv[1]), 'name: x', resume=True)"
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "is in use by another driver" in refused.stderr
    del held
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def unhurried(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """Long enough that a node dies with work in flight."""
    time.sleep(0.3)
    return made_up(problem, strategy, seed)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_lost_in_mid_run_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three Ray nodes on this machine, one killed after the first generation: the study's evaluations are the same."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # nodes that start before and after the driver joins agree on it
    from ray.cluster_utils import Cluster

    problem = small_problem()
    space = Space(problem)
    settings = Settings(trials=60, sampler="random", screen=False)
    alone = make_study(problem, settings).run().evaluations
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    executor = RayExecutor(problem, seed=0, evaluate=unhurried, address=cluster.address)
    try:
        assert executor.workers == 1
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        doomed = [nodes[0].all_processes["raylet"][0].process.pid]

        def lose_a_node(_: Progress) -> None:
            if doomed:
                os.kill(doomed.pop(), signal.SIGKILL)

        study = Study(space, executor, tariff(), settings, screen=made_up_screen(space), on_progress=lose_a_node)
        found = study.run().evaluations
    finally:
        executor.close()
        cluster.shutdown()
    assert not doomed
    assert executor.workers in (2, 3)  # nodes that join later are used; the lost one may not be noticed yet
    assert [repr(e) for e in found] == [repr(e) for e in alone]
