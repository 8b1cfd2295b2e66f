"""Measured runs simulated on several processes, for the fit of engine costs and for held-out predictions.

Every process keeps the runs it has prepared (kernels timed, requests drawn), so that a run simulated again with other
costs takes about a millisecond; run i always goes to process i mod `num_workers`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

import numpy as np

from estimator.calibrate_runs import Fit, FloatArray, IntArray, Key, Problem, fit, held_out, key_of, latencies_ms
from estimator.catalogue.engines import load_engine
from estimator.engine import EngineCosts
from estimator.measured_runs import MeasuredRun, read_runs
from estimator.replay import Answer, PreparedRun, answer, prepare

_runs: list[MeasuredRun] = []
_prepared: dict[int, PreparedRun] = {}


def _load(measurements: Path) -> None:
    _runs[:] = read_runs(measurements)
    _prepared.clear()


def _latencies_ms(index: list[int], costs: Mapping[Key, EngineCosts]) -> FloatArray:
    for i in index:
        if i not in _prepared:
            _prepared[i] = prepare(_runs[i])
    return latencies_ms([_prepared[i] for i in index], costs)


def _answers(index: list[int], costs: Sequence[Mapping[Key, EngineCosts] | None]) -> list[Answer]:
    found = []
    for i, mine in zip(index, costs, strict=True):
        run, engine = _runs[i], load_engine(_runs[i].engine)
        if mine is not None and key_of(run) in mine:
            engine = replace(engine, costs={"": mine[key_of(run)]})
        found.append(answer(run, engine))
    return found


class Replayer:
    """Processes that simulate the runs of a measurements file; a context manager."""

    def __init__(self, measurements: Path, num_workers: int = 0) -> None:
        num_workers = num_workers or min(2, os.cpu_count() or 1)
        context = get_context("spawn")
        self._workers = [
            ProcessPoolExecutor(1, mp_context=context, initializer=_load, initargs=(measurements,))
            for _ in range(num_workers)
        ]

    def __enter__(self) -> Replayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.shutdown(cancel_futures=True)

    def latencies_ms(self, index: IntArray, costs: Mapping[Key, EngineCosts]) -> FloatArray:
        """TPOT and TTFT of the runs with those numbers, (num, 2) ms."""
        found = np.empty((len(index), 2))
        shares = self._shares(index)
        futures = [
            worker.submit(_latencies_ms, index[share].tolist(), costs)
            for worker, share in zip(self._workers, shares, strict=True)
        ]
        for share, future in zip(shares, futures, strict=True):
            found[share] = future.result()
        return found

    def answers(self, index: IntArray, costs: Sequence[Mapping[Key, EngineCosts] | None] | None = None) -> list[Answer]:
        """Full answers of the runs with those numbers, with costs of their own where given."""
        found: list[Answer | None] = [None] * len(index)
        costs = [None] * len(index) if costs is None else costs
        shares = self._shares(index)
        futures: list[Future[list[Answer]]] = [
            worker.submit(_answers, index[share].tolist(), [costs[place] for place in share])
            for worker, share in zip(self._workers, shares, strict=True)
        ]
        for share, future in zip(shares, futures, strict=True):
            for place, one in zip(share, future.result(), strict=True):
                found[place] = one
        return [one for one in found if one is not None]

    def _shares(self, index: IntArray) -> list[IntArray]:
        """Places in `index` that each worker does."""
        num = len(self._workers)
        return [np.flatnonzero(index % num == worker) for worker in range(num)]


def fitted(runs: Sequence[MeasuredRun], replayer: Replayer) -> tuple[Problem, Fit]:
    """The fit on all runs, whatever card is bundled; `runs` are those of the replayer's file."""
    problem = Problem.of(runs, replayer.latencies_ms)
    return problem, fit(problem)


def fitted_answers(runs: Sequence[MeasuredRun], replayer: Replayer, problem: Problem, full: Fit) -> list[Answer]:
    """Every run answered by the fit."""
    return replayer.answers(np.arange(len(runs)), [problem.design.costs(full.shifts)] * len(runs))


def held_out_answers(runs: Sequence[MeasuredRun], replayer: Replayer, problem: Problem, full: Fit) -> list[Answer]:
    """Every run answered by the fit that has not seen its group."""
    everyone, costs = problem.design.costs(full.shifts), held_out(problem, full)[1]
    return replayer.answers(np.arange(len(runs)), [costs.get(run.group, everyone) for run in runs])
