"""How far predictions are from measurement: absolute percentage errors, and the regret of the decision they lead to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from scipy.stats import rankdata

from estimator.measured_runs import MeasuredRun

RateTable = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
CLOSE_FRAC = 0.08  # of the rate: layouts measured no further apart are hard to order
PAIR_GAPS = (0.0, 0.03, 0.1, np.inf)  # 43 layouts measured twice differ by 1 % in the median and by up to 10 %
Prediction = Mapping[str, float]  # metric of `measured_runs.METRICS` to ms


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """Errors of one metric over one part of the runs; `answered_frac` of those that measured it have a prediction.

    `median_frac`, `mean_frac`, `p90_frac` of |predicted/measured − 1|; `bias_frac`: median of predicted/measured − 1.
    """

    part: str
    metric: str
    num_runs: int
    answered_frac: float
    median_frac: float
    mean_frac: float
    p90_frac: float
    bias_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """Pairs of layouts of a group of which one was measured at least `least_frac` and less than `most_frac` faster.

    `ordered_frac`: of them predicted in that order, half for those predicted alike.
    """

    least_frac: float
    most_frac: float
    num_pairs: int
    ordered_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    """What the rank correlations of `num_groups` groups together lack of one each: `lost`.

    `lost_close`: of it where no pair in the wrong order was measured `CLOSE_FRAC` apart.
    """

    num_groups: int
    lost: float
    lost_close: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """Picking the layout predicted to give the most tokens per second per GPU, in every group with at least two.

    Regret: 1 − measured rate of the pick over the best measured rate, the mean over layouts predicted alike.
    `mean_rank_correlation`: Spearman's, equals sharing a rank; mean over groups in which not all are predicted alike.
    `ranks`: what that lacks of one, added up; `pairs`: how often two layouts of a group are put in the right order, by
    how far apart they were measured.
    """

    num_groups: int
    mean_regret_frac: float
    p90_regret_frac: float
    within_3pct_frac: float
    best_picked_frac: float
    mean_rank_correlation: float
    ranks: RankRow
    pairs: tuple[PairRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """Errors of the closed-loop runs of one group; `share_frac`: of all groups' summed TPOT error."""

    group: tuple[str, str, str]
    mode: str
    num_runs: int
    tpot_median_frac: float
    tpot_bias_frac: float
    ttft_median_frac: float
    ttft_bias_frac: float
    share_frac: float


