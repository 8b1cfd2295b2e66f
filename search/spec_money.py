"""The parts of a run spec that speak of money: prices, networks, servers bought, demand over time, penalties.

All amounts are in the run's `currency`; a field that says `usd` accepts US dollars alone.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from estimator.errors import BestServeError
from search.edge import Edge

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Day = Annotated[
    str, BeforeValidator(lambda given: given.isoformat() if isinstance(given, date) else given), Field(min_length=1)
]  # YAML reads 2026-11-09 as a date


class PriceSpec(Edge):
    """A price of one's own."""

    usd_per_gpu_h: Positive | None = Field(default=None, description="US dollars per GPU and hour > 0")
    per_gpu_h: Positive | None = Field(default=None, description="the same in the run's currency > 0")
    gpus_per_node: PositiveInt = Field(default=1, description="GPUs bought together; 1: sold singly")
    source: str = Field(min_length=1, description="who asks this price")
    date: Day = Field(description="when it was asked, for example 2026-11-09")

    @model_validator(mode="after")
    def _one_price(self) -> PriceSpec:
        if (self.usd_per_gpu_h is None) == (self.per_gpu_h is None):
            given = "both" if self.per_gpu_h is not None else None
            accepted = "per_gpu_h in the run's currency, or usd_per_gpu_h"
            raise BestServeError("usd_per_gpu_h", given, "must be given once", accepted)
        return self


class LinkOptionSpec(Edge):
    """A network between nodes that could be had."""

    name: str = Field(min_length=1, description="what to call it")
    kind: Literal["nvlink", "infiniband", "roce", "ethernet"] = Field(
        default="ethernet", description="nvlink, infiniband, roce or ethernet"
    )
    gbit_s_per_gpu: Positive = Field(description="Gbit/s, one direction per GPU")
    per_gpu_h: NotNegative = Field(description="its price per GPU and hour, in the run's currency")
    source: str = Field(min_length=1, description="who asks this price")
    date: Day = Field(description="when it was asked, for example 2026-11-09")


class LinkSpec(Edge):
    """What carries KV caches from prefill to decode instances."""

    gbit_s_per_gpu: Positive | None = Field(
        default=None, description="Gbit/s, one direction per GPU; default: the GPU's network"
    )
    latency_us: float = Field(default=50.0, ge=0, description="microseconds per hand-over")
    per_gpu_h: NotNegative = Field(
        default=0.0,
        description="price of the network per GPU and hour for strategies that leave a node; 0: part of the rent",
    )
    options: list[str | LinkOptionSpec] | None = Field(
        default=None, description="networks to compare, ids of `bestserve catalogue links` or {name: …}"
    )


class ServerSpec(Edge):
    """One server as quoted to you."""

    price: Positive = Field(description="purchase price of the server, in the run's currency")
    gpus: PositiveInt = Field(default=8, description="GPUs in it")
    kw_load_per_gpu: Positive = Field(default=1.37, description="kW per GPU under load, host included")
    kw_idle_per_gpu: NotNegative = Field(default=0.41, description="kW per GPU when idle")
    source: str = Field(min_length=1, description="who asks this price")
    date: Day = Field(description="when it was asked, for example 2026-11-09")


class OwnershipSpec(Edge):
    """Owning instead of renting; the equations are in `estimator/MONEY.md`. Left out: the catalogue's estimates."""

    servers: dict[str, ServerSpec] = Field(
        default_factory=dict, description="per GPU, {price: …, gpus: 8, source: …, date: …}"
    )
    server_price: Positive | None = Field(
        default=None, description="purchase price of the server where the spec has one GPU type"
    )
    years: Positive = Field(default=4.0, description="years of use")
    residual: float = Field(default=0.15, ge=0, le=1, description="share of the purchase that resale brings")
    cost_of_capital: NotNegative = Field(default=0.08, description="per year, for example 0.08")
    network_share: NotNegative = Field(default=0.15, description="network over server price")
    storage_share: NotNegative = Field(default=0.0, description="storage over server price")
    pue: float = Field(default=1.25, ge=1, description="power usage effectiveness, at least 1")
    tariff_per_kwh: NotNegative = Field(default=0.08, description="price of a kWh; 0 if hosting includes it")
    hosting_per_kw_month: NotNegative = Field(default=150.0, description="price of a kW hosted for a month")
    maintenance_share: NotNegative = Field(default=0.03, description="of the purchase, per year")
    staff_per_gpu_year: NotNegative = Field(default=0.0, description="price of staff per GPU and year")
    utilisation: float = Field(default=1.0, gt=0, le=1, description="share of the hours that the GPUs are in use")


class DiurnalSpec(Edge):
    """A day with one smooth peak; the mean is the traffic's rate."""

    peak_factor: float = Field(gt=1, le=10, description="peak over mean, above 1 and at most 10, for example 2")
    peak_hour: float = Field(default=15.0, ge=0, lt=24, description="hour of the peak, 0 to 24")


class DemandSpec(Edge):
    """Demand over a day or a week, one of `hourly`, `trace` and `diurnal`, and how capacity follows it."""

    hourly: Annotated[list[NotNegative], Field(min_length=1, max_length=24 * 31)] | None = Field(
        default=None, description="requests per second in each hour, 24 for a day or 168 for a week"
    )
    trace: str | None = Field(default=None, description="a trace file, counted by the hour, as many hours as it lasts")
    diurnal: DiurnalSpec | None = Field(default=None, description="{peak_factor: …, peak_hour: …}")
    startup_s: float = Field(
        default=300.0, ge=0, le=3600, description="seconds from asking for an instance to its first token, up to 3600"
    )
    scaling: Literal["ahead", "reactive"] = Field(
        default="ahead", description="ahead: started early enough, and paid; reactive: when the load has risen"
    )
    base_price: str | None = Field(
        default=None, description="a kind such as reserved_1y, or a card's id, for the reserved base; default: the card"
    )
    burst_price: str | None = Field(default=None, description="likewise for what is added at peaks, such as spot")

    @model_validator(mode="after")
    def _one_curve(self) -> DemandSpec:
        given = [name for name in ("hourly", "trace", "diurnal") if getattr(self, name) is not None]
        if len(given) != 1:
            accepted = "one of hourly: [10, 12, …], trace: file.csv, diurnal: {peak_factor: 2}"
            raise BestServeError("curve", ", ".join(given) or None, "must be given once", accepted)
        if self.hourly is not None and max(self.hourly) == 0:
            raise BestServeError("hourly", 0, "has no demand in any hour", "requests per second > 0 in some hour")
        return self
