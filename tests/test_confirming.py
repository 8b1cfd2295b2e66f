"""A study that explores on few requests and confirms what its answer rests on."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from search.confirming import to_confirm
from search.evaluate import Evaluation
from search.executor import LocalExecutor
from search.journal import Journal
from search.offer import Offer, best_offer, cheapest_front
from search.study import Settings, Study, StudyResult
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import made_up, made_up_screen, small_problem, tariff, usd_per_h

DEMAND = 9.0
EXPLORING = Settings(trials=1000, screen=False, demand_req_s=DEMAND, explores=True)


def roughly(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """Made-up goodput up to 4 % off, which the written form fixes, within an interval of 5 %."""
    exact = made_up(problem, strategy, seed)
    goodput = exact.goodput_req_s * (0.96 + 0.08 * zlib.crc32(str(strategy).encode()) / 2**32)
    return replace(exact, goodput_req_s=goodput, low_req_s=0.95 * goodput, high_req_s=1.05 * goodput)


def run_study(settings: Settings, journal: Journal | None = None, calls: list[str] | None = None) -> StudyResult:
    """A study of a small problem, its calls noted with their effort."""
    noted = [] if calls is None else calls

    def exact(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        noted.append(str(strategy))
        return made_up(problem, strategy, seed)

    def rough(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        noted.append(f"{strategy} explored")
        return roughly(problem, strategy, seed)

    space = Space(small_problem())
    executor = LocalExecutor(space.problem, seed=0, evaluate=exact, explore=rough)
    screen = made_up_screen(space, settings.demand_req_s)
    return Study(space, executor, tariff(), settings, journal, screen=screen).run()


def offers(evaluations: tuple[Evaluation, ...]) -> list[Offer]:
    """With their prices."""
    strategies = [(Strategy.parse(e.strategy), e) for e in evaluations if e.is_ok]
    return [Offer(strategy=s, evaluation=e, usd_per_h=usd_per_h(s.gpu_counts)) for s, e in strategies]


def offer(text: str, goodput: float, usd: float, *, is_explored: bool = True) -> Offer:
    """Made up, its interval ±5 %."""
    evaluation = Evaluation(
        strategy=text,
        status="ok",
        goodput_req_s=goodput,
        low_req_s=0.95 * goodput,
        high_req_s=1.05 * goodput,
        is_explored=is_explored,
    )
    return Offer(strategy=Strategy.parse(text), evaluation=evaluation, usd_per_h=usd)


def test_what_an_answer_rests_on() -> None:
    """The front, the best of each kind, and the cheaper that may carry the demand; then what 8 % more adds to it."""
    known = [
        offer("1m-tp1@l40s", 8.7, 1.0),  # on the front, and may carry 9
        offer("2m-tp1@l40s", 8.65, 1.5),  # behind it, but may carry 9 for less than the best
        offer("3m-tp1@l40s", 8.0, 1.6),  # too small
        offer("4m-tp1@l40s", 9.2, 2.0, is_explored=False),  # the best, confirmed
        offer("1m-tp1@h100_sxm", 9.1, 3.0),  # the best on H100
        offer("2m-tp1@h100_sxm", 8.8, 6.0),  # on the front with 8 % more
        offer("1p-tp1@h100_sxm+1d-tp1@h100_sxm", 9.1, 7.0),  # the best of two pools
    ]
    asked = [str(strategy) for strategy in to_confirm(known, 9.0)]
    assert asked == ["1m-tp1@l40s", "1p-tp1@h100_sxm+1d-tp1@h100_sxm", "1m-tp1@h100_sxm", "2m-tp1@l40s"]
    assert [str(strategy) for strategy in to_confirm(known, None)] == ["1m-tp1@l40s"]
    settled = [
        replace(o, evaluation=replace(o.evaluation, is_explored=str(o.strategy) in {"3m-tp1@l40s", "2m-tp1@h100_sxm"}))
        for o in known
    ]
    assert [str(strategy) for strategy in to_confirm(settled, 9.0)] == ["2m-tp1@h100_sxm"]
    assert to_confirm(settled, 9.0, ceiling_req_s=9.0) == []


def test_the_answer_rests_on_confirmed_goodputs_alone() -> None:
    """Front and least cost are at full effort; the least cost is the exhaustive one although exploring is 4 % off."""
    calls: list[str] = []
    found = offers(run_study(EXPLORING, calls=calls).evaluations)
    exact = offers(tuple(made_up(small_problem(), o.strategy, 0) for o in found))
    best, truly = best_offer(found, DEMAND), best_offer(exact, DEMAND)
    assert best is not None
    assert truly is not None
    assert best.usd_per_h == truly.usd_per_h
    assert not best.evaluation.is_explored
    assert not any(o.evaluation.is_explored for o in cheapest_front(found))
    by_cost = {o.usd_per_h: o.goodput_req_s for o in cheapest_front(found)}
    for o in cheapest_front(exact):
        reached = max(goodput for usd, goodput in by_cost.items() if usd <= o.usd_per_h)
        assert reached >= o.goodput_req_s * 0.96 / 1.04
    assert len(calls) == len(set(calls))
    assert sum(not call.endswith("explored") for call in calls) < len(found) / 3


@pytest.mark.parametrize("num_kept", [1, 100, -3])
def test_an_exploring_study_cut_off_anywhere_goes_on_the_same_way(num_kept: int, tmp_path: Path) -> None:
    """With any part of the journal kept, of either effort, the rest is evaluated and the end is the undisturbed one."""
    whole = run_study(EXPLORING, Journal(tmp_path / "whole.journal", "test"))
    calls: list[str] = []
    lines = (tmp_path / "whole.journal").read_bytes().splitlines(keepends=True)
    num_done = len(Journal(tmp_path / "whole.journal", "test").read())
    header, kept = len(lines) - num_done, num_kept % num_done
    cut = tmp_path / "cut.journal"
    cut.write_bytes(b"".join(lines[: header + kept]))
    again = run_study(EXPLORING, Journal(cut, "test"), calls)
    assert [repr(e) for e in again.evaluations] == [repr(e) for e in whole.evaluations]
    assert len(calls) == num_done - kept
