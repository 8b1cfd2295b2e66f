"""One study in PostgreSQL for a team: several drivers walk it together and none evaluates what another does.

Drivers of one seed propose the same generations, so they only have to share the work. A driver *claims* a strategy with
an advisory lock of its own connection, which the server frees when the driver dies; finished evaluations are Optuna
trials, written whole (one commit each: 1/20 of what parameter by parameter costs), which optuna-dashboard shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import optuna

from estimator.errors import BestServeError
from search.evaluate import Evaluation
from search.trials import DIRECTIONS, finished_trial, quietly
from spaces.space import Space
from spaces.strategy import Strategy

FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
MAKING = 0x62657374  # key of the lock under which tables and studies are made
CLAIMS = 8  # strategies claimed at a time: enough for a worker's chunk, few enough to share a generation


class SharedStudy:
    """Finished evaluations of one study, and who is at work on which strategy. `question`: the frozen spec as text.

    Raises `BestServeError` if the server cannot be reached, or the study there asks another question.
    """

    def __init__(self, url: str, name: str, question: str) -> None:
        self._name = name
        self._study, self._locks = _connected(url, name, question)
        if self._study.user_attrs["question"] != question:
            raise BestServeError("spec", name, "differs from the study of that name in the storage", "another name")
        self._num_seen = 0
        self._arrived: dict[str, Evaluation] = {}
        self._finished: set[str] = set()

    def read(self) -> dict[str, Evaluation]:
        """Evaluations by key; broken ones are left out, so that a resumed run tries them again."""
        self._look()
        sound = {key: found for key, found in self.arrived().items() if found.status != "failed"}
        self._finished = set(sound)
        return sound

    def arrived(self) -> dict[str, Evaluation]:
        """What was finished, here or elsewhere, since the last time."""
        arrived, self._arrived = self._arrived, {}
        return arrived

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Of these evaluations the next few that are nobody else's; they are this driver's until appended."""
        locked: list[str] = []
        for key in keys:
            if len(locked) == CLAIMS:
                break
            if self._execute("SELECT pg_try_advisory_lock(%s)", self._number(key)):
                locked.append(key)
        self._look()  # a lock may have come free because its evaluation was finished
        for key in locked:
            if key in self._finished:
                self._release(key)
        return [key for key in locked if key not in self._finished]

    def _look(self) -> None:
        trials = self._study.get_trials(deepcopy=False)
        fresh, self._num_seen = trials[self._num_seen :], len(trials)
        found = [Evaluation.from_dict(trial.user_attrs["evaluation"]) for trial in fresh]
        self._arrived |= {evaluation.key: evaluation for evaluation in found}
        self._finished |= {evaluation.key for evaluation in found}

    def _release(self, key: str) -> None:
        self._execute("SELECT pg_advisory_unlock(%s)", self._number(key))

    def append(self, space: Space, strategy: Strategy, evaluation: Evaluation, usd_per_h: float) -> None:
        """One finished evaluation, committed when this returns, and the claim given up.

        A driver that died after sending its answer may have freed the claim before the server kept the answer: then
        the strategy was evaluated again, and is recorded once.
        """
        self._look()
        if evaluation.key not in self._finished:
            attributes = {"evaluation": evaluation.as_dict()}
            self._study.add_trial(finished_trial(space, strategy, evaluation, usd_per_h, attributes))
        self._release(evaluation.key)

    def close(self) -> None:
        """Give up every claim."""
        self._locks.close()

    def _number(self, key: str) -> int:
        digest = hashlib.sha256(f"{self._name}\n{key}".encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    def _execute(self, statement: str, number: int) -> bool:
        row = self._locks.execute(statement, (number,)).fetchone()
        return bool(row and row[0])


def _connected(url: str, name: str, question: str) -> tuple[optuna.Study, Any]:
    """The Optuna study, and a connection for claims. One driver at a time, because Optuna's making of tables races."""
    try:
        import psycopg
        import sqlalchemy
    except ImportError as error:
        raise BestServeError("storage", error.name, "is not installed", "pip install 'bestserve[postgres]'") from None
    if not url.startswith("postgresql://"):
        raise BestServeError("storage", url.split("@")[-1], "is not a PostgreSQL address", FORM)
    try:
        locks = psycopg.connect(url, autocommit=True)
        locks.execute("SELECT pg_advisory_lock(%s)", (MAKING,))
        storage = optuna.storages.RDBStorage(url.replace("postgresql://", "postgresql+psycopg://", 1))
        study = quietly(
            lambda: optuna.create_study(
                storage=storage, study_name=name, directions=list(DIRECTIONS), load_if_exists=True
            )
        )
        if "question" not in study.user_attrs:
            study.set_user_attr("question", question)
        locks.execute("SELECT pg_advisory_unlock(%s)", (MAKING,))
        return study, locks
    except (sqlalchemy.exc.OperationalError, psycopg.OperationalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise BestServeError("storage", url.split("@")[-1], f"cannot be reached ({reason})", FORM) from None
