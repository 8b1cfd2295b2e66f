"""A benchmark of one's own corrects later plans: what was measured is what they then predict, within bounds."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from estimator.catalogue.engines import load_engine
from estimator.errors import BestServeError
from estimator.recalibrate import Recalibration, recalibrated
from search.benchmarks import LEVELS, METRICS
from search.calibration import calibrate, write_card
from search.export.prediction import predict
from search.planner import plan
from search.spec import Spec, parse_spec
from search.spec_calibration import load_calibration
from spaces.problem import Problem, instance_of
from spaces.strategy import Strategy
from tests.test_cli import bestserve
from tests.test_export import TINY
from tests.test_verify import RATE, STRATEGY, vllm_result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    plan(parse_spec(TINY, folder=folder.parent), out=folder, workers=0)
    return folder


def problem_with(factor: float, overhead_s: float) -> Problem:
    """The small question on hardware whose truth differs from the catalogue's."""
    problem = parse_spec(TINY, folder=Path()).problem()
    by = Recalibration(architecture="hopper", step_time_factor=factor, request_overhead_s=overhead_s)
    return replace(problem, engine=recalibrated(problem.engine, by))


def measure(problem: Problem, folder: Path, rate: float = RATE, **changes: Any) -> Path:
    """What a benchmark of that hardware would leave."""
    prediction = predict(problem, Strategy.parse(STRATEGY), rate_req_s=rate)
    seen: dict[tuple[str, float | None], float] = {
        (metric, level): prediction.value_s(metric, level) for metric in METRICS for level in (None, *LEVELS)
    }
    path = folder / "result.json"
    path.write_text(json.dumps(vllm_result(seen, request_rate=rate, request_throughput=rate, **changes)))
    os.utime(path, (1_764_072_000, 1_764_072_000))  # 2025-11-25
    return path


@pytest.mark.parametrize(("factor", "overhead_s"), [(0.8, 0.01), (1.0, 0.025), (1.25, 0.06), (1.6, 0.15)])
def test_the_truth_behind_a_measurement_is_found(factor: float, overhead_s: float, run: Path, tmp_path: Path) -> None:
    """A benchmark of hardware with known factor and overhead gives both back: 1 % of the factor, 1 ms of overhead."""
    found = calibrate(run, measure(problem_with(factor, overhead_s), tmp_path), strategy=STRATEGY)
    assert found.card.step_time_factor == pytest.approx(factor, rel=0.01)
    assert found.card.request_overhead_ms == pytest.approx(1e3 * overhead_s, abs=1.0)
    assert found.tpot_ms[0] == pytest.approx(found.tpot_ms[1], rel=0.005)
    assert found.ttft_ms[0] == pytest.approx(found.ttft_ms[1], abs=1.0)
    assert (found.card.engine, found.card.architecture, found.card.date) == ("vllm", "hopper", "2025-11-25")
    assert f"800 requests at 4/s, {STRATEGY}" in found.card.source


def test_a_spec_that_names_the_card_plans_with_it(run: Path, tmp_path: Path) -> None:
    """Later questions predict what was measured; the card is frozen in the run; another calibration starts afresh."""
    truth = problem_with(1.25, 0.06)
    card = calibrate(run, measure(truth, tmp_path), strategy=STRATEGY).card
    write_card(tmp_path / "card.yaml", card)
    assert load_calibration(tmp_path / "card.yaml") == card
    spec = parse_spec(TINY | {"calibration": "card.yaml"}, folder=tmp_path)
    assert spec.calibration == card
    again = parse_spec(spec.model_dump(mode="json", exclude_none=True), folder=Path())
    assert again == spec
    strategy = Strategy.parse(STRATEGY)
    then, seen = (predict(problem, strategy, rate_req_s=RATE) for problem in (spec.problem(), truth))
    assert then.value_s("tpot", 90.0) == pytest.approx(seen.value_s("tpot", 90.0), rel=0.01)
    assert then.value_s("ttft", 50.0) == pytest.approx(seen.value_s("ttft", 50.0), abs=1e-3)
    calibrated_run = tmp_path / "run"
    plan(spec, out=calibrated_run, workers=0)
    second = calibrate(calibrated_run, measure(truth, tmp_path), strategy=STRATEGY).card
    assert second.step_time_factor == pytest.approx(1.25, rel=0.01)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_every_step_is_longer_by_the_factor(engine: str) -> None:
    """All of a step's terms scale: its tables are the factor times what they were."""
    problem = replace(parse_spec(TINY, folder=Path()).problem(), engine=load_engine(engine))
    by = Recalibration(architecture="hopper", step_time_factor=1.1, request_overhead_s=0.025)
    longer = replace(problem, engine=recalibrated(problem.engine, by))
    (pool,) = Strategy.parse("1m-tp2@h100_sxm").pools
    costs = [instance_of(one, pool).cost for one in (problem, longer)]  # type: ignore[union-attr]
    for name in ("decode_s", "mixed_s", "head_s", "kv_read_s_per_token"):
        before, after = (np.asarray(getattr(cost, name)) for cost in costs)
        np.testing.assert_allclose(after, 1.1 * before, rtol=1e-12)
    assert costs[1].attention_s_per_pair == pytest.approx(1.1 * costs[0].attention_s_per_pair)


