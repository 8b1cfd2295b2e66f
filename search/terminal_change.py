"""What the terminal shows when a run is asked again: the answer before and after, and the new front."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

from search.money_view import amount
from search.offer import Offer
from search.prices import old_card_warnings
from search.terminal import print_rows

if TYPE_CHECKING:
    from search.reprice import Repriced
    from search.whatif import WhatIf

MAX_FRONT_ROWS = 12


def print_repriced(found: Repriced, console: Console) -> None:
    """The prices that changed, the answer before and after, the front at the new prices."""
    demand = found.demand_req_s
    for gpu, (old, new) in found.changed.items():
        was, becomes = (amount(card.usd_per_gpu_h, card.currency) for card in (old, new))
        console.print(f"{gpu}: {was}/h ({old.id}) → {becomes}/h ({new.id})", highlight=False, markup=False)
    if not found.changed:
        console.print("The file prices the run's GPUs as the run does: nothing changes.", highlight=False)
    _print_answer(found.before, found.after, (demand, demand), found.currency, console)
    if found.before is not None and found.after is not None and found.before.strategy != found.after.strategy:
        assert found.before_at_new_prices is not None  # there was one
        console.print(
            f"{found.before.strategy} would now cost {amount(found.before_at_new_prices, found.currency)}/h.",
            highlight=False,
        )
    print_front(found.front, found.after, found.currency, console)
    for warning in old_card_warnings((card for _, card in found.changed.values()), datetime.now(UTC).date()):
        console.print(f"Warning: {warning}", style="yellow", highlight=False, markup=False)
    if found.after is not None and found.after.evaluation.is_explored:
        at = found.after.evaluation
        said = f"{at.strategy} was found on few requests, {at.low_req_s:.3g} to {at.high_req_s:.3g} req/s"
        console.print(f"{said}: confirm it with `bestserve goodput`.", highlight=False)
    console.print(f"{found.num_evaluations} evaluations ranked again, none simulated.", style="dim", highlight=False)


def print_whatif(found: WhatIf, console: Console) -> None:
    """What was changed, the answer before and after, what becomes of the old one, the new front."""
    for change in found.changes:
        console.print(str(change), highlight=False, markup=False)
    for was, becomes in found.told:
        console.print(f"Was: {was}", highlight=False, markup=False)
        console.print(f"Now: {becomes}", style="bold", highlight=False, markup=False)
    _print_answer(found.before, found.after, found.demand_req_s, found.currency, console)
    before, now, demand = found.before, found.before_now, found.demand_req_s[1]
    if before is not None and (found.after is None or before.strategy != found.after.strategy):
        if now is None:
            left = "no longer meets the targets at any rate"
        elif now.goodput_req_s >= demand:
            left = f"still carries it, at {amount(now.usd_per_h, found.currency)}/h"
        else:
            left = f"carries {now.goodput_req_s:.3g} of {demand:g} req/s now, set by {now.evaluation.binding_limit}"
        console.print(f"{before.strategy} {left}.", highlight=False)
    print_front(found.front, found.after, found.currency, console)
    asked = "nothing simulated" if found.num_simulated == 0 else f"{found.num_simulated} strategies simulated again"
    console.print(f"{found.num_known} evaluations of the run kept, {asked}.", style="dim", highlight=False)


def _print_answer(
    before: Offer | None, after: Offer | None, demand_req_s: tuple[float, float], currency: str, console: Console
) -> None:
    demand = demand_req_s[1]
    if after is None:
        console.print(
            f"Nothing tried serves {demand:g} req/s now; plan anew with a larger search.", style="bold", highlight=False
        )
    elif before is None:
        console.print(f"Now {_words(after, demand, currency)}", style="bold", highlight=False)
    elif before.strategy == after.strategy:
        console.print(f"The answer stays: {_words(after, demand, currency)}", style="bold", highlight=False)
        _print_difference(before, after, currency, console)
    else:
        console.print(f"Was {_words(before, demand_req_s[0], currency)}", highlight=False)
        console.print(f"Now {_words(after, demand, currency)}", style="bold", highlight=False)
        _print_difference(before, after, currency, console)


def _print_difference(before: Offer, after: Offer, currency: str, console: Console) -> None:
    more = after.usd_per_h - before.usd_per_h
    if before.strategy != after.strategy and abs(more) < 0.005:
        console.print("The price is the same; the new one carries more under the change.", highlight=False)
    if abs(more) >= 0.005 and before.usd_per_h > 0:
        share = f" ({more / before.usd_per_h:+.0%})"
        sign = "+" if more > 0 else ""
        console.print(f"Difference: {sign}{amount(more, currency)}/h{share}.", highlight=False)


def _words(offer: Offer, demand_req_s: float, currency: str) -> str:
    headroom = offer.goodput_req_s / demand_req_s - 1.0
    return (
        f"{offer.strategy} ({offer.gpus}) at {amount(offer.usd_per_h, currency)}/h: "
        f"{offer.goodput_req_s:.3g} req/s, {headroom:+.0%} headroom over {demand_req_s:g}, "
        f"set by {offer.evaluation.binding_limit}."
    )


def print_front(front: Sequence[Offer], chosen: Offer | None, currency: str, console: Console) -> None:
    """The front by rising cost, the choice marked; those around the choice where there are many."""
    at = next((i for i, offer in enumerate(front) if chosen is not None and offer.strategy == chosen.strategy), 0)
    first = max(0, min(at - MAX_FRONT_ROWS // 2, len(front) - MAX_FRONT_ROWS))
    rows = [
        {
            "": "✓" if chosen is not None and offer.strategy == chosen.strategy else " ",
            "strategy": str(offer.strategy),
            "req/s": f"{offer.goodput_req_s:.2f}",
            "cost": f"{amount(offer.usd_per_h, currency)}/h",
            "limit": offer.evaluation.binding_limit,
        }
        for offer in front[first : first + MAX_FRONT_ROWS]
    ]
    print_rows(rows, console)
