"""BestServe from Python: a plan as objects, tables as DataFrames, figures of plotly.

from search import plan
answer = plan("runs/quickstart.yaml", trials=64)
print(answer)
answer.front, answer.figures["front"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.view import Candidate, View

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

    from estimator.goodput import Goodput
    from estimator.outcome import Unstable
    from search.estimate import Estimate
    from search.spec import Spec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a run answers. `view` holds every number that the terminal and the report show; printing gives the sentence.

    Tables and figures are made when asked for. Units are in the names of columns: `_req_s`, `_usd_per_h`, `_ms`.
    """

    folder: Path
    view: View

    def __str__(self) -> str:
        """The sentence for a manager, then how sure it is."""
        return f"{self.view.answer}\n{self.view.certainty}"

    def _repr_html_(self) -> str:
        """For notebooks: the sentence and the front."""
        from html import escape

        said = f"<p><b>{escape(self.view.answer)}</b><br>{escape(self.view.certainty)}</p>"
        return said + str(self.front.to_html(index=False, float_format=lambda value: f"{value:.3g}"))

    @property
    def recommended(self) -> Candidate | None:
        """The cheapest strategy that serves the demand; None if nothing tried does."""
        return self.view.recommended

    @property
    def front(self) -> pd.DataFrame:
        """Strategies that nothing beats in both cost and goodput, cheapest first, one a row."""
        return _table(self.view.front)

    @property
    def candidates(self) -> pd.DataFrame:
        """Every strategy tried that meets the targets at some rate, one a row."""
        return _table(self.view.candidates)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The numbers behind each figure, by the figure's name."""
        import pandas as pd

        from search.report.figures import figures_of

        return {name: pd.DataFrame(figure.rows) for name, figure in figures_of(self.view).items()}

    @property
    def figures(self) -> dict[str, Figure]:
        """The report's figures, by name: `front`, `serving`, `breakdown`, `cost`, one `latency_…` per target, …"""
        from plotly.graph_objects import Figure

        from search.report.figures import figures_of

        return {
            name: Figure(figure.plot).update_layout(height=figure.height_px)
            for name, figure in figures_of(self.view).items()
        }

    def estimate(self, strategy: str, rate_req_s: float) -> Estimate:
        """Latencies and load of `strategy` at `rate_req_s`; `BestServeError` if it cannot exist."""
        from search.estimate import estimate, existing_system
        from spaces.strategy import Strategy

        problem = self._spec().problem()
        return estimate(problem, existing_system(problem, Strategy.parse(strategy)), strategy, rate_req_s=rate_req_s)

    def goodput(self, strategy: str) -> Goodput | Unstable:
        """Largest rate at which `strategy` keeps the targets, or why none; `BestServeError` if it cannot exist."""
        from estimator.goodput import goodput
        from search.estimate import existing_system
        from spaces.strategy import Strategy

        spec = self._spec()
        problem = spec.problem()
        system = existing_system(problem, Strategy.parse(strategy))
        return goodput(system, problem.workload, problem.slo, seed=spec.search.seed)

    def write_report(self) -> Path:
        """Write `report.html` and `figures/` into the run's folder; the page's path."""
        from search.report.page import write_report

        return write_report(self.view, self.folder)

    def _spec(self) -> Spec:
        return question_of(self.folder / "spec.yaml")


def plan(
    question: str | Path | Mapping[str, Any] | Spec,
    *,
    out: str | Path | None = None,
    trials: int | None = None,
    workers: int = 0,
    address: str | None = None,
    resume: bool = False,
) -> Answer:
    """Find the cheapest strategy that serves the demand of `question` within its targets; leaves a run's folder.

    `question`: a spec's path, its content as a mapping, or a `Spec`. `out`: the run's folder, by default `runs/<name>`.
    `trials`: strategies evaluated at most. `workers`: Ray workers, 0 for none; `address`: a running Ray cluster.
    Raises `BestServeError` in one sentence for anything wrong with the question.
    """
    from search.planner import plan as run_plan

    done = run_plan(
        question_of(question),
        out=None if out is None else Path(out),
        trials=trials,
        workers=workers,
        address=address,
        resume=resume,
    )
    return read_run(done.folder)


def read_run(folder: str | Path) -> Answer:
    """The answer of a finished run; `BestServeError` if `folder` holds none."""
    from search.result_view import view_of_run

    return Answer(folder=Path(folder), view=view_of_run(Path(folder)))


def question_of(question: str | Path | Mapping[str, Any] | Spec) -> Spec:
    """The checked spec of a path, a mapping or a spec; `BestServeError` for anything wrong."""
    from search.spec import Spec, load_spec, parse_spec

    if isinstance(question, Spec):
        return question
    return load_spec(question) if isinstance(question, str | Path) else parse_spec(question, folder=Path.cwd())


def _table(candidates: tuple[Candidate, ...]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {name: value for name, value in asdict(candidate).items() if name not in ("bill", "gpu_counts")}
        | {"num_gpus": candidate.num_gpus, "gpus": candidate.gpus}
        for candidate in candidates
    ]
    return pd.DataFrame(rows)