def group_rows(runs: Sequence[MeasuredRun], predictions: Mapping[str, Prediction]) -> list[GroupRow]:
    """One row per group (model, GPU, engine) and mode, those that carry most of the TPOT error first."""
    signed: dict[tuple[tuple[str, str, str], str], list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        if run.concurrency is not None and run.id in predictions:
            names = ("tpot_mean_ms", "ttft_mean_ms")
            ratios = [predictions[run.id].get(name, np.nan) / run.measured_ms.get(name, np.nan) - 1 for name in names]
            signed[run.group, run.mode].append((ratios[0], ratios[1]))
    total = sum(float(np.nansum(np.abs(np.array(values)[:, 0]))) for values in signed.values())
    rows = []
    for (group, mode), values in signed.items():
        tpot, ttft = np.array(values).T
        rows.append(
            GroupRow(
                group=group,
                mode=mode,
                num_runs=len(values),
                tpot_median_frac=float(np.nanmedian(np.abs(tpot))),
                tpot_bias_frac=float(np.nanmedian(tpot)),
                ttft_median_frac=float(np.nanmedian(np.abs(ttft))),
                ttft_bias_frac=float(np.nanmedian(ttft)),
                share_frac=float(np.nansum(np.abs(tpot))) / total,
            )
        )
    return sorted(rows, key=lambda row: -row.share_frac)


def part_of(run: MeasuredRun) -> str:
    """The part of the table a run counts in."""
    if run.source.startswith("silicon"):
        return f"silicon {run.mode}"
    return "prefix-cached vllm"


def error_rows(runs: Sequence[MeasuredRun], predictions: Mapping[str, Prediction]) -> list[ErrorRow]:
    """One row per part and metric that was measured there, in a fixed order."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        predicted = predictions.get(run.id, {})
        for metric, measured in run.measured_ms.items():
            pairs[part_of(run), metric].append((predicted.get(metric, np.nan), measured))
    return [error_row(part, metric, values) for (part, metric), values in sorted(pairs.items())]


def error_row(part: str, metric: str, pairs: Sequence[tuple[float, float]]) -> ErrorRow:
    """Errors of (predicted, measured) pairs; a NaN prediction is an unanswered run."""
    predicted, measured = np.array(pairs, dtype=np.float64).T
    answered = np.isfinite(predicted)
    signed = predicted[answered] / measured[answered] - 1.0
    size = np.abs(signed) if len(signed) else np.array([np.nan])
    return ErrorRow(
        part=part,
        metric=metric,
        num_runs=len(pairs),
        answered_frac=float(answered.mean()),
        median_frac=float(np.median(size)),
        mean_frac=float(size.mean()),
        p90_frac=float(np.percentile(size, 90)),
        bias_frac=float(np.median(signed)) if len(signed) else np.nan,
    )


def decision_row(runs: Sequence[MeasuredRun], predictions: Mapping[str, Prediction]) -> DecisionRow | None:
    """Regret over all groups of collocated closed-loop runs whose every layout is predicted; None without a group."""
    groups: dict[tuple[object, ...], dict[object, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        predicted = predictions.get(run.id)
        if run.concurrency is None or run.mode != "collocated" or predicted is None:
            continue
        key = (run.model, run.gpu, run.engine, run.weight_dtype, run.input_bounds, run.output_bounds, run.concurrency)
        rates = _tokens_per_gpu_s(run, predicted), _tokens_per_gpu_s(run, run.measured_ms)
        if np.all(np.isfinite(rates)):
            groups[key][run.pools].append(rates)
    tables = [np.array([np.mean(v, axis=0) for v in layouts.values()]) for layouts in groups.values()]
    tables = [table for table in tables if len(table) >= 2]
    return _decision_of(tables) if tables else None


def _tokens_per_gpu_s(run: MeasuredRun, latency_ms: Prediction) -> float:
    output_tokens = sum(run.output_bounds) / 2
    e2e_ms = latency_ms.get("ttft_mean_ms", np.nan) + (output_tokens - 1) * latency_ms.get("tpot_mean_ms", np.nan)
    return (run.concurrency or 0) * output_tokens / (e2e_ms / 1e3) / run.num_gpus


def _decision_of(tables: Sequence[RateTable]) -> DecisionRow:
    regret = np.array([_regret(table) for table in tables])
    found = np.array([_rank_correlation(table[:, 0], table[:, 1]) for table in tables])
    ranked = np.isfinite(found)
    close = ranked & np.array([_widest_wrong(table) < CLOSE_FRAC for table in tables])
    lost = 1.0 - found
    return DecisionRow(
        num_groups=len(tables),
        mean_regret_frac=float(regret.mean()),
        p90_regret_frac=float(np.percentile(regret, 90)),
        within_3pct_frac=float((regret <= 0.03).mean()),
        best_picked_frac=float((regret == 0).mean()),
        mean_rank_correlation=float(found[ranked].mean()) if ranked.any() else np.nan,
        ranks=RankRow(
            num_groups=int(ranked.sum()), lost=float(lost[ranked].sum()), lost_close=float(lost[close].sum())
        ),
        pairs=tuple(_pair_rows(tables)),
    )


def _regret(table: RateTable) -> float:
    picked = table[table[:, 0] == table[:, 0].max(), 1]
    return 1.0 - float(picked.mean() / table[:, 1].max())


def _widest_wrong(table: RateTable) -> float:
    """How much faster one of two layouts was measured of which it is not predicted faster, the most of all pairs."""
    ordered = combinations(table[table[:, 1].argsort()], 2)
    return max((other[1] / one[1] - 1.0 for one, other in ordered if other[0] <= one[0]), default=0.0)


def _pair_rows(tables: Sequence[RateTable]) -> list[PairRow]:
    """Over all pairs of all groups, (predicted, measured) rates a row of each table."""
    gaps, ordered = [], []
    for table in tables:
        for one, other in combinations(table[table[:, 1].argsort()], 2):
            gaps.append(other[1] / one[1] - 1.0)
            ordered.append((np.sign(other[0] - one[0]) + 1.0) / 2.0)
    gap, is_ordered = np.array(gaps), np.array(ordered)
    rows = []
    for least, most in pairwise(PAIR_GAPS):
        inside = (gap >= least) & (gap < most)
        if inside.any():
            share = float(is_ordered[inside].mean())
            rows.append(PairRow(least_frac=least, most_frac=most, num_pairs=int(inside.sum()), ordered_frac=share))
    return rows


def _rank_correlation(left: RateTable, right: RateTable) -> float:
    ranks = rankdata(left), rankdata(right)
    return float(np.corrcoef(*ranks)[0, 1]) if np.ptp(left) > 0 and np.ptp(right) > 0 else np.nan
