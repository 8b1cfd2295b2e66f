"""What an answer says about money, ready to print: terminal, report and `--json` all read these.

Report-edge units: hours, ms, requests per second, Gbit/s. Amounts are in `Money.currency`, whatever it is; `usd` in a
field's name stands for that currency, as on price cards. A sentence that several places show is a property here.
`None` stands for what does not apply or was not found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥", "CNY": "CN¥", "INR": "₹", "KRW": "₩"}


def symbol_of(currency: str) -> str:
    """What stands before an amount: `$`, `€`, or the code and a space."""
    return SYMBOLS.get(currency, f"{currency} ")


def amount(value: float, currency: str, *, decimals: int = 2) -> str:
    """For example `$25.60`, `-€3.00` or `CHF 1,200`; `∞` where there is no such amount."""
    if not math.isfinite(value):
        return "∞"
    return f"{'-' if value < 0 else ''}{symbol_of(currency)}{abs(value):,.{decimals}f}"


def short(value: float) -> str:
    """A number of three digits or more in full, else its first three digits: 1,860 and 12.5."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRow:
    """A price card used. `age_days` at the time of reading, None for a date that is no day; `is_old`: over 60 days."""

    gpu: str
    card: str
    provider: str
    kind: str
    region: str
    usd_per_gpu_h: float
    gpus_per_node: int
    date: str
    age_days: int | None
    is_old: bool
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """The recommended strategy's bill per unit of what is good under the SLO, at one rate.

    `good_frac`: share of requests within every limit at that rate. Input and output prices each carry the whole bill.
    """

    rate_req_s: float
    good_frac: float
    usd_per_h: float
    usd_per_month: float
    usd_per_year: float
    usd_per_1m_input: float
    usd_per_1m_output: float
    usd_per_1k_requests: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BuyOrRent:
    """Renting against owning the GPUs of one type that the recommended strategy needs.

    `num_gpus` are rented, `num_owned` bought, because servers are bought whole; owning is told per GPU rented, so that
    GPUs bought beyond the need count. Its parts: capital, power, hosting, maintenance, staff. `break_even_months`: rent
    paid has passed money spent on owning, ∞ if never; it pays if below 12 × `years`. `break_even_utilisation_frac`:
    share of hours in use above which owning is cheaper than renting for those hours alone. `is_estimate`: the server's
    price is an estimate of the catalogue, not the user's own.
    """

    gpu: str
    num_gpus: int
    num_owned: int
    years: float
    utilisation_frac: float
    rent_usd_per_gpu_h: float
    own_usd_per_gpu_h: float
    parts_usd_per_gpu_h: Mapping[str, float]
    purchase_usd: float
    break_even_months: float
    break_even_utilisation_frac: float
    is_estimate: bool
    source: str
    date: str

    @property
    def buying_is_cheaper(self) -> bool:
        """Whether owning for `years` costs less than renting as long."""
        return self.own_usd_per_gpu_h < self.utilisation_frac * self.rent_usd_per_gpu_h

    def sentence(self, currency: str) -> str:
        """The verdict with both prices and both break-evens."""
        rent = amount(self.utilisation_frac * self.rent_usd_per_gpu_h, currency)
        own = amount(self.own_usd_per_gpu_h, currency)
        used = "" if self.utilisation_frac == 1.0 else ", rent paid for the hours used"
        verdict = "Buying" if self.buying_is_cheaper else "Renting"
        use = "" if self.utilisation_frac == 1.0 else f" used {self.utilisation_frac:.0%} of the time"
        months = (
            "never pays back"
            if math.isinf(self.break_even_months)
            else f"pays back in {self.break_even_months:.0f} months"
        )
        above = self.break_even_utilisation_frac
        hours = f", if in use over {above:.0%} of the time" if above <= 1.0 else ""
        estimate = "; the server's price is an estimate" if self.is_estimate else ""
        what = f"{self.num_gpus} {self.gpu}"
        if self.num_owned > self.num_gpus:
            what += f" (in servers of {self.num_owned} GPUs together)"
        purchase = amount(self.purchase_usd, currency, decimals=0)
        return (
            f"{verdict} {what}{use} is cheaper over {self.years:g} years: own {own} against rent "
            f"{rent} per GPU and hour{used}; a purchase of {purchase} {months}{hours}"
            f"{estimate}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TippingPoint:
    """The value of one thing, all else equal, at which another strategy takes over from the recommended one.

    `group`: price, rate, length, slo or link. `change_frac` = tip over now, less 1: its size is the distance.
    `takes_over` None: nothing tried serves the demand beyond it. `is_simulated` False: read off finished evaluations.
    """

    group: Literal["price", "rate", "length", "slo", "link"]
    name: str
    unit: str
    now: float
    tip: float
    change_frac: float
    takes_over: str | None
    gpus: str
    usd_per_h: float | None
    is_simulated: bool

    def sentence(self, currency: str) -> str:
        """For example `price of h100_sxm above $4.10/h (+28 %): 8m-tp1@h200_sxm takes over at $31.92/h`."""
        where = "above" if self.change_frac > 0 else "below"
        unit = f" {self.unit}" if self.unit and self.group != "price" else ""
        value = f"{amount(self.tip, currency)}/h" if self.group == "price" else f"{short(self.tip)}{unit}"
        then = (
            "nothing tried serves the demand"
            if self.takes_over is None or self.usd_per_h is None
            else f"{self.takes_over} takes over at {amount(self.usd_per_h, currency)}/h"
        )
        return f"{self.name} {where} {value} ({self.change_frac:+.0%}): {then}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyNot:
    """The best strategy of an architecture, or with a GPU type, that was not chosen.

    `strategy` None: the class has none, and `reason` says which rule removes it. `carries`: it serves the demand; else
    `usd_per_h` is of what serves most. `gap_usd_per_h` over the recommended strategy. `binding_limit` sets its goodput.
    """

    kind: Literal["architecture", "gpu"]
    name: str
    strategy: str | None
    carries: bool
    goodput_req_s: float
    usd_per_h: float | None
    gap_usd_per_h: float | None
    gap_frac: float | None
    binding_limit: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HourRow:
    """One hour of the demand curve: units of the strategy running, of which `num_base` are reserved."""

    hour: int
    rate_req_s: float
    num_units: int
    num_base: int
    usd: float
    missed_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandPlan:
    """Serving a curve of demand with a reserved base and units added for its peaks, against always-peak sizing.

    A unit is the smallest part of the recommended strategy that is run many times: `unit`, of `unit_req_s` goodput.
    """

    name: str
    unit: str
    unit_req_s: float
    mean_req_s: float
    peak_req_s: float
    num_base: int
    num_peak: int
    base_card: str
    burst_card: str
    usd_per_day: float
    always_peak_usd_per_day: float
    mean_sized_usd_per_day: float
    missed_frac: float
    startup_s: float
    scaling: str
    hours: tuple[HourRow, ...]

    @property
    def saved_frac(self) -> float:
        """Share of the always-peak bill that is saved."""
        return 1.0 - self.usd_per_day / self.always_peak_usd_per_day if self.always_peak_usd_per_day > 0 else 0.0

    def sentence(self, currency: str) -> str:
        """Base, burst, price of a day against always-peak, misses."""
        reserved = f"reserve {self.num_base}" if self.num_base else "reserve none"
        name = self.name[0].upper() + self.name[1:]
        return (
            f"{name} ({self.mean_req_s:.3g} req/s mean, {self.peak_req_s:.3g} peak): {reserved} × "
            f"{self.unit}, up to {self.num_peak} at the peak: {amount(self.usd_per_day, currency)}/day against "
            f"{amount(self.always_peak_usd_per_day, currency)} always at peak size (saves {self.saved_frac:.0%}); "
            f"{self.missed_frac:.2%} of requests miss the targets while instances start."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRow:
    """What is left when something is down: `what` is e.g. `one prefill instance`."""

    what: str
    strategy: str | None
    goodput_req_s: float
    left_frac: float
    carries: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resilience:
    """What failures leave of the recommended strategy, and what it costs to carry the demand with any one down.

    `spare`: the least enlargement that carries the demand with one instance of any pool down (None: none tried does),
    `added_usd_per_h` its price above the recommended one, 0 where that already does. `restart_min`: minutes to restart
    all instances one by one.
    """

    losses: tuple[LossRow, ...]
    spare: str | None
    spare_usd_per_h: float | None
    added_usd_per_h: float | None
    spare_goodput_req_s: float
    restart_min: float

    def sentence(self, currency: str) -> str:
        """The worst loss and the price of a spare."""
        worst = min(self.losses, key=lambda loss: loss.left_frac)
        left = f"With {worst.what} down {worst.left_frac:.0%} of the goodput is left"
        if self.spare is None or self.added_usd_per_h is None:
            return f"{left}; no enlargement tried carries the demand then."
        if self.added_usd_per_h == 0.0:
            return f"{left}; any one instance may fail and the demand is still carried, at no extra cost."
        return f"{left}; one spare instance ({self.spare}) costs {amount(self.added_usd_per_h, currency)}/h more."


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRow:
    """One way to join the pools: the best disaggregated strategy over it, its network paid."""

    link: str
    kind: str
    gbit_s_per_gpu: float | None
    usd_per_gpu_h: float
    strategy: str | None
    goodput_req_s: float
    usd_per_h: float | None
    usd_per_1m_output: float | None
    is_used: bool
    source: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkBreakEven:
    """The least link rate at which disaggregation gives more goodput per unit of money than the best collocated.

    `least_gbit_s_per_gpu` None: at no rate, or at every one, as `verdict` says in a sentence.
    """

    collocated: str
    disaggregated: str
    least_gbit_s_per_gpu: float | None
    now_gbit_s_per_gpu: float
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """One class of requests under the recommended strategy at the demand."""

    name: str
    share: float
    targets: str
    attainment_frac: float
    ttft_p90_ms: float
    tpot_p90_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyRow:
    """One strategy where misses cost money: bill plus penalty per hour at the demand. The first row is the choice."""

    strategy: str
    usd_per_h: float
    missed_frac: float
    penalty_usd_per_h: float

    @property
    def total_usd_per_h(self) -> float:
        """What is minimised."""
        return self.usd_per_h + self.penalty_usd_per_h


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """Everything about money that an answer shows; parts that do not apply are empty or None."""

    currency: str = "USD"
    cards: tuple[CardRow, ...] = ()
    warnings: tuple[str, ...] = ()
    at_demand: UnitCosts | None = None
    at_goodput: UnitCosts | None = None
    buy_or_rent: tuple[BuyOrRent, ...] = ()
    tipping_points: tuple[TippingPoint, ...] = ()
    why_not: tuple[WhyNot, ...] = ()
    demand: DemandPlan | None = None
    resilience: Resilience | None = None
    links: tuple[LinkRow, ...] = ()
    link_break_even: LinkBreakEven | None = None
    classes: tuple[ClassRow, ...] = ()
    penalties: tuple[PenaltyRow, ...] = ()
    num_simulated: int = 0
    elapsed_s: float = field(default=0.0, compare=False)

    @property
    def symbol(self) -> str:
        """What stands before an amount."""
        return symbol_of(self.currency)
