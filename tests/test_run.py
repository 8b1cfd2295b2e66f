"""The run folder: whole files, refusals, and a run that survives kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from estimator.errors import BestServeError
from search.run import RunFolder, free_path, latest_path

ROOT = Path(__file__).parent.parent
SPEC = """
name: small
model: {id: meta-llama/Llama-3.1-8B, weights: bf16, kv: bf16}
engine: vllm
traffic:
  rate_req_s: 5
  lengths: {kind: fixed, input_tokens: 1000, output_tokens: 100}
slo:
  ttft: {p90_ms: 2000}
  tpot: {p90_ms: 80}
gpus: [h100_sxm, l40s]
search: {max_gpus: 2, trials: 1000, seed: 0, screen: false,
  tp: [1, 2], pp: 1, tokens: [2048, 8192], seqs: [64, 256]}
"""
PLAN = """
import sys
from pathlib import Path
from search.planner import plan
from search.spec import load_spec
from tests.halting import halt_after
folder, halt = Path(sys.argv[1]), int(sys.argv[3])
if halt:
    halt_after(halt)
plan(load_spec(folder / "small.yaml"), out=folder / sys.argv[2], workers=0, resume="resume" in sys.argv)
"""


def start_plan(folder: Path, out: str, *more: str, halt: int = 0) -> subprocess.Popen[bytes]:
    """A plan in a process of its own, without Ray, that halts after so many evaluations of its own; 0: never."""
    (folder / "small.yaml").write_text(SPEC)
    return subprocess.Popen([sys.executable, "-c", PLAN, str(folder), out, str(halt), *more], cwd=ROOT)


def num_lines(path: Path) -> int:
    """Lines of a file that may not exist yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_run_killed_twice_resumes_to_the_same_files(tmp_path: Path) -> None:
    """A plan killed by SIGKILL at two points and resumed leaves the front and evaluations of an undisturbed one."""
    assert start_plan(tmp_path, "whole").wait() == 0
    whole = num_lines(tmp_path / "whole" / "study.journal")
    journal = tmp_path / "killed" / "study.journal"
    for share, more in ((0.3, ()), (0.7, ("resume",))):
        process = start_plan(tmp_path, "killed", *more, halt=whole // 2)  # beyond either share
        while num_lines(journal) < share * whole:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["status"] == "running"
        assert not (tmp_path / "killed" / "front.csv").exists()
    assert start_plan(tmp_path, "killed", "resume").wait() == 0
    for name in ("spec.yaml", "front.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    tables = [pd.read_parquet(tmp_path / out / "evaluations.parquet") for out in ("whole", "killed")]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["num_evaluated"] == manifest["space_size"] == len(tables[1])
    assert {"python", "optuna", "ray", "bestserve"} <= set(manifest["versions"])


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    """A second run into the same folder is refused, and the next free name offered instead."""
    folder = RunFolder.open(tmp_path / "x", "name: x", resume=False)
    folder.journal.touch()
    with pytest.raises(BestServeError, match="already holds a run"):
        RunFolder.open(tmp_path / "x", "name: x", resume=False)
    assert free_path(tmp_path, "x") == tmp_path / "x-2"
    assert free_path(tmp_path, "y") == tmp_path / "y"
    assert latest_path(tmp_path, "x") == tmp_path / "x"


def test_only_the_same_question_is_resumed(tmp_path: Path) -> None:
    """Resuming needs a run, and the spec that was frozen there."""
    with pytest.raises(BestServeError, match="holds no run to resume"):
        RunFolder.open(tmp_path / "none", "name: x", resume=True)
    with pytest.raises(BestServeError, match="holds no run to resume"):
        latest_path(tmp_path, "none")
    RunFolder.open(tmp_path / "x", "name: x", resume=False)
    with pytest.raises(BestServeError, match="differs from the spec given"):
        RunFolder.open(tmp_path / "x", "name: other", resume=True)
    assert RunFolder.open(tmp_path / "x", "name: x", resume=True).path == tmp_path / "x"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk refuses in the middle of a write, the file under the final name is the old one."""
    folder = RunFolder(tmp_path)
    folder.write("front.csv", b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        folder.write("front.csv", b"new")
    assert (tmp_path / "front.csv").read_bytes() == b"old"
