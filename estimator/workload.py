"""Traffic: how long requests are and how they arrive, drawn with common random numbers.

The same seed gives the same lengths and the same gaps in units of the mean gap; a rate only scales the gaps, so that
two strategies, or one at two rates, see the same requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from estimator.errors import require
from estimator.requests import Requests
from estimator.seeds import stream
from estimator.slo import class_of

Tokens = NDArray[np.int64]
Gaps = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLengths:
    """Every request alike."""

    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            _at_least_one(name, getattr(self, name))

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Input and output tokens, (num,) each."""
        return np.full(num, self.input_tokens, np.int64), np.full(num, self.output_tokens, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformLengths:
    """Whole numbers drawn uniformly, both ends included."""

    input_min: int
    input_max: int
    output_min: int
    output_max: int

    def __post_init__(self) -> None:
        for side in ("input", "output"):
            low, high = getattr(self, f"{side}_min"), getattr(self, f"{side}_max")
            _at_least_one(f"{side}_min", low)
            require(high >= low, field=f"{side}_max", value=high, rule=f"must not be below {low}", accepted=f"≥ {low}")

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Input and output tokens, (num,) each."""
        uniform = rng.random((num, 2))
        return (
            self.input_min + (uniform[:, 0] * (self.input_max - self.input_min + 1)).astype(np.int64),
            self.output_min + (uniform[:, 1] * (self.output_max - self.output_min + 1)).astype(np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalTokens:
    """ln(length) is normal around ln(median) with deviation sigma; rounded, at least 1, cut at `max_tokens`."""

    median_tokens: float
    sigma: float
    max_tokens: int

    def __post_init__(self) -> None:
        for name in ("median_tokens", "sigma", "max_tokens"):
            value = getattr(self, name)
            require(value > 0, field=name, value=value, rule="must be positive", accepted="> 0")

    def of_normal(self, normal: Gaps) -> Tokens:
        """Lengths that belong to standard normal draws."""
        exponent = np.minimum(math.log(self.median_tokens) + self.sigma * normal, math.log(self.max_tokens))
        return np.clip(np.rint(np.exp(exponent)), 1, self.max_tokens).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalLengths:
    """Input and output jointly lognormal; `correlation` is that of the two logarithms."""

    input: LognormalTokens
    output: LognormalTokens
    correlation: float = 0.0

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Input and output tokens, (num,) each."""
        normal = rng.standard_normal((num, 2))
        mixed = self.correlation * normal[:, 0] + math.sqrt(1 - self.correlation**2) * normal[:, 1]
        return self.input.of_normal(normal[:, 0]), self.output.of_normal(mixed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmpiricalLengths:
    """Pairs drawn with replacement from observed ones, arrays of shape (num_observed,)."""

    input_tokens: Tokens
    output_tokens: Tokens

    def __post_init__(self) -> None:
        size = len(self.input_tokens)
        require(
            size > 0 and size == len(self.output_tokens),
            field="lengths",
            value=size,
            rule="must be pairs, at least one",
            accepted="two arrays of equal size",
        )
        _at_least_one("input_tokens", int(self.input_tokens.min()))
        _at_least_one("output_tokens", int(self.output_tokens.min()))

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Input and output tokens, (num,) each."""
        index = (rng.random(num) * len(self.input_tokens)).astype(np.int64)
        return self.input_tokens[index], self.output_tokens[index]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassLengths:
    """Each class of requests has lengths of its own; which request is of which class as in `estimator.slo`."""

    lengths: tuple[Lengths, ...]
    shares: tuple[float, ...]

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Input and output tokens, (num,) each."""
        members = class_of(num, self.shares)
        drawn = [lengths.draw(num, rng) for lengths in self.lengths]
        places = np.arange(num)
        inputs, outputs = (np.stack([pair[side] for pair in drawn])[members, places] for side in (0, 1))
        return inputs, outputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaledLengths:
    """Lengths of `base` multiplied, rounded, at least 1."""

    base: Lengths
    input_factor: float = 1.0
    output_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("input_factor", "output_factor"):
            value = getattr(self, name)
            require(value > 0, field=name, value=value, rule="must be positive", accepted="> 0")

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Input and output tokens, (num,) each."""
        inputs, outputs = self.base.draw(num, rng)
        return _times(inputs, self.input_factor), _times(outputs, self.output_factor)


def _times(tokens: Tokens, factor: float) -> Tokens:
    return np.asarray(np.maximum(np.rint(tokens * factor), 1), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonArrivals:
    """Independent arrivals."""

    def gaps(self, num: int, rng: np.random.Generator) -> Gaps:
        """Gaps of mean 1, (num,)."""
        return rng.standard_exponential(num)


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaArrivals:
    """Gamma gaps of coefficient of variation `cv`; above 1 is burstier than Poisson."""

    cv: float

    def __post_init__(self) -> None:
        require(self.cv > 0, field="cv", value=self.cv, rule="must be positive", accepted="> 0; 1 is Poisson")

    def gaps(self, num: int, rng: np.random.Generator) -> Gaps:
        """Gaps of mean 1, (num,)."""
        shape = 1 / self.cv**2
        return rng.standard_gamma(shape, num) / shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantArrivals:
    """Equal gaps."""

    def gaps(self, num: int, rng: np.random.Generator) -> Gaps:
        """Gaps of mean 1, (num,)."""
        return np.ones(num)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceArrivals:
    """Gaps of a trace in its order, repeated when it ends, scaled to mean 1; array of shape (num_observed,)."""

    observed_s: Gaps

    def __post_init__(self) -> None:
        ok = len(self.observed_s) > 0 and bool(np.all(self.observed_s >= 0)) and float(self.observed_s.sum()) > 0
        require(
            ok,
            field="trace",
            value=f"{len(self.observed_s)} gaps",
            rule="must hold gaps ≥ 0, not all 0",
            accepted="at least two arrival times that never decrease",
        )

    def gaps(self, num: int, rng: np.random.Generator) -> Gaps:
        """Gaps of mean 1, (num,)."""
        return np.resize(self.observed_s / self.observed_s.mean(), num)


Lengths = FixedLengths | UniformLengths | LognormalLengths | EmpiricalLengths | ClassLengths | ScaledLengths
Arrivals = PoissonArrivals | GammaArrivals | ConstantArrivals | TraceArrivals
_NUM_FOR_MEANS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Lengths, arrivals and the share of every prompt that is already in the prefix cache.

    `thinning` m: this is what one of m instances behind round robin sees, every m-th request; rates are then of that
    instance.
    """

    lengths: Lengths
    arrivals: Arrivals
    cached_frac: float = 0.0
    thinning: int = 1

    def __post_init__(self) -> None:
        require(
            0 <= self.cached_frac < 1,
            field="cached_frac",
            value=self.cached_frac,
            rule="must be at least 0 and below 1",
            accepted="0 ≤ share < 1",
        )
        _at_least_one("thinning", self.thinning)

    def draw(self, rate_req_s: float, num_requests: int, seed: int) -> Requests:
        """`num_requests` requests at `rate_req_s` > 0 requests per second."""
        require(
            rate_req_s > 0, field="rate_req_s", value=rate_req_s, rule="must be positive", accepted="requests/s > 0"
        )
        inputs, outputs = self.lengths.draw(num_requests, stream(seed, "lengths"))
        cached = np.minimum((self.cached_frac * inputs).astype(np.int64), inputs - 1)
        arrival_s = np.cumsum(self._unit_gaps(num_requests, seed)) / rate_req_s
        return Requests(arrival_s=arrival_s, input_tokens=inputs, output_tokens=outputs, cached_tokens=cached)

    def every_mth(self, num_instances: int) -> Workload:
        """What one of `num_instances` equal instances behind round robin sees."""
        return replace(self, thinning=self.thinning * num_instances)

    @property
    def mean_input_tokens(self) -> float:
        """Mean prompt length, from a fixed large sample."""
        return float(self.lengths.draw(_NUM_FOR_MEANS, stream(0, "means"))[0].mean())

    @property
    def mean_output_tokens(self) -> float:
        """Mean output length, from a fixed large sample."""
        return float(self.lengths.draw(_NUM_FOR_MEANS, stream(0, "means"))[1].mean())

    def _unit_gaps(self, num: int, seed: int) -> Gaps:
        rng = stream(seed, "arrivals")
        m = self.thinning
        if m == 1:
            return self.arrivals.gaps(num, rng)
        if isinstance(self.arrivals, PoissonArrivals | GammaArrivals):  # a sum of m gamma gaps is gamma again
            cv = self.arrivals.cv if isinstance(self.arrivals, GammaArrivals) else 1.0
            return GammaArrivals(cv=cv / math.sqrt(m)).gaps(num, rng)
        groups = self.arrivals.gaps(num * m, rng).reshape(num, m)
        return np.asarray(groups.mean(axis=1), dtype=np.float64)


def _at_least_one(name: str, value: int) -> None:
    require(value >= 1, field=name, value=value, rule="must be at least 1", accepted="a whole number ≥ 1")
