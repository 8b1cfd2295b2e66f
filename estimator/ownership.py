"""Total cost of owning GPUs, and when buying beats renting.

| symbol | field | unit |
|---|---|---|
| C | `capital_usd_per_gpu` = server · (1 + network share + storage share) / GPUs | $ |
| R | `residual_frac` of C that the hardware sells for at the end | |
| n, w | `years`, `cost_of_capital_frac` per year | years, 1/year |
| u | `utilisation_frac`, share of the hours at load | |

    capital      a = (C − R·C/(1 + w)^n) · w/(1 − (1 + w)^−n) / 8760      (annuity of the purchase less the resale)
    power          = (kW_idle + u·(kW_load − kW_idle)) · PUE · tariff
    hosting        = $/kW-month · kW_load · 12/8760                       (tariff 0 if hosting includes power)
    maintenance    = m·C/8760
    staff          = $/GPU-year / 8760

The sum is the price of an hour owned, used or not; divided by u it is the price of a useful hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from estimator.cost import HOURS_PER_MONTH, HOURS_PER_YEAR, PriceCard
from estimator.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """A server bought, housed and run; symbols in the module's docstring. `source` and `date` tell the quote."""

    gpu: str
    server_usd: float
    gpus_per_server: int
    kw_load_per_gpu: float
    source: str
    date: str
    kw_idle_per_gpu: float = 0.0
    network_frac: float = 0.15
    storage_frac: float = 0.0
    years: float = 4.0
    residual_frac: float = 0.15
    cost_of_capital_frac: float = 0.08
    pue: float = 1.25
    usd_per_kwh: float = 0.08
    hosting_usd_per_kw_month: float = 150.0
    maintenance_frac_per_year: float = 0.03
    staff_usd_per_gpu_year: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("server_usd", "gpus_per_server", "kw_load_per_gpu", "years"):
            value = getattr(self, name)
            require(value > 0, field=f"owned {self.gpu}.{name}", value=value, rule="must be positive", accepted="> 0")
        require(self.pue >= 1, field=f"owned {self.gpu}.pue", value=self.pue, rule="must be at least 1", accepted="≥ 1")
        require(
            0 <= self.residual_frac <= 1,
            field=f"owned {self.gpu}.residual_frac",
            value=self.residual_frac,
            rule="must lie in [0, 1]",
            accepted="a share of the purchase, for example 0.15",
        )
        require(
            0 <= self.kw_idle_per_gpu <= self.kw_load_per_gpu,
            field=f"owned {self.gpu}.kw_idle_per_gpu",
            value=self.kw_idle_per_gpu,
            rule="must lie between 0 and the load power",
            accepted=f"0 to {self.kw_load_per_gpu:g} kW",
        )
        for name in ("source", "date"):
            value = getattr(self, name)
            require(bool(value), field=f"owned {self.gpu}.{name}", value=value, rule="must be given", accepted="text")
        self._check_rates()

    def _check_rates(self) -> None:
        names = ("network_frac", "storage_frac", "cost_of_capital_frac", "usd_per_kwh", "hosting_usd_per_kw_month")
        for name in (*names, "maintenance_frac_per_year", "staff_usd_per_gpu_year"):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value >= 0,
                field=f"owned {self.gpu}.{name}",
                value=value,
                rule="must be finite and not negative",
                accepted="≥ 0",
            )

    @property
    def capital_usd_per_gpu(self) -> float:
        """C: a GPU's share of server, network and storage."""
        return self.server_usd * (1.0 + self.network_frac + self.storage_frac) / self.gpus_per_server

    @property
    def capital_usd_per_h(self) -> float:
        """Annuity of purchase less discounted resale, per GPU and hour."""
        w, n = self.cost_of_capital_frac, self.years
        annuity = w / -math.expm1(-n * math.log1p(w)) if w > 0 else 1.0 / n
        resale = self.residual_frac * self.capital_usd_per_gpu / math.pow(1.0 + w, n)
        return (self.capital_usd_per_gpu - resale) * annuity / HOURS_PER_YEAR

    def power_usd_per_h(self, utilisation_frac: float) -> float:
        """Electricity per GPU and hour at that share of hours under load."""
        kw = self.kw_idle_per_gpu + utilisation_frac * (self.kw_load_per_gpu - self.kw_idle_per_gpu)
        return kw * self.pue * self.usd_per_kwh

    @property
    def hosting_usd_per_h(self) -> float:
        """Space and cooling per GPU and hour, for the power it may draw."""
        return self.hosting_usd_per_kw_month * self.kw_load_per_gpu / HOURS_PER_MONTH

    @property
    def maintenance_usd_per_h(self) -> float:
        """Repairs and support per GPU and hour."""
        return self.maintenance_frac_per_year * self.capital_usd_per_gpu / HOURS_PER_YEAR

    @property
    def staff_usd_per_h(self) -> float:
        """People per GPU and hour."""
        return self.staff_usd_per_gpu_year / HOURS_PER_YEAR

    @property
    def standing_usd_per_h(self) -> float:
        """Hosting, maintenance and staff per GPU and hour: paid whatever the load."""
        return self.hosting_usd_per_h + self.maintenance_usd_per_h + self.staff_usd_per_h

    def parts_usd_per_h(self, utilisation_frac: float) -> dict[str, float]:
        """What the cost of an hour consists of; the sum is `usd_per_gpu_h`."""
        return {
            "capital": self.capital_usd_per_h,
            "power": self.power_usd_per_h(utilisation_frac),
            "hosting": self.hosting_usd_per_h,
            "maintenance": self.maintenance_usd_per_h,
            "staff": self.staff_usd_per_h,
        }

    def usd_per_gpu_h(self, utilisation_frac: float) -> float:
        """Full cost of one GPU owned for an hour."""
        return self.capital_usd_per_h + self.power_usd_per_h(utilisation_frac) + self.standing_usd_per_h

    def whole_servers(self, num_needed: int) -> tuple[int, Ownership]:
        """GPUs bought for `num_needed`, and the cost of owning per GPU needed: those beyond the need count as used."""
        num_owned = math.ceil(num_needed / self.gpus_per_server) * self.gpus_per_server
        share = num_owned / num_needed
        per_needed = replace(
            self,
            server_usd=share * self.server_usd,
            kw_load_per_gpu=share * self.kw_load_per_gpu,
            kw_idle_per_gpu=share * self.kw_idle_per_gpu,
            staff_usd_per_gpu_year=share * self.staff_usd_per_gpu_year,
        )
        return num_owned, per_needed

    def card(self, utilisation_frac: float) -> PriceCard:
        """The same as a price card, so that owned and rented GPUs are billed alike."""
        return PriceCard(
            id=f"owned-{self.gpu}",
            provider="owned",
            gpu=self.gpu,
            gpus_per_node=self.gpus_per_server,
            kind="owned",
            usd_per_gpu_h=self.usd_per_gpu_h(utilisation_frac),
            region="own site",
            source=self.source,
            date=self.date,
            currency=self.currency,
        )

    def break_even_months(self, rent: PriceCard, utilisation_frac: float) -> float:
        """Months after which money spent on rent has passed money spent on owning; ∞ if it never does.

        Rent is paid for the hours used, u·p; owning pays C at once and then power and standing cost. Neither resale nor
        interest is counted: this is a question of cash. Buying pays if the answer is below the months the GPU lives.
        """
        saved_usd_per_h = (
            utilisation_frac * rent.usd_per_gpu_h - self.power_usd_per_h(utilisation_frac) - self.standing_usd_per_h
        )
        return self.capital_usd_per_gpu / saved_usd_per_h / HOURS_PER_MONTH if saved_usd_per_h > 0 else math.inf

    def break_even_utilisation(self, rent: PriceCard) -> float:
        """Share of hours above which an owned GPU is cheaper than renting for those hours alone; ∞ if none is.

        Solves u·p = full cost(u), which is linear in u. Above 1: renting stays cheaper even round the clock.
        """
        idle_usd_per_h = self.usd_per_gpu_h(0.0)
        saved_usd_per_load_h = rent.usd_per_gpu_h - (self.usd_per_gpu_h(1.0) - idle_usd_per_h)
        return idle_usd_per_h / saved_usd_per_load_h if saved_usd_per_load_h > 0 else math.inf
