"""Goodput: the largest arrival rate at which a system keeps its SLO.

The search brackets the answer from the capacity estimate, closes in on few requests, and confirms on many; `Effort`
says on how many and how closely. All rates see the same requests with the same gaps, scaled (common random numbers), so
the excess over the SLO is a nearly monotone function of the rate and the comparison of two strategies carries little
noise. The first tenth of the requests (start from empty) and the last twentieth (which see the system drain) are
simulated but not judged.

Equal instances behind round robin are alike: m of them cost one, which sees every m-th arrival; pools of n·g and m·g
instances cost n and m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from estimator.capacity import screen, tpot_limit_s
from estimator.errors import require
from estimator.latency import LatencySummary, steady_window, summarise
from estimator.outcome import Unstable
from estimator.requests import Requests
from estimator.simulate import simulate
from estimator.simulation import FINISHED, Simulation
from estimator.slo import Slo
from estimator.system import Collocated, Disaggregated, System
from estimator.workload import Arrivals, Lengths, Workload

NUM_LONE = 1_000  # requests, each served alone, that tell whether any rate can meet the SLO
LONE_GAP_S = 1e5
NUM_COARSE = 2_500
FIRST = 0.85  # of the estimate of capacity: where the search starts, the median of 800 goodputs (2026-11-25)
USUAL_FALL = 3.0  # of the headroom per log rate
DOUBT = 0.5  # of the estimate: where, on the way down, lone requests are looked at
COARSE_STEP = 0.25  # of log rate, at first
COARSE_RATIO = 1.15
NEAR = 0.75  # of the wanted width: an end this near to the expected answer is kept, and the other end put a width away
SURE = 4.0  # widths: a bracket no wider than this is closed by a straight line
ABOVE = 2.0  # widths over the expected answer the search on all requests starts: from a miss, the next may end it
NEARLY = 0.96  # of the estimate of capacity: where the search on all requests starts at most
PAST = 0.4  # of the wanted width: how far past a farther expected answer a probe goes
MAX_STEPS = 40
LEAST_LOAD = 1e-4  # of the capacity: below it the SLO counts as never met
DRIFT_FRAC = 0.01  # share of arrivals that may pile up within the window before the rate counts as not carried
NUM_BATCHES = 10
T_9 = 2.262  # Student's t, 9 degrees of freedom, 97.5 %
NEARLY_FULL_FRAC = 0.75  # mean share in use at which a queue in front means waiting for room
IN_FLIGHT_FRAC = 0.1  # of all requests may be decoding at once: more would leave too few after the start from empty
MOST_TIMES = 8  # as many requests as the effort asks for, where more are in flight
NUM_CHOICES = 4  # two choices of four already differ little from two of many (Mitzenmacher 2001)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a search spends near the answer: `num_requests` a simulation, and the width of the bracket it ends with.

    Raises `BestServeError` for fewer than 1,000 requests and for a precision outside [0.001, 0.2].
    """

    num_requests: int = 20_000
    precision: float = 0.01

    def __post_init__(self) -> None:
        require(
            self.num_requests >= NUM_LONE,
            field="num_requests",
            value=self.num_requests,
            rule="are too few",
            accepted=f"{NUM_LONE:,} or more",
        )
        require(
            0.001 <= self.precision <= 0.2,
            field="precision",
            value=self.precision,
            rule="must lie in [0.001, 0.2]",
            accepted="for example 0.01",
        )


