"""Every snippet that a README marks for running is run as it stands; every other says why it is not.

A fenced `sh` or `python` block is marked by the line before it: `<!-- run -->` runs, `<!-- not run: reason -->` does
not. The blocks of one file run in order, in one folder that holds the specs of `runs/`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
READMES = sorted(path for path in ROOT.glob("*/README.md") if not path.parent.name.startswith("."))
FENCE = re.compile(r"^(?P<mark>[^\n]*)\n```(?P<language>sh|python)\n(?P<code>.*?)^```$", re.M | re.S)


class Snippet(NamedTuple):
    """A fenced block with the line before it."""

    mark: str
    language: str
    code: str


def snippets(text: str) -> list[Snippet]:
    """The `sh` and `python` blocks of a README, in order."""
    return [Snippet(found["mark"].strip(), found["language"], found["code"]) for found in FENCE.finditer(text)]


def run(snippet: Snippet, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in `folder`, with the commands of this environment first."""
    code = ["bash", "-euo", "pipefail", "-c"] if snippet.language == "sh" else [sys.executable, "-c"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    command = [*code, snippet.code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_blocks_are_found_with_their_marks() -> None:
    """Language, code and the line before; other languages are no snippets."""
    text = "a\n<!-- run -->\n```sh\necho 1\n```\n```text\nno\n```\nb\n```python\nx = 1\n```\n"
    assert snippets(text) == [Snippet("<!-- run -->", "sh", "echo 1\n"), Snippet("b", "python", "x = 1\n")]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_every_snippet_runs_or_says_why_not(readme: Path) -> None:
    """No block is left without a mark."""
    for snippet in snippets(readme.read_text(encoding="utf-8")):
        assert re.fullmatch(r"<!-- run -->|<!-- not run: .+ -->", snippet.mark), (
            f"{readme}: put <!-- run --> or <!-- not run: reason --> on the line before\n{snippet.code}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("readme", [*READMES, ROOT / "README.md"], ids=lambda path: path.parent.name)
def test_marked_snippets_run(readme: Path, tmp_path: Path) -> None:
    """They end without an error, one after the other."""
    marked = [found for found in snippets(readme.read_text(encoding="utf-8")) if found.mark == "<!-- run -->"]
    (tmp_path / "runs").mkdir()
    for spec in (ROOT / "runs").glob("*.yaml"):
        shutil.copy(spec, tmp_path / "runs")
    for snippet in marked:
        ran = run(snippet, tmp_path)
        assert ran.returncode == 0, f"{snippet.code}\n{ran.stdout}\n{ran.stderr}"
