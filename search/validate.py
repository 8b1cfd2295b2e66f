"""Every run of a measurements file answered, and how far the answers are from what was measured.

`validate` writes one line of predictions per run and returns the table of errors by source and mode, the same for other
tools' predictions on the same runs, and the regret of the layout decision.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from estimator.accuracy import (
    CLOSE_FRAC,
    DecisionRow,
    ErrorRow,
    GroupRow,
    PairRow,
    Prediction,
    RankRow,
    decision_row,
    error_rows,
    group_rows,
)
from estimator.errors import require
from estimator.measured_runs import METRICS, MeasuredRun, read_runs
from estimator.replay import Answer, answer
from search.fitting import Replayer, fitted, held_out_answers

MIN_PARALLEL_RUNS = 200  # below, starting workers costs more than it saves
MARKERS = ("<!-- validate: begin -->", "<!-- validate: end -->")
SHOWN_METRICS = ("tpot_mean_ms", "ttft_mean_ms", "ttft_p99_ms", "e2e_mean_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Errors of this estimator and of its peers on the same runs; `num_relaxed` answers rest on relaxed memory."""

    errors: tuple[ErrorRow, ...]
    decision: DecisionRow | None
    groups: tuple[GroupRow, ...]
    peers: Mapping[str, tuple[ErrorRow, ...]]
    peer_decisions: Mapping[str, DecisionRow | None]
    num_runs: int
    num_relaxed: int
    tiers: Mapping[str, int]


def validate(
    measurements: Path, *, predictions: Path | None = None, peers: Path | None = None, held_out: bool = False
) -> Validation:
    """Answer every run of `measurements`; write `predictions` if a path is given; compare with a file of `peers`.

    `held_out`: every run is answered by engine costs fitted, now, without its group (model × GPU × engine).
    """
    runs = read_runs(measurements)
    answers = _held_out(runs, measurements) if held_out else answer_all(runs, measurements)
    if predictions is not None:
        write_predictions(predictions, by_id(runs, answers))
    return validation_of(runs, answers, peers)


def by_id(runs: Sequence[MeasuredRun], answers: Sequence[Answer]) -> dict[str, Prediction]:
    """Predicted latencies by run id."""
    return {run.id: found.latency_ms for run, found in zip(runs, answers, strict=True)}


def validation_of(runs: Sequence[MeasuredRun], answers: Sequence[Answer], peers: Path | None = None) -> Validation:
    """How far answers are from measurement, beside the predictions in a file of `peers`."""
    predicted = by_id(runs, answers)
    others = read_peers(peers) if peers is not None else {}
    return Validation(
        errors=tuple(error_rows(runs, predicted)),
        decision=decision_row(runs, predicted),
        groups=tuple(group_rows(runs, predicted)),
        peers={
            peer: tuple(row for row in error_rows(runs, values) if row.answered_frac) for peer, values in others.items()
        },
        peer_decisions={peer: decision_row(runs, values) for peer, values in others.items()},
        num_runs=len(runs),
        num_relaxed=sum(found.relaxed for found in answers),
        tiers=Counter(found.tier for found in answers),
    )


def answer_all(runs: Sequence[MeasuredRun], measurements: Path) -> list[Answer]:
    """Answers in the order of `runs`, those of the file; many are shared out to two processes."""
    if len(runs) < MIN_PARALLEL_RUNS:
        return [answer(run) for run in runs]
    with Replayer(measurements) as replayer:
        return replayer.answers(np.arange(len(runs)))


def _held_out(runs: Sequence[MeasuredRun], measurements: Path) -> list[Answer]:
    with Replayer(measurements) as replayer:
        problem, full = fitted(runs, replayer)
        return held_out_answers(runs, replayer, problem, full)


def write_table(path: Path, table: str) -> None:
    """Replace what stands between the `MARKERS` of a README; `BestServeError` where they are missing."""
    text = path.read_text(encoding="utf-8")
    begin, end = text.find(MARKERS[0]), text.find(MARKERS[1])
    require(0 <= begin < end, field=str(path), value="no markers", rule="must hold them", accepted=" … ".join(MARKERS))
    path.write_text(text[: begin + len(MARKERS[0])] + "\n" + table + "\n" + text[end:], encoding="utf-8")


