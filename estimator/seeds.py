"""One seed for everything; a stream of random numbers per purpose, derived by name."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, name: str) -> np.random.Generator:
    """Generator of the purpose `name` under `seed`: the same pair always gives the same numbers."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
