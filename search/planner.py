"""From a spec to an answer: build the space, run the study, read off what to rent, leave the run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from estimator.cost import PriceCard
from search.evaluation import Evaluation
from search.executor import EagerExecutor, Executor, LocalExecutor, RayExecutor
from search.insight import ledger_of
from search.insight_why import complete
from search.journal import Journal
from search.ledger import Ledger
from search.pareto import non_dominated
from search.prices import FROZEN, price_book
from search.run import RunFolder, free_path, frozen_text, latest_path
from search.shared_study import SharedStudy
from search.spec import Spec, load_run_spec
from search.study import Progress, Settings, Study, StudyResult
from search.tariff import Tariff, tariff_of
from search.warm import warm_strategies
from spaces.problem import Problem
from spaces.space import Space
from spaces.strategy import Strategy

RUNS = Path("runs")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The answer of a run. Evaluations are None where no strategy qualifies.

    `recommended`: least cost that carries the demand, of equal cost the one with most goodput; `best_collocated` and
    `best_disaggregated` likewise of their kind. `front` by rising cost. `table`: every evaluation with `usd_per_h`,
    `num_gpus`, `is_disaggregated`. `headroom_frac`: how much the demand may grow.
    """

    folder: Path
    problem: Problem
    tariff: Tariff
    demand_req_s: float
    recommended: Evaluation | None
    best_collocated: Evaluation | None
    best_disaggregated: Evaluation | None
    front: tuple[Evaluation, ...]
    table: pd.DataFrame
    study: StudyResult
    space_size: int
    removed: Mapping[str, int]
    elapsed_s: float

    @property
    def headroom_frac(self) -> float | None:
        """Goodput over demand, less one; None without a recommendation."""
        return None if self.recommended is None else self.recommended.goodput_req_s / self.demand_req_s - 1.0

    @property
    def cards(self) -> Mapping[str, PriceCard]:
        """The price card of each GPU type."""
        return self.tariff.cards

    def usd_per_h(self, evaluation: Evaluation) -> float:
        """Cost of a strategy, whole nodes where the card sells them so."""
        return self.tariff.usd_per_h(Strategy.parse(evaluation.strategy))


def plan(  # noqa: PLR0913  (the command's own options, one each)
    spec: Spec,
    *,
    out: Path | None = None,
    trials: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    storage: str | None = None,
    warm_start: Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    command: str = "",
) -> Plan:
    """Search the spec's space and leave the run's folder (`out`, or `runs/<name>` with a number if taken).

    `workers`: Ray workers on this machine (0: no Ray, this process's threads alone; None: one per core if the study
    proves long); `address`: a running cluster's instead. `storage`: PostgreSQL shared with other drivers of the
    same spec. `warm_start`: a finished run whose front is tried first. An interrupted run goes on with `resume` and
    ends with the same front.
    """
    started_s = time.monotonic()
    text = frozen_text(spec)
    path = out or (latest_path(RUNS, spec.name) if resume else free_path(RUNS, spec.name))
    book, _ = price_book(spec), spec.problem()  # what is wrong is told before anything is written
    folder = RunFolder.open(path, text, resume=resume)
    with folder.undone_if_refused():
        if not (path / FROZEN).is_file():
            folder.write(FROZEN, book.text().encode())
        spec = load_run_spec(path)
        space = Space(spec.problem())
        settings = _settings(spec, trials, warm_start, space)
        executor = make_executor(space, settings, workers=workers, address=address)
        try:
            manifest = {"name": spec.name, "command": command, "seed": settings.seed, "trials": settings.trials}
            manifest |= {"reach": settings.reach, "workers": workers, "address": address}
            manifest |= {"started": datetime.now(UTC).isoformat(timespec="seconds")}
            manifest |= {"storage": storage.split("@")[-1] if storage else "study.journal"}
            manifest |= {"warm_start": str(warm_start) if warm_start else None}
            folder.write_manifest(manifest | {"status": "running"})
            store = SharedStudy(storage, spec.name, text) if storage else Journal(folder.journal, spec.name)
            study = Study(
                space=space,
                executor=executor,
                tariff=tariff_of(spec),
                settings=settings,
                storage=store,
                on_progress=_logged(folder, progress),
            ).run()
            store.close()
        finally:
            executor.close()
    answer = _answer(spec, folder.path, space, study, time.monotonic() - started_s)
    _leave(folder, answer, manifest)
    return answer


def _settings(spec: Spec, trials: int | None, warm_start: Path | None, space: Space) -> Settings:
    search, demand = spec.search, spec.traffic.rate_req_s
    return Settings(
        trials=trials or search.trials,
        sampler=search.sampler,
        seed=search.seed,
        demand_req_s=demand,
        screen=search.screen,
        reach=search.reach,
        warm=warm_strategies(warm_start, space, demand) if warm_start else (),
        explores=True,
    )


