"""What owning a GPU costs by the spec's terms, from its own server quote or the catalogue's estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from estimator.catalogue.prices import load_servers
from estimator.ownership import Ownership
from search.spec_money import OwnershipSpec, ServerSpec

if TYPE_CHECKING:
    from search.spec import Spec


def ownership_of(spec: Spec, gpu: str) -> tuple[Ownership, bool] | None:
    """What owning that GPU costs, and whether its server is an estimate; None without a price in the run's currency."""
    terms = spec.ownership or OwnershipSpec()
    server = terms.servers.get(gpu)
    if server is None and terms.server_price is not None:
        server = ServerSpec(price=terms.server_price, source="the run spec", date="as given")
    if server is not None:
        return _owned(terms, gpu, server, spec.currency), False
    estimate = load_servers().get(gpu)
    if estimate is None or spec.currency != "USD":
        return None
    guessed = ServerSpec(
        price=float(estimate["server_usd"]),
        gpus=estimate["gpus_per_server"],
        kw_load_per_gpu=estimate["kw_load_per_gpu"],
        kw_idle_per_gpu=estimate["kw_idle_per_gpu"],
        source=estimate["source"],
        date=estimate["date"],
    )
    return _owned(terms, gpu, guessed, "USD"), True


def _owned(terms: OwnershipSpec, gpu: str, server: ServerSpec, currency: str) -> Ownership:
    return Ownership(
        gpu=gpu,
        server_usd=server.price,
        gpus_per_server=server.gpus,
        kw_load_per_gpu=server.kw_load_per_gpu,
        kw_idle_per_gpu=server.kw_idle_per_gpu,
        source=server.source,
        date=server.date,
        network_frac=terms.network_share,
        storage_frac=terms.storage_share,
        years=terms.years,
        residual_frac=terms.residual,
        cost_of_capital_frac=terms.cost_of_capital,
        pue=terms.pue,
        usd_per_kwh=terms.tariff_per_kwh,
        hosting_usd_per_kw_month=terms.hosting_per_kw_month,
        maintenance_frac_per_year=terms.maintenance_share,
        staff_usd_per_gpu_year=terms.staff_per_gpu_year,
        currency=currency,
    )
