"""Finished runs side by side: what was asked differently, what each answered, and which is cheapest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimator.errors import require
from search.edge import read_yaml
from search.result_view import read_view
from search.view import Candidate, View

ABSENT = "(default)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run: its label (the folder's name), its folder and its view, without what is simulated again."""

    label: str
    folder: str
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field of the specs that is not the same in all runs; `values` in the order of the runs."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs in the order given, and the fields of their specs that differ."""

    runs: tuple[ComparedRun, ...]
    differences: tuple[Difference, ...]

    @property
    def same_demand(self) -> bool:
        """Whether all runs serve one request rate: then dollars per hour compare, otherwise dollars per token."""
        return len({run.view.demand_req_s for run in self.runs}) == 1

    @property
    def answer(self) -> str:
        """Which run is cheapest, and by how much the others are dearer."""
        costs = {run.label: self._cost(run) for run in self.runs}
        known = {label: cost for label, cost in costs.items() if cost is not None}
        if not known:
            return "None of the runs serves its demand within its targets."
        least = min(known.values())
        cheapest = [label for label, cost in known.items() if cost <= 1.005 * least]
        amount = self.runs[0].view.usd(least)
        unit = "/h" if self.same_demand else " per million output tokens at its demand"
        said = [f"{' and '.join(cheapest)} {'is' if len(cheapest) == 1 else 'are'} cheapest at {amount}{unit}"]
        said += [
            f"{label} costs {cost / least - 1.0:.0%} more" for label, cost in known.items() if label not in cheapest
        ]
        said += [f"{label} has no answer" for label in costs if label not in known]
        return "; ".join(said) + "."

    def _cost(self, run: ComparedRun) -> float | None:
        best = run.view.recommended
        if best is None:
            return None
        return best.usd_per_h if self.same_demand else run.view.usd_per_1m_at_demand

    def rows(self) -> list[dict[str, str]]:
        """A row per figure, a column per run; text for people."""
        shown = {run.label: _figures(run.view) for run in self.runs}
        names = list(dict.fromkeys(name for figures in shown.values() for name in figures))
        return [{"": name, **{label: figures.get(name, "-") for label, figures in shown.items()}} for name in names]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {
            "answer": self.answer,
            "runs": [{"label": run.label, "folder": run.folder} | run.view.as_json() for run in self.runs],
            "differences": {row.field: list(row.values) for row in self.differences},
        }


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Two finished runs or more; `BestServeError` for fewer, for a folder without one, or for mixed currencies."""
    require(
        len(folders) >= 2,
        field="runs",
        value=len(folders),
        rule="are too few to compare",
        accepted="two folders of finished runs or more",
    )
    labels = _labels(folders)
    runs = tuple(
        ComparedRun(label=label, folder=str(folder), view=read_view(folder))
        for label, folder in zip(labels, folders, strict=True)
    )
    currencies = sorted({run.view.currency for run in runs})
    require(
        len(currencies) == 1,
        field="runs",
        value=", ".join(currencies),
        rule="are priced in several currencies",
        accepted="runs priced in one",
    )
    specs = [flat(read_yaml(folder / "spec.yaml")) for folder in folders]
    return Comparison(runs=runs, differences=differences_of(specs))


def differences_of(specs: Sequence[Mapping[str, str]]) -> tuple[Difference, ...]:
    """Fields whose values differ, in the order of the first spec; the run's own name is no difference."""
    fields = dict.fromkeys(name for spec in specs for name in spec if name != "name")
    found = [Difference(field=name, values=tuple(spec.get(name, ABSENT) for spec in specs)) for name in fields]
    return tuple(row for row in found if len(set(row.values)) > 1)


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """A nested mapping as `a.b.c` to text; lists stay whole."""
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{prefix}{name}.").items()}
    text = (
        ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
    )
    return {prefix.rstrip("."): str(text)}


def _labels(folders: Sequence[Path]) -> list[str]:
    """Names of the folders; where two are called alike, the paths."""
    names = [folder.resolve().name for folder in folders]
    return [str(folder) if names.count(name) > 1 else name for name, folder in zip(names, folders, strict=True)]


def _figures(view: View) -> dict[str, str]:
    best = view.recommended
    head = {"Demand": f"{view.demand_req_s:g} req/s", "Targets": view.targets}
    if best is None:
        return head | {"Answer": "nothing tried serves the demand"}
    return head | {
        "GPUs": f"{best.gpus}, {best.architecture}",
        "Strategy": best.strategy,
        "Cost": f"{view.usd(best.usd_per_h)}/h",
        "Per 1M output tokens": f"{view.usd(view.usd_per_1m_at_demand or 0.0)} at the demand",
        "Goodput": f"{best.goodput_req_s:.3g} req/s ({best.low_req_s:.3g} to {best.high_req_s:.3g})",
        "Headroom": f"{best.headroom_frac(view.demand_req_s):+.0%}",
        "Set by": best.binding_limit,
        "TTFT P90 at goodput": f"{best.ttft_p90_ms:.0f} ms",
        "TPOT P90 at goodput": f"{best.tpot_p90_ms:.1f} ms",
        "Best collocated": _cost_of(view, view.best_collocated),
        "Best disaggregated": _cost_of(view, view.best_disaggregated),
        "A little more money": _cost_of(view, view.step_up, headroom=True),
        "Evaluated": f"{view.num_evaluated:,} strategies",
    }


def _cost_of(view: View, candidate: Candidate | None, *, headroom: bool = False) -> str:
    if candidate is None:
        return "-"
    more = f", {candidate.headroom_frac(view.demand_req_s):+.0%} headroom" if headroom else ""
    return f"{view.usd(candidate.usd_per_h)}/h ({candidate.gpus}{more})"
