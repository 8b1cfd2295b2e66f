"""A finished run asked again: at other prices without simulating, and with something changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from estimator.errors import BestServeError
from search.changes import apply_changes
from search.planner import plan
from search.reprice import reprice
from search.spec import load_run_spec, load_spec
from search.whatif import whatif
from tests.test_cli import TINY
from tests.test_prices import CARD

WHOLE = TINY.replace("trials: 500,", "trials: 500, screen: false,")  # all are simulated, whatever their price
MEANS = {
    "prices.h100_sxm": 4.0,
    "gpus_per_node.h100_sxm": 8.0,
    "link.gbit_s_per_gpu": 200.0,
    "traffic.input_tokens": 600.0,
    "traffic.output_tokens": 125.0,
}
SPEC: dict[str, Any] = {
    "traffic": {"rate_req_s": 4.0, "input_scale": 1.0, "output_scale": 1.0},
    "slo": {"ttft": {"p90_ms": 1000.0}, "tpot": {"p50_ms": 30.0, "p90_ms": 40.0}},
    "link": {"latency_us": 50.0, "per_gpu_h": 0.0},
    "prices": {},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a space of some dozen strategies, all evaluated."""
    folder = tmp_path_factory.mktemp("whatif")
    spec = folder / "tiny.yaml"
    spec.write_text(WHOLE)
    plan(load_spec(spec), out=folder / "run", workers=0)
    return folder / "run"


def price_file(folder: Path, **usd: float) -> Path:
    """A price file of those GPUs, sold singly."""
    path = folder / "new.toml"
    cards = [CARD.format(id=f"new-{gpu}", gpu=gpu, kind="on_demand", price=price) for gpu, price in usd.items()]
    path.write_text("".join(cards).replace("gpus_per_node = 8", "gpus_per_node = 1"))
    return path


@pytest.mark.parametrize(("h100", "l40s"), [(0.9, 1.0), (4.0, 0.3), (2.0, 3.0)])
def test_reprice_is_planning_anew(run: Path, tmp_path: Path, h100: float, l40s: float) -> None:
    """Ranked again at new prices, the run recommends what a plan of the same space at these prices does."""
    prices = price_file(tmp_path, h100_sxm=h100, l40s=l40s)
    spec = load_spec(run.parent / "tiny.yaml")
    anew = plan(spec.model_copy(update={"prices": {}, "price_file": str(prices)}), out=tmp_path / "anew", workers=0)
    found = reprice(run, prices)
    assert anew.recommended is not None
    assert found.after is not None
    assert str(found.after.strategy) == anew.recommended.strategy
    assert found.after.usd_per_h == pytest.approx(anew.usd_per_h(anew.recommended))
    assert [str(o.strategy) for o in found.front] == [e.strategy for e in anew.front]
    assert found.as_json()["num_simulated"] == 0


def test_reprice_of_part_of_the_gpus_keeps_the_rest(run: Path, tmp_path: Path) -> None:
    """A file that prices one GPU changes that one alone; the run's own price of the other stays."""
    found = reprice(run, price_file(tmp_path, h100_sxm=0.5))
    assert set(found.changed) == {"h100_sxm"}
    assert found.after is not None
    assert set(found.after.strategy.gpu_counts) == {"h100_sxm"}


def test_a_run_keeps_the_prices_it_was_planned_with(run: Path, tmp_path: Path) -> None:
    """Another price frozen in the run's folder is what the run is read with, whatever spec and catalogue say."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert load_run_spec(copy).cards()["l40s"].usd_per_gpu_h == 1.0
    frozen = copy / "prices.toml"
    frozen.write_text(frozen.read_text().replace("usd_per_gpu_h = 1.0", "usd_per_gpu_h = 1.75"))
    assert load_run_spec(copy).cards()["l40s"].usd_per_gpu_h == 1.75


def test_prices_and_rates_simulate_only_what_was_explored(run: Path) -> None:
    """A change of price or demand is answered from the run's evaluations, those that become the answer confirmed."""
    cheaper = whatif(run, ["prices.h100_sxm=0.1x"])
    assert cheaper.num_simulated <= 8
    assert cheaper.after is not None
    assert set(cheaper.after.strategy.gpu_counts) == {"h100_sxm"}
    more = whatif(run, ["traffic.rate=2x"])
    assert more.num_simulated <= 8
    assert more.demand_req_s == (4.0, 8.0)
    assert not any(offer.evaluation.is_explored for offer in (*more.front, *cheaper.front))
    table = pd.read_parquet(run / "evaluations.parquet")
    enough = table[(table["status"] == "ok") & (table["goodput_req_s"] >= 8.0)]
    assert more.after is not None
    assert more.after.usd_per_h == pytest.approx(enough["usd_per_h"].min())


def test_a_tighter_target_is_simulated_and_never_cheaper(run: Path) -> None:
    """TPOT of 20 instead of 40 ms: strategies are simulated again, and the answer costs no less."""
    found = whatif(run, ["slo.tpot=20ms"])
    assert found.num_simulated > 0
    assert found.before is not None
    if found.after is not None:
        assert found.after.usd_per_h >= found.before.usd_per_h
        assert found.after.goodput_req_s >= 4.0
    assert found.before_now is None or found.before_now.goodput_req_s <= found.before.goodput_req_s