FULL = Effort()
EXPLORING = Effort(num_requests=5_000, precision=0.04)  # to choose by, not to answer with


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Of the whole system, in requests per second; [low, high] is the 95 % interval that sampling leaves.

    `binding_limit`: what keeps the rate from growing: a target of the SLO (`ttft p90`), or, where that target fails
    because requests wait for room, `max_num_seqs` or `kv capacity`; `throughput` where the system cannot keep up
    although the SLO would allow it. `summary`: latencies at that rate. `num_simulated_requests`: of the whole search.
    """

    rate_req_s: float
    low_req_s: float
    high_req_s: float
    binding_limit: str
    summary: LatencySummary
    num_simulated_requests: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """One simulated rate. `excess` ≤ 1: the SLO is kept and the rate carried; `backlog` > 1: it is not carried."""

    rate_req_s: float
    excess: float
    simulation: Simulation
    window: slice
    backlog: float = 0.0


class UnitDraw(NamedTuple):
    """What fixes the requests of a search: strategies that are judged on the same traffic share one draw."""

    lengths: Lengths
    arrivals: Arrivals
    cached_frac: float
    thinning: int
    num: int
    seed: int


@dataclass(slots=True, kw_only=True)
class Prober:
    """Simulates one system at any rate on the same requests, and counts them."""

    system: System
    slo: Slo
    seed: int
    unit_requests: Requests
    times: int
    estimate_req_s: float
    num_simulated: int = 0
    probes: list[Probe] = field(default_factory=list)

    def at(self, rate_req_s: float, num_requests: int) -> Probe:
        """The first `num_requests` requests at `rate_req_s`."""
        requests = _first(self.unit_requests, num_requests, 1.0 / rate_req_s)
        simulation = simulate(self.system, requests, seed=self.seed)
        self.num_simulated += num_requests
        window = steady_window(num_requests)
        excess, backlog = self.slo.excess(simulation, window), _backlog_excess(simulation, window)
        probe = Probe(
            rate_req_s=rate_req_s,
            excess=excess if excess > 1.0 else max(excess, backlog),
            simulation=simulation,
            window=window,
            backlog=backlog,
        )
        self.probes.append(probe)
        return probe

    def lone(self) -> Simulation:
        """Requests so far apart that none meets another."""
        few = _first(self.unit_requests, min(NUM_LONE, len(self.unit_requests)), 1.0)
        self.num_simulated += len(few)
        apart = replace(few, arrival_s=np.arange(len(few), dtype=np.float64) * LONE_GAP_S)
        return simulate(self.system, apart, seed=self.seed)


def goodput(
    system: System, workload: Workload, slo: Slo, *, seed: int = 0, effort: Effort = FULL
) -> Goodput | Unstable:
    """Largest rate that keeps `slo`, to the effort's precision; `Unstable` if no rate does.

    `seed` fixes arrivals and lengths.
    """
    part, part_workload, num_parts = equal_part(system, workload)
    prober = _prober(part, part_workload, slo, seed, effort)
    bracket = _bracket(prober, effort)
    return bracket if isinstance(bracket, Unstable) else _answer(prober, *bracket, num_parts)


def probe(
    system: System, workload: Workload, slo: Slo, rate_req_s: float, *, seed: int = 0, most: int | None = None
) -> Probe:
    """The whole system at one rate, on the requests that `goodput` judges last; `excess` ≤ 1 if it carries the rate.

    The simulation is of an equal part. Its window can be judged by another SLO without simulating again. `most`:
    requests at most, the first ones.
    """
    part, part_workload, num_parts = equal_part(system, workload)
    prober = _prober(part, part_workload, slo, seed, FULL)
    num = len(prober.unit_requests)
    return prober.at(rate_req_s / num_parts, num if most is None else min(num, most))


def _prober(part: System, workload: Workload, slo: Slo, seed: int, effort: Effort) -> Prober:
    traffic = (workload.lengths, workload.arrivals, workload.cached_frac, workload.thinning)
    requests = _unit_requests(UnitDraw(*traffic, effort.num_requests, seed))
    estimate_req_s = screen(part, requests, slo) or 0.1 * screen(part, requests)
    times = _times(_in_flight(part, estimate_req_s, requests, slo))
    if times > 1:
        requests = _unit_requests(UnitDraw(*traffic, times * effort.num_requests, seed))
    found = {"unit_requests": requests, "times": times, "estimate_req_s": estimate_req_s}
    return Prober(system=part, slo=slo, seed=seed, **found)  # type: ignore[arg-type]


def equal_part(system: System, workload: Workload) -> tuple[System, Workload, int]:
    """The smallest part that behaves like the whole behind round robin, its traffic, and the number of such parts.

    Where decode is placed by load, a part keeps `NUM_CHOICES` decode instances to choose from if it can.
    """
    if system.router != "round_robin":
        return system, workload, 1
    if isinstance(system, Collocated):
        num_parts = system.num_instances
        part: System = replace(system, num_instances=1)
    else:
        num_parts = _num_equal_pools(system)
        part = replace(system, num_prefill=system.num_prefill // num_parts, num_decode=system.num_decode // num_parts)
    return (part, workload.every_mth(num_parts), num_parts) if num_parts > 1 else (system, workload, 1)


def _num_equal_pools(system: Disaggregated) -> int:
    common = math.gcd(system.num_prefill, system.num_decode)
    if system.policy.decode_placement == "round_robin":
        return common
    most = max(system.num_decode // NUM_CHOICES, 1)
    return max(d for d in range(1, common + 1) if common % d == 0 and d <= most)


@lru_cache(maxsize=16)
def _unit_requests(draw: UnitDraw) -> Requests:
    """Requests at exactly one per second on average: the realised rate is a control variate, known and divided out."""
    workload = Workload(
        lengths=draw.lengths, arrivals=draw.arrivals, cached_frac=draw.cached_frac, thinning=draw.thinning
    )
    requests = workload.draw(1.0, draw.num, draw.seed)
    return _first(requests, len(requests), len(requests) / float(requests.arrival_s[-1]))


def _in_flight(system: System, rate_req_s: float, requests: Requests, slo: Slo) -> float:
    """Sequences that decode at once at most: the seats; by Little's law those of `rate_req_s` at the TPOT limit."""
    pool, num = (
        (system.decode, system.num_decode)
        if isinstance(system, Disaggregated)
        else (system.instance, system.num_instances)
    )
    decode_s = float(requests.output_tokens.mean()) * tpot_limit_s(slo)
    return min(float(num * pool.limits.max_num_seqs * pool.parallelism.dp), rate_req_s * decode_s)


