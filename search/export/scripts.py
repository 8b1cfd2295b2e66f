"""Targets `vllm` and `sglang`: one script per instance (and node), one for the router, one file of addresses."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO

from search.export.deployment import Deployment
from search.export.files import render
from search.export.flags import Flags, sglang_flags, vllm_flags, words
from search.export.placement import HTTP_PORT, LEADER_PORT, ROUTER_PORT, RPC_PORT, Shard, place

Groups = list[list[str]]


def vllm_files(deployment: Deployment) -> dict[str, str]:
    """Scripts around `vllm serve`, and vllm-router (PyPI) in front of several instances."""
    return _files(deployment, "vllm")


def sglang_files(deployment: Deployment) -> dict[str, str]:
    """Scripts around `sglang.launch_server`, and sglang-router (PyPI) in front of several instances."""
    return _files(deployment, "sglang")


def _files(deployment: Deployment, target: str) -> dict[str, str]:
    shards = place(deployment)
    stamp = deployment.stamp(target)
    leaders = {(s.pool.name, s.instance): s for s in shards if s.rank == 0}
    files = {"hosts.env": render("hosts.env.j2", stamp=stamp, hosts=_hosts(shards))}
    for shard in shards:
        leader = leaders[shard.pool.name, shard.instance]
        groups = (_vllm_groups if target == "vllm" else _sglang_groups)(deployment, shard, leader)
        files[f"serve/{shard.name}.sh"] = render(
            "command.sh.j2",
            stamp=stamp,
            notes=[_note(shard)],
            hosts="../hosts.env",
            environment=_environment(deployment, shard, target),
            groups=groups,
        )
    if deployment.needs_router:
        router = _vllm_router if target == "vllm" else _sglang_router
        notes = [f"Requests go to port {ROUTER_PORT} of the host that runs this; pip install {target}-router"]
        files["router.sh"] = render(
            "command.sh.j2",
            stamp=stamp,
            notes=notes,
            hosts="./hosts.env",
            environment={},
            groups=router(deployment.strategy.router, list(leaders.values())),
        )
    files["placement.csv"] = _placement(shards)
    return files


def entry_url(deployment: Deployment) -> str:
    """Where the benchmark sends its requests: the router, or the only instance."""
    return f"http://127.0.0.1:{ROUTER_PORT if deployment.needs_router else HTTP_PORT}"


def grouped(flags: Flags) -> Groups:
    """Each flag with its value, one line of a script."""
    return [words({name: value}) for name, value in flags.items()]


def _vllm_groups(deployment: Deployment, shard: Shard, leader: Shard) -> Groups:
    flags = vllm_flags(deployment, shard.pool)
    nodes, dp = shard.pool.nodes_per_instance, shard.pool.parallelism.dp
    if nodes > 1 and dp > 1:
        local = dp // nodes
        flags |= {"--data-parallel-size-local": local, "--data-parallel-start-rank": shard.rank * local}
        flags |= {"--data-parallel-address": f"${{{leader.host}}}", "--data-parallel-rpc-port": RPC_PORT + leader.slot}
    elif nodes > 1:
        flags |= {"--nnodes": nodes, "--node-rank": shard.rank}
        flags |= {"--master-addr": f"${{{leader.host}}}", "--master-port": LEADER_PORT + leader.slot}
    if shard.rank > 0:
        flags["--headless"] = None
    else:
        flags |= {"--host": "0.0.0.0", "--port": shard.port}
    return [["vllm", "serve", deployment.checkpoint.path], *grouped(flags)]


def _sglang_groups(deployment: Deployment, shard: Shard, leader: Shard) -> Groups:
    flags: Flags = {"--model-path": deployment.checkpoint.path, **sglang_flags(deployment, shard.pool)}
    nodes = shard.pool.nodes_per_instance
    if nodes > 1:
        flags |= {"--nnodes": nodes, "--node-rank": shard.rank}
        flags["--dist-init-addr"] = f"${{{leader.host}}}:{LEADER_PORT + leader.slot}"
    if shard.pool.name == "prefill":
        flags["--disaggregation-bootstrap-port"] = leader.bootstrap_port
    flags |= {"--host": "0.0.0.0", "--port": shard.port}
    return [["python3", "-m", "sglang.launch_server"], *grouped(flags)]


def _environment(deployment: Deployment, shard: Shard, target: str) -> dict[str, str]:
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, shard.devices))}
    if target == "vllm" and deployment.is_disaggregated:
        environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] = f"${{{shard.host}}}"
        environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(shard.nixl_port)
    return environment


def _vllm_router(policy: str, leaders: Sequence[Shard]) -> Groups:
    flags: Groups = [["vllm-router"], ["--host", "0.0.0.0", "--port", str(ROUTER_PORT)], ["--policy", policy]]
    pooled = _by_pool(leaders)
    if "serve" in pooled:
        return [*flags, ["--worker-urls", *(shard.url for shard in pooled["serve"])]]
    flags.append(["--vllm-pd-disaggregation"])
    flags += [["--prefill", shard.url] for shard in pooled["prefill"]]
    return flags + [["--decode", shard.url] for shard in pooled["decode"]]


def _sglang_router(policy: str, leaders: Sequence[Shard]) -> Groups:
    launch = ["python3", "-m", "sglang_router.launch_router"]
    flags: Groups = [launch, ["--host", "0.0.0.0", "--port", str(ROUTER_PORT)], ["--policy", policy]]
    pooled = _by_pool(leaders)
    if "serve" in pooled:
        return [*flags, ["--worker-urls", *(shard.url for shard in pooled["serve"])]]
    flags.append(["--pd-disaggregation"])
    flags += [["--prefill", shard.url, str(shard.bootstrap_port)] for shard in pooled["prefill"]]
    return flags + [["--decode", shard.url] for shard in pooled["decode"]]


def _by_pool(leaders: Sequence[Shard]) -> dict[str, list[Shard]]:
    pooled: dict[str, list[Shard]] = {}
    for shard in leaders:
        pooled.setdefault(shard.pool.name, []).append(shard)
    return pooled


def _hosts(shards: Sequence[Shard]) -> dict[str, str]:
    """What runs on each node."""
    names: dict[str, list[str]] = {}
    for shard in sorted(shards, key=lambda shard: (shard.pool.gpu.name, shard.node)):
        names.setdefault(shard.host, []).append(shard.name)
    return {host: ", ".join(on_host) for host, on_host in names.items()}


def _note(shard: Shard) -> str:
    pool = shard.pool
    part = f", node {shard.rank + 1} of {pool.nodes_per_instance}" if pool.nodes_per_instance > 1 else ""
    return f"Instance {shard.instance + 1} of {pool.count} of pool {pool.name}{part}; run it on {shard.host}."


def _placement(shards: Sequence[Shard]) -> str:
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["script", "pool", "gpu", "host", "devices", "port"])
    for shard in shards:
        devices = " ".join(map(str, shard.devices))
        writer.writerow(
            [f"serve/{shard.name}.sh", shard.pool.name, shard.pool.gpu.name, shard.host, devices, shard.port]
        )
    return stream.getvalue()
