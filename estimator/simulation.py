"""What a simulated run leaves: the times of every request, exact time integrals, the histogram of token gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FINISHED, REJECTED = 0, 1  # REJECTED: the request can never fit the instance
ITL_EDGES_S = np.concatenate(([0.0], np.geomspace(1e-4, 100.0, 241), [np.inf]))  # 40 bins per decade, 0.1 ms to 100 s


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolIntegrals:
    """Exact over the run, summed over the pool's instances: seconds busy, and ∫ count dt in count·seconds."""

    num_instances: int
    duration_s: float
    busy_s: float
    running_seq_s: float
    waiting_seq_s: float
    kv_block_s: float
    num_steps: int
    num_preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """Arrays of shape (num_requests,); NaN where an event never happened.

    `kv_arrival_s` is NaN in collocated runs. `prefill`/`decode` integrals; a collocated run has only `decode`, its one
    pool. `itl_weight` (len(ITL_EDGES_S) − 1,): number of token gaps per bin.
    """

    arrival_s: NDArray[np.float64]
    prefill_start_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    kv_arrival_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    output_tokens: NDArray[np.int64]
    status: NDArray[np.int8]
    itl_weight: NDArray[np.float64]
    decode: PoolIntegrals
    prefill: PoolIntegrals | None = None

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Arrival to first token, (num_requests,) s."""
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """Arrival to last token, (num_requests,) s."""
        return self.finish_s - self.arrival_s

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Mean gap after the first token, (num_requests,) s; NaN at one output token."""
        gaps = np.where(self.output_tokens > 1, self.output_tokens - 1, np.nan)
        return np.asarray((self.finish_s - self.first_token_s) / gaps, dtype=np.float64)
