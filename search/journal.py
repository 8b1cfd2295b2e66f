"""The journal of a run: finished evaluations, one atomic line each, as an Optuna study on disk.

Optuna's own file lock stalls 30 s after a kill and a torn last line makes its file unreadable (both measured with
Optuna 5.0), hence `FlockLock` and `drop_torn_tail`.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from estimator.errors import BestServeError
from search.evaluate import Evaluation
from search.trials import DIRECTIONS, finished_trial, quietly
from spaces.space import Space
from spaces.strategy import Strategy


class FlockLock:
    """Journal lock that the kernel releases when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._file = path.with_suffix(path.suffix + ".flock").open("w")

    def acquire(self) -> bool:
        """Wait for the lock."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Let others in."""
        fcntl.flock(self._file, fcntl.LOCK_UN)


def drop_torn_tail(path: Path) -> int:
    """Cut what follows the journal's last newline, left by a kill or a full disk; returns the bytes dropped."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    keep = content.rfind(b"\n") + 1
    if keep < len(content):
        with path.open("r+b") as file:
            file.truncate(keep)
    return len(content) - keep


class Storage(Protocol):
    """Where finished evaluations are kept, by one driver or by several."""

    def read(self) -> dict[str, Evaluation]:
        """Evaluations by key, the broken ones left out."""
        ...

    def arrived(self) -> dict[str, Evaluation]:
        """What other drivers finished since the last look."""
        ...

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Of these evaluations some that no other driver is at work on; none if all are taken."""
        ...

    def append(self, space: Space, strategy: Strategy, evaluation: Evaluation, usd_per_h: float) -> None:
        """Keep one finished evaluation for good."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class Journal:
    """Finished evaluations of one run, on disk as an Optuna study that optuna-dashboard can open."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        drop_torn_tail(path)
        self._study = quietly(
            lambda: optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path), lock_obj=FlockLock(path))),  # type: ignore[arg-type]
                study_name=name,
                directions=list(DIRECTIONS),
                load_if_exists=True,
            )
        )

    def read(self) -> dict[str, Evaluation]:
        """Evaluations by key; broken ones are left out, so that a resumed run tries them again."""
        found = {}
        for trial in self._study.get_trials(deepcopy=False):
            evaluation = Evaluation.from_dict(trial.user_attrs["evaluation"])
            if evaluation.status != "failed":
                found[evaluation.key] = evaluation
        return found

    def arrived(self) -> dict[str, Evaluation]:
        """Nothing: a journal has one driver, which knows what it appended."""
        return {}

    def claim(self, keys: Sequence[str]) -> list[str]:
        """All of them: nobody else is at work."""
        return list(keys)

    def close(self) -> None:
        """Nothing is held."""

    def append(self, space: Space, strategy: Strategy, evaluation: Evaluation, usd_per_h: float) -> None:
        """One line, on disk when this returns; `BestServeError` if the disk refuses it."""
        trial = finished_trial(space, strategy, evaluation, usd_per_h, {"evaluation": evaluation.as_dict()})
        try:
            self._study.add_trial(trial)
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise BestServeError("storage", str(self._path), reason, "free space, then --resume") from error