def write_predictions(path: Path, predicted: Mapping[str, Prediction]) -> None:
    """`id` and every metric in ms, one line per run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", *METRICS))
        for run_id, latency_ms in predicted.items():
            writer.writerow((run_id, *(f"{latency_ms[metric]:.6g}" for metric in METRICS)))


def read_peers(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Predictions by peer and run id, from a file with columns `id`, `peer` and metrics in ms."""
    peers: dict[str, dict[str, dict[str, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {metric: float(row[metric]) for metric in METRICS if row.get(metric)}
            peers.setdefault(row["peer"], {})[row["id"]] = values
    return peers


def accuracy_table(validation: Validation) -> str:
    """Markdown: errors by part and metric, peers beneath each, then the regret of the decision and errors by group."""
    lines = ["| runs | metric | tool | answered | median | mean | P90 | bias |", "|---|---|---|---|---|---|---|---|"]
    tools = {"bestserve": validation.errors, **validation.peers}
    for row in validation.errors:
        if row.metric in SHOWN_METRICS:
            same = [(tool, other) for tool, rows in tools.items() for other in rows if _same(row, other)]
            lines += [_error_line(tool, other) for tool, other in same]
    lines += ["", "| tool | groups | mean regret | P90 regret | within 3 % | best picked | rank correlation |"]
    lines.append("|---|---|---|---|---|---|---|")
    for tool, decision in {"bestserve": validation.decision, **validation.peer_decisions}.items():
        if decision is not None:
            lines.append(_decision_line(tool, decision))
    head = "pairs of layouts put in order, by how much faster one was measured | rank correlations lack of one each"
    lines += ["", f"| tool | {head} |", "|---|---|---|"]
    for tool, decision in {"bestserve": validation.decision, **validation.peer_decisions}.items():
        if decision is not None:
            lines.append(
                f"| {tool} | {'; '.join(_pair_cell(row) for row in decision.pairs)} | {_lost(decision.ranks)} |"
            )
    lines += [
        "",
        "| model | GPU | engine | mode | runs | TPOT median | bias | TTFT median | bias | share of TPOT error |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    lines += [_group_line(row) for row in validation.groups]
    return "\n".join(lines)


def _same(row: ErrorRow, other: ErrorRow) -> bool:
    return (row.part, row.metric) == (other.part, other.metric)


def _error_line(tool: str, row: ErrorRow) -> str:
    errors = " | ".join(f"{100 * value:.1f} %" for value in (row.median_frac, row.mean_frac, row.p90_frac))
    answered = f"{100 * row.answered_frac:.0f} % of {row.num_runs}"
    name = row.metric.removesuffix("_ms")
    return f"| {row.part} | {name} | {tool} | {answered} | {errors} | {100 * row.bias_frac:+.1f} % |"


def _group_line(row: GroupRow) -> str:
    model, gpu, engine = row.group
    tpot = f"{100 * row.tpot_median_frac:.1f} % | {100 * row.tpot_bias_frac:+.1f} %"
    ttft = f"{100 * row.ttft_median_frac:.1f} % | {100 * row.ttft_bias_frac:+.1f} %"
    share = f"{100 * row.share_frac:.1f} %"
    return f"| {model} | {gpu} | {engine} | {row.mode} | {row.num_runs} | {tpot} | {ttft} | {share} |"


def _pair_cell(row: PairRow) -> str:
    least, most = 100 * row.least_frac, 100 * row.most_frac
    gap = f"{least:.0f} to {most:.0f} %" if np.isfinite(most) else f"{least:.0f} % and more"
    return f"{gap}: {100 * row.ordered_frac:.0f} % of {row.num_pairs}"


def _lost(row: RankRow) -> str:
    close = f"{row.lost_close:.1f} where no wrong pair is {100 * CLOSE_FRAC:.0f} % apart"
    return f"{row.lost:.1f} of {row.num_groups}, {close}"


def _decision_line(tool: str, row: DecisionRow) -> str:
    shares = (row.mean_regret_frac, row.p90_regret_frac, row.within_3pct_frac, row.best_picked_frac)
    cells = " | ".join(f"{100 * value:.1f} %" for value in shares)
    return f"| {tool} | {row.num_groups} | {cells} | {row.mean_rank_correlation:.2f} |"
