"""Engine options of one pool. A flag's value is a number or text; None is a switch; a mapping is written as JSON.

What a degree or limit of ours is called, and counted by, in each engine:

| ours (per instance; limits per attention-dp rank) | vLLM | SGLang | TensorRT-LLM under Dynamo |
|---|---|---|---|
| tp | --tensor-parallel-size tp | --tp-size tp·dp | --tensor-parallel-size tp·dp |
| dp | --data-parallel-size dp | --dp-size dp --enable-dp-attention | --enable-attention-dp (one rank a GPU) |
| ep | --enable-expert-parallel (ep = tp·dp) | --ep-size ep | --expert-parallel-size ep |
| tokens of a step | --max-num-batched-tokens | --chunked-prefill-size, divided by dp there | --max-num-tokens |
| sequences | --max-num-seqs | --max-running-requests, divided by dp there | --max-batch-size |

Sources: vllm/engine/arg_utils.py 0.19.0; sglang/srt/server_args.py 0.5.9 (`_handle_data_parallelism`, and
model_runner.py for running requests); dynamo/trtllm/backend_args.py 1.6.1. Names are tested against recorded lists of
these releases and later ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from search.export.deployment import Deployment, PoolPlan

Flag = int | float | str | Mapping[str, Any] | None
Flags = dict[str, Flag]
NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_load_failure_policy": "fail"}


def vllm_flags(deployment: Deployment, pool: PoolPlan) -> Flags:
    """Options of `vllm serve`, also engine arguments of Ray Serve LLM and of Dynamo's vLLM workers."""
    degrees = pool.parallelism
    flags: Flags = {"--tensor-parallel-size": degrees.tp}
    if degrees.pp > 1:
        flags["--pipeline-parallel-size"] = degrees.pp
    if degrees.dp > 1:
        flags["--data-parallel-size"] = degrees.dp
    if degrees.ep > 1:
        flags["--enable-expert-parallel"] = None
    flags["--max-num-batched-tokens"] = pool.limits.max_num_batched_tokens
    flags["--max-num-seqs"] = pool.limits.max_num_seqs
    flags["--max-model-len"] = deployment.context_tokens
    flags["--gpu-memory-utilization"] = deployment.engine.memory.utilisation_frac
    flags["--kv-cache-dtype"] = _kv_dtype(deployment, fp8="fp8", native="auto", bf16="bfloat16")
    if deployment.checkpoint.online_fp8:
        flags["--quantization"] = "fp8"
    flags["--scheduling-policy"] = "fcfs"
    flags["--enable-chunked-prefill"] = None
    if deployment.cached_frac > 0:
        flags["--enable-prefix-caching"] = None
    if deployment.is_disaggregated:
        flags["--kv-transfer-config"] = dict(NIXL)
        if deployment.windowed:  # else vLLM keeps whole contexts for windowed layers beside a connector
            flags["--no-disable-hybrid-kv-cache-manager"] = None
    return flags


def sglang_flags(deployment: Deployment, pool: PoolPlan) -> Flags:
    """Options of `sglang.launch_server`, also of Dynamo's SGLang workers."""
    degrees, limits = pool.parallelism, pool.limits
    flags: Flags = {"--tp-size": degrees.tp * degrees.dp}
    if degrees.pp > 1:
        flags["--pp-size"] = degrees.pp
    if degrees.dp > 1:
        flags |= {"--dp-size": degrees.dp, "--enable-dp-attention": None}
    if degrees.ep > 1:
        flags["--ep-size"] = degrees.ep
    flags["--chunked-prefill-size"] = limits.max_num_batched_tokens * degrees.dp
    flags["--max-prefill-tokens"] = limits.max_num_batched_tokens
    flags["--max-running-requests"] = limits.max_num_seqs * degrees.dp
    flags["--context-length"] = deployment.context_tokens
    flags["--mem-fraction-static"] = deployment.engine.memory.utilisation_frac
    flags["--kv-cache-dtype"] = _kv_dtype(deployment, fp8="fp8_e4m3", native="auto", bf16="bf16")
    if deployment.checkpoint.online_fp8:
        flags["--quantization"] = "fp8"
    flags["--schedule-policy"] = "fcfs"
    if deployment.strategy.policy == "chunked":
        flags["--enable-mixed-chunk"] = None
    if deployment.is_disaggregated:
        flags |= {"--disaggregation-mode": pool.name, "--disaggregation-transfer-backend": "nixl"}
    return flags


def trtllm_flags(deployment: Deployment, pool: PoolPlan) -> Flags:
    """Options of Dynamo's TensorRT-LLM workers; the rest of the engine's arguments as one mapping."""
    degrees, limits = pool.parallelism, pool.limits
    flags: Flags = {"--tensor-parallel-size": degrees.tp * degrees.dp}
    if degrees.pp > 1:
        flags["--pipeline-parallel-size"] = degrees.pp
    if degrees.ep > 1:
        flags["--expert-parallel-size"] = degrees.ep
    if degrees.dp > 1:
        flags["--enable-attention-dp"] = None
    flags["--max-num-tokens"] = limits.max_num_batched_tokens
    flags["--max-batch-size"] = limits.max_num_seqs
    flags["--max-seq-len"] = deployment.context_tokens
    flags["--free-gpu-memory-fraction"] = deployment.engine.memory.utilisation_frac
    kv_dtype = _kv_dtype(deployment, fp8="fp8", native="auto", bf16="auto")
    engine: dict[str, Any] = {"enable_chunked_prefill": True, "kv_cache_config": {"dtype": kv_dtype}}
    if deployment.is_disaggregated:
        flags["--disaggregation-mode"] = pool.name
        engine["cache_transceiver_config"] = {"backend": "DEFAULT"}
        if pool.name == "prefill":
            engine["disable_overlap_scheduler"] = True  # as every prefill configuration of Dynamo's examples
    flags["--override-engine-args"] = engine
    return flags


def _kv_dtype(deployment: Deployment, *, fp8: str, native: str, bf16: str) -> str:
    """`bf16` spelt out only where an engine's own choice would be fp8: sparse latent attention (DeepSeek-V3.2)."""
    if deployment.kv_dtype == "fp8":
        return fp8
    return bf16 if deployment.sparse_latent else native


def words(flags: Flags) -> list[str]:
    """The command-line words of flags."""
    found: list[str] = []
    for name, value in flags.items():
        found.append(name)
        if value is not None:
            found.append(json.dumps(value) if isinstance(value, Mapping) else str(value))
    return found
