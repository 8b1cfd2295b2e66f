"""What a run leaves behind: a folder whose files are each whole or absent.

| file | holds |
|---|---|
| `spec.yaml` | the question, frozen, every default written out |
| `study.journal` | every finished evaluation, one line each, as it arrived; what a resumed run goes on from |
| `evaluations.parquet` | the same as a table, with costs |
| `front.csv` | the Pareto front by rising cost |
| `hypervolume.csv` | area dominated against evaluations and time |
| `manifest.json` | versions, seed, command, sampler, status |
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from ruamel.yaml import YAML

from estimator.errors import BestServeError
from search.edge import writing

if TYPE_CHECKING:
    from search.spec import Spec

PACKAGES = ("bestserve", "optuna", "ray", "numpy", "numba", "scipy", "pandas", "pyarrow")
OPENING_FILES = ("spec.yaml", "prices.toml", "manifest.json", "run.lock", "study.journal", "study.journal.flock")


class RunFolder:
    """One run's folder. Files appear by rename, so a kill leaves the old file or the new one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: TextIOWrapper | None = None
        self._is_new = False  # this driver has begun the run
        self._has_made_folder = False

    @classmethod
    def open(cls, path: Path, spec_text: str, *, resume: bool) -> RunFolder:
        """A new folder for the frozen spec, or with `resume` an interrupted run of the same one; held until it ends.

        Raises `BestServeError` if the folder holds a run that is not to be resumed, none that could be, or another's,
        or if a driver is at work in it.
        """
        folder = cls(path)
        if resume:
            folder._check_same(spec_text)
            folder._hold()
            return folder
        if folder.is_taken:
            raise BestServeError("out", str(path), "already holds a run", "--resume to go on with it, or another --out")
        with writing(path, field="out"):
            folder._has_made_folder = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            folder._hold()
            folder._is_new = True
            folder.write("spec.yaml", spec_text.encode())
        return folder

    @contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """Wrong input that shows before anything is evaluated takes what a new run has written with it."""
        try:
            yield
        except BestServeError:
            if self._is_new and not (self.path / "hypervolume.csv").exists():
                for name in OPENING_FILES:
                    (self.path / name).unlink(missing_ok=True)
                if self._has_made_folder:
                    self.path.rmdir()
            raise

    def _hold(self) -> None:
        """Keep other drivers out; the kernel lets them in when this process ends, however it ends."""
        self._lock = (self.path / "run.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BestServeError(
                "out", str(self.path), "is in use by another driver", "another --out, or --storage to share one study"
            ) from None

    @property
    def is_taken(self) -> bool:
        """Whether the folder holds a run; one kept in a shared storage has no journal here."""
        return self.journal.exists() or (self.path / "spec.yaml").exists()

    @property
    def journal(self) -> Path:
        """Finished evaluations, appended as they come."""
        return self.path / "study.journal"

    def write(self, name: str, content: bytes) -> None:
        """The whole file at once: written beside, flushed to disk, renamed."""
        beside = self.path / f".{name}.part"
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path / name)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """A table as Parquet or CSV, by the name's ending."""
        buffer = io.BytesIO()
        if name.endswith(".parquet"):
            table.to_parquet(buffer, index=False)
        else:
            table.to_csv(buffer, index=False)
        self.write(name, buffer.getvalue())

    def write_manifest(self, entries: Mapping[str, Any]) -> None:
        """Versions and whatever tells how the run was made."""
        manifest = {"versions": versions(), **entries}
        self.write("manifest.json", json.dumps(manifest, indent=2, default=str).encode())

    def _check_same(self, text: str) -> None:
        frozen = self.path / "spec.yaml"
        if not frozen.exists():
            raise BestServeError("out", str(self.path), "holds no run to resume", "the folder of an interrupted run")
        if frozen.read_text() != text:
            rule = f"differs from the spec given{_difference(frozen.read_text(), text)}"
            raise BestServeError("spec", str(frozen), rule, "the spec as it was frozen there, or --out for a new run")


def _difference(frozen: str, given: str) -> str:
    """The first field that differs between two frozen specs, with both values; nothing where only the text does."""
    old, new = (dict(_flat(YAML(typ="safe", pure=True).load(text))) for text in (frozen, given))
    for path in dict.fromkeys((*old, *new)):
        if old.get(path) != new.get(path):
            return f" in {path}: {old.get(path)} there, {new.get(path)} now"
    return ""


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of nested mappings."""
    if not isinstance(value, dict):
        yield path, value
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{path}.{name}" if path else str(name))


def versions() -> dict[str, str]:
    """Versions of Python and of what decides the result."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def free_path(parent: Path, name: str) -> Path:
    """`parent/name`, or with the first of -2, -3, … that holds no run yet."""
    path, number = parent / name, 1
    while RunFolder(path).is_taken:
        number += 1
        path = parent / f"{name}-{number}"
    return path


def latest_path(parent: Path, name: str) -> Path:
    """The last of `parent/name`, `name-2`, … that holds a run; raises `BestServeError` if none does."""
    path, number = None, 1
    candidate = parent / name
    while RunFolder(candidate).is_taken:
        path, number = candidate, number + 1
        candidate = parent / f"{name}-{number}"
    if path is None:
        raise BestServeError("resume", str(parent / name), "holds no run to resume", "a run without --resume first")
    return path


def frozen_text(spec: Spec) -> str:
    """The spec as YAML, every default written out: what a folder freezes and a shared study compares."""
    buffer = io.StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.dump(spec.model_dump(mode="json", exclude_none=True), buffer)
    return buffer.getvalue()
