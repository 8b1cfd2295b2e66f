"""The files that `search/README.md` offers for clusters."""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from search.cli import app

FOLDER = Path(__file__).parent.parent / "search" / "cluster"


def read(name: str) -> dict[str, Any]:
    """A cluster file as plain values."""
    loaded: dict[str, Any] = YAML(typ="safe").load(FOLDER / name)
    return loaded


def test_ray_up_accepts_the_on_prem_file() -> None:
    """Ray's own schema of `ray up` files finds nothing wrong."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    jsonschema.validate(read("on-prem.yaml"), schema)
    assert read("on-prem.yaml")["provider"]["type"] == "local"


def test_the_kuberay_job_has_valid_pods_and_names_a_real_command() -> None:
    """Pods pass Kubernetes' own schema, volumes are mounted, and the entry point's options exist."""
    validate = pytest.importorskip("kubernetes_validate").validate
    job = read("kuberay-job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
        validate(pod, "1.30", strict=True)
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert {m["name"] for m in head["containers"][0]["volumeMounts"]} == {v["name"] for v in head["volumes"]}
    command = shlex.split(job["spec"]["entrypoint"])
    helped = CliRunner().invoke(app, [command[1], "--help"], env={"COLUMNS": "200"}).stdout
    assert all(option in helped for option in command if option.startswith("--"))
