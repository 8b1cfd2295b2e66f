"""`bestserve export`: check that the target can express the strategy, make every file, write the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.edge import writing
from search.export.deployment import Deployment, deployment_of, read_run, serving_strategies
from search.export.dynamo import CARRIES, DYNAMO_VERSION, dynamo_files
from search.export.expressible import RAY_ACCELERATORS, reason_against, require_expressible
from search.export.files import MARKER, render, write_folder
from search.export.kit import kit_files
from search.export.llm_d import llm_d_files
from search.export.prediction import predict
from search.export.ray_serve import ray_files
from search.export.scripts import entry_url, sglang_files, vllm_files
from search.spec import Spec
from spaces.problem import Problem

WRITERS: Mapping[str, Callable[[Deployment], dict[str, str]]] = {
    "vllm": vllm_files,
    "sglang": sglang_files,
    "ray-serve-llm": ray_files,
    "dynamo": dynamo_files,
    "llm-d": llm_d_files,
}
STEPS = {
    "vllm": (
        "Set the addresses in hosts.env",
        "Run each serve/*.sh on the host its second line names",
        "Run router.sh",
    ),
    "sglang": (
        "Set the addresses in hosts.env",
        "Run each serve/*.sh on the host its second line names",
        "Run router.sh",
    ),
    "ray-serve-llm": ("On a Ray cluster with these GPUs: serve deploy serve_config.yaml",),
    "dynamo": ("Make the secret hf-token-secret with HF_TOKEN", "kubectl apply -f graph.yaml"),
    "llm-d": (
        "Make the secret llm-d-hf-token with HF_TOKEN, and the router of llm-d's guide",
        "kubectl apply -k .",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written. `notes`: what the reader should know before running it."""

    folder: Path
    target: str
    deployment: Deployment
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), **_summary(self.deployment, self.target, self.notes), "files": self.files}


def export(
    run: Path, target: str, *, strategy: str | None = None, out: Path | None = None, checkpoint: str | None = None
) -> Export:
    """Write what deploys the strategy (None: the recommended one) on the target, by default to RUN/export/TARGET.

    Raises `BestServeError`, and writes nothing, if the run or strategy does not exist or the target cannot express it.
    """
    spec, problem, chosen = read_run(run, strategy)
    deployment = deployment_of(chosen, spec, problem, checkpoint=checkpoint)
    if reason_against(deployment, target) is not None:
        require_expressible(deployment, target, _alternative(run, target, spec, problem))
    prediction = predict(problem, deployment.strategy, rate_req_s=spec.traffic.rate_req_s)
    url = entry_url(deployment) if target in ("vllm", "sglang") else "http://127.0.0.1:8000"
    files = WRITERS[target](deployment) | kit_files(deployment, spec, problem, prediction, url)
    notes = tuple(_notes(deployment, target))
    readme = render(
        "README.md.j2",
        stamp=deployment.stamp(target),
        deployment=deployment,
        target=target,
        steps=[step for step in STEPS[target] if step != "Run router.sh" or "router.sh" in files],
        notes=notes,
        url=url,
        rate=prediction.rate_req_s,
        run=run,
        has_inference_perf="verify/inference-perf.yaml" in files,
    )
    summary = json.dumps(_summary(deployment, target, notes), indent=2, ensure_ascii=False)
    folder = out or run / "export" / target
    with writing(folder, field="out"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, files | {"README.md": readme, MARKER: summary + "\n"})
    return Export(folder=folder, target=target, deployment=deployment, files=tuple(files), notes=notes)


def _alternative(run: Path, target: str, spec: Spec, problem: Problem) -> str:
    """The run's cheapest strategy that carries the demand and that the target can express, as an option."""
    for strategy, usd_per_h in serving_strategies(run, spec.traffic.rate_req_s):
        if reason_against(deployment_of(strategy, spec, problem, checkpoint="any"), target) is None:
            return f"--strategy '{strategy}' at ${usd_per_h:,.2f}/h"
    return "another strategy"


def _summary(deployment: Deployment, target: str, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "target": target,
        "run": deployment.run,
        "strategy": str(deployment.strategy),
        "engine": f"{deployment.engine.name} {deployment.engine.version}",
        "generated_not_run": True,
        "model": deployment.checkpoint.path,
        "num_gpus": deployment.num_gpus,
        "pools": [
            {"pool": pool.name, "instances": pool.count, "gpus_each": pool.gpus_per_instance, "gpu": pool.gpu.name}
            for pool in deployment.pools
        ],
        "notes": list(notes),
    }


def _notes(deployment: Deployment, target: str) -> list[str]:
    notes = []
    engine = deployment.engine
    if target == "dynamo":
        notes.append(
            f"Planned for {engine.name} {engine.version}; Dynamo {DYNAMO_VERSION} carries {CARRIES[engine.name]}, "
            "whose times may differ."
        )
    if target == "ray-serve-llm":
        notes.append(
            f"Planned for vLLM {engine.version}; ray[llm] 2.60.0 installs vLLM 0.29.0, whose times may differ."
        )
        for gpu in dict.fromkeys(pool.gpu.name for pool in deployment.pools):
            if gpu not in RAY_ACCELERATORS:
                notes.append(f"Ray has no accelerator type for {gpu}: the cluster must hold no other GPUs.")
    if target == "llm-d":
        router = deployment.strategy.router.replace("_", " ")
        notes.append(f"llm-d's router weighs load and cached prefixes; the plan was made with {router}.")
    if deployment.checkpoint.online_fp8:
        notes.append(
            f"{deployment.checkpoint.path} is published in bf16 and quantised to fp8 while loading; the plan's times "
            "are those of a block-scaled fp8 checkpoint, which --checkpoint ORG/NAME exports instead."
        )
    if deployment.context_tokens < deployment.longest_tokens:
        notes.append(
            f"The cache of an instance holds {deployment.context_tokens} tokens: the plan's longest requests "
            f"(up to {deployment.longest_tokens}) are refused, as the plan assumes."
        )
    if deployment.is_disaggregated and engine.name == "vllm":
        notes.append(
            "vLLM's documentation: disaggregated prefill does not improve throughput, it decouples TTFT from TPOT."
        )
    return notes
