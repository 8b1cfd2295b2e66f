"""The spec's schema for editors, its reference for people, and the command line's completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import BaseModel

from search.edge import read_yaml
from search.schema_table import spec_markdown
from search.spec import Spec

ROOT = Path(__file__).parent.parent


def test_reference_is_up_to_date() -> None:
    """search/SPEC.md is what `bestserve schema --markdown` prints; write it again with that command."""
    assert (ROOT / "search" / "SPEC.md").read_text(encoding="utf-8") == spec_markdown(), (
        "run: bestserve schema --markdown > search/SPEC.md"
    )


def every_model(top: type[BaseModel]) -> set[str]:
    """Names of all models in the JSON Schema, and the top one."""
    return {top.__name__, *top.model_json_schema().get("$defs", {})}


def test_reference_has_every_field_with_what_it_accepts() -> None:
    """Every model of the JSON Schema has a section, every one of its fields a row that says what is accepted."""
    text = spec_markdown()
    sections = {part.split("\n", 1)[0]: part for part in text.split("\n## ")[1:]}
    assert set(sections) == every_model(Spec)
    definitions = Spec.model_json_schema()["$defs"] | {"Spec": Spec.model_json_schema()}
    for name, section in sections.items():
        rows = {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}
        assert set(rows) == set(definitions[name]["properties"]), name
        for field, row in rows.items():
            accepted = row.rstrip(" |").rsplit(" | ", 1)[-1]
            assert accepted.strip() or field == "kind", f"{name}.{field} says nothing about what it accepts"


@pytest.mark.parametrize("spec", sorted((ROOT / "runs").glob("*.yaml")), ids=lambda path: path.name)
def test_schema_accepts_the_bundled_specs(spec: Path) -> None:
    """Each spec in runs/ is valid under the JSON Schema that editors get, and one with a wrong field is not."""
    schema, given = Spec.model_json_schema(), json.loads(json.dumps(read_yaml(spec), default=str))
    jsonschema.validate(given, schema)
    with pytest.raises(jsonschema.ValidationError, match="no_such_field"):
        jsonschema.validate(given | {"no_such_field": 1}, schema)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_each_shell(shell: str) -> None:
    """`--show-completion` prints a script for the shell that names the command."""
    ran = subprocess.run(
        [sys.executable, "-m", "search.cli", "--show-completion", shell],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "complete" in ran.stdout
    assert "_COMPLETE" in ran.stdout


def test_completion_offers_commands_and_options() -> None:
    """What the shell's script asks for comes back: commands that begin alike, and an option's name."""
    code = "import sys; sys.argv = ['bestserve']; import search.cli as c; c.app(prog_name='bestserve')"

    def offered(typed: str) -> str:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "_BESTSERVE_COMPLETE": "complete_zsh",
            "_TYPER_COMPLETE_ARGS": typed,
        }
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
        return ran.stdout

    assert "compare" in offered("bestserve com")
    assert "--trials" in offered("bestserve plan --tri")
