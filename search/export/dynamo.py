"""Target `dynamo`: one DynamoGraphDeployment (nvidia.com/v1beta1), fields as in the operator's Go types.

`multinode.nodeCount` spreads an instance over nodes; the operator then adds the engine's own node arguments.
"""

from __future__ import annotations

from typing import Any

from search.export.deployment import Deployment, PoolPlan
from search.export.expressible import GPU_PRODUCTS
from search.export.files import yaml_text
from search.export.flags import Flags, sglang_flags, trtllm_flags, vllm_flags, words

DYNAMO_VERSION = "1.6.1"
RUNTIMES = {"vllm": "vllm-runtime", "sglang": "sglang-runtime", "trtllm": "tensorrtllm-runtime"}
CARRIES = {"vllm": "vLLM 0.31.0", "sglang": "SGLang 0.5.21", "trtllm": "TensorRT-LLM 1.3.0rc29"}  # ai-dynamo's extras
TYPES = {"serve": "worker", "prefill": "prefill", "decode": "decode"}
FLAGS = {"vllm": vllm_flags, "sglang": sglang_flags, "trtllm": trtllm_flags}
ROUTER_MODES = {
    "round_robin": "round-robin",
    "random": "random",
    "least_outstanding": "least-loaded",
    "power_of_two": "power-of-two",
}  # dynamo/common/configuration/groups/router_args.py
TOKEN_SECRET = "hf-token-secret"


def dynamo_files(deployment: Deployment) -> dict[str, str]:
    """`graph.yaml`, for `kubectl apply -f`."""
    carries = f"Dynamo {DYNAMO_VERSION} carries {CARRIES[deployment.engine.name]}"
    return {"graph.yaml": yaml_text(graph(deployment), deployment.stamp("dynamo", carries))}


def graph(deployment: Deployment) -> dict[str, Any]:
    """A frontend that routes, and one component per pool."""
    mode = {"name": "DYN_ROUTER_MODE", "value": ROUTER_MODES[deployment.strategy.router]}
    frontend = {
        "name": "Frontend",
        "type": "frontend",
        "replicas": 1,
        "podTemplate": _pod({"image": _image(deployment), "env": [mode]}),
    }
    return {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": deployment.slug},
        "spec": {
            "backendFramework": deployment.engine.name,
            "components": [frontend, *(_component(deployment, pool) for pool in deployment.pools)],
        },
    }


def worker_flags(deployment: Deployment, pool: PoolPlan) -> Flags:
    """The worker's options: the model, the engine's, and for vLLM the role (the others carry it already)."""
    engine = deployment.engine.name
    path = "--model-path" if engine == "sglang" else "--model"
    flags: Flags = {path: deployment.checkpoint.path, **FLAGS[engine](deployment, pool)}
    if deployment.is_disaggregated:
        flags["--disaggregation-mode"] = pool.name
    return flags


def _component(deployment: Deployment, pool: PoolPlan) -> dict[str, Any]:
    container = {
        "image": _image(deployment),
        "command": ["python3", "-m", f"dynamo.{deployment.engine.name}"],
        "args": words(worker_flags(deployment, pool)),
        "resources": {"limits": {"nvidia.com/gpu": str(pool.gpus_per_node)}},
    }
    component: dict[str, Any] = {"name": pool.name, "type": TYPES[pool.name], "replicas": pool.count}
    if pool.nodes_per_instance > 1:
        component["multinode"] = {"nodeCount": pool.nodes_per_instance}
    component["podTemplate"] = _pod(container, product=GPU_PRODUCTS.get(pool.gpu.name))
    return component


def _pod(container: dict[str, Any], product: str | None = None) -> dict[str, Any]:
    """The container named `main`, which the operator completes."""
    main = {"name": "main", **container, "envFrom": [{"secretRef": {"name": TOKEN_SECRET}}]}
    selector = {} if product is None else {"nodeSelector": {"nvidia.com/gpu.product": product}}
    return {"spec": {**selector, "containers": [main]}}


def _image(deployment: Deployment) -> str:
    return f"nvcr.io/nvidia/ai-dynamo/{RUNTIMES[deployment.engine.name]}:{DYNAMO_VERSION}"
