"""What an answer shows, ready to print: terminal, report and `--json` all read these, so that they cannot differ.

Report-edge units: ms, $ per hour, requests per second. `None` stands for what was not found or does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from search.error_view import KnownError
from search.money_view import Money, PenaltyRow, amount, symbol_of
from search.serving_view import Serving

BOUNDS = {"compute": "compute", "memory": "memory bandwidth", "link": "the link", "host": "the host"}
NEAR_COSTS = 3.0  # plots and tables look first at strategies up to this many times the recommended cost
STEP_UP_USD_FRAC = 0.5  # how much dearer a strategy worth a word may be
STEP_UP_GAIN = 2.0  # and how many times faster its goodput must grow than its cost


def gpu_label(name: str) -> str:
    """A GPU's name for people: `H100 SXM` for `h100_sxm`."""
    return name.replace("_", " ").upper()


def target_label(name: str) -> str:
    """A target's name for people: `TTFT P90` for `ttft p90`, `TTFT of 90 %` for `ttft share 90 %`."""
    metric, _, level = name.partition(" ")
    return f"{metric.upper()} {level.replace('share', 'of').replace('p', 'P')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRow:
    """GPUs of one type on the bill; `num_bought` ≥ `num_used` because nodes are bought whole."""

    gpu: str
    num_used: int
    num_bought: int
    usd_per_gpu_h: float
    usd_per_h: float
    card: str
    source: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One evaluated strategy. Goodput has the interval that sampling leaves; latencies hold at the goodput rate.

    `is_explored`: found on few requests; what the answer rests on is not.
    """

    strategy: str
    is_disaggregated: bool
    gpu_counts: Mapping[str, int]
    goodput_req_s: float
    low_req_s: float
    high_req_s: float
    binding_limit: str
    usd_per_h: float
    usd_per_1m_output: float
    ttft_p90_ms: float
    tpot_p90_ms: float
    utilisation_frac: float
    tier: str
    bill: tuple[BillRow, ...] = ()
    is_explored: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs used."""
        return sum(self.gpu_counts.values())

    @property
    def gpus(self) -> str:
        """For example `4 H100 SXM + 2 L40S`."""
        return " + ".join(f"{count} {gpu_label(gpu)}" for gpu, count in self.gpu_counts.items())

    @property
    def architecture(self) -> str:
        """In one word."""
        return "disaggregated" if self.is_disaggregated else "collocated"

    def headroom_frac(self, demand_req_s: float) -> float:
        """How much the demand may grow before the SLO breaks; negative where it is already broken."""
        return self.goodput_req_s / demand_req_s - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Latency against rate of one strategy, by target of the SLO at its percentile; ∞ where too few finish."""

    strategy: str
    is_disaggregated: bool
    gpus: str
    rate_req_s: tuple[float, ...]
    latency_ms: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """Time of one operator in a typical step; `bound` is compute, memory, link or host."""

    pool: str
    phase: str
    operator: str
    ms: float
    bound: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """What one rule or outcome took out: how many of `what` (layouts before, strategies in the search), an example."""

    rule: str
    num: int
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The whole answer of a run."""

    name: str
    question: str
    demand_req_s: float
    mean_output_tokens: float
    slo_ms: Mapping[str, float]
    recommended: Candidate | None
    best_collocated: Candidate | None
    best_disaggregated: Candidate | None
    front: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    num_evaluated: int
    rejected: tuple[Rejection, ...]
    is_complete: bool
    space_size: int | None
    curves: tuple[Curve, ...] = ()
    breakdown: tuple[OperatorTime, ...] = ()
    serving: Serving | None = None
    errors: tuple[KnownError, ...] = ()
    run_error: str = ""
    assumptions: tuple[tuple[str, str], ...] = ()
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    money: Money | None = None

    @property
    def currency(self) -> str:
        """What amounts are in."""
        return "USD" if self.money is None else self.money.currency

    @property
    def symbol(self) -> str:
        """What stands before an amount."""
        return symbol_of(self.currency)

    def usd(self, value: float, decimals: int = 2) -> str:
        """An amount with its currency's symbol."""
        return amount(value, self.currency, decimals=decimals)

    @property
    def targets(self) -> str:
        """The limits in one line."""
        return ", ".join(f"{target_label(name)} ≤ {ms:g} ms" for name, ms in self.slo_ms.items())

    @property
    def usd_per_1m_at_demand(self) -> float | None:
        """Dollars per million output tokens when the recommended strategy serves just the demand."""
        if self.recommended is None:
            return None
        return self.recommended.usd_per_h / 3600.0 / (self.demand_req_s * self.mean_output_tokens) * 1e6

    @property
    def answer(self) -> str:
        """The one sentence a manager needs."""
        best = self.recommended
        if best is None:
            if not self.front:
                nearest = next((f"; the nearest is {r.reason}" for r in self.rejected if r.rule == "unstable"), "")
                return f"No strategy tried meets the targets at any rate ({self.num_evaluated} tried){nearest}."
            most = self.front[-1]
            return (
                f"No strategy tried serves {self.demand_req_s:g} requests/s within the targets; "
                f"the most is {most.goodput_req_s:.3g} requests/s with {most.gpus} at {self.usd(most.usd_per_h)}/h."
            )
        if best.headroom_frac(self.demand_req_s) < 0 and self.money is not None and self.money.penalties:
            return self._penalty_words(best, self.money.penalties[0])
        return (
            f"Rent {best.gpus} for {self.usd(best.usd_per_h)}/h: "
            f"serves {self.demand_req_s:g} requests/s within the targets, "
            f"{best.headroom_frac(self.demand_req_s):.0%} headroom, "
            f"{self.usd(self.usd_per_1m_at_demand or 0.0)} per million output tokens"
            f"{self._step_up_words()}."
        )

    def _penalty_words(self, best: Candidate, row: PenaltyRow) -> str:
        return (
            f"Rent {best.gpus} for {self.usd(best.usd_per_h)}/h and pay {self.usd(row.penalty_usd_per_h)}/h for the "
            f"{row.missed_frac:.1%} of {self.demand_req_s:g} requests/s that miss a target: together "
            f"{self.usd(row.total_usd_per_h)}/h, the least tried."
        )

    @property
    def step_up(self) -> Candidate | None:
        """A little dearer than the recommended strategy for much more goodput; None where money buys no more than that.

        Of the front up to half as dear again, the one whose goodput grows most per cost, if at least twice as fast.
        """
        best = self.recommended
        if best is None:
            return None
        near = [c for c in self.front if 1.0 < c.usd_per_h / best.usd_per_h <= 1.0 + STEP_UP_USD_FRAC]
        gains = {c.strategy: self._gain(c, best) for c in near}
        most = max(near, key=lambda c: gains[c.strategy], default=None)
        return most if most is not None and gains[most.strategy] >= STEP_UP_GAIN else None

    @staticmethod
    def _gain(candidate: Candidate, best: Candidate) -> float:
        """Growth of goodput over growth of cost."""
        return (candidate.goodput_req_s / best.goodput_req_s - 1.0) / (candidate.usd_per_h / best.usd_per_h - 1.0)

    def _step_up_words(self) -> str:
        more, best = self.step_up, self.recommended
        if more is None or best is None:
            return ""
        return (
            f"; {more.usd_per_h / best.usd_per_h - 1.0:.0%} more money ({more.gpus}, {self.usd(more.usd_per_h)}/h) "
            f"buys {more.headroom_frac(self.demand_req_s):.0%} headroom"
        )

    @property
    def certainty(self) -> str:
        """How sure the answer is, in one line: sampling, the search, what the times rest on."""
        return " ".join(self.certainties)

    @property
    def certainties(self) -> tuple[str, ...]:
        """The same, a sentence each."""
        best = self.recommended or (self.front[-1] if self.front else None)
        searched = (
            f"{self.num_evaluated:,} strategies evaluated"
            + (f" of {self.space_size:,} in the space" if self.space_size else "")
            + (" (all)" if self.is_complete else "")
            + (
                f", {self.num_confirmed:,} of them on many requests."
                if self.num_confirmed < len(self.candidates)
                else "."
            )
        )
        if best is None:
            return (searched,)
        margin = (best.high_req_s - best.low_req_s) / 2.0 / best.goodput_req_s
        rests = {
            "fitted": "Times fitted on measurements of this GPU and engine",
            "borrowed": "Times borrowed from a related GPU or engine",
            "data_sheet": "Times from data sheets: check before you buy",
        }
        known = [error.median_frac for error in self.errors if error.median_frac is not None]
        spread = dict.fromkeys((f"{min(known):.0%}", f"{max(known):.0%}")) if known else ()
        off = f", kernel times {' to '.join(spread)} off in the median" if spread else ""
        near = best.low_req_s < self.demand_req_s <= best.goodput_req_s
        sampled = f"Goodput ±{margin:.1%} from sampling{', more than the headroom: it may just miss' if near else ''}."
        rest = f"{rests.get(best.tier, best.tier)}{off}."
        staged = "No measured run has pipeline stages (pp): their times rest on the model alone."
        staged = staged if "-pp" in best.strategy else ""
        return tuple(told for told in (sampled, searched, rest, self.run_error, staged) if told)

    @property
    def num_confirmed(self) -> int:
        """Strategies evaluated at full effort: those that the answer rests on, and those it could have rested on."""
        return sum(not candidate.is_explored for candidate in self.candidates)

    @property
    def bottleneck(self) -> str:
        """What bounds a typical step of each pool and phase."""
        said = []
        for pool, phase in dict.fromkeys((time.pool, time.phase) for time in self.breakdown):
            times = [time for time in self.breakdown if (time.pool, time.phase) == (pool, phase)]
            total = sum(time.ms for time in times)
            by_bound: dict[str, float] = {}
            for time in times:
                by_bound[time.bound] = by_bound.get(time.bound, 0.0) + time.ms
            bound = max(by_bound, key=lambda name: by_bound[name])
            what = "A decode step" if phase == "decode" else "A prompt of mean length"
            said.append(f"{what} takes {total:.3g} ms, {by_bound[bound] / total:.0%} of it bound by {BOUNDS[bound]}.")
        return " ".join(said)

    @property
    def comparison(self) -> str:
        """Collocated against disaggregated, a tie called a tie."""
        one, two = self.best_collocated, self.best_disaggregated
        if one is None or two is None:
            found = "collocated" if one else "disaggregated" if two else "no"
            return f"Only {found} strategies serve the demand." if found != "no" else "Neither kind serves the demand."
        cheap, dear = (one, two) if one.usd_per_h <= two.usd_per_h else (two, one)
        if dear.usd_per_h - cheap.usd_per_h <= 0.005 * cheap.usd_per_h:
            return f"Collocated and disaggregated cost the same ({self.usd(cheap.usd_per_h)}/h)."
        saved = 1.0 - cheap.usd_per_h / dear.usd_per_h
        tried = "" if self.is_complete else " tried"
        return f"{cheap.architecture.capitalize()} is {saved:.0%} cheaper than the best {dear.architecture} one{tried}."

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and text; every candidate of the front, not all that were tried."""
        best = self.recommended
        return {
            "name": self.name,
            "answer": self.answer,
            "certainty": self.certainty,
            "bottleneck": self.bottleneck,
            "comparison": self.comparison,
            "demand_req_s": self.demand_req_s,
            "slo_ms": dict(self.slo_ms),
            "recommended": None if best is None else asdict(best),
            "headroom_frac": None if best is None else best.headroom_frac(self.demand_req_s),
            "usd_per_1m_output_at_demand": self.usd_per_1m_at_demand,
            "step_up": None if self.step_up is None else asdict(self.step_up),
            "best_collocated": None if self.best_collocated is None else asdict(self.best_collocated),
            "best_disaggregated": None if self.best_disaggregated is None else asdict(self.best_disaggregated),
            "front": [asdict(candidate) for candidate in self.front],
            "num_evaluated": self.num_evaluated,
            "rejected": [asdict(rejection) for rejection in self.rejected],
            "curves": [asdict(curve) for curve in self.curves],
            "breakdown": [asdict(time) for time in self.breakdown],
            "errors": [asdict(error) for error in self.errors],
            "assumptions": dict(self.assumptions),
            "money": None if self.money is None else asdict(self.money),
            "versions": dict(self.versions),
            "command": self.command,
        }


def near_range(view: View) -> tuple[float, float] | None:
    """Highest cost and goodput of the part around the demand; None where that is nearly everything."""
    best = view.recommended
    if best is None:
        return None
    usd = NEAR_COSTS * best.usd_per_h
    near = [c.goodput_req_s for c in view.candidates if c.usd_per_h <= usd]
    if len(near) > 0.9 * len(view.candidates):
        return None
    return usd, 1.1 * max(*near, view.demand_req_s)
