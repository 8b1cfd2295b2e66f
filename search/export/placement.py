"""Where each instance runs: nodes, GPUs and ports, for targets that have no scheduler of their own.

Instances of one GPU type are placed largest first, each on the first node that has room; an instance that reaches over
n nodes is n equal shards on n different nodes. Ports differ by the shard's place on its node, so that any two shards
may meet on one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search.export.deployment import Deployment, PoolPlan

HTTP_PORT = 8000
NIXL_PORT = 5600  # one port per attention-dp rank from here
BOOTSTRAP_PORT = 8998  # SGLang's default
LEADER_PORT = 29500
RPC_PORT = 13345
ROUTER_PORT = 30080
RANKS_PER_SHARD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of an instance on one node. `slot`: how many shards were placed on the node before it."""

    pool: PoolPlan
    instance: int
    rank: int
    node: int
    devices: tuple[int, ...]
    slot: int

    @property
    def name(self) -> str:
        """For example `decode-3`, or `decode-3-node1` of an instance on several nodes."""
        name = f"{self.pool.name}-{self.instance}"
        return f"{name}-node{self.rank}" if self.pool.nodes_per_instance > 1 else name

    @property
    def host(self) -> str:
        """The shell variable that holds the node's address, for example H100_SXM_0."""
        return f"{self.pool.gpu.name.upper().replace('-', '_').replace('.', '_')}_{self.node}"

    @property
    def port(self) -> int:
        """Where the instance answers HTTP."""
        return HTTP_PORT + self.slot

    @property
    def nixl_port(self) -> int:
        """First side-channel port."""
        return NIXL_PORT + RANKS_PER_SHARD * self.slot

    @property
    def bootstrap_port(self) -> int:
        """Where SGLang's prefill instance is found by decode instances."""
        return BOOTSTRAP_PORT + self.slot

    @property
    def url(self) -> str:
        """With the host as a shell variable."""
        return f"http://${{{self.host}}}:{self.port}"


def place(deployment: Deployment) -> tuple[Shard, ...]:
    """Every shard, in order of pool, instance and rank."""
    order = {pool.name: index for index, pool in enumerate(deployment.pools)}
    gpus = dict.fromkeys(pool.gpu.name for pool in deployment.pools)
    shards = [shard for gpu in gpus for shard in _on_type(gpu, deployment)]
    return tuple(sorted(shards, key=lambda shard: (order[shard.pool.name], shard.instance, shard.rank)))


def _on_type(gpu: str, deployment: Deployment) -> Iterator[Shard]:
    used: list[tuple[int, int]] = []  # GPUs taken and shards placed, per node
    pools = [pool for pool in deployment.pools if pool.gpu.name == gpu]
    for pool in sorted(pools, key=lambda pool: -pool.gpus_per_node):
        for instance in range(pool.count):
            taken: set[int] = set()
            for rank in range(pool.nodes_per_instance):
                node = _first_fit(used, pool, taken)
                gpus, slot = used[node]
                devices = tuple(range(gpus, gpus + pool.gpus_per_node))
                used[node] = (gpus + pool.gpus_per_node, slot + 1)
                taken.add(node)
                yield Shard(pool=pool, instance=instance, rank=rank, node=node, devices=devices, slot=slot)


def _first_fit(used: list[tuple[int, int]], pool: PoolPlan, taken: set[int]) -> int:
    for node, (gpus, _) in enumerate(used):
        if node not in taken and gpus + pool.gpus_per_node <= pool.gpu.gpus_per_node:
            return node
    used.append((0, 0))
    return len(used) - 1
