"""Closed forms of queueing theory: brackets, screening and cross-checks for the event kernels, never a shown answer.

| symbol | meaning |
|---|---|
| λ | `rate_req_s`, Poisson arrivals unless said otherwise |
| E[S], c_s² | `service_s` mean service time, `service_scv` its squared coefficient of variation |
| c, a, ρ | servers, offered load λE[S] in Erlang, utilisation a/c |
| W, T | mean wait before service, mean time in system T = W + E[S] |

Every mean is ∞ where ρ ≥ 1: that is its value, not an error. Negative or NaN input raises `BestServeError`.
"""

from __future__ import annotations

import math

from estimator.errors import require


def _check(rate_req_s: float, service_s: float, num_servers: int = 1) -> None:
    for name, value in (("rate_req_s", rate_req_s), ("service_s", service_s)):
        require(value >= 0, field=name, value=value, rule="must not be negative", accepted="a number ≥ 0")
    require(num_servers >= 1, field="num_servers", value=num_servers, rule="must be at least 1", accepted="≥ 1")


def mg1_wait_s(rate_req_s: float, service_s: float, service_scv: float) -> float:
    """Mean wait in M/G/1, first come first served: λE[S]²(1 + c_s²)/(2(1 − ρ)).

    Pollaczek 1930, Khinchine 1932; Kleinrock, Queueing Systems I (1975), eq. 5.113.
    """
    _check(rate_req_s, service_s)
    require(service_scv >= 0, field="service_scv", value=service_scv, rule="must not be negative", accepted="≥ 0")
    rho = rate_req_s * service_s
    return rho * service_s * (1.0 + service_scv) / (2.0 * (1.0 - rho)) if rho < 1 else math.inf


def mm1_wait_s(rate_req_s: float, service_s: float) -> float:
    """Mean wait in M/M/1: ρE[S]/(1 − ρ); M/G/1 at c_s² = 1 (Kleinrock I, eq. 3.26 less service)."""
    return mg1_wait_s(rate_req_s, service_s, 1.0)


def mm1_sojourn_quantile_s(rate_req_s: float, service_s: float, level: float) -> float:
    """Quantile of the time in M/M/1, which is exponential of mean E[S]/(1 − ρ) (Kleinrock I, eq. 5.118)."""
    return -(mm1_wait_s(rate_req_s, service_s) + service_s) * math.log1p(-level)


def md1_wait_s(rate_req_s: float, service_s: float) -> float:
    """Mean wait in M/D/1: ρE[S]/(2(1 − ρ)); M/G/1 at c_s² = 0 (Erlang 1909)."""
    return mg1_wait_s(rate_req_s, service_s, 0.0)


def erlang_c(load_erlang: float, num_servers: int) -> float:
    """Probability that an arrival to M/M/c waits; 1 where ρ ≥ 1. Erlang 1917; Kleinrock I, eq. 3.40.

    By the recursion of Erlang B, 1/B_k = 1 + k/(a·B_{k−1}), and C = B/(1 − ρ(1 − B)): no factorials, any c.
    """
    _check(load_erlang, 1.0, num_servers)
    rho = load_erlang / num_servers
    if rho >= 1 or load_erlang == 0:
        return 1.0 if rho >= 1 else 0.0
    inverse_b = 1.0
    for k in range(1, num_servers + 1):
        inverse_b = 1.0 + inverse_b * k / load_erlang
    return 1.0 / (inverse_b * (1.0 - rho) + rho)


def mmc_wait_s(rate_req_s: float, service_s: float, num_servers: int) -> float:
    """Mean wait in M/M/c: C(c, a)·E[S]/(c(1 − ρ)) (Kleinrock I, section 3.5)."""
    return mgc_wait_s(rate_req_s, service_s, num_servers)