def test_whatif_of_a_target_is_planning_anew(run: Path, tmp_path: Path) -> None:
    """On a space evaluated whole, the answer under another target is that of a plan with it."""
    found = whatif(run, ["slo.tpot=25ms"])
    path = tmp_path / "anew.yaml"
    path.write_text(WHOLE.replace("tpot: {p90_ms: 40}", "tpot: {p90_ms: 25}"))
    anew = plan(load_spec(path), out=tmp_path / "anew", workers=0)
    assert (found.after is None) == (anew.recommended is None)
    if anew.recommended is not None and found.after is not None:
        assert found.after.usd_per_h == pytest.approx(anew.usd_per_h(anew.recommended))


def test_a_link_touches_only_what_hands_over(run: Path) -> None:
    """In a node nothing crosses the network except pairs of two GPU types: all else is kept as it was."""
    found = whatif(run, ["link=10Gbit"])
    table = pd.read_parquet(run / "evaluations.parquet")
    mixed = table["strategy"].str.contains("h100_sxm") & table["strategy"].str.contains("l40s")
    assert found.num_known == int((~mixed).sum())
    assert found.num_simulated <= int(mixed.sum())


def test_changed_demand_and_ownership_are_told(run: Path) -> None:
    """A curve given only now is planned, a server's price weighed, and the choice stays without simulating for it."""
    found = whatif(
        run, ["demand.diurnal={peak_factor: 2}", "ownership.servers.l40s={price: 60000, source: q, date: 2026-11-20}"]
    )
    assert found.before is not None
    assert found.after is not None
    assert found.after.strategy == found.before.strategy
    before, after = (" ".join(side) for side in zip(*found.told, strict=True))
    assert "no demand over time" in before
    assert "Day with a peak of 2 times the mean" in after
    assert "l40s" in after
    assert ("Buying" in after) or ("Renting" in after)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("traffic.rate=2x", "traffic.rate_req_s", 8.0),
        ("rate=+25%", "traffic.rate_req_s", 5.0),
        ("traffic.rate=600/min", "traffic.rate_req_s", 10.0),
        ("slo.ttft=1.5s", "slo.ttft.p90_ms", 1500.0),
        ("slo.tpot.p90=30ms", "slo.tpot.p90_ms", 30.0),
        ("slo.tpot.p50=-50%", "slo.tpot.p50_ms", 15.0),
        ("link=400Gbit", "link.gbit_s_per_gpu", 400.0),
        ("link.rate=25GB/s", "link.gbit_s_per_gpu", 200.0),
        ("link=0.5x", "link.gbit_s_per_gpu", 100.0),
        ("link.latency_us=1ms", "link.latency_us", 1000.0),
        ("traffic.output_tokens=250", "traffic.output_scale", 2.0),
        ("traffic.input_tokens=-20%", "traffic.input_scale", 0.8),
        ("prices.h100_sxm=+20%", "prices.h100_sxm.per_gpu_h", 4.8),
        ("prices.h100_sxm=spot", "prices.h100_sxm", "spot"),
        ("traffic.cached_frac=30%", "traffic.cached_frac", 0.3),
        ("penalty=0.002", "penalty_per_miss", 0.002),
        ("traffic.arrivals={kind: gamma, cv: 2}", "traffic.arrivals.kind", "gamma"),
    ],
)
def test_human_forms(text: str, path: str, value: object) -> None:
    """Factors, per cent, units and aliases end in the spec's own field and unit."""
    changed, (change,) = apply_changes(SPEC, [text], MEANS)
    found: Any = changed
    for name in path.split("."):
        found = found[name]
    assert found == (pytest.approx(value) if isinstance(value, float) else value)
    assert path.startswith(change.path)
    assert SPEC["traffic"]["rate_req_s"] == 4.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("traffic.rate", r"set: 'traffic.rate' is not path=value; accepted: traffic.rate=2x"),
        ("slo.tpot=30ms", r"set: 'slo.tpot' has 2 limits; accepted: slo.tpot.p50, slo.tpot.p90"),
        ("slo.ttft=3parsec", r"has an unknown unit; accepted: ms, s, us"),
        ("model.weights=fp8", r"changes what the strategies are; accepted: traffic, slo"),
        ("penalty=2x", r"has no value now that it could change"),
        ("prices.a100=2", r"'prices.a100' is not among the spec's gpus; accepted: h100_sxm"),
    ],
)
def test_wrong_changes_get_one_sentence(text: str, message: str) -> None:
    """What is not a change, is ambiguous, or cannot be asked of a finished run says so."""
    with pytest.raises(BestServeError, match=message):
        apply_changes(SPEC, [text], MEANS)


def test_wrong_runs_and_files_get_one_sentence(run: Path, tmp_path: Path) -> None:
    """No run, a file of other GPUs, another currency: one sentence each."""
    with pytest.raises(BestServeError, match="does not exist"):
        reprice(tmp_path, price_file(tmp_path, h100_sxm=1.0))
    with pytest.raises(BestServeError, match="prices none of the run's GPUs; accepted: h100_sxm, l40s"):
        reprice(run, price_file(tmp_path, b200_sxm=1.0))
    euro = price_file(tmp_path, h100_sxm=1.0)
    euro.write_text(euro.read_text() + 'currency = "EUR"\n')
    with pytest.raises(BestServeError, match="mixes EUR and USD with the run's prices"):
        reprice(run, euro)
    with pytest.raises(BestServeError, match=r"traffic\.typo: 3 is not a known field"):
        whatif(run, ["traffic.typo=3"])
