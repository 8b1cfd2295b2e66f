"""Target `ray-serve-llm`: one Serve config (`serve deploy serve_config.yaml`), fields as in ray 2.60's LLMConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.export.deployment import Deployment, PoolPlan
from search.export.expressible import RAY_ACCELERATORS, RAY_ROUTERS
from search.export.files import yaml_text
from search.export.flags import Flags, vllm_flags

CARRIES = "ray[llm] 2.60.0 installs vLLM 0.29.0"  # its own metadata on PyPI
BUILDERS = "ray.serve.llm"


def ray_files(deployment: Deployment) -> dict[str, str]:
    """`serve_config.yaml`."""
    return {"serve_config.yaml": yaml_text(serve_config(deployment), deployment.stamp("ray-serve-llm", CARRIES))}


def serve_config(deployment: Deployment) -> dict[str, Any]:
    """One application; under data parallelism `num_replicas` counts groups of dp replicas (Ray's own rule)."""
    configs = {pool.name: llm_config(deployment, pool) for pool in deployment.pools}
    arguments: dict[str, Any]
    if deployment.is_disaggregated:
        builder = "build_pd_openai_app"
        arguments = {"prefill_config": configs["prefill"], "decode_config": configs["decode"]}
    elif deployment.pools[0].parallelism.dp > 1:
        builder, arguments = "build_dp_openai_app", {"llm_config": configs["serve"]}
    else:
        builder, arguments = "build_openai_app", {"llm_configs": [configs["serve"]]}
    application = {"name": deployment.slug, "route_prefix": "/", "import_path": f"{BUILDERS}:{builder}"}
    return {"applications": [application | {"args": arguments}]}


def llm_config(deployment: Deployment, pool: PoolPlan) -> dict[str, Any]:
    """One pool; the GPU type is named where Ray has a name for it."""
    path = deployment.checkpoint.path
    config: dict[str, Any] = {"model_loading_config": {"model_id": path, "model_source": path}}
    if pool.gpu.name in RAY_ACCELERATORS:
        config["accelerator_type"] = RAY_ACCELERATORS[pool.gpu.name]
    config["deployment_config"] = {"num_replicas": pool.count}
    router = RAY_ROUTERS.get(deployment.strategy.router)
    if router is not None and pool.count > 1:
        config["deployment_config"]["request_router_config"] = {"request_router_class": router}
    config["engine_kwargs"] = engine_kwargs(vllm_flags(deployment, pool))
    return config


def engine_kwargs(flags: Flags) -> dict[str, Any]:
    """Command-line flags as keyword arguments: switches are true, their negations false."""
    kwargs: dict[str, Any] = {}
    for flag, value in flags.items():
        name = flag.removeprefix("--").replace("-", "_")
        if value is None:
            kwargs[name.removeprefix("no_")] = not name.startswith("no_")
        else:
            kwargs[name] = dict(value) if isinstance(value, Mapping) else value
    return kwargs
