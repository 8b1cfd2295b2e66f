"""The journal of a run: finished evaluations, one atomic line each, as an Optuna study on disk.

Optuna's own file lock stalls 30 s after a kill and a torn last line makes its file unreadable (both measured with
Optuna 5.0), hence `FlockLock` and `drop_torn_tail`.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from estimator.errors import BestServeError
from search.evaluate import Evaluation
from search.trials import DIRECTIONS, finished_trial, quietly
from spaces.space import Space
from spaces.strategy import Strategy

SYNC_S = 1.0  # between two waits for the disk


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


class Lines(JournalFileBackend):
    """Optuna's file, where a line is the system's when written, and the disk's within `SYNC_S`.

    Optuna waits for the disk at each line (8 ms, longer than many evaluations). Killed processes lose nothing so; a
    machine that loses power loses what it did in the last second, which a resumed run evaluates again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=FlockLock(path))  # type: ignore[arg-type]
        self._path, self._synced_s = path, 0.0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Lines at the end."""
        written = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lock.acquire()
        try:
            with self._path.open("ab") as file:
                file.write(written.encode())
                file.flush()
                if time.monotonic() >= self._synced_s + SYNC_S:
                    os.fsync(file.fileno())
                    self._synced_s = time.monotonic()
        finally:
            self._lock.release()

    def sync(self) -> None:
        """All that was written is the disk's when this returns."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())


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
        self._lines = Lines(path)
        self._study = quietly(
            lambda: optuna.create_study(
                storage=JournalStorage(self._lines),
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
        """Nothing is held; all is on the disk."""
        self._lines.sync()

    def append(self, space: Space, strategy: Strategy, evaluation: Evaluation, usd_per_h: float) -> None:
        """One line, kept when this returns (`Lines`); `BestServeError` if the disk refuses it."""
        trial = finished_trial(space, strategy, evaluation, usd_per_h, {"evaluation": evaluation.as_dict()})
        try:
            self._study.add_trial(trial)
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise BestServeError("storage", str(self._path), reason, "free space, then --resume") from error
