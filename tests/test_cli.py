"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search.edge import read_yaml

ROOT = Path(__file__).parent.parent
COMMANDS: tuple[str, ...] = (
    *("plan", "estimate", "goodput", "validate", "report", "catalogue", "schema", "space", "lengths"),
    *("export", "verify", "reprice", "whatif", "compare"),
)
TINY = """
name: tiny
model: {id: llama-3.1-8b}
traffic:
  rate_req_s: 4
  lengths: {kind: uniform, input_tokens: {min: 200, max: 1000}, output_tokens: {min: 50, max: 200}}
slo: {ttft: {p90_ms: 1000}, tpot: {p90_ms: 40}}
gpus: [h100_sxm, l40s]
prices:
  h100_sxm: {usd_per_gpu_h: 4.0, source: a test, date: 2026-11-01}
  l40s: {usd_per_gpu_h: 1.0, source: a test, date: 2026-11-01}
search: {max_gpus: 3, trials: 500, tp: [1, 2], pp: [1], dp: [1], ep: [1], tokens: [8192], seqs: [256]}
"""


def bestserve(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "search.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=240)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A spec whose whole space is evaluated in a few seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def one_object(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The only thing on standard output, as JSON without NaN."""
    assert ran.returncode == 0, ran.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    loaded: dict[str, Any] = json.loads(ran.stdout, parse_constant=refuse)
    return loaded


def test_help_imports_nothing_heavy() -> None:
    """`--help` of the program and of every command loads none of the libraries that take long to import."""
    heavy = ("ray", "numba", "pandas", "optuna", "numpy", "scipy", "matplotlib", "plotly", "pyarrow", "jinja2")
    code = f"""
import sys
import search.cli
for arguments in (['--help'], *([name, '--help'] for name in {COMMANDS})):
    sys.argv = ['bestserve', *arguments]
    try:
        search.cli.main()
    except SystemExit as done:
        assert done.code == 0, arguments
print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stderr.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    """Each command's help ends with an example of itself."""
    ran = bestserve(command, "--help")
    assert f"Example: bestserve {command}" in ran.stdout


@pytest.mark.parametrize(
    ("spec", "arguments", "field", "rest"),
    [
        (TINY.replace("p90_ms: 40", "p90_s: 40"), ("plan",), "slo.tpot.p90_s", "did you mean this?"),
        (TINY.replace("llama-3.1-8b", "llama-9"), ("plan",), "model", "'llama-9'"),
        (TINY.replace("l40s]", "l41s]").replace("  l40s:", "  l41s:"), ("space",), "gpus", "l40s (did you mean this?)"),
        (
            TINY.replace("{usd_per_gpu_h: 1.0, source: a test, date: 2026-11-01}", "aws-p5-h100"),
            ("plan",),
            "prices.l40s",
            "",
        ),
        (TINY, ("goodput", "-s", "2x-tp1@l40s"), "strategy", "is not a pool"),
        (TINY, ("goodput", "-s", "1m-tp1@b200_sxm"), "gpu", "'b200_sxm' is not one of"),
        (TINY, ("goodput", "-s", "1m-tp3@h100_sxm"), "strategy", "1m-tp3@h100_sxm"),
        (TINY, ("estimate", "-s", "1m-tp1@l40s", "-r", "-1"), "rate", "-1"),
        (TINY.replace("id: llama-3.1-8b", "id: llama-3.1-70b"), ("goodput", "-s", "1m-tp1@l40s"), "strategy", "memory"),
        (TINY.replace("max_gpus: 3", "max_gpus: three"), ("plan", "--out", "o"), "search.max_gpus", "a whole number"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(
    tmp_path: Path, spec: str, arguments: tuple[str, ...], field: str, rest: str
) -> None:
    """One line on standard error with field, value, rule and what is accepted; no traceback, nothing written."""
    path = tmp_path / "spec.yaml"
    path.write_text(spec)
    ran = bestserve(arguments[0], str(path), *arguments[1:], cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"Error: {field}")
    assert rest in ran.stderr
    assert "; accepted: " in ran.stderr
    assert [found.name for found in tmp_path.iterdir()] == ["spec.yaml"]


def test_missing_spec_and_missing_run(tmp_path: Path) -> None:
    """A spec or a run that is not there is wrong input too."""
    for arguments in (("plan", "none.yaml"), ("report", "none"), ("validate", "none.csv"), ("lengths", "none.csv")):
        ran = bestserve(*arguments, cwd=tmp_path)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1
        assert "none" in ran.stderr


def test_version_is_the_package_s() -> None:
    """`--version` prints the name and the version of pyproject.toml, and nothing else."""
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert bestserve("--version").stdout == f"bestserve {version}\n"


def test_schema_is_json() -> None:
    """`schema` prints one JSON Schema object with the spec's fields."""
    schema = one_object(bestserve("schema"))
    assert {"model", "traffic", "slo", "gpus", "search"} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("what", "number"), [("models", 28), ("gpus", 8), ("prices", 10), ("links", 3), ("servers", 3)]
)
def test_catalogue_lists_with_sources(what: str, number: int) -> None:
    """Every card has a source; as JSON and as a table."""
    rows = one_object(bestserve("catalogue", what, "--json"))[what]
    assert len(rows) >= number
    assert all(row["source"] for row in rows)
    assert bestserve("catalogue", what).stdout.count("\n") > number


def test_space_counts(tiny: Path) -> None:
    """8B in bf16 fits every shape on H100 and L40S. With 3 GPUs: per type 3 of TP1 and 1 of TP2 collocated."""
    found = one_object(bestserve("space", str(tiny), "--json"))
    assert found["shapes"]["collocated"] == 4
    assert found["size"] > 8


def test_estimate_and_goodput_agree(tiny: Path) -> None:
    """At 70 % of the goodput that `goodput` finds, `estimate` keeps the targets; at 150 % it does not."""
    found = one_object(bestserve("goodput", str(tiny), "-s", "2m-tp1@h100_sxm", "--json"))
    rate = found["goodput"]["rate_req_s"]
    assert found["usd_per_h"] == pytest.approx(8.0)
    assert found["usd_per_1m_output"] == pytest.approx(8.0 / 3600 / (rate * 125) * 1e6, rel=0.02)
    for share, meets in ((0.7, True), (1.5, False)):
        answer = one_object(
            bestserve("estimate", str(tiny), "-s", "2m-tp1@h100_sxm", "-r", str(share * rate), "--json")
        )
        assert answer["meets"] is meets
        assert answer["summary"]["ttft"]["p50_s"] <= answer["summary"]["ttft"]["p99_s"]


def test_plan_leaves_a_run_that_report_repeats(tiny: Path, tmp_path: Path) -> None:
    """A plan prints the answer and leaves spec, tables and page; `report` says the same again from the folder alone."""
    out = tmp_path / "run"
    ran = bestserve("plan", str(tiny), "--out", str(out), "--workers", "0", "--json")
    answer = one_object(ran)
    assert answer["recommended"]["goodput_req_s"] >= 4
    assert "4 requests/s" in answer["answer"]
    costs = [row["usd_per_h"] for row in answer["front"]]
    assert costs == sorted(costs)
    for name in ("spec.yaml", "evaluations.parquet", "front.csv", "manifest.json", "report.html", "figures/front.png"):
        assert (out / name).is_file(), name
    (out / "report.html").unlink()
    again = one_object(bestserve("report", str(out), "--json"))
    assert {key: again[key] for key in ("recommended", "front", "answer")} == {
        key: answer[key] for key in ("recommended", "front", "answer")
    }
    assert (out / "report.html").is_file()
    text = bestserve("report", str(out)).stdout
    assert text.startswith(("Rent ", "No strategy"))
    assert "Pareto front" in text
    assert "\x1b" not in text
    assert bestserve("plan", str(tiny), "--out", str(out), "--workers", "0").returncode == 2


def test_interrupted_plan_says_how_to_go_on(tiny: Path, tmp_path: Path) -> None:
    """Ctrl-C ends with code 130 and the command that resumes; that command ends with the front of an unbroken run."""
    out = tmp_path / "run"
    arguments = ("plan", str(tiny), "--out", str(out), "--workers", "0")
    script = "from search.cli import main; from tests.halting import halt_after; halt_after(8); main()"
    command = [sys.executable, "-c", script, *arguments]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "halted\n"
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert stderr.startswith("Stopped; what is done is kept. Go on with: bestserve plan ")
    assert stderr.endswith("--workers 0 --resume\n")
    assert bestserve("report", str(out)).returncode == 2
    resumed = one_object(bestserve(*arguments, "--resume", "--json"))
    whole = one_object(bestserve("plan", str(tiny), "--out", str(tmp_path / "whole"), "--workers", "0", "--json"))
    assert resumed["front"] == whole["front"]


def test_lengths_reproduce_the_quickstart(shared: Path) -> None:
    """`lengths` on the Azure conversation trace prints what runs/quickstart.yaml holds."""
    from ruamel.yaml import YAML

    ran = bestserve("lengths", str(shared / "traces" / "AzureLLMInferenceTrace_conv.csv"))
    assert ran.returncode == 0, ran.stderr
    printed = YAML(typ="safe", pure=True).load(ran.stdout)["lengths"]
    assert printed == read_yaml(ROOT / "runs" / "quickstart.yaml")["traffic"]["lengths"]
    assert "KS distance" in ran.stdout


def test_module_is_the_installed_command() -> None:
    """The package's script entry is the function that `python -m search.cli` runs."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["bestserve"] == "search.cli:main"
