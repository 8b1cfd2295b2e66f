"""Workloads: common random numbers, exact thinning, and the moments of every kind of length and gap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from estimator.seeds import stream
from estimator.workload import (
    Arrivals,
    ConstantArrivals,
    EmpiricalLengths,
    FixedLengths,
    GammaArrivals,
    Lengths,
    LognormalLengths,
    LognormalTokens,
    PoissonArrivals,
    TraceArrivals,
    UniformLengths,
    Workload,
)

TRACE = TraceArrivals(observed_s=np.array([0.1, 2.0, 0.4, 0.0, 1.5]))
UNIFORM = UniformLengths(input_min=1, input_max=9, output_min=10, output_max=20)
ARRIVALS: list[Arrivals] = [PoissonArrivals(), GammaArrivals(cv=2.0), ConstantArrivals(), TRACE]


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_a_rate_only_scales_the_gaps(arrivals: Arrivals) -> None:
    """One seed at two rates draws the same lengths, and times in the ratio of the rates; another seed others."""
    workload = Workload(lengths=UNIFORM, arrivals=arrivals, cached_frac=0.5)
    slow, fast, other = workload.draw(1.0, 500, 7), workload.draw(4.0, 500, 7), workload.draw(1.0, 500, 8)
    assert slow.input_tokens.tolist() == fast.input_tokens.tolist()
    assert slow.output_tokens.tolist() == fast.output_tokens.tolist()
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s, rtol=1e-12)
    assert slow.input_tokens.tolist() != other.input_tokens.tolist()


@pytest.mark.parametrize("arrivals", [PoissonArrivals(), GammaArrivals(cv=2.0), ConstantArrivals(), TRACE])
def test_every_mth_has_the_law_of_every_mth_arrival(arrivals: Arrivals) -> None:
    """One of 4 instances at rate 1 sees gaps with the mean and deviation of every 4th arrival at rate 4."""
    num = 200_000
    whole = Workload(lengths=UNIFORM, arrivals=arrivals)
    sampled = np.diff(whole.draw(4.0, 4 * num, 1).arrival_s[3::4])
    thinned = np.diff(whole.every_mth(4).draw(1.0, num, 1).arrival_s)
    assert float(thinned.mean()) == pytest.approx(float(sampled.mean()), rel=0.01)
    assert float(thinned.std()) == pytest.approx(float(sampled.std()), rel=0.02, abs=1e-9)


def test_every_mth_of_a_trace_is_its_very_arrivals() -> None:
    """Of a trace, or of equal gaps, one of 3 instances sees arrivals 3, 6, 9... of the whole to the last digit kept."""
    for arrivals in (TRACE, ConstantArrivals()):
        whole = Workload(lengths=UNIFORM, arrivals=arrivals)
        thinned = whole.every_mth(3).draw(1.0, 50, 1).arrival_s
        np.testing.assert_allclose(thinned, whole.draw(3.0, 150, 1).arrival_s[2::3], rtol=1e-12)


def test_thinning_multiplies() -> None:
    """Every 2nd of every 3rd is every 6th."""
    workload = Workload(lengths=UNIFORM, arrivals=PoissonArrivals())
    assert workload.every_mth(3).every_mth(2).thinning == workload.every_mth(6).thinning == 6


@pytest.mark.parametrize(
    ("lengths", "input_mean", "output_mean"),
    [
        (FixedLengths(input_tokens=30, output_tokens=7), 30.0, 7.0),
        (UNIFORM, 5.0, 15.0),
        (
            LognormalLengths(
                input=LognormalTokens(median_tokens=1000, sigma=0.5, max_tokens=10**6),
                output=LognormalTokens(median_tokens=200, sigma=0.3, max_tokens=10**6),
                correlation=0.4,
            ),
            1000 * math.exp(0.125),
            200 * math.exp(0.045),
        ),
        (EmpiricalLengths(input_tokens=np.array([1, 2, 6]), output_tokens=np.array([5, 5, 20])), 3.0, 10.0),
    ],
)
def test_means_of_lengths(lengths: Lengths, input_mean: float, output_mean: float) -> None:
    """The sample means of 100,000 lengths are those of the law to a percent (lognormal: median·exp(σ²/2))."""
    workload = Workload(lengths=lengths, arrivals=PoissonArrivals())
    assert workload.mean_input_tokens == pytest.approx(input_mean, rel=0.01)
    assert workload.mean_output_tokens == pytest.approx(output_mean, rel=0.01)


def test_uniform_reaches_both_ends() -> None:
    """Uniform lengths take every whole number from the least to the greatest, and no other."""
    inputs, outputs = UNIFORM.draw(10_000, stream(1, "t"))
    assert set(inputs.tolist()) == set(range(1, 10))
    assert set(outputs.tolist()) == set(range(10, 21))


def test_lognormal_correlation_is_of_the_logarithms() -> None:
    """The correlation asked for is that of the logarithms drawn, and no length passes its maximum."""
    one = LognormalTokens(median_tokens=5000, sigma=0.5, max_tokens=40_000)
    inputs, outputs = LognormalLengths(input=one, output=one, correlation=0.6).draw(100_000, stream(1, "t"))
    assert float(np.corrcoef(np.log(inputs), np.log(outputs))[0, 1]) == pytest.approx(0.6, abs=0.01)
    assert int(inputs.max()) <= 40_000


def test_empirical_pairs_stay_together() -> None:
    """Input and output of an observed request are drawn as the pair they were."""
    lengths = EmpiricalLengths(input_tokens=np.array([1, 2, 6]), output_tokens=np.array([5, 7, 20]))
    inputs, outputs = lengths.draw(1000, stream(1, "t"))
    assert set(zip(inputs.tolist(), outputs.tolist(), strict=True)) == {(1, 5), (2, 7), (6, 20)}


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_gaps_have_the_cv_asked_for(cv: float) -> None:
    """Gamma gaps have mean 1 and deviation cv."""
    gaps = GammaArrivals(cv=cv).gaps(1_000_000, stream(1, "t"))
    assert float(gaps.mean()) == pytest.approx(1.0, rel=0.02)
    assert float(gaps.std()) == pytest.approx(cv, rel=0.02)
