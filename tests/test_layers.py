"""The three packages import only downwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"estimator": {"estimator"}, "spaces": {"spaces", "estimator"}, "search": {"search", "spaces", "estimator"}}


def imported_modules(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_run_downwards(package: str) -> None:
    """search → spaces → estimator, never the other way."""
    for path in (ROOT / package).rglob("*.py"):
        ours = imported_modules(path) & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("library", ["optuna", "ray", "pydantic", "pandas", "rich", "typer", "plotly"])
def test_inner_layers_are_pure(library: str) -> None:
    """estimator and spaces import no library of the outside; pandas is allowed only where measurements are fitted."""
    for package in ("estimator", "spaces"):
        for path in (ROOT / package).rglob("*.py"):
            if library == "pandas" and path.name.startswith("calibrate"):
                continue
            assert library not in imported_modules(path), f"{path.relative_to(ROOT)} imports {library}"