def make_executor(space: Space, settings: Settings, *, workers: int | None, address: str | None) -> Executor:
    """Ray at `address` or on this machine, where this process works too until Ray is there; 0 workers: no Ray."""
    problem, seed = space.problem, settings.seed
    if address is not None:
        return RayExecutor(problem, seed=seed, address=address)
    cores = os.cpu_count() or 1
    here = LocalExecutor(problem, seed=seed, threads=cores)
    if workers == 0 or (workers is None and cores == 1):
        return here
    most = space.size if settings.sampler == "exhaustive" else min(settings.trials, space.size)
    planned = most if workers is None else None
    return EagerExecutor(here, lambda: RayExecutor(problem, seed=seed, workers=workers or cores), planned=planned)


def _logged(folder: RunFolder, progress: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Keeps the growth of the front in the run's folder, generation by generation, and passes it on."""
    steps: list[dict[str, Any]] = []

    def on_progress(step: Progress) -> None:
        steps.append(
            {"phase": step.phase, "num_evaluated": step.num_evaluated, "elapsed_s": step.elapsed_s}
            | {"hypervolume": step.hypervolume, "best_usd_per_h": step.best_usd_per_h}
        )
        folder.write_table("hypervolume.csv", pd.DataFrame(steps))
        if progress is not None:
            progress(step)

    return on_progress


def _answer(spec: Spec, folder: Path, space: Space, study: StudyResult, elapsed_s: float) -> Plan:
    tariff, demand = tariff_of(spec), spec.traffic.rate_req_s
    evaluations = _completed(space, study, tariff, spec)
    table = _table(evaluations, tariff)
    by_text = {evaluation.strategy: evaluation for evaluation in evaluations}
    ok = table[table["status"] == "ok"].reset_index(drop=True)
    front = non_dominated(ok["goodput_req_s"], ok["usd_per_h"])
    carrying = ok[ok["goodput_req_s"] >= demand].sort_values(
        ["usd_per_h", "goodput_req_s", "strategy"], ascending=[True, False, True]
    )

    def first(rows: pd.DataFrame) -> Evaluation | None:
        return by_text[str(rows.iloc[0]["strategy"])] if len(rows) else None

    weighed = spec.penalty_per_miss is not None
    return Plan(
        folder=folder,
        problem=space.problem,
        tariff=tariff,
        demand_req_s=demand,
        recommended=_with_penalty(spec, space.problem, evaluations) if weighed else first(carrying),
        best_collocated=first(carrying[~carrying["is_disaggregated"]]),
        best_disaggregated=first(carrying[carrying["is_disaggregated"]]),
        front=tuple(by_text[str(text)] for text in ok["strategy"].iloc[front]),
        table=table,
        study=study,
        space_size=space.size,
        removed={rule: removed.num_shapes for rule, removed in space.removed.items()},
        elapsed_s=elapsed_s,
    )


def _completed(space: Space, study: StudyResult, tariff: Tariff, spec: Spec) -> tuple[Evaluation, ...]:
    """The study's evaluations, and a few more of architectures and GPU types that it knows only too small."""
    demand, seed = spec.traffic.rate_req_s, spec.search.seed
    ledger = Ledger.of(space.problem, tariff, demand, seed, study.evaluations)
    complete(ledger, space)
    return tuple(ledger.known.values())


def _with_penalty(spec: Spec, problem: Problem, evaluations: tuple[Evaluation, ...]) -> Evaluation | None:
    """The least bill and penalty for misses together, instead of the least bill that keeps the targets."""
    best = ledger_of(spec, problem, evaluations).best()
    return None if best is None else best.evaluation


def _table(evaluations: tuple[Evaluation, ...], tariff: Tariff) -> pd.DataFrame:
    """One row per evaluation: its fields, GPUs and cost."""
    rows: list[dict[str, Any]] = []
    for evaluation in evaluations:
        strategy = Strategy.parse(evaluation.strategy)
        rows.append(
            evaluation.as_dict()
            | {
                "is_disaggregated": strategy.is_disaggregated,
                "num_gpus": strategy.num_gpus,
                "usd_per_h": tariff.usd_per_h(strategy),
            }
        )
    return pd.DataFrame(rows)


def _leave(folder: RunFolder, answer: Plan, manifest: Mapping[str, Any]) -> None:
    """The run's tables; the manifest last, whose status `finished` vouches for the rest."""
    front = [evaluation.strategy for evaluation in answer.front]
    folder.write_table("evaluations.parquet", answer.table)
    folder.write_table("front.csv", answer.table.set_index("strategy").loc[front].reset_index())
    folder.write_manifest(
        {
            **manifest,
            "status": "finished",
            "sampler": answer.study.sampler,
            "sampler_reason": answer.study.sampler_reason,
            "space_size": answer.space_size,
            "num_evaluated": len(answer.table),
            "num_ruled_out": answer.study.num_ruled_out,
            "recommended": answer.recommended.strategy if answer.recommended else None,
            "elapsed_s": round(answer.elapsed_s, 2),
        }
    )
