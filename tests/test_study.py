"""The study: its answer, its repeatability, its journal."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from estimator.errors import BestServeError
from search.evaluate import Evaluate, Evaluation
from search.executor import LocalExecutor
from search.journal import FlockLock, Journal, drop_torn_tail
from search.pareto import hypervolume, non_dominated
from search.sampling import SamplerName, choose_sampler
from search.study import Settings, Study, StudyResult
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import made_up, made_up_screen, small_problem, tariff, usd_per_h

LARGER: dict[str, Any] = {
    "gpus": ("h100_sxm", "l40s", "h200_sxm"),
    "max_gpus": 12,
    "tp": (1, 2, 4),
    "max_num_seqs": (64, 128, 256),
}


def run_study(problem: Problem, settings: Settings, journal: Journal | None = None) -> StudyResult:
    """A study of made-up evaluations in this process."""
    return make_study(problem, settings, journal).run()


def make_study(
    problem: Problem, settings: Settings, journal: Journal | None = None, evaluate: Evaluate = made_up
) -> Study:
    """A study that is yet to run."""
    space = Space(problem)
    executor = LocalExecutor(problem, seed=settings.seed, evaluate=evaluate)
    screen = made_up_screen(space, settings.demand_req_s, settings.reach)
    return Study(space, executor, tariff(), settings, journal, screen=screen)


def points(evaluations: Sequence[Evaluation]) -> tuple[list[float], list[float]]:
    """Goodput and cost of each evaluation."""
    costs = [usd_per_h(Strategy.parse(evaluation.strategy).gpu_counts) for evaluation in evaluations]
    return [evaluation.goodput_req_s for evaluation in evaluations], costs


def front(evaluations: Sequence[Evaluation]) -> list[tuple[float, float]]:
    """Undominated (goodput, cost), by rising cost."""
    goodput, cost = points(evaluations)
    return [(goodput[i], cost[i]) for i in non_dominated(goodput, cost)]


def brute_force(problem: Problem) -> list[Evaluation]:
    """Every strategy of the space, evaluated one by one."""
    return [made_up(problem, strategy, 0) for strategy in Space(problem)]


@pytest.mark.parametrize("sampler", ["exhaustive", "random", "tpe", "nsga2", "nsga3"])
@pytest.mark.filterwarnings("ignore:NSGAIIISampler is experimental")
def test_front_of_a_small_space_is_the_true_one(sampler: SamplerName) -> None:
    """With a budget as large as the space, exhaustive listing, and with half of it every sampler, finds the front."""
    problem = small_problem()
    size = Space(problem).size
    found = run_study(problem, Settings(trials=size if sampler == "exhaustive" else size // 2, sampler=sampler))
    assert front(found.evaluations) == front(brute_force(problem))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_share_of_a_larger_space_dominates_nearly_all(seed: int) -> None:
    """256 evaluations of a space of over 10,000 reach 99 % of the exhaustive hypervolume and the least-cost answer."""
    problem = small_problem(**LARGER)
    every = brute_force(problem)
    assert len(every) > 10_000
    found = run_study(problem, Settings(trials=256, sampler="tpe", seed=seed, demand_req_s=30.0))
    assert len(found.evaluations) <= 256
    best = hypervolume(*points(every), ref_usd_per_h=50.0)
    assert hypervolume(*points(found.evaluations), ref_usd_per_h=50.0) >= 0.99 * best

    def least(evaluations: Sequence[Evaluation]) -> float:
        goodput, cost = points(evaluations)
        return min(c for g, c in zip(goodput, cost, strict=True) if g >= 30.0)

    assert least(found.evaluations) == pytest.approx(least(every), rel=0.01)


def test_no_strategy_is_evaluated_twice() -> None:
    """Proposals repeat, evaluations do not."""
    problem = small_problem()
    calls: list[str] = []

    def counted(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        calls.append(str(strategy))
        return made_up(problem, strategy, seed)

    found = make_study(problem, Settings(trials=150, sampler="tpe"), evaluate=counted).run()
    assert len(calls) == len(set(calls)) == len(found.evaluations) <= 150


def test_the_same_seed_repeats_the_study() -> None:
    """Two studies of one seed evaluate the same strategies in the same order; another seed does not."""
    problem = small_problem(**LARGER)
    settings = [Settings(trials=160, sampler="nsga2", seed=seed, screen=False) for seed in (0, 0, 1)]
    runs = [run_study(problem, each).evaluations for each in settings]
    texts = [[evaluation.strategy for evaluation in run] for run in runs]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("num_kept", [1, 20, 47, 78])
def test_a_study_cut_off_anywhere_goes_on_the_same_way(num_kept: int, tmp_path: Path) -> None:
    """With any part of the journal kept, the resumed study evaluates the rest and ends like the undisturbed one."""
    problem = small_problem(**LARGER)
    settings = Settings(trials=140, sampler="tpe", demand_req_s=20.0)
    whole = run_study(problem, settings, Journal(tmp_path / "whole.journal", "test"))
    lines = (tmp_path / "whole.journal").read_bytes().splitlines(keepends=True)
    header = len(lines) - len(whole.evaluations)
    cut = tmp_path / "cut.journal"
    cut.write_bytes(b"".join(lines[: header + num_kept]) + lines[-1][:50])
    calls: list[str] = []

    def counted(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        calls.append(str(strategy))
        return made_up(problem, strategy, seed)

    again = make_study(problem, settings, Journal(cut, "test"), counted).run()
    assert [e.strategy for e in again.evaluations] == [e.strategy for e in whole.evaluations]
    assert len(calls) == len(whole.evaluations) - num_kept
    assert len(Journal(cut, "test").read()) == len(whole.evaluations)


def test_a_torn_last_line_is_cut_and_the_rest_kept(tmp_path: Path) -> None:
    """A journal that ends in the middle of a line loses that line alone; Optuna by itself could not append to it."""
    problem = small_problem()
    path = tmp_path / "study.journal"
    run_study(problem, Settings(trials=20, sampler="random"), Journal(path, "test"))
    torn = path.read_bytes()[:-30]
    whole = Journal(path, "test").read()
    path.write_bytes(torn)
    dropped = drop_torn_tail(path)
    assert dropped == len(torn) - torn.rfind(b"\n") - 1 > 0
    assert len(Journal(path, "test").read()) == len(whole) - 1
    assert drop_torn_tail(path) == 0


def test_a_lock_left_by_a_dead_process_does_not_stall(tmp_path: Path) -> None:
    """Opening a journal whose lock file exists takes well under Optuna's grace period of 30 s."""
    path = tmp_path / "study.journal"
    Journal(path, "test")
    assert FlockLock(path).acquire()  # the object is gone at once, as its process would be
    started_s = time.monotonic()
    Journal(path, "test").read()
    assert time.monotonic() - started_s < 5.0


