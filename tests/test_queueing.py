"""Closed forms against published values, independent arithmetic and recursions on random numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from estimator import queueing
from estimator.errors import BestServeError

FloatArray = NDArray[np.float64]


def lindley_wait_s(gaps_s: FloatArray, service_s: FloatArray) -> FloatArray:
    """Waits of a single server by Lindley 1952: W_{i+1} = max(0, W_i + S_i − A_i), as a running minimum."""
    walk = np.concatenate(([0.0], np.cumsum(service_s[:-1] - gaps_s[1:])))
    return np.asarray(walk - np.minimum.accumulate(walk), dtype=np.float64)


def erlang_c_by_factorials(load: float, num: int) -> float:
    """Erlang's formula as it is printed."""
    top = load**num / math.factorial(num) / (1 - load / num)
    return top / (sum(load**k / math.factorial(k) for k in range(num)) + top)


def test_erlang_c_published() -> None:
    """10 Erlang on 14 servers wait with probability 17.4 %, the textbook call centre (Erlang C tables)."""
    assert queueing.erlang_c(10.0, 14) == pytest.approx(0.174, abs=0.0005)


@given(num=st.integers(1, 60), rho=st.floats(0.01, 0.99))
def test_erlang_c_equals_its_printed_form(num: int, rho: float) -> None:
    """The recursion gives what the factorials give."""
    assert queueing.erlang_c(rho * num, num) == pytest.approx(erlang_c_by_factorials(rho * num, num), rel=1e-9)


def test_single_server_forms_by_hand() -> None:
    """At E[S] = 1 s, λ = 0.8/s: M/M/1 waits 4 s, M/D/1 2 s, M/G/1 of scv 3 waits 8 s; p90 in M/M/1 is 5·ln 10 s."""
    assert queueing.mm1_wait_s(0.8, 1.0) == pytest.approx(4.0)
    assert queueing.md1_wait_s(0.8, 1.0) == pytest.approx(2.0)
    assert queueing.mg1_wait_s(0.8, 1.0, 3.0) == pytest.approx(8.0)
    assert queueing.mm1_sojourn_quantile_s(0.8, 1.0, 0.9) == pytest.approx(5.0 * math.log(10.0))


@pytest.mark.parametrize("scv", [0.0, 0.5, 1.0, 2.0])
def test_pollaczek_khinchine_against_lindley(scv: float) -> None:
    """At ρ = 0.7 the mean of 40 Lindley runs agrees with the law within 4 standard errors, themselves under 2 %."""
    rng = np.random.default_rng(7)
    waits = []
    for _ in range(40):
        gaps_s = rng.exponential(1.0, 40_000)
        service_s = np.full(40_000, 0.7) if scv == 0 else rng.gamma(1.0 / scv, 0.7 * scv, 40_000)
        waits.append(float(lindley_wait_s(gaps_s, service_s)[2_000:].mean()))
    law = queueing.mg1_wait_s(1.0, 0.7, scv)
    error = float(np.std(waits, ddof=1)) / math.sqrt(len(waits))
    assert error < 0.02 * law
    assert abs(float(np.mean(waits)) - law) <= 4.0 * error


@given(load=st.floats(0.05, 0.95))
def test_special_cases_meet(load: float) -> None:
    """M/M/c at c = 1 is M/M/1, Allen-Cunneen at c = 1 is Pollaczek-Khinchine, a tandem of one station is M/M/c."""
    assert queueing.mmc_wait_s(load, 1.0, 1) == pytest.approx(queueing.mm1_wait_s(load, 1.0))
    assert queueing.mgc_wait_s(load, 1.0, 1, service_scv=0.3) == pytest.approx(queueing.mg1_wait_s(load, 1.0, 0.3))
    assert queueing.tandem_sojourn_s(load, ((1.0, 3),)) == pytest.approx(1.0 + queueing.mmc_wait_s(load, 1.0, 3))


def test_mmc_by_hand() -> None:
    """M/M/2 at a = 1: C = 1/3, so the wait is a third of E[S]/(2 − 1)."""
    assert queueing.mmc_wait_s(1.0, 1.0, 2) == pytest.approx(1.0 / 3.0)


@given(load=st.floats(0.05, 0.95))
def test_shared_rate_special_cases(load: float) -> None:
    """Constant speed is processor sharing, ρ/(1 − ρ) requests; speed n up to c is M/M/c's number in system."""
    assert queueing.shared_rate_mean_seqs(load, (1.0,)) == pytest.approx(load / (1.0 - load))
    assert queueing.shared_rate_mean_seqs(load, (1.0,)) == pytest.approx(load * queueing.processor_sharing_s(load, 1.0))
    four = 4.0 * load
    assert queueing.shared_rate_mean_seqs(four, (1.0, 2.0, 3.0, 4.0)) == pytest.approx(
        four * (1.0 + queueing.mmc_wait_s(four, 1.0, 4))
    )


@given(rho=st.floats(0.0, 0.95), prefill_s=st.floats(0.01, 10.0), speedup=st.floats(1.0, 8.0))
def test_distserve_forms_as_printed(rho: float, prefill_s: float, speedup: float) -> None:
    """D + RD²/(2(1−RD)), D + RD²/(4(2−RD)), D/K + RD²/(2K(K−RD)): equations 1 to 3 of arXiv 2401.09670."""
    D, K, R = prefill_s, speedup, rho / prefill_s
    assert queueing.distserve_ttft_s(R, D) == pytest.approx(D + R * D**2 / (2 * (1 - R * D)))
    assert queueing.distserve_two_stages_ttft_s(R, D) == pytest.approx(D + R * D**2 / (4 * (2 - R * D)))
    assert queueing.distserve_tensor_ttft_s(R, D, K) == pytest.approx(D / K + R * D**2 / (2 * K * (K - R * D)))


def test_low_rates_favour_tensor_high_rates_pipeline() -> None:
    """With a tensor speed-up of 1.6 on two GPUs TP answers sooner at RD = 0.1 and PP at RD = 1.55."""
    for load, tensor_wins in ((0.1, True), (1.55, False)):
        tensor = queueing.distserve_tensor_ttft_s(load, 1.0, 1.6)
        assert (tensor < queueing.distserve_two_stages_ttft_s(load, 1.0)) == tensor_wins


def test_overload_waits_for_ever() -> None:
    """At ρ ≥ 1 each mean is infinite and every arrival waits."""
    assert queueing.md1_wait_s(1.0, 1.0) == math.inf
    assert queueing.mmc_wait_s(3.0, 1.0, 3) == math.inf
    assert queueing.erlang_c(3.0, 3) == 1.0
    assert queueing.processor_sharing_s(2.0, 1.0) == math.inf
    assert queueing.shared_rate_mean_seqs(2.0, (1.0, 1.9)) == math.inf


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: queueing.mm1_wait_s(-1.0, 1.0), "rate_req_s: -1.0 must not be negative"),
        (lambda: queueing.mg1_wait_s(1.0, math.nan, 1.0), "service_s: nan must not be negative"),
        (lambda: queueing.mg1_wait_s(0.1, 1.0, -0.5), "service_scv: -0.5 must not be negative"),
        (lambda: queueing.erlang_c(1.0, 0), "num_servers: 0 must be at least 1"),
    ],
)
def test_wrong_input_is_refused(build: object, message: str) -> None:
    """Negative or missing numbers are refused by name."""
    assert callable(build)
    with pytest.raises(BestServeError, match=message):
        build()
