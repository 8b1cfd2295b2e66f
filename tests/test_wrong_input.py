"""What a stranger gets wrong: one sentence that names the field, the value, the rule and what would do."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from estimator.catalogue.prices import read_price_file
from estimator.errors import BestServeError
from search.cli import app
from search.planner import plan
from search.report.compare_page import write_comparison
from search.run import RunFolder
from search.spec import Spec, load_spec, parse_spec
from search.whatif import whatif

HERE = Path(__file__).parent
GIVEN: dict[str, Any] = {
    "name": "stranger",
    "model": {"id": "llama-3.1-8b"},
    "traffic": {"rate_req_s": 5, "lengths": {"kind": "fixed", "input_tokens": 500, "output_tokens": 50}},
    "slo": {"tpot": {"p90_ms": 40}},
    "gpus": ["h100_sxm"],
    "search": {"max_gpus": 2, "trials": 4},
}


def spec(**changes: Any) -> Spec:
    return parse_spec(GIVEN | changes, folder=HERE)


@pytest.mark.parametrize("name", ["h100sxm", "H100", "h100-sxm"])
def test_a_mistyped_gpu_is_told_as_such_and_suggests_the_right_one(tmp_path: Path, name: str) -> None:
    """An unknown GPU is no GPU without a price: the sentence says so and names the nearest known one first."""
    with pytest.raises(BestServeError, match=rf"^gpus: '{name}' is not a known GPU; accepted: h100_\w+ \(did you mean"):
        plan(spec(gpus=[name]), out=tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "meant"), [("gpt-oss-120", "openai/gpt-oss-120b"), ("Qwen/Qwen3-32b-fp8", "Qwen/Qwen3-32B")]
)
def test_a_mistyped_model_suggests_the_right_one(given: str, meant: str) -> None:
    """The bundled model most like the one asked for is named first."""
    with pytest.raises(BestServeError, match=rf"accepted: {meant} \(did you mean this\?\), a path to config.json"):
        spec(model={"id": given}).problem()


def test_a_number_that_is_not_finite_is_told_as_such() -> None:
    """NaN is a number in YAML; what is wrong is that it is not finite."""
    traffic = GIVEN["traffic"] | {"rate_req_s": float("nan")}
    with pytest.raises(BestServeError, match=r"traffic.rate_req_s: nan is not finite; accepted: a finite number"):
        spec(traffic=traffic)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """A folder given as a spec exists; what is wrong is that it is no file."""
    with pytest.raises(BestServeError, match=r"is a folder; accepted: the path of a file"):
        load_spec(tmp_path)


def test_patterns_that_leave_nothing_are_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """It is the pattern that leaves no strategy, not the rules; the run's folder is not left half-written."""
    question = spec(search={"max_gpus": 2, "trials": 4, "forbid": ["*"]})
    with pytest.raises(BestServeError, match=r"^search.forbid: '\*' leaves none of the \d+ strategies"):
        plan(question, out=tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def test_a_refused_plan_leaves_what_stood_in_the_folder(tmp_path: Path) -> None:
    """A folder that was there before stays, with the user's files and without ours."""
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(BestServeError, match="no strategy"):
        plan(spec(search={"max_gpus": 2, "tp": [3]}), out=tmp_path, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_address_where_nobody_listens_is_told_at_once(tmp_path: Path) -> None:
    """A cluster that is not there is one sentence within seconds, and no run is left."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BestServeError, match=r"address: .* cannot be joined .*: HOST:PORT of a running Ray"):
            plan(spec(), out=tmp_path / "run", address=address)
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    """An --out or --html below a file is told in one sentence, not as a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BestServeError, match=r"out: .* cannot be written \(not a directory\)"):
        RunFolder.open(tmp_path / "file" / "run", "", resume=False)
    with pytest.raises(BestServeError, match=r"html: .* cannot be written \((not a directory|file exists)\)"):
        write_comparison(_comparison(tmp_path), tmp_path / "file" / "page.html")


def _comparison(tmp_path: Path) -> Any:
    from search.compare import compare_runs

    return compare_runs([_run(tmp_path / "a"), _run(tmp_path / "b")])


def _run(folder: Path) -> Path:
    plan(spec(), out=folder, workers=0)
    return folder


def test_exports_below_a_file_and_changes_of_what_is_not_there(tmp_path: Path) -> None:
    """Export names the folder it cannot write; `--set` names the price, or the percentile, that the run has not."""
    run = _run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    told = CliRunner().invoke(app, ["export", str(run), "-t", "vllm", "--out", str(tmp_path / "file" / "x")])
    assert isinstance(told.exception, BestServeError)
    assert "out: " in str(told.exception)
    assert "cannot be written" in str(told.exception)
    with pytest.raises(BestServeError, match=r"'prices.h100' is not among the spec's gpus; accepted: h100_sxm \(did"):
        whatif(run, ["prices.h100=+20%"])
    with pytest.raises(BestServeError, match=r"'slo.e2e' has no limit now; accepted: a percentile, slo.e2e.p90=VALUE"):
        whatif(run, ["slo.e2e=5s"])


def test_predictions_without_ids(tmp_path: Path) -> None:
    """`bestserve errors` says that its second file has no ids."""
    (tmp_path / "p.csv").write_text("a,b\n1,2\n")
    told = CliRunner().invoke(app, ["errors", str(tmp_path / "p.csv"), str(tmp_path / "p.csv")])
    assert "has no column id" in str(told.exception)


def test_help_shows_what_a_price_file_holds() -> None:
    """The help of --prices points to an example and loses nothing to markup."""
    told = " ".join(CliRunner().invoke(app, ["reprice", "--help"]).output.split())
    assert "TOML, one table per card, like prices.toml in a run." in told.replace("│ ", "")


def test_a_card_without_a_price_is_told_what_a_card_needs(tmp_path: Path) -> None:
    """The sentence lists what a card must have, apart from what it may have; the README's file is such a card."""
    readme = (HERE.parent / "search" / "README.md").read_text(encoding="utf-8")
    text = readme.split("```toml\n")[1].split("```")[0]
    (tmp_path / "mine.toml").write_text(text)
    assert read_price_file(tmp_path / "mine.toml").cards["quote-17-h100"].usd_per_gpu_h == 2.4
    (tmp_path / "mine.toml").write_text(text.replace("usd_per_gpu_h", "# "))
    needed = "id, provider, gpu, gpus_per_node, kind, usd_per_gpu_h, source, date; currency and region as wanted"
    with pytest.raises(BestServeError, match=rf"price quote-17-h100.usd_per_gpu_h: None is missing.*all of {needed}"):
        read_price_file(tmp_path / "mine.toml")


def test_a_changed_spec_is_told_by_its_field(tmp_path: Path) -> None:
    """A run is resumed with the spec it was begun with; the sentence names the first field that differs."""
    run = _run(tmp_path / "run")
    traffic = GIVEN["traffic"] | {"rate_req_s": 7}
    rule = r"differs from the spec given in traffic.rate_req_s: 5.0 there, 7.0 now; accepted: the spec as it was frozen"
    with pytest.raises(BestServeError, match=rule):
        plan(spec(traffic=traffic), out=run, workers=0, resume=True)
