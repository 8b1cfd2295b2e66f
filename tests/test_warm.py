"""A study that begins with what a previous run found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from estimator.errors import BestServeError
from search.study import Settings
from search.warm import warm_strategies
from spaces.space import Space
from spaces.strategy import Strategy
from tests.small_problem import made_up, small_problem
from tests.test_study import front, make_study


def leave_front(folder: Path, texts: list[str]) -> Path:
    """A run's folder with this front."""
    found = [
        made_up(small_problem(gpus=("h100_sxm", "l40s", "h200_sxm"), max_gpus=64), Strategy.parse(text), 0)
        for text in texts
    ]
    pd.DataFrame([evaluation.as_dict() for evaluation in found]).to_csv(folder / "front.csv", index=False)
    return folder


def test_a_front_moves_to_the_nearest_strategies_of_this_space(tmp_path: Path) -> None:
    """Limits move to the nearest allowed, counts also to what carries this demand; other GPUs and degrees fall out."""
    texts = ["2m-tp1@l40s,tokens=5000,seqs=300", "1m-tp2@h200_sxm,tokens=8192,seqs=256"]
    found = warm_strategies(leave_front(tmp_path, texts), Space(small_problem()), demand_req_s=3.5)
    assert [str(strategy) for strategy in found] == [
        "4m-tp1@l40s,tokens=8192,seqs=256",
        "2m-tp1@l40s,tokens=8192,seqs=256",
    ]


def test_a_warm_start_is_tried_first_and_evaluated_anew(tmp_path: Path) -> None:
    """What a run of a smaller budget found comes first, is simulated like the rest, and the front is the same."""
    calls: list[str] = []

    def counted(problem: object, strategy: Strategy, seed: int) -> object:
        calls.append(str(strategy))
        return made_up(problem, strategy, seed)  # type: ignore[arg-type]

    small = make_study(small_problem(max_gpus=2), Settings(trials=60, sampler="tpe")).run().evaluations
    ok = sorted((e for e in small if e.is_ok), key=lambda e: -e.goodput_req_s)[:5]
    problem = small_problem()
    warm = warm_strategies(leave_front(tmp_path, [e.strategy for e in ok]), Space(problem), demand_req_s=None)
    settings = Settings(trials=200, sampler="tpe", screen=False)
    cold = make_study(problem, settings).run().evaluations
    found = make_study(problem, replace(settings, warm=warm), evaluate=counted).run()  # type: ignore[arg-type]
    assert [e.strategy for e in found.evaluations[: len(warm)]] == [str(strategy) for strategy in warm]
    assert calls == [e.strategy for e in found.evaluations]
    assert found.history[0].phase == "warm start"
    assert front(found.evaluations) == front(cold)


def test_a_folder_without_a_front_is_refused(tmp_path: Path) -> None:
    """A run that has not finished cannot be begun with."""
    with pytest.raises(BestServeError, match="holds no front; accepted: the folder of a finished run"):
        warm_strategies(tmp_path, Space(small_problem()), None)
