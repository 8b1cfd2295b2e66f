"""The requests of one run, as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.errors import require


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Arrays of shape (num_requests,), in order of arrival.

    `arrival_s` float64, never decreasing; `input_tokens` int64 ≥ 1; `output_tokens` int64 ≥ 1; `cached_tokens` int64,
    prompt tokens already in the prefix cache, 0 ≤ cached < input (the last token is always computed). In a closed loop
    arrival times are ignored and rewritten by the run.
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        num = len(self.arrival_s)
        for name in ("input_tokens", "output_tokens", "cached_tokens"):
            size = len(getattr(self, name))
            require(
                size == num, field=name, value=size, rule="must have one entry per request", accepted=f"{num} entries"
            )
        if num == 0:
            return
        self._check_values()

    def _check_values(self) -> None:
        arrival = self.arrival_s
        require(
            bool(np.all(np.isfinite(arrival))),
            field="arrival_s",
            value="a NaN or infinity",
            rule="must be finite",
            accepted="seconds",
        )
        require(
            bool(np.all(np.diff(arrival) >= 0)),
            field="arrival_s",
            value="decreasing times",
            rule="must never decrease",
            accepted="times sorted by arrival",
        )
        for name in ("input_tokens", "output_tokens"):
            low = int(getattr(self, name).min())
            require(low >= 1, field=name, value=low, rule="must be at least 1", accepted="whole numbers ≥ 1")
        cached_ok = (self.cached_tokens >= 0) & (self.cached_tokens < self.input_tokens)
        require(
            bool(np.all(cached_ok)),
            field="cached_tokens",
            value="outside the prompt",
            rule="must be at least 0 and below input_tokens",
            accepted="0 ≤ cached < input",
        )

    def __len__(self) -> int:
        return len(self.arrival_s)
