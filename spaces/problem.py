"""What is asked: a model, an engine, GPUs, traffic and targets; and what the user allows to be chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from estimator.build import build_instance
from estimator.drafting import build_drafting_instance
from estimator.dtypes import Dtypes, KvDtype, WeightDtype
from estimator.engine import Engine
from estimator.errors import BestServeError
from estimator.hardware import Gpu
from estimator.instance import EngineLimits, Instance
from estimator.memory import num_kv_blocks
from estimator.model import ModelShape
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism
from estimator.slo import Slo
from estimator.speculation import Speculation, with_draft_layers
from estimator.system import DISTSERVE, TETRIINFER, Collocated, Disaggregated, KvLink, System
from estimator.workload import Workload
from spaces.choices import SearchSpace
from spaces.strategy import Pool, Strategy

Num = int | NDArray[np.int64]
MEDIA = ("nvlink", "pcie", "network")
MAX_CACHED_INSTANCES = 1024  # about 0.3 MB of tables each at a budget of 16,384 tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """One planning question; everything but prices and demand, which do not change a strategy's goodput.

    `gpus` by name. `network_bytes_per_s`: one direction, per GPU, between nodes; None = the GPU card's own.
    `link_latency_s`: of one KV hand-over. `speculation`: None = one token a step. Equal only to itself: its instances
    are cached by identity.
    """

    model: ModelShape
    engine: Engine
    gpus: Mapping[str, Gpu]
    weight_dtype: WeightDtype
    kv_dtype: KvDtype
    workload: Workload
    slo: Slo
    space: SearchSpace
    network_bytes_per_s: float | None = None
    link_latency_s: float = 0.0
    speculation: Speculation | None = None

    @property
    def resident_model(self) -> ModelShape:
        """What memory must hold: the model, with its prediction layers where they draft."""
        return self.model if self.speculation is None else with_draft_layers(self.model)

    def gpu(self, name: str) -> Gpu:
        """The GPU card of that name; raises `BestServeError` if the problem has none."""
        if name not in self.gpus:
            raise BestServeError("gpu", name, "is not one of the problem's GPUs", ", ".join(sorted(self.gpus)))
        return self.gpus[name]


def memory_fit(problem: Problem, pool: Pool) -> Infeasible | None:
    """Why the pool's instance does not fit its GPUs' memory, by the estimator's own rule; or None."""
    try:
        blocks = num_kv_blocks(
            problem.resident_model,
            problem.gpu(pool.gpu),
            pool.parallelism,
            dtypes=Dtypes(weight=problem.weight_dtype, kv=problem.kv_dtype),
            limits=pool.limits(problem.engine.limits),
            policy=problem.engine.memory,
        )
    except BestServeError as error:
        return Infeasible(rule="divides", reason=str(error))
    return blocks if isinstance(blocks, Infeasible) else None


def instance_of(problem: Problem, pool: Pool) -> Instance | Infeasible:
    """One instance of the pool, made once per problem and kept."""
    return _instance(problem, pool.gpu, pool.parallelism, pool.limits(problem.engine.limits))


@lru_cache(maxsize=MAX_CACHED_INSTANCES)
def _instance(problem: Problem, gpu: str, parallelism: Parallelism, limits: EngineLimits) -> Instance | Infeasible:
    if problem.speculation is not None:
        return build_drafting_instance(
            model=problem.model,
            gpu=problem.gpu(gpu),
            engine=problem.engine,
            parallelism=parallelism,
            limits=limits,
            dtypes=Dtypes(weight=problem.weight_dtype, kv=problem.kv_dtype),
            speculation=problem.speculation,
        )
    return build_instance(
        model=problem.model,
        gpu=problem.gpu(gpu),
        engine=problem.engine,
        parallelism=parallelism,
        limits=limits,
        weight_dtype=problem.weight_dtype,
        kv_dtype=problem.kv_dtype,
    )


def system_of(problem: Problem, strategy: Strategy) -> System | Infeasible:
    """The system to simulate, or why the strategy cannot exist."""
    instances = []
    for pool in strategy.pools:
        instance = instance_of(problem, pool)
        if isinstance(instance, Infeasible):
            return instance
        instances.append(instance)
    if not strategy.is_disaggregated:
        return Collocated(
            instance=instances[0],
            num_instances=strategy.pools[0].count,
            policy=strategy.policy,  # type: ignore[arg-type]
            router=strategy.router,  # type: ignore[arg-type]
        )
    return Disaggregated(
        prefill=instances[0],
        num_prefill=strategy.pools[0].count,
        decode=instances[1],
        num_decode=strategy.pools[1].count,
        link=link_of(problem, strategy),
        policy=TETRIINFER if strategy.policy == "tetriinfer" else DISTSERVE,
        router=strategy.router,  # type: ignore[arg-type]
        holds_first_token=True,
    )


