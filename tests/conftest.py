"""Shared fixtures: settings of Ray and numba made before either is imported, and the optional shared folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from search.kernel_cache import keep_kernels

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9/")

keep_kernels()
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of measurements, models and traces beside the checkout; tests that need it skip without it."""
    if not (SHARED / "measured").is_dir():
        pytest.skip("../shared is absent: nothing to compare with")
    return SHARED