def test_the_journal_is_an_optuna_study(tmp_path: Path) -> None:
    """Optuna opens the journal by itself: objectives, parameters and constraints are there."""
    problem = small_problem()
    path = tmp_path / "study.journal"
    found = run_study(problem, Settings(trials=40, sampler="random"), Journal(path, "test"))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(path), lock_obj=FlockLock(path))  # type: ignore[arg-type]
    )
    study = optuna.load_study(study_name="test", storage=storage)
    assert len(study.trials) == len(found.evaluations)
    assert study.trials[0].values[0] == found.evaluations[0].goodput_req_s
    assert {tuple(trial.values) for trial in study.best_trials} == set(front(found.evaluations))


def test_a_poisoned_strategy_is_reported_and_the_study_goes_on() -> None:
    """A strategy that always raises is recorded as failed with its traceback; all others are evaluated."""
    problem = small_problem()

    def poisoned(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        if "2m-tp2@l40s,tokens=8192,seqs=256" in str(strategy):
            raise ZeroDivisionError("poison")
        return made_up(problem, strategy, seed)

    space = Space(problem)
    found = make_study(problem, Settings(trials=space.size, screen=False), evaluate=poisoned).run()
    broken = [evaluation for evaluation in found.evaluations if evaluation.status == "failed"]
    assert len(found.evaluations) == space.size
    assert [evaluation.strategy for evaluation in broken] == ["2m-tp2@l40s,tokens=8192,seqs=256"]
    assert "ZeroDivisionError: poison" in broken[0].reason


def test_a_study_that_only_breaks_stops() -> None:
    """When most evaluations raise, the study stops and says why."""

    def always(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
        raise ZeroDivisionError("everything is broken")

    problem = small_problem()
    with pytest.raises(RuntimeError, match=r"(?s)evaluations broke, the last one .*everything is broken"):
        make_study(problem, Settings(trials=400), evaluate=always).run()


def test_a_space_without_strategies_says_which_rules_emptied_it() -> None:
    """If no shape fits, the error names the rules and their reasons."""
    problem = small_problem("llama-3.1-405b", ("l40s",))
    with pytest.raises(BestServeError, match=r"no strategy.*memory: weights of"):
        run_study(problem, Settings())


def test_auto_says_why() -> None:
    """The automatic choice lists small spaces whole, models middling budgets, and evolves large ones."""
    assert choose_sampler("auto", 500, 400)[0] == "exhaustive"
    name, reason = choose_sampler("auto", 500, 40_000)
    assert name == "tpe"
    assert "500 of 40000" in reason
    assert choose_sampler("auto", 5000, 40_000)[0] == "nsga2"
    assert choose_sampler("random", 500, 10) == ("random", "random was asked for")


def test_evaluations_survive_json() -> None:
    """A record read back from its plain values is equal, and unknown fields do not matter."""
    evaluation = made_up(small_problem(), Strategy.parse("1p-tp1@l40s+1d-tp1@l40s"), 0)
    values = {name: 1.0 if value != value else value for name, value in evaluation.as_dict().items()}
    finite = Evaluation.from_dict(values)
    assert Evaluation.from_dict(finite.as_dict() | {"later": 1}) == finite
    assert finite.goodput_req_s == evaluation.goodput_req_s


def test_lines_are_the_systems_at_once_and_the_disks_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every evaluation can be read by another process when it is appended, though the disk is waited for seldom."""
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", waits.append)
    path = tmp_path / "study.journal"
    journal = Journal(path, "test")
    found = run_study(small_problem(), Settings(trials=40, sampler="random"), journal)
    assert len(Journal(path, "test").read()) == len(found.evaluations)
    assert len(waits) < 10
    before = len(waits)
    journal.close()
    assert len(waits) == before + 1