def test_bounds_and_other_architectures_are_kept() -> None:
    """The fitted costs of a step stay, other GPUs keep everything, and no number leaves its physical bound."""
    engine = load_engine("vllm")
    by = Recalibration(architecture="hopper", step_time_factor=2.0, request_overhead_s=0.1)
    found = recalibrated(engine, by)
    assert found.costs_on("hopper") == replace(engine.costs_on("hopper"), request_overhead_s=0.1)
    assert (found.costs_on("ada"), found.step_time_factor_on("ada")) == (engine.costs_on("ada"), 1.0)
    with pytest.raises(BestServeError, match=r"step_time_factor: 2\.5 is outside its physical bound"):
        Recalibration(architecture="hopper", step_time_factor=2.5, request_overhead_s=0.0)


def test_what_speed_does_not_explain_is_refused(run: Path, tmp_path: Path) -> None:
    """A load that was not carried, and latencies beyond the bounds, give a sentence and no card."""
    slow = measure(problem_with(1.0, 0.025), tmp_path, p50_tpot_ms=500.0, median_tpot_ms=500.0)
    with pytest.raises(BestServeError, match=r"500 ms' is not explained by steps 0\.5 to 2 times as long"):
        calibrate(run, slow, strategy=STRATEGY)
    queue = json.loads(measure(problem_with(1.0, 0.025), tmp_path).read_text()) | {"request_throughput": 3.0}
    (tmp_path / "result.json").write_text(json.dumps(queue))
    with pytest.raises(BestServeError, match="carried 3 of 4 requests/s: its latencies are of a growing queue"):
        calibrate(run, tmp_path / "result.json", strategy=STRATEGY)


@pytest.mark.parametrize(
    ("card", "field", "rule"),
    [
        ({"step_time_factor": 3.0}, "calibration.step_time_factor", "must be ≤ 2.0"),
        ({"engine": "sglang"}, "calibration", "is of another engine"),
        ({"speed": 2.0}, "calibration.speed", "is not a known field"),
    ],
)
def test_wrong_cards_are_one_sentence(card: dict[str, Any], field: str, rule: str) -> None:
    """A card is checked like any part of a spec, and must be of the spec's engine."""
    whole = {"engine": "vllm", "architecture": "hopper", "step_time_factor": 1.1, "request_overhead_ms": 30.0}
    whole |= {"source": "a test", "date": "2026-11-25"}
    with pytest.raises(BestServeError) as error:
        parse_spec(TINY | {"calibration": whole | card}, folder=Path()).problem()
    assert error.value.field == field
    assert rule in str(error.value)


def test_command_writes_the_card(run: Path, tmp_path: Path) -> None:
    """`verify --calibrate FILE` prints both numbers and leaves a card that a spec can name."""
    result = measure(problem_with(1.25, 0.06), tmp_path)
    card = tmp_path / "card.yaml"
    ran = bestserve("verify", str(run), str(result), "-s", STRATEGY, "--calibrate", str(card))
    assert ran.returncode == 0, ran.stderr
    assert "Calibrated vllm on hopper: steps × 1.2" in ran.stdout
    spec: Spec = parse_spec(TINY | {"calibration": str(card)}, folder=tmp_path)
    assert spec.calibration is not None