def _times(in_flight: float) -> int:
    """How many times the effort's requests are simulated so that those in flight are a small share: a power of two."""
    needed = in_flight / (IN_FLIGHT_FRAC * FULL.num_requests)
    return min(2 ** max(0, math.ceil(math.log2(needed))), MOST_TIMES) if needed > 1 else 1


def _first(requests: Requests, num: int, time_scale: float) -> Requests:
    return Requests(
        arrival_s=requests.arrival_s[:num] * time_scale,
        input_tokens=requests.input_tokens[:num],
        output_tokens=requests.output_tokens[:num],
        cached_tokens=requests.cached_tokens[:num],
    )


def _backlog_excess(simulation: Simulation, window: slice) -> float:
    """Arrivals over departures in the second half of the window, over what may pile up by chance; 0 if ≤ 1.

    The second half, because long requests fill the system slowly. By chance: `DRIFT_FRAC` of the arrivals, and three
    deviations of the difference of two Poisson counts in flight.
    """
    middle = (window.start + window.stop) // 2
    arrival_s = simulation.arrival_s[middle : window.stop]
    if len(arrival_s) < 2:
        return 0.0
    finish_s = simulation.finish_s[simulation.status == FINISHED]
    before, by_the_end = np.count_nonzero(finish_s < arrival_s[0]), np.count_nonzero(finish_s < arrival_s[-1])
    in_flight = max(0, middle - int(before))
    allowed = DRIFT_FRAC * len(arrival_s) + 3.0 * math.sqrt(2.0 * in_flight + 1.0)
    ratio = len(arrival_s) / (int(by_the_end - before) + allowed)
    return ratio if ratio > 1.0 else 0.0


def _lone_violation(prober: Prober) -> Unstable | None:
    alone = prober.lone()
    excess = prober.slo.excess(alone)
    if excess <= 1.0:
        return None
    lost = float(np.mean(alone.status != FINISHED))
    target = prober.slo.binding_target(alone)
    if math.isinf(excess):
        reason = f"{100 * lost:.3g} % of the requests never fit the instance, which fails {target}"
        return Unstable(reason=reason, violation=max(lost, 1e-6))
    return Unstable(reason=f"{target} of lone requests is {excess:.3g} times its limit", violation=excess - 1.0)


