"""Seconds that an engine's hand-over takes beside the transfer: fitted on runs of two pools, in `hand_over.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

HAND_OVER_PATH = Path(str(files("estimator.catalogue").joinpath("hand_over.json")))


@lru_cache(maxsize=1)
def _seconds() -> dict[str, float]:
    seconds: dict[str, float] = json.loads(HAND_OVER_PATH.read_text(encoding="utf-8"))["hand_over_s"]
    return seconds


def hand_over_s(engine: str) -> float:
    """Router, second front end and KV connector of `engine`; the mean of those fitted for another."""
    seconds = _seconds()
    return seconds.get(engine, sum(seconds.values()) / len(seconds))
