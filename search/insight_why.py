"""Why not: for each architecture and GPU type not chosen its best strategy, what limits it, and the gap in money."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from search.ledger import Ledger, enlarged
from search.money_view import WhyNot, amount
from search.offer import Offer, best_offer
from spaces.rules import broken_strategy
from spaces.space import Space
from spaces.strategy import Pool, Strategy

NUM_SHAPES = 3  # tried of a class that the study has no strategy of
NUM_SCALED = 2  # best strategies per money of a class, enlarged to the demand where none carries it
MARGIN = 1.02  # first enlargement over the demand; goodput of n instances is about n times that of one
Member = Callable[[Strategy], bool]


def why_not(ledger: Ledger, best: Offer, space: Callable[[], Space]) -> Iterator[WhyNot]:
    """One row per class that the recommended strategy is not of; `space` is made only where a class is unknown."""
    allowed = ledger.problem.space
    for architecture in allowed.architectures:
        is_disaggregated = architecture == "disaggregated"
        if best.strategy.is_disaggregated != is_disaggregated:
            yield _row(ledger, best, "architecture", architecture, space)
    for gpu in allowed.gpus or ledger.problem.gpus:
        if gpu not in best.strategy.gpu_counts:
            yield _row(ledger, best, "gpu", gpu, space)


def complete(ledger: Ledger, space: Space) -> None:
    """Tries each architecture and GPU type of which nothing known carries the demand, a few simulations each.

    A study of few trials may leave a class out, or know it only too small; what is found stays in the ledger.
    """
    allowed = ledger.problem.space
    classes = [("architecture", name) for name in allowed.architectures]
    classes += [("gpu", name) for name in allowed.gpus or ledger.problem.gpus]
    for kind, name in classes:
        member = _member(kind, name)
        found = [offer for offer in ledger.offers() if member(offer.strategy)]
        if best_offer(found, ledger.demand_req_s) is None:
            _scaled_up(ledger, found or _first_tries(ledger, member, space))


def _row(
    ledger: Ledger, best: Offer, kind: Literal["architecture", "gpu"], name: str, space: Callable[[], Space]
) -> WhyNot:
    member = _member(kind, name)
    found = [offer for offer in ledger.offers() if member(offer.strategy)]
    if not found:
        found = _first_tries(ledger, member, space())
    carrying = best_offer(found, ledger.demand_req_s) or _scaled_up(ledger, found)
    if carrying is not None:
        return _told(best, carrying, kind, name, ledger)
    if found:
        return _told(best, max(found, key=lambda offer: offer.goodput_req_s), kind, name, ledger)
    return WhyNot(
        kind=kind,
        name=name,
        strategy=None,
        carries=False,
        goodput_req_s=0.0,
        usd_per_h=None,
        gap_usd_per_h=None,
        gap_frac=None,
        binding_limit="",
        reason=_why_nothing(ledger, member, space()),
    )


def _member(kind: str, name: str) -> Member:
    if kind == "architecture":
        return lambda strategy: strategy.is_disaggregated == (name == "disaggregated")
    return lambda strategy: name in strategy.gpu_counts


def _told(best: Offer, offer: Offer, kind: Literal["architecture", "gpu"], name: str, ledger: Ledger) -> WhyNot:
    gap, currency = offer.usd_per_h - best.usd_per_h, ledger.tariff.currency
    limit, carries = offer.evaluation.binding_limit, offer.goodput_req_s >= ledger.demand_req_s
    if not carries:
        most, within = ledger.demand_req_s, ledger.problem.space.max_gpus
        reason = f"serves at most {offer.goodput_req_s:.3g} of {most:g} req/s within {within} GPUs, set by {limit}"
    elif abs(gap) < 0.005:
        more = offer.goodput_req_s / best.goodput_req_s - 1.0
        reason = f"costs the same and carries {abs(more):.0%} {'more' if more > 0 else 'less'}, set by {limit}"
    elif gap < 0:
        reason = (
            f"found only now, {amount(-gap, currency)}/h cheaper: plan again with more trials, the search missed it"
        )
    else:
        reason = f"costs {amount(gap, currency)}/h more ({gap / best.usd_per_h:+.0%}), set by {limit}"
    return WhyNot(
        kind=kind,
        name=name,
        strategy=str(offer.strategy),
        carries=carries,
        goodput_req_s=offer.goodput_req_s,
        usd_per_h=offer.usd_per_h,
        gap_usd_per_h=gap,
        gap_frac=gap / best.usd_per_h if best.usd_per_h > 0 else None,
        binding_limit=limit,
        reason=reason,
    )


def _first_tries(ledger: Ledger, member: Member, space: Space) -> list[Offer]:
    """A few shapes of the class, alone and then as many as the demand needs by their goodput alone."""
    tried = [ledger.offer(strategy) for strategy in _smallest(space, member)]
    return [offer for offer in tried if offer is not None]


def _smallest(space: Space, member: Member) -> list[Strategy]:
    """The class's strategies of one instance per pool, those without pipelines and with fewest GPUs first."""

    def order(pool: Pool) -> tuple[int, int, int]:
        return pool.parallelism.pp, pool.num_gpus, pool.parallelism.dp

    single = [Strategy(pools=(shape,)) for shape in sorted(space.central("m"), key=order)]
    pairs = [
        Strategy(pools=(p, replace(p_to_d, count=1)))
        for p in sorted(space.central("p"), key=order)
        for p_to_d in space.central("d")
        if p_to_d.parallelism == p.parallelism and p_to_d.gpu == p.gpu
    ]
    fitting = [s for s in (*single, *pairs) if member(s) and broken_strategy(space.problem, s) is None]
    return fitting[:NUM_SHAPES]


def _scaled_up(ledger: Ledger, found: list[Offer]) -> Offer | None:
    """The best of the class per money, enlarged until it carries the demand within the limits of the search."""
    tried = []
    for offer in sorted(found, key=lambda o: o.usd_per_h / o.goodput_req_s)[:NUM_SCALED]:
        for margin in (MARGIN, MARGIN**3):
            larger = enlarged(offer.strategy, margin * ledger.demand_req_s / offer.goodput_req_s)
            if broken_strategy(ledger.problem, larger) is not None:
                break
            at = ledger.offer(larger)
            if at is not None:
                tried.append(at)
                if at.goodput_req_s >= ledger.demand_req_s:
                    break
    return best_offer(tried, ledger.demand_req_s)


def _why_nothing(ledger: Ledger, member: Member, space: Space) -> str:
    """The reason that took the class out: its strategies' own, or the rule that removed its layouts."""
    for strategy, evaluation in ledger.known.items():
        if member(strategy) and evaluation.reason:
            return f"{evaluation.rule or evaluation.status}: {evaluation.reason.strip().splitlines()[-1]}"
    for rule, removed in space.removed.items():
        if "@" in removed.example and any(member(Strategy.parse(t)) for t in _parsable(removed.example)):
            return f"{rule}: {removed.reason}"
    return "no strategy of it is in the space searched"


def _parsable(example: str) -> list[str]:
    """A pool's written form as a collocated strategy, whatever its role."""
    return [example.replace("1p-", "1m-").replace("1d-", "1m-")]
