"""Shared fixtures: environment of Ray set before it is imported, fresh kernels, and the optional shared folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9/")

KERNELS = Path(__file__).resolve().parent.parent / "estimator" / "kernels"
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Drops compiled kernels older than any kernel source: numba looks only at the file of the outermost function."""
    if hasattr(config, "workerinput"):
        return
    newest = max(source.stat().st_mtime for source in KERNELS.glob("*.py"))
    for compiled in KERNELS.glob("__pycache__/*.nb?"):
        if compiled.stat().st_mtime < newest:
            compiled.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of measurements, models and traces beside the checkout; tests that need it skip without it."""
    if not (SHARED / "measured").is_dir():
        pytest.skip("../shared is absent: nothing to compare with")
    return SHARED