def link_of(problem: Problem, strategy: Strategy) -> KvLink:
    """The hand-over link: every GPU of an instance sends or receives at its own port's rate.

    The port is NVLink where both pools share one NVLink domain, PCIe where they share a node without one, and the
    network otherwise. A hand-over takes the engine's router, second front end and connector besides.
    """
    prefill, decode = strategy.pools
    costs = problem.engine.costs_on(problem.gpus[decode.gpu].architecture)
    medium = kv_medium(problem.gpus, strategy)

    def ports_bytes_per_s(pool: Pool) -> float:
        return pool.parallelism.num_gpus * port_bytes_per_s(problem, pool.gpu, medium)

    return KvLink(
        egress_bytes_per_s=ports_bytes_per_s(prefill),
        ingress_bytes_per_s=ports_bytes_per_s(decode),
        latency_s=problem.link_latency_s + costs.hand_over_s,
        latency_steps=costs.hand_over_steps,
    )


def gpus_together(gpus: Mapping[str, Gpu], strategy: Strategy) -> int:
    """GPUs among which KV caches move: all, or those of one part where whole parts fill a node.

    DistServe (arXiv 2401.09670), algorithm 2, low node affinity: both phases of a part share a node. Parts are the
    smallest equal ones of both pools; only round robin keeps their hand-overs to themselves.
    """
    if len(strategy.gpu_counts) > 1 or strategy.policy != "distserve" or strategy.router != "round_robin":
        return strategy.num_gpus
    num_parts = math.gcd(*(pool.count for pool in strategy.pools))
    return int(gpus_moving(strategy.num_gpus, num_parts, joined_gpus(gpus[strategy.pools[0].gpu])))


def gpus_moving(num_gpus: Num, num_parts: Num, joined: Num) -> Num:
    """`gpus_together` of GPUs in so many equal parts, `joined` of them with each other; numbers or arrays of them."""
    part = num_gpus // num_parts
    return np.where(joined % part == 0, part, num_gpus)


def joined_gpus(gpu: Gpu) -> int:
    """GPUs that reach each other without the network: an NVLink domain, or a node without NVLink."""
    return gpu.nvlink_domain_gpus if gpu.nvlink_bytes_per_s > 0 else gpu.gpus_per_node


def kv_medium(gpus: Mapping[str, Gpu], strategy: Strategy) -> str:
    """What KV caches cross: `nvlink` within one domain, `pcie` within one node, else `network`."""
    counts = strategy.gpu_counts
    return medium_of(gpus[next(iter(counts))], one_type=len(counts) == 1, num_gpus=gpus_together(gpus, strategy))


def medium_of(gpu: Gpu, *, one_type: bool, num_gpus: int) -> str:
    """`kv_medium` of a GPU in a strategy, all of one type or not, whose caches move among `num_gpus`."""
    if one_type and gpu.nvlink_bytes_per_s > 0 and num_gpus <= gpu.nvlink_domain_gpus:
        return "nvlink"
    return "pcie" if one_type and num_gpus <= gpu.gpus_per_node else "network"


def uses_network(gpus: Mapping[str, Gpu], strategy: Strategy) -> bool:
    """Whether the strategy sends anything between nodes: KV caches, or the steps of an instance larger than a node."""
    if strategy.is_disaggregated and kv_medium(gpus, strategy) == "network":
        return True
    return any(spans_nodes(gpus[pool.gpu], pool) for pool in strategy.pools)


def spans_nodes(gpu: Gpu, pool: Pool) -> bool:
    """Whether one instance of the pool is larger than what is joined without the network."""
    return pool.parallelism.num_gpus > max(gpu.gpus_per_node, gpu.nvlink_domain_gpus)


def port_bytes_per_s(problem: Problem, name: str, medium: str) -> float:
    """One GPU's hand-over rate over that medium."""
    gpu = problem.gpu(name)
    match medium:
        case "nvlink":
            return gpu.nvlink_bytes_per_s
        case "pcie":
            return gpu.pcie_bytes_per_s
    return gpu.network_bytes_per_s if problem.network_bytes_per_s is None else problem.network_bytes_per_s