def mgc_wait_s(
    rate_req_s: float, service_s: float, num_servers: int, *, arrival_scv: float = 1.0, service_scv: float = 1.0
) -> float:
    """Mean wait in GI/G/c after Allen and Cunneen: M/M/c's times (c_a² + c_s²)/2.

    Allen, Probability, Statistics, and Queueing Theory (1978, 2nd ed. 1990, eq. 5.58). Exact for M/M/c and M/G/1, an
    approximation elsewhere: best at high ρ and c_s² near 1; with lognormal service of c_s² = 2 on 8 servers it is 20 %
    above the simulated wait at ρ = 0.8 (`tests.bench.bench_queueing`).
    """
    _check(rate_req_s, service_s, num_servers)
    load = rate_req_s * service_s
    if load >= num_servers:
        return math.inf
    waits_s = erlang_c(load, num_servers) * service_s / (num_servers - load)
    return waits_s * (arrival_scv + service_scv) / 2.0


def tandem_sojourn_s(rate_req_s: float, stations: tuple[tuple[float, int], ...]) -> float:
    """Mean time through stations of (mean service s, servers) in series: each alone an M/M/c, summed.

    Exact for Poisson arrivals and exponential service, because departures of M/M/c are Poisson (Burke 1956;
    Jackson 1957).
    """
    return sum(service_s + mmc_wait_s(rate_req_s, service_s, num) for service_s, num in stations)


def processor_sharing_s(rate_req_s: float, service_s: float) -> float:
    """Mean time in M/G/1 processor sharing: E[S]/(1 − ρ), whatever the service distribution.

    Kleinrock, Queueing Systems II (1976), eq. 4.17. The limit of continuous batching when a step is short and its
    time proportional to the sequences in it.
    """
    _check(rate_req_s, service_s)
    rho = rate_req_s * service_s
    return service_s / (1.0 - rho) if rho < 1 else math.inf


def shared_rate_mean_seqs(load: float, speedup: tuple[float, ...]) -> float:
    """Mean requests in an M/G/1 processor-sharing station of state-dependent speed; ∞ if it cannot keep up.

    `speedup[n − 1]`: work per second done by n requests together, relative to one alone; beyond the last it stays.
    `load`: λE[S] with S the time alone. The stationary law is p_n ∝ loadⁿ/∏ speedup_k, insensitive to the shape of S
    (Cohen 1979, The multiple phase service network with generalized processor sharing). Tail summed as a geometric.
    """
    r = load / speedup[-1]
    if r >= 1:
        return math.inf
    weight, total, first_moment = 1.0, 1.0, 0.0
    for n, speed in enumerate(speedup, start=1):
        weight *= load / speed
        total += weight
        first_moment += n * weight
    num = len(speedup)
    total += weight * r / (1.0 - r)
    first_moment += weight * (num * r / (1.0 - r) + r / (1.0 - r) ** 2)
    return first_moment / total


def distserve_ttft_s(rate_req_s: float, prefill_s: float) -> float:
    """Mean TTFT of a prefill instance as M/D/1: D + RD²/(2(1 − RD)) (DistServe, arXiv 2401.09670, eq. 1).

    Domain: prompts of one length, one at a time, Poisson arrivals.
    """
    return prefill_s + md1_wait_s(rate_req_s, prefill_s)


def distserve_two_stages_ttft_s(rate_req_s: float, prefill_s: float) -> float:
    """The same over two pipeline stages of D/2 each: D + RD²/(4(2 − RD)) (DistServe eq. 2).

    The first stage is M/D/1 with service D/2; departures are at least D/2 apart, so the second never queues.
    """
    return prefill_s + md1_wait_s(rate_req_s, prefill_s / 2.0)


def distserve_tensor_ttft_s(rate_req_s: float, prefill_s: float, speedup: float) -> float:
    """The same with tensor parallelism of speed-up K: D/K + RD²/(2K(K − RD)) (DistServe eq. 3)."""
    return distserve_ttft_s(rate_req_s, prefill_s / speedup)
