"""GPU cards: `gpus.toml`, data sheets written down by hand."""

from __future__ import annotations

import tomllib
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from estimator.errors import require
from estimator.hardware import Gpu


@lru_cache(maxsize=1)
def _cards() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("estimator.catalogue").joinpath("gpus.toml").read_text(encoding="utf-8"))


def gpu_names() -> list[str]:
    """Names of the bundled GPUs, sorted."""
    return sorted(_cards())


@cache
def load_gpu(name: str) -> Gpu:
    """The bundled GPU `name`; `BestServeError` for an unknown one."""
    require(name in _cards(), field="gpu", value=name, rule="is not a known GPU", accepted=", ".join(gpu_names()))
    return Gpu(name=name, **_cards()[name])
