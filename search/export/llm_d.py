"""Target `llm-d`: a kustomize overlay on llm-d's own guides, one strategic-merge patch per pool.

Bases, read at the commits below: guides/optimized-baseline (Deployment `decode`) for collocated strategies and
guides/pd-disaggregation (`decode` behind a routing sidecar on port 8200, and `prefill`). A patch replaces replicas,
arguments and GPUs and leaves probes, volumes, environment and labels to the base.
"""

from __future__ import annotations

from typing import Any

from search.export.deployment import Deployment, PoolPlan
from search.export.expressible import GPU_PRODUCTS
from search.export.files import yaml_text
from search.export.flags import Flags, vllm_flags

REPOSITORY = "https://github.com/llm-d/llm-d"
BASES = {
    "serve": ("guides/optimized-baseline/modelserver/gpu/vllm/base", "05b03f75739f966c129498ad620aca5f18a30c99"),
    "decode": ("guides/pd-disaggregation/modelserver/gpu/vllm/base", "6e786ee4089f732549edc25e5a0f2c29dc0de5dc"),
}
VLLM_IMAGE, VLLM_TAG = "docker.io/vllm/vllm-openai", "v0.19.1"  # as the pd-disaggregation guide pins it
CARRIES = f"the overlay pins vLLM {VLLM_TAG.removeprefix('v')}"
DEPLOYMENTS = {"serve": "decode", "prefill": "prefill", "decode": "decode"}
SIDECAR_PORT = 8200


def llm_d_files(deployment: Deployment) -> dict[str, str]:
    """`kustomization.yaml` and its patches, for `kubectl apply -k`."""
    stamp = deployment.stamp("llm-d", CARRIES)
    patches = {f"patch-{pool.name}.yaml": patch(deployment, pool) for pool in deployment.pools}
    files = {name: yaml_text(value, stamp) for name, value in patches.items()}
    return {"kustomization.yaml": yaml_text(kustomization(deployment, list(patches)), stamp), **files}


def kustomization(deployment: Deployment, patches: list[str]) -> dict[str, Any]:
    """The base at its commit, the image and the patches."""
    path, commit = BASES[deployment.pools[-1].name]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{REPOSITORY}//{path}?ref={commit}"],
        "images": [{"name": VLLM_IMAGE, "newTag": VLLM_TAG}],
        "patches": [{"path": name} for name in patches],
    }


def patch(deployment: Deployment, pool: PoolPlan) -> dict[str, Any]:
    """What the plan changes of one of the base's Deployments."""
    gpus = {"nvidia.com/gpu": str(pool.gpus_per_instance)}
    container = {
        "name": "modelserver",
        "command": ["vllm", "serve"],
        "args": [deployment.checkpoint.path, *joined(served_flags(deployment, pool))],
        "resources": {"limits": gpus, "requests": gpus},
    }
    product = GPU_PRODUCTS.get(pool.gpu.name)
    selector = {} if product is None else {"nodeSelector": {"nvidia.com/gpu.product": product}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": DEPLOYMENTS[pool.name]},
        "spec": {"replicas": pool.count, "template": {"spec": {**selector, "containers": [container]}}},
    }


def served_flags(deployment: Deployment, pool: PoolPlan) -> Flags:
    """vLLM's options; a decode instance answers behind the sidecar."""
    flags = vllm_flags(deployment, pool)
    return flags | {"--port": SIDECAR_PORT} if pool.name == "decode" else flags


def joined(flags: Flags) -> list[str]:
    """`--name=value`, as the guides write them."""
    from search.export.flags import words

    found = []
    for name, value in flags.items():
        found.append(name if value is None else f"{name}={words({name: value})[1]}")
    return found
