"""What a run looked like, in a few numbers: latency percentiles, throughput, and how full the pools were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.simulation import FINISHED, ITL_EDGES_S, PoolIntegrals, Simulation
from estimator.slo import WHOLE_RUN, metric_s

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Mean and percentiles of one latency in s, over the requests where it is defined; NaN where there is none."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float

    @classmethod
    def of(cls, values_s: FloatArray) -> Percentiles:
        """Of an array of shape (num,), NaN left out. Percentiles interpolate linearly."""
        defined = values_s[~np.isnan(values_s)]
        if len(defined) == 0:
            return cls(mean_s=np.nan, p50_s=np.nan, p90_s=np.nan, p99_s=np.nan)
        p50, p90, p99 = np.percentile(defined, (50.0, 90.0, 99.0))
        return cls(mean_s=float(defined.mean()), p50_s=float(p50), p90_s=float(p90), p99_s=float(p99))

    @classmethod
    def of_gaps(cls, weight: FloatArray) -> Percentiles:
        """Of the token gaps in the bins of `ITL_EDGES_S`: right to half a bin (±3 % from 0.1 ms to 100 s)."""
        total = float(weight.sum())
        if total == 0:
            return cls(mean_s=np.nan, p50_s=np.nan, p90_s=np.nan, p99_s=np.nan)
        low_s, high_s = np.maximum(ITL_EDGES_S[:-1], 1e-5), np.minimum(ITL_EDGES_S[1:], 1e3)
        middle_s = np.sqrt(low_s * high_s)
        cumulative = np.cumsum(weight) / total
        p50, p90, p99 = (float(middle_s[np.searchsorted(cumulative, level - 1e-12)]) for level in (0.5, 0.9, 0.99))
        return cls(mean_s=float(weight @ middle_s) / total, p50_s=p50, p90_s=p90, p99_s=p99)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """Time averages per instance of one pool, over the whole run."""

    utilisation_frac: float
    mean_batch_seqs: float
    mean_waiting_seqs: float
    mean_kv_blocks: float
    mean_step_s: float
    num_preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Latencies of the finished requests of a window, and the load of the pools over the whole run."""

    num_requests: int
    num_finished: int
    ttft: Percentiles
    tpot: Percentiles
    itl: Percentiles
    e2e: Percentiles
    throughput_req_per_s: float
    throughput_tokens_per_s: float
    decode: PoolSummary
    prefill: PoolSummary | None = None


def steady_window(num_requests: int) -> slice:
    """The requests to judge: all but the first tenth (start from empty) and the last twentieth (the end of the load).

    Those are simulated all the same. A closed loop leaves its start burst out by this window.
    """
    return slice(num_requests // 10, num_requests - num_requests // 20)


def summarise(simulation: Simulation, window: slice = WHOLE_RUN) -> LatencySummary:
    """Latencies of the requests in `window` (in order of arrival); throughput, ITL and pools are of the whole run.

    Throughput counts finished requests and their output tokens from the first arrival to the last finish.
    """
    finished = simulation.status == FINISHED
    span_s = _span_s(simulation, finished)
    num_finished = int(finished[window].sum())
    return LatencySummary(
        num_requests=len(simulation.arrival_s[window]),
        num_finished=num_finished,
        ttft=Percentiles.of(metric_s("ttft", simulation, window)),
        tpot=Percentiles.of(metric_s("tpot", simulation, window)),
        itl=Percentiles.of_gaps(simulation.itl_weight),
        e2e=Percentiles.of(metric_s("e2e", simulation, window)),
        throughput_req_per_s=int(finished.sum()) / span_s if span_s > 0 else 0.0,
        throughput_tokens_per_s=int(simulation.output_tokens[finished].sum()) / span_s if span_s > 0 else 0.0,
        decode=_pool_summary(simulation.decode),
        prefill=None if simulation.prefill is None else _pool_summary(simulation.prefill),
    )


def _span_s(simulation: Simulation, finished: NDArray[np.bool_]) -> float:
    if not finished.any():
        return 0.0
    return float(simulation.finish_s[finished].max() - simulation.arrival_s.min())


def _pool_summary(pool: PoolIntegrals) -> PoolSummary:
    instance_s = max(pool.num_instances * pool.duration_s, 1e-300)
    return PoolSummary(
        utilisation_frac=pool.busy_s / instance_s,
        mean_batch_seqs=pool.running_seq_s / instance_s,
        mean_waiting_seqs=pool.waiting_seq_s / instance_s,
        mean_kv_blocks=pool.kv_block_s / instance_s,
        mean_step_s=pool.busy_s / max(pool.num_steps, 1),
        num_preemptions=pool.num_preemptions,
    )
