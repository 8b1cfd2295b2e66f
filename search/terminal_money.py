"""The short form of `Money` in the terminal: a sentence each, tipping points and why-not as small tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from search.money_view import LinkRow, Money, TippingPoint, UnitCosts, WhyNot, amount, short
from search.terminal import print_rows

MAX_TIPS = 8


def print_money(money: Money, console: Console) -> None:
    """Print what there is, nothing for what is not."""
    for line in money_lines(money):
        console.print(line, highlight=False, markup=False)
    if money.tipping_points:
        console.print("\nWhat would change the answer, nearest first", style="italic", highlight=False)
        print_rows([tip_row(tip, money.currency) for tip in money.tipping_points[:MAX_TIPS]], console)
    if money.why_not:
        console.print("Why not", style="italic", highlight=False)
        print_rows([why_row(why, money.currency) for why in money.why_not], console)
    if money.links:
        console.print("Links between the pools", style="italic", highlight=False)
        print_rows([link_row(link, money.currency) for link in money.links], console)
    if money.classes:
        console.print("Classes of requests at the demand", style="italic", highlight=False)
        print_rows(class_rows(money), console)
    if money.penalties:
        console.print("Bill and penalty for misses at the demand, cheapest first", style="italic", highlight=False)
        print_rows(penalty_rows(money), console)
    for warning in money.warnings:
        console.print(f"Warning: {warning}", style="yellow", highlight=False, markup=False)


def money_lines(money: Money) -> Iterator[str]:
    """One sentence per part."""
    if money.at_demand is not None:
        yield unit_line(money.at_demand, money.currency)
    for row in money.buy_or_rent:
        yield row.sentence(money.currency)
    if money.resilience is not None:
        yield money.resilience.sentence(money.currency)
    if money.demand is not None:
        yield money.demand.sentence(money.currency)
    if money.link_break_even is not None:
        yield money.link_break_even.verdict


def unit_line(costs: UnitCosts, currency: str) -> str:
    """What the bill comes to per year, token and request at the demand."""
    return (
        f"At the demand: {amount(costs.usd_per_year, currency, decimals=0)} a year; per 1M good tokens "
        f"{amount(costs.usd_per_1m_input, currency)} if all is charged to input, "
        f"{amount(costs.usd_per_1m_output, currency)} if to output; "
        f"{amount(costs.usd_per_1k_requests, currency)} per 1,000 good requests ({costs.good_frac:.1%} are good)."
    )


def tip_row(tip: TippingPoint, currency: str) -> dict[str, object]:
    """One line of the table of tipping points."""
    now, at = (
        (f"{amount(tip.now, currency)}/h", f"{amount(tip.tip, currency)}/h")
        if tip.group == "price"
        else (f"{short(tip.now)} {tip.unit}", f"{short(tip.tip)} {tip.unit}")
    )
    return {
        "if": tip.name,
        "now": now,
        "passes": at,
        "change": f"{tip.change_frac:+.0%}",
        "then": tip.takes_over or "nothing tried serves the demand",
        "at": None if tip.usd_per_h is None else f"{amount(tip.usd_per_h, currency)}/h",
    }


def why_row(why: WhyNot, currency: str) -> dict[str, object]:
    """One line of the table of what was not chosen."""
    return {
        "": why.name,
        "best": why.strategy or "-",
        "req/s": "-" if why.strategy is None else f"{why.goodput_req_s:.3g}",
        "cost": "-" if why.usd_per_h is None else f"{amount(why.usd_per_h, currency)}/h",
        "reason": why.reason,
    }


def link_row(link: LinkRow, currency: str) -> dict[str, object]:
    """One line of the table of links."""
    token = "-" if link.usd_per_1m_output is None else amount(link.usd_per_1m_output, currency)
    return {
        "link": f"{link.link}{' (used)' if link.is_used else ''}",
        "Gbit/s per GPU": "-" if link.gbit_s_per_gpu is None else f"{link.gbit_s_per_gpu:g}",
        "per GPU": f"{amount(link.usd_per_gpu_h, currency, decimals=3)}/h",
        "best disaggregated": link.strategy or "-",
        "req/s": f"{link.goodput_req_s:.3g}",
        "cost": "-" if link.usd_per_h is None else f"{amount(link.usd_per_h, currency)}/h",
        "per 1M output": token,
    }


def class_rows(money: Money) -> list[dict[str, object]]:
    """Each class with its share, its targets and how it fares."""
    return [
        {
            "class": row.name,
            "share": f"{row.share:.0%}",
            "targets": row.targets,
            "within": f"{row.attainment_frac:.1%}",
            "TTFT P90": f"{row.ttft_p90_ms:.0f} ms",
            "TPOT P90": f"{row.tpot_p90_ms:.1f} ms",
        }
        for row in money.classes
    ]


def penalty_rows(money: Money) -> list[dict[str, object]]:
    """Strategies by bill plus penalty."""
    return [
        {
            "strategy": row.strategy,
            "bill": f"{amount(row.usd_per_h, money.currency)}/h",
            "misses": f"{row.missed_frac:.2%}",
            "penalty": f"{amount(row.penalty_usd_per_h, money.currency)}/h",
            "together": f"{amount(row.total_usd_per_h, money.currency)}/h",
        }
        for row in money.penalties[:MAX_TIPS]
    ]
