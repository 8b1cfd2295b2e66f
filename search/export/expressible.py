"""What a target cannot express, and why; decided before anything is written.

Sources, read in the releases named in `search.export.flags`: NIXL hand-over and its tp ratios in vLLM's
nixl_connector.py; mixed chunks, pipeline stages and hand-over in SGLang's server_args.py and disaggregation/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from estimator.errors import BestServeError
from search.export.deployment import Deployment, PoolPlan

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vllm": ("vllm",),
        "sglang": ("sglang",),
        "ray-serve-llm": ("vllm",),
        "dynamo": ("vllm", "sglang", "trtllm"),
        "llm-d": ("vllm",),
    }
)  # the engines each target runs
RAY_ACCELERATORS: Mapping[str, str] = MappingProxyType(
    {
        "a100_sxm": "A100",
        "l40s": "L40S",
        "h100_sxm": "H100",
        "h200_sxm": "H200",
        "b200_sxm": "B200",
        "b300_sxm": "B300",
        "gb200": "GB200",
        "gb300": "GB300",
    }
)  # ray.util.accelerators, ray 2.60
RAY_ROUTERS: Mapping[str, str | None] = MappingProxyType(
    {"round_robin": "ray.serve.experimental.round_robin_router.RoundRobinRouter", "power_of_two": None}
)  # ray 2.60; None: Serve's own choice
GPU_PRODUCTS: Mapping[str, str] = MappingProxyType(
    {
        "a100_sxm": "NVIDIA-A100-SXM4-80GB",
        "l40s": "NVIDIA-L40S",
        "h100_sxm": "NVIDIA-H100-80GB-HBM3",
        "h200_sxm": "NVIDIA-H200",
        "b200_sxm": "NVIDIA-B200",
        "gb200": "NVIDIA-GB200",
    }
)  # node label nvidia.com/gpu.product, which GPU feature discovery makes of the name nvidia-smi prints


def require_expressible(deployment: Deployment, target: str, alternative: str = "another strategy") -> None:
    """Raise `BestServeError` where the target cannot deploy the strategy, naming the targets that can.

    `alternative`: what to try where no target can.
    """
    if target not in TARGETS:
        raise BestServeError("target", target, "is unknown", ", ".join(TARGETS))
    reason = reason_against(deployment, target)
    if reason is None:
        return
    others = [other for other in TARGETS if reason_against(deployment, other) is None]
    accepted = (
        f"--target {' or '.join(others)}, or {alternative}"
        if others
        else f"{alternative}, as no target can express this one"
    )
    raise BestServeError("target", target, f"cannot express {deployment.strategy} ({reason})", accepted)


def reason_against(deployment: Deployment, target: str) -> str | None:
    """Why the target cannot deploy the strategy, in a phrase; None if it can."""
    engine = deployment.engine.name
    if engine not in TARGETS[target]:
        return f"it is planned for {engine}, {target} runs {' or '.join(TARGETS[target])}"
    reason = _ENGINES[engine](deployment)
    if reason is None and target in _PLATFORMS:
        reason = _PLATFORMS[target](deployment)
    return reason


def _vllm(deployment: Deployment) -> str | None:
    policy = deployment.strategy.policy
    if policy not in ("chunked", "distserve"):
        return f"vLLM's scheduler has no policy {policy}"
    for pool in deployment.pools:
        degrees, limits = pool.parallelism, pool.limits
        whole = degrees.tp * degrees.dp
        if degrees.ep not in (1, whole):
            return f"vLLM's experts spread over all tp × dp = {whole} GPUs or none, not ep = {degrees.ep}"
        if limits.max_num_batched_tokens < limits.max_num_seqs:
            return f"vLLM wants tokens ≥ seqs, not {limits.max_num_batched_tokens} < {limits.max_num_seqs}"
    if not deployment.is_disaggregated:
        return None
    if any(pool.parallelism.pp > 1 for pool in deployment.pools):
        return "vLLM's NixlConnector hands no cache over between pipeline stages"
    return _tp_ratio(deployment) or _replicated_heads(deployment)


def _sglang(deployment: Deployment) -> str | None:
    policy = deployment.strategy.policy
    if policy not in ("chunked", "prefill_first", "distserve"):
        return f"SGLang's scheduler has no policy {policy}"
    last = deployment.pools[-1].parallelism
    if policy == "chunked" and last.pp > 1:
        return "SGLang mixes no prefill into decode batches under pipeline parallelism"
    if not deployment.is_disaggregated:
        return None
    if last.pp > 1:
        return "SGLang's decode instances take caches without pipeline stages only"
    return _tp_ratio(deployment)


def _trtllm(deployment: Deployment) -> str | None:
    policy = deployment.strategy.policy
    if policy not in ("chunked", "distserve"):
        return f"TensorRT-LLM's scheduler has no policy {policy}"
    for pool in deployment.pools:
        degrees = pool.parallelism
        if degrees.dp > 1 and degrees.tp > 1:
            return f"TensorRT-LLM's attention data parallelism has tp = 1 within a rank, not {degrees.tp}"
    return None


def _tp_ratio(deployment: Deployment) -> str | None:
    low, high = sorted(pool.parallelism.tp for pool in deployment.pools)
    return f"a cache moves between tp = {low} and tp = {high} only if one divides the other" if high % low else None


def _replicated_heads(deployment: Deployment) -> str | None:
    prefill, decode = (pool.parallelism.tp for pool in deployment.pools)
    heads = deployment.num_kv_heads
    if heads is None or prefill <= decode or prefill <= heads:
        return None
    return f"vLLM's NixlConnector cannot shrink tp = {prefill} with {heads} KV heads to tp = {decode}"


def _scripts(deployment: Deployment) -> str | None:
    if deployment.strategy.router == "least_outstanding" and deployment.needs_router:
        return "vllm-router and sglang-router have no policy of least outstanding requests"
    return _nodes(deployment)


def _nodes(deployment: Deployment) -> str | None:
    for pool in deployment.pools:
        reason = _node_split(pool)
        if reason is not None:
            return reason
    return None


def _vllm_scripts(deployment: Deployment) -> str | None:
    for pool in deployment.pools:
        degrees, nodes = pool.parallelism, pool.nodes_per_instance
        if nodes > 1 and degrees.dp > 1 and (degrees.pp > 1 or degrees.dp % nodes):
            return f"vLLM splits {degrees.dp} attention ranks evenly over nodes and without stages, not over {nodes}"
    return _scripts(deployment)


def _node_split(pool: PoolPlan) -> str | None:
    """An instance reaches over nodes in equal parts that hold whole stages, or parts of one."""
    nodes, degrees = pool.nodes_per_instance, pool.parallelism
    if nodes == 1:
        return None
    stage, part = degrees.tp * degrees.dp, pool.gpus_per_node
    if nodes * part == pool.gpus_per_instance and (part % stage == 0 or stage % part == 0):
        return None
    return f"{pool.gpus_per_instance} GPUs do not split evenly over {nodes} nodes of {pool.gpu.gpus_per_node}"


def _ray(deployment: Deployment) -> str | None:
    router = deployment.strategy.router
    if router not in RAY_ROUTERS and any(pool.count > 1 for pool in deployment.pools):
        return f"Ray Serve has no router {router}"
    return _labelled(deployment, RAY_ACCELERATORS, "Ray's accelerator types") or _nodes(deployment)


def _dynamo(deployment: Deployment) -> str | None:
    return _labelled(deployment, GPU_PRODUCTS, "the known node labels") or _nodes(deployment)


def _llm_d(deployment: Deployment) -> str | None:
    for pool in deployment.pools:
        if pool.nodes_per_instance > 1:
            return f"llm-d's Deployments hold one node, {pool.gpus_per_instance} GPUs reach over several"
    return _labelled(deployment, GPU_PRODUCTS, "the known node labels")


def _labelled(deployment: Deployment, labels: Mapping[str, str], what: str) -> str | None:
    """Two GPU types in one cluster need labels that tell them apart."""
    gpus = {pool.gpu.name for pool in deployment.pools}
    missing = sorted(gpus - set(labels))
    return (
        f"{' and '.join(missing)} is not among {what}, and two GPU types must be told apart"
        if (len(gpus) > 1 and missing)
        else None
    )


_ENGINES: Mapping[str, Callable[[Deployment], str | None]] = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}
_PLATFORMS: Mapping[str, Callable[[Deployment], str | None]] = {
    "vllm": _vllm_scripts,
    "sglang": _scripts,
    "ray-serve-llm": _ray,
    "dynamo": _dynamo,
    "llm-d": _llm_d,
}
