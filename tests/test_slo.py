"""SLOs count arrived requests, and their excess says the same as their attainment."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.errors import BestServeError
from estimator.latency import Percentiles, summarise
from estimator.simulation import FINISHED, ITL_EDGES_S, REJECTED, PoolIntegrals, Simulation
from estimator.slo import Slo, SloTarget


def run_of(ttft_s: list[float], tpot_s: list[float], output_tokens: list[int], status: list[int]) -> Simulation:
    """A run whose requests arrive a second apart with the given latencies."""
    arrival_s = np.arange(len(ttft_s), dtype=np.float64)
    first_token_s = arrival_s + np.array(ttft_s)
    finish_s = first_token_s + np.array(tpot_s) * (np.array(output_tokens) - 1)
    lost = np.array(status) != FINISHED
    return Simulation(
        arrival_s=arrival_s,
        prefill_start_s=arrival_s,
        first_token_s=np.where(lost, np.nan, first_token_s),
        kv_arrival_s=np.full(len(ttft_s), np.nan),
        finish_s=np.where(lost, np.nan, finish_s),
        output_tokens=np.array(output_tokens, dtype=np.int64),
        status=np.array(status, dtype=np.int8),
        itl_weight=np.zeros(len(ITL_EDGES_S) - 1),
        decode=PoolIntegrals(
            num_instances=2,
            duration_s=10.0,
            busy_s=12.0,
            running_seq_s=50.0,
            waiting_seq_s=4.0,
            kv_block_s=600.0,
            num_steps=300,
            num_preemptions=1,
        ),
    )


TTFT_TPOT = (SloTarget(metric="ttft", limit_s=1.0, percentile=50), SloTarget(metric="tpot", limit_s=0.1, percentile=50))


def test_percentile_form_by_hand() -> None:
    """Of TTFTs 0.2, 0.4, 0.9, 3 s the median is 0.4 s; the TPOT median 0.08 s of a 0.1 s limit binds at 0.8."""
    run = run_of([0.2, 0.4, 0.9, 3.0], [0.05, 0.08, 0.2, 0.3], [11, 11, 11, 11], [FINISHED] * 4)
    slo = Slo(targets=TTFT_TPOT)
    assert slo.excesses(run) == pytest.approx({"ttft p50": 0.4, "tpot p50": 0.8})
    assert slo.met_by(run)
    assert slo.binding_target(run) == "tpot p50"


def test_share_form_by_hand() -> None:
    """Request 1 misses TPOT and request 2 TTFT: each metric alone is kept by 3 of 4, both at once by 2 of 4."""
    run = run_of([0.2, 0.4, 1.5, 0.3], [0.05, 0.15, 0.02, 0.03], [11] * 4, [FINISHED] * 4)
    assert Slo(targets=TTFT_TPOT, share=0.75).excess(run) == pytest.approx(1.5)
    assert not Slo(targets=TTFT_TPOT, share=0.75).met_by(run)
    assert Slo(targets=TTFT_TPOT, share=0.5).met_by(run)
    assert Slo(targets=TTFT_TPOT, share=0.5).attainment(run) == pytest.approx(0.5)


def test_lost_requests_are_misses() -> None:
    """A rejected request misses every target: 2 of 4 lost leave the median infinite above 50 %."""
    run = run_of([0.1] * 4, [0.01] * 4, [11] * 4, [FINISHED, REJECTED] * 2)
    assert Slo(targets=TTFT_TPOT).met_by(run)
    stricter = Slo(targets=(SloTarget(metric="ttft", limit_s=1.0, percentile=51),))
    assert stricter.excess(run) == math.inf
    assert stricter.attainment(run) == 0.5


def test_one_token_outputs_have_no_tpot() -> None:
    """TPOT at one output token is left out of its percentile, but a lost one-token request still misses."""
    target = SloTarget(metric="tpot", limit_s=0.1, percentile=50)
    run = run_of([0.1] * 3, [0.0, 0.2, 0.05], [1, 11, 1], [FINISHED, FINISHED, REJECTED])
    assert Slo(targets=(target,)).excess(run) == pytest.approx(2.0)  # of {0.2, ∞} the lower half is 0.2 s
    assert Slo(targets=(target,)).attainment(run) == pytest.approx(1 / 3)


def test_empty_window_is_met() -> None:
    """Where no request arrived none missed."""
    run = run_of([0.1], [0.1], [2], [FINISHED])
    assert Slo(targets=TTFT_TPOT).met_by(run, slice(0, 0))
    assert Slo(targets=TTFT_TPOT).attainment(run, slice(0, 0)) == 1.0


@given(
    values=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=60),
    percentile=st.floats(1.0, 100.0),
    limit_s=st.floats(0.02, 60.0),
)
def test_excess_and_attainment_agree(values: list[float], percentile: float, limit_s: float) -> None:
    """The p-th percentile is within the limit if and only if p % of the requests are."""
    run = run_of(values, [0.0] * len(values), [1] * len(values), [FINISHED] * len(values))
    target = SloTarget(metric="ttft", limit_s=limit_s, percentile=percentile)
    share = float(np.mean(run.ttft_s / limit_s <= 1.0))
    for slo in (Slo(targets=(target,)), Slo(targets=(target,), share=percentile / 100)):
        assert slo.met_by(run) == (share >= percentile / 100 - 1e-9 / len(values))


@given(limit_s=st.floats(0.1, 2.0), factor=st.floats(1.0, 5.0))
def test_looser_limit_never_hurts(limit_s: float, factor: float) -> None:
    """A looser limit has an attainment no lower and an excess no higher."""
    run = run_of([0.2, 0.4, 1.5, 0.3], [0.05, 0.15, 0.02, 0.03], [11] * 4, [FINISHED, FINISHED, FINISHED, REJECTED])
    tight, loose = (Slo(targets=(SloTarget(metric="e2e", limit_s=x),), share=0.6) for x in (limit_s, limit_s * factor))
    assert loose.attainment(run) >= tight.attainment(run)
    assert loose.excess(run) <= tight.excess(run)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SloTarget(metric="ttfft", limit_s=1.0), "slo metric: 'ttfft' is unknown"),  # type: ignore[arg-type]
        (lambda: SloTarget(metric="ttft", limit_s=0.0), "must be positive and finite; accepted: seconds > 0"),
        (lambda: SloTarget(metric="ttft", limit_s=math.nan), "must be positive and finite"),
        (lambda: SloTarget(metric="ttft", limit_s=1.0, percentile=101), r"must lie in \(0, 100\]"),
        (lambda: Slo(targets=()), "slo targets: .* must not be empty"),
        (lambda: Slo(targets=TTFT_TPOT, share=90.0), r"slo share: 90.0 must lie in \(0, 1\]"),
        (lambda: Slo(targets=(TTFT_TPOT[0], TTFT_TPOT[0]), share=0.9), "name one metric twice"),
    ],
)
def test_wrong_targets_are_refused(build: object, message: str) -> None:
    """Each wrong target is refused with the field, the rule and what would be accepted."""
    assert callable(build)
    with pytest.raises(BestServeError, match=message):
        build()


def test_summary_by_hand() -> None:
    """Means, throughput and pool averages of a four-request run, worked out on paper."""
    run = run_of([0.2, 0.4, 0.6, 0.8], [0.1, 0.1, 0.3, 0.1], [11, 11, 11, 1], [FINISHED] * 4)
    summary = summarise(run)
    assert summary.ttft.mean_s == pytest.approx(0.5)
    assert summary.ttft.p50_s == pytest.approx(0.5)
    assert summary.tpot.mean_s == pytest.approx(0.5 / 3)
    assert summary.throughput_req_per_s == pytest.approx(4 / 5.6)  # last finish: 2 + 0.6 + 10 · 0.3 s
    assert summary.throughput_tokens_per_s == pytest.approx(34 / 5.6)
    assert summary.decode.utilisation_frac == pytest.approx(12 / 20)
    assert summary.decode.mean_batch_seqs == pytest.approx(2.5)
    assert summary.decode.mean_kv_blocks == pytest.approx(30.0)
    assert summarise(run, slice(2, None)).ttft.mean_s == pytest.approx(0.7)


def test_itl_histogram_is_right_to_a_bin() -> None:
    """Percentiles read off the histogram differ from the exact ones by less than one bin (6 %)."""
    gaps_s = np.random.default_rng(1).lognormal(-4.0, 0.7, 50_000)
    weight = np.histogram(gaps_s, ITL_EDGES_S)[0].astype(np.float64)
    summary, exact = Percentiles.of_gaps(weight), Percentiles.of(gaps_s)
    for name in ("mean_s", "p50_s", "p90_s", "p99_s"):
        assert getattr(summary, name) == pytest.approx(getattr(exact, name), rel=0.06)
