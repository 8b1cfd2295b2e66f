"""Renting against owning what the recommended strategy needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from search.ledger import Ledger
from search.money_view import BuyOrRent
from search.offer import Offer
from search.owning import ownership_of
from search.spec_money import OwnershipSpec

if TYPE_CHECKING:
    from search.spec import Spec


def buy_or_rent(spec: Spec, ledger: Ledger, best: Offer) -> Iterator[BuyOrRent]:
    """One row per GPU type of the bill that has a server's price: the spec's, or an estimate in dollars."""
    terms = spec.ownership or OwnershipSpec()
    for line in ledger.tariff.bill(best.strategy).lines:
        found = ownership_of(spec, line.card.gpu)
        if found is None or line.card.kind == "owned":
            continue
        server, is_estimate = found
        num_owned, owned = server.whole_servers(line.num_bought)
        use = terms.utilisation
        yield BuyOrRent(
            gpu=line.card.gpu,
            num_gpus=line.num_bought,
            num_owned=num_owned,
            years=owned.years,
            utilisation_frac=use,
            rent_usd_per_gpu_h=line.card.usd_per_gpu_h,
            own_usd_per_gpu_h=owned.usd_per_gpu_h(use),
            parts_usd_per_gpu_h=owned.parts_usd_per_h(use),
            purchase_usd=owned.capital_usd_per_gpu * line.num_bought,
            break_even_months=owned.break_even_months(line.card, use),
            break_even_utilisation_frac=owned.break_even_utilisation(line.card),
            is_estimate=is_estimate,
            source=owned.source,
            date=owned.date,
        )
