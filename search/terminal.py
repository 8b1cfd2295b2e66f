"""What the terminal shows of an answer: the sentence, the numbers, the front as a table and a plot, what limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from search.money_view import amount
from search.view import NEAR_COSTS, Candidate, OperatorTime, Rejection, View, near_range

if TYPE_CHECKING:
    from estimator.outcome import Unstable
    from search.estimate import Estimate, PricedGoodput

PLOT_HEIGHT = 16
MAX_PLOT_WIDTH = 110
MAX_FRONT_ROWS = 15
WIDE = 100  # columns from which the front's table has all its columns
OUTCOMES = ("unstable", "failed")  # of strategies that no rule removed
NARROW_COLUMNS, WIDE_COLUMNS = 33, 66  # taken by everything but the strategy


def print_view(view: View, console: Console) -> None:
    """Print the whole answer; the plot only where someone looks (not into a pipe)."""
    console.print(view.answer, style="bold", highlight=False)
    console.print(view.certainty, style="dim", highlight=False)
    if view.recommended is not None:
        console.print()
        console.print(recommendation_table(view.recommended, view))
    console.print()
    console.print(view.comparison, highlight=False)
    if view.front:
        console.print(front_table(view, console.width))
    if console.is_terminal and len(view.front) > 1:
        console.print(
            f"req/s against {view.symbol}/h: c collocated, d disaggregated, X recommended, line = demand",
            highlight=False,
        )
        print(front_plot(view, min(console.width, MAX_PLOT_WIDTH)), file=console.file)
    for line in limit_lines(view):
        console.print(line, highlight=False)
    if view.money is not None:
        from search.terminal_money import print_money

        console.print()
        print_money(view.money, console)


def recommendation_table(best: Candidate, view: View) -> Table:
    """The recommended strategy, one line per number."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    interval = f"{best.low_req_s:.3g} to {best.high_req_s:.3g}"
    per_token = view.usd(view.usd_per_1m_at_demand or 0.0)
    rows = {
        "Strategy": best.strategy,
        "GPUs": f"{best.gpus} ({best.architecture})",
        "Goodput": f"{best.goodput_req_s:.3g} req/s ({interval}), set by {best.binding_limit}",
        "Headroom": f"{best.headroom_frac(view.demand_req_s):+.0%} over {view.demand_req_s:g} req/s",
        "Cost": f"{view.usd(best.usd_per_h)}/h · {per_token} per 1M output tokens at the demand",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for row in best.bill:
        bought = (
            f"{row.num_bought} bought, {row.num_used} used" if row.num_bought != row.num_used else f"{row.num_used}"
        )
        table.add_row("Price", f"{row.gpu}: {bought} × {view.usd(row.usd_per_gpu_h)}/h ({row.card}, {row.date})")
    return table


def front_table(view: View, width: int) -> Table:
    """The Pareto front, cheapest first; ✓ marks the recommended strategy, C and D the architectures."""
    wide = width >= WIDE
    table = Table(title="Pareto front: goodput against cost", title_justify="left", pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("strategy", overflow="fold", min_width=20)
    names = ("req/s", f"{view.symbol}/h", f"{view.symbol}/1M") + (("GPUs", "TTFT", "TPOT", "set by") if wide else ())
    for name in names:
        table.add_column(name, justify="left" if name == "set by" else "right", no_wrap=name != "set by")
    shown = near_rows(view)
    room = width - (WIDE_COLUMNS if wide else NARROW_COLUMNS)
    for candidate in shown:
        chosen = view.recommended is not None and candidate.strategy == view.recommended.strategy
        cells = [
            f"{'✓' if chosen else ' '}{'D' if candidate.is_disaggregated else 'C'}",
            candidate.strategy if len(candidate.strategy) <= room else candidate.strategy.replace("+", "+\n"),
            f"{candidate.goodput_req_s:.2f}",
            f"{candidate.usd_per_h:.2f}",
            f"{candidate.usd_per_1m_output:.2f}",
        ]
        if wide:
            cells += [str(candidate.num_gpus), f"{candidate.ttft_p90_ms:.0f}", f"{candidate.tpot_p90_ms:.1f}"]
            cells.append(candidate.binding_limit)
        table.add_row(*cells, style="bold" if chosen else None)
    hidden = len(view.front) - len(shown)
    table.caption = f"C collocated, D disaggregated, ✓ recommended; {view.symbol}/1M output tokens at full goodput"
    if wide:
        table.caption += "; TTFT and TPOT: P90 in ms at that rate"
    table.caption_justify = "left"
    if hidden > 0:
        table.caption += f"; {hidden} more in front.csv"
    return table


def near_rows(view: View) -> list[Candidate]:
    """At most `MAX_FRONT_ROWS` of the front: those around the recommended cost, and both ends."""
    best = view.recommended
    if best is None or len(view.front) <= MAX_FRONT_ROWS:
        return _spread(view.front, MAX_FRONT_ROWS, best)
    near = [c for c in view.front[1:-1] if best.usd_per_h / NEAR_COSTS <= c.usd_per_h <= best.usd_per_h * NEAR_COSTS]
    return [view.front[0], *_spread(tuple(near), MAX_FRONT_ROWS - 3, best), view.front[-1]]


def front_plot(view: View, width: int) -> str:
    """Goodput against cost as characters: c and d the strategies of the front, X the recommended, a line the demand."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, PLOT_HEIGHT)
    near = near_range(view)
    shown = view.front if near is None else tuple(c for c in view.front if c.usd_per_h <= near[0])
    for is_disaggregated, marker in ((False, "c"), (True, "d")):
        points = [c for c in shown if c.is_disaggregated == is_disaggregated]
        if points:
            plotext.scatter([c.usd_per_h for c in points], [c.goodput_req_s for c in points], marker=marker)
    if view.recommended is not None:
        plotext.scatter([view.recommended.usd_per_h], [view.recommended.goodput_req_s], marker="X")
    plotext.hline(view.demand_req_s)
    return str(plotext.uncolorize(plotext.build()))


def limit_lines(view: View) -> list[str]:
    """Why other strategies are out."""
    if not view.rejected:
        return []
    return [f"Left out: {', '.join(map(_left_out, view.rejected[:5]))}."]


def _left_out(rejection: Rejection) -> str:
    one = {"strategies": "strategy"}.get(rejection.what, rejection.what.removesuffix("s"))
    what = rejection.what if rejection.num != 1 else one
    by = "as" if rejection.rule in OUTCOMES else "by"
    return f"{rejection.num:,} {what} {by} {rejection.rule.replace('_', ' ')}"


def _spread(front: tuple[Candidate, ...], num: int, keep: Candidate | None) -> list[Candidate]:
    """At most `num` candidates, evenly over the front with both ends, and the one to keep."""
    if len(front) <= num:
        return list(front)
    chosen = {round(i * (len(front) - 1) / (num - 1)) for i in range(num)}
    chosen |= {i for i, candidate in enumerate(front) if keep is not None and candidate.strategy == keep.strategy}
    return [front[i] for i in sorted(chosen)]


def print_estimate(answer: Estimate, breakdown: tuple[OperatorTime, ...], console: Console) -> None:
    """One strategy at one rate: whether it keeps the SLO, latencies, load, and where the time goes."""
    verdict = "keeps" if answer.meets else "misses"
    console.print(
        f"{answer.strategy} {verdict} the targets at {answer.rate_req_s:g} requests/s "
        f"({answer.attainment:.1%} of requests within all limits).",
        style="bold",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "mean", "P50", "P90", "P99"):
        table.add_column(name, justify="right" if name else "left")
    summary = answer.summary
    for metric, values in (("TTFT ms", summary.ttft), ("TPOT ms", summary.tpot), ("E2E ms", summary.e2e)):
        seconds = (values.mean_s, values.p50_s, values.p90_s, values.p99_s)
        table.add_row(metric, *(f"{1e3 * value:,.1f}" for value in seconds))
    console.print(table)
    pools = {"instances": summary.decode} if summary.prefill is None else {"prefill": summary.prefill}
    if summary.prefill is not None:
        pools["decode"] = summary.decode
    rows = [
        {
            "pool": name,
            "utilisation": f"{pool.utilisation_frac:.0%}",
            "batch": f"{pool.mean_batch_seqs:.1f}",
            "queue": f"{pool.mean_waiting_seqs:.2f}",
            "KV blocks used": f"{pool.mean_kv_blocks:,.0f}",
            "step ms": f"{1e3 * pool.mean_step_s:.2f}",
            "preemptions": str(pool.num_preemptions),
        }
        for name, pool in pools.items()
    ]
    print_rows(rows, console)
    console.print(
        f"Throughput {summary.throughput_req_per_s:.2f} requests/s, {summary.throughput_tokens_per_s:,.0f} tokens/s.",
        highlight=False,
    )
    print_breakdown(breakdown, console)


def print_breakdown(breakdown: tuple[OperatorTime, ...], console: Console) -> None:
    """Operators by time, with bars of characters."""
    totals: dict[tuple[str, str], float] = {}
    for time in breakdown:
        totals[time.pool, time.phase] = totals.get((time.pool, time.phase), 0.0) + time.ms
    rows = [
        {
            "step": f"{time.pool} {time.phase}",
            "operator": time.operator,
            "ms": f"{time.ms:.2f}",
            "share": f"{time.ms / totals[time.pool, time.phase]:.0%}",
            "": "█" * round(20 * time.ms / totals[time.pool, time.phase]),
            "bound by": time.bound,
        }
        for time in breakdown
        if time.ms > 0.005 * totals[time.pool, time.phase]
    ]
    print_rows(rows, console)


def print_goodput(answer: PricedGoodput | Unstable, console: Console) -> None:
    """One strategy's goodput, or why it has none."""
    from estimator.outcome import Unstable

    if isinstance(answer, Unstable):
        console.print(f"No rate meets the targets: {answer.reason}.", style="bold", highlight=False)
        return
    found = answer.goodput
    console.print(
        f"{answer.strategy} serves {found.rate_req_s:.3g} requests/s within the targets "
        f"(95 % interval {found.low_req_s:.3g} to {found.high_req_s:.3g}), set by {found.binding_limit}.",
        style="bold",
        highlight=False,
    )
    currency = answer.bill.lines[0].card.currency
    console.print(
        f"{amount(answer.bill.usd_per_h, currency)}/h, {amount(answer.usd_per_1m_output, currency)} per million output "
        f"tokens at that rate; "
        f"TTFT P90 {1e3 * found.summary.ttft.p90_s:.0f} ms, TPOT P90 {1e3 * found.summary.tpot.p90_s:.1f} ms.",
        highlight=False,
    )


def print_rows(rows: Sequence[Mapping[str, object]], console: Console) -> None:
    """A plain table; numbers to the right, nothing for None."""
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(
                "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    console.print(table)
