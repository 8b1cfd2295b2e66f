"""Lognormal lengths of a trace, fitted by moments, as YAML for a spec.

With sample mean m and squared coefficient of variation v of a length: sigma² = ln(1 + v), median = m·exp(−sigma²/2).
Load depends on the mean and waiting on the second moment (Pollaczek-Khinchine), so these two are kept exactly rather
than the shape; the shape's misfit is printed beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from estimator.errors import require
from search.traces import load_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalFit:
    """Median and deviation of the logarithm, and how far the fit is from the data.

    `ks`: Kolmogorov-Smirnov distance; `p90`, `p99`: of the fit and of the data, tokens.
    """

    median: float
    sigma: float
    max: int
    ks: float
    p90: tuple[float, float]
    p99: tuple[float, float]


def fit_lognormal(tokens: NDArray[np.int64]) -> LognormalFit:
    """Moment fit of lengths, shape (num_requests,); they must not all be equal."""
    mean, variance = float(tokens.mean()), float(tokens.var())
    require(variance > 0, field="lengths", value=mean, rule="are all equal", accepted="lengths that vary")
    sigma = float(np.sqrt(np.log1p(variance / mean**2)))
    median = mean / float(np.exp(sigma**2 / 2))
    law = stats.lognorm(s=sigma, scale=median)
    return LognormalFit(
        median=median,
        sigma=sigma,
        max=int(tokens.max()),
        ks=float(stats.kstest(tokens, law.cdf).statistic),
        p90=(float(law.ppf(0.9)), float(np.percentile(tokens, 90))),
        p99=(float(law.ppf(0.99)), float(np.percentile(tokens, 99))),
    )


def fit_yaml(path: Path) -> str:
    """The `lengths:` of a spec for the trace at `path`, with the goodness of fit as comments."""
    trace = load_trace(path)
    input_tokens, output_tokens = trace.input_tokens, trace.output_tokens
    fits = {"input_tokens": fit_lognormal(input_tokens), "output_tokens": fit_lognormal(output_tokens)}
    correlation = float(np.corrcoef(np.log(input_tokens), np.log(output_tokens))[0, 1])
    lines = [f"# {path.name}: {len(input_tokens)} requests; lognormal fitted by moments (mean and deviation kept)"]
    for name, fit in fits.items():
        tails = f"P90 {fit.p90[0]:.0f} (trace {fit.p90[1]:.0f}), P99 {fit.p99[0]:.0f} (trace {fit.p99[1]:.0f})"
        lines.append(f"# {name}: KS distance {fit.ks:.2f}; {tails}")
    lines += ["lengths:", "  kind: lognormal"]
    for name, fit in fits.items():
        lines.append(f"  {name}: {{median: {fit.median:.0f}, sigma: {fit.sigma:.3f}, max: {fit.max}}}")
    lines.append(f"  correlation: {correlation:.3f}")
    return "\n".join(lines) + "\n"