def _bracket(prober: Prober, effort: Effort) -> tuple[Probe, Probe] | Unstable:
    """A kept and a missed rate, near each other: on few requests first, if the effort asks for many more."""
    num, few = len(prober.unit_requests), NUM_COARSE * prober.times
    if num <= 2 * few:
        return _coarse_bracket(prober, num, 1.0 + effort.precision)
    bracket = _coarse_bracket(prober, few, COARSE_RATIO)
    return bracket if isinstance(bracket, Unstable) else _fine_bracket(prober, bracket, effort.precision)


def _coarse_bracket(prober: Prober, num: int, ratio: float) -> tuple[Probe, Probe] | Unstable:
    """A kept and a missed rate within `ratio` of each other, from the estimate on."""
    first = prober.at(FIRST * prober.estimate_req_s, num)
    bracket = _across(prober, first, num, fall=USUAL_FALL, longest=COARSE_STEP, width=math.log(ratio))
    return bracket if isinstance(bracket, Unstable) else _narrow(prober, *bracket, ratio, num)


def _across(
    prober: Prober, probe: Probe, num: int, *, fall: float, longest: float, width: float
) -> tuple[Probe, Probe] | Unstable:
    """A kept and a missed rate, walking from `probe` until the SLO is on the other side.

    The `fall` of the headroom tells how far to step so that the next probe is just past the answer, `longest` at most,
    which doubles; the estimate from above is not stepped over, as it is likely missed and nearer. Far below it even
    lone requests may miss the SLO.
    """
    is_doubted = False
    for _ in range(MAX_STEPS):
        kept = probe.excess <= 1.0
        distance = abs(_headroom(probe)) / fall
        step = width if distance <= NEAR * width else min(distance + PAST * width, longest)
        rate = probe.rate_req_s * math.exp(step if kept else -step)
        if probe.rate_req_s < prober.estimate_req_s < rate:
            rate = prober.estimate_req_s
        if not kept and not is_doubted and rate < DOUBT * prober.estimate_req_s:
            is_doubted, unstable = True, _lone_violation(prober)
            if unstable is not None:
                return unstable
        if rate < LEAST_LOAD * prober.estimate_req_s:
            target = prober.slo.binding_target(probe.simulation, probe.window)
            return Unstable(reason=f"{target} fails at {100 * LEAST_LOAD:g} % of capacity", violation=probe.excess - 1)
        other = prober.at(rate, num)
        if (other.excess <= 1.0) != kept:
            return (probe, other) if kept else (other, probe)
        fall = _fall(*((probe, other) if kept else (other, probe)))
        probe, longest = other, 2.0 * longest
    raise RuntimeError(f"no bracket after {MAX_STEPS} steps from {probe.rate_req_s:g} req/s")


def _narrow(prober: Prober, low: Probe, high: Probe, ratio: float, num: int) -> tuple[Probe, Probe]:
    """Closes the bracket until high/low ≤ `ratio`, or a straight line leaves little doubt that the answer is near.

    Little doubt: the bracket is at most `SURE` widths wide, and the line puts the answer within half a width of `low`.
    False position in headroom over log rate; when one end moves twice in a row the other's headroom counts half
    (Illinois; Dowell and Jarratt, BIT 11, 1971), because latencies bend sharply where queues build up. An end that is
    near the expected answer stays, and the other is put just the wanted width away, so that a good guess ends the
    search.
    """
    width, moved, above, below = math.log(ratio), 0, _headroom(low), -_headroom(high)
    for _ in range(MAX_STEPS):
        gap = math.log(high.rate_req_s / low.rate_req_s)
        if gap <= width * (1.0 + 1e-9):
            break
        step = gap * above / (above + below) if above + below > 0 else 0.5 * gap
        if gap <= SURE * width and gap * _share(low, high) <= 0.5 * width:
            break
        if step <= NEAR * width:
            step = width
        elif gap - step <= NEAR * width:
            step = gap - width
        probe = prober.at(low.rate_req_s * math.exp(step), num)
        if probe.excess <= 1.0:
            low, above = probe, _headroom(probe)
            below, moved = below * (0.5 if moved > 0 else 1.0), 1
        else:
            high, below = probe, -_headroom(probe)
            above, moved = above * (0.5 if moved < 0 else 1.0), -1
    return low, high


def _share(low: Probe, high: Probe) -> float:
    """Where between the two, as a share of the log of the rates, a straight line puts the answer."""
    above, below = _headroom(low), -_headroom(high)
    return above / (above + below) if above + below > 0 else 0.5


def _headroom(probe: Probe) -> float:
    """1/excess − 1, cut to [−0.8, 1]: nearly straight in the rate, as latencies grow like 1/(1 − ρ).

    Where a backlog grows, latencies of a longer run would be far over their limits: −0.5 at most.
    """
    headroom = 1.0 / min(max(probe.excess, 0.5), 5.0) - 1.0
    return min(headroom, -0.5) if probe.backlog > 1.0 else headroom


def _fall(low: Probe, high: Probe) -> float:
    """Headroom lost per log rate between the two, at least 0.5."""
    gap = math.log(high.rate_req_s / low.rate_req_s)
    return max((_headroom(low) - _headroom(high)) / gap, 0.5) if gap > 0 else 0.5


def _fine_bracket(prober: Prober, coarse: tuple[Probe, Probe], precision: float) -> tuple[Probe, Probe] | Unstable:
    """The same on all requests, starting where the coarse bracket puts the answer."""
    low, high = coarse
    num, width = len(prober.unit_requests), math.log(1.0 + precision)
    prober.probes.clear()
    fall, longest = _fall(low, high), 3.0 * math.log(high.rate_req_s / low.rate_req_s)
    start = low.rate_req_s * math.exp(min(_headroom(low) / fall, longest / 3.0) + ABOVE * width)
    probe = prober.at(min(start, NEARLY * prober.estimate_req_s), num)  # short runs do not show how queues grow
    bracket = _across(prober, probe, num, fall=fall, longest=longest, width=width)
    return bracket if isinstance(bracket, Unstable) else _narrow(prober, *bracket, 1.0 + precision, num)


def _answer(prober: Prober, low: Probe, high: Probe, num_parts: int) -> Goodput:
    half = _half_width(prober, low)
    summary = summarise(low.simulation, low.window)
    return Goodput(
        rate_req_s=num_parts * low.rate_req_s,
        low_req_s=num_parts * low.rate_req_s * math.exp(-half),
        high_req_s=num_parts * high.rate_req_s * math.exp(half),
        binding_limit=_binding_limit(prober, high, summary),
        summary=summary,
        num_simulated_requests=prober.num_simulated,
    )


def _half_width(prober: Prober, at: Probe) -> float:
    """Half of the 95 % interval of log rate: batch means of the attainment over its slope between the fine probes.

    Where the attainment does not move between the probes, or is the same in every batch, the width of the probes stands
    in: a target that all keep until a queue builds up says nothing about the rate.
    """
    kept = prober.slo.met_binding(at.simulation, at.window)
    means = np.array([batch.mean() for batch in np.array_split(kept, NUM_BATCHES)])
    standard_error = float(means.std(ddof=1)) / math.sqrt(NUM_BATCHES)
    rates = np.log([probe.rate_req_s for probe in prober.probes])
    attained = np.array([prober.slo.met_binding(p.simulation, p.window).mean() for p in prober.probes])
    fall = float(attained[rates.argmin()] - attained[rates.argmax()])
    span = float(np.ptp(rates))
    return min(T_9 * standard_error * span / fall, 0.5) if fall > 0 and standard_error > 0 else span


def _binding_limit(prober: Prober, high: Probe, summary: LatencySummary) -> str:
    """The limit that fails just above the goodput; the seats or the memory where they are full and requests wait."""
    if prober.slo.excess(high.simulation, high.window) <= 1.0:
        return "throughput"
    target = prober.slo.binding_target(high.simulation, high.window)
    pool = prober.system.decode if isinstance(prober.system, Disaggregated) else prober.system.instance
    if target.startswith("tpot"):
        return target
    if summary.decode.mean_kv_blocks > NEARLY_FULL_FRAC * pool.num_kv_blocks * pool.parallelism.dp:
        return "kv capacity"
    if summary.decode.mean_batch_seqs > NEARLY_FULL_FRAC * pool.limits.max_num_seqs * pool.parallelism.dp:
        return "max_num_seqs"
    return target
