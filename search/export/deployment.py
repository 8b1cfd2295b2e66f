"""What every target needs to know of a plan: pools, limits, checkpoint, longest request, where it comes from.

This is the one place of the export that reads a run's folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from estimator.engine import Engine
from estimator.errors import BestServeError
from estimator.hardware import Gpu
from estimator.instance import EngineLimits, Instance
from estimator.parallelism import Parallelism
from estimator.workload import EmpiricalLengths, FixedLengths, Lengths, LognormalLengths, UniformLengths
from search.edge import read_yaml
from search.estimate import existing_system
from search.export.checkpoint import Checkpoint, checkpoint_of
from search.spec import Spec, parse_spec
from spaces.problem import Problem, instance_of
from spaces.strategy import Strategy

POOL_NAMES = {"m": "serve", "p": "prefill", "d": "decode"}
CONTEXT_MARGIN_TOKENS = 64  # chat template and special tokens around a prompt
CONTEXT_STEP_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """One pool to deploy; `limits` are per attention-dp rank, the engine's own where the strategy names none."""

    name: str
    count: int
    gpu: Gpu
    parallelism: Parallelism
    limits: EngineLimits

    @property
    def gpus_per_instance(self) -> int:
        """GPUs of one instance."""
        return self.parallelism.num_gpus

    @property
    def nodes_per_instance(self) -> int:
        """Nodes that one instance reaches over."""
        return -(-self.gpus_per_instance // self.gpu.gpus_per_node)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of one instance on each of its nodes."""
        return -(-self.gpus_per_instance // self.nodes_per_instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A strategy of a run, ready to be written for a target.

    `num_kv_heads`: fewest of any layer, None where the cache is latent. `sparse_latent`: the attention's own cache
    format is fp8. `windowed`: some layers free their cache early. `context_tokens`: longest request that is served,
    less than the `longest_tokens` of the traffic where the cache of an instance cannot hold it.
    """

    run: str
    strategy: Strategy
    engine: Engine
    checkpoint: Checkpoint
    kv_dtype: str
    pools: tuple[PoolPlan, ...]
    context_tokens: int
    longest_tokens: int
    cached_frac: float
    num_kv_heads: int | None
    sparse_latent: bool
    windowed: bool

    @property
    def num_gpus(self) -> int:
        """GPUs of all pools."""
        return sum(pool.count * pool.gpus_per_instance for pool in self.pools)

    @property
    def is_disaggregated(self) -> bool:
        """Whether there are a prefill and a decode pool."""
        return len(self.pools) == 2

    @property
    def needs_router(self) -> bool:
        """Whether something must choose among instances."""
        return sum(pool.count for pool in self.pools) > 1

    @property
    def slug(self) -> str:
        """The run's name as a DNS label: small letters, digits and dashes, at most 40."""
        label = "".join(c if c.isalnum() and c.isascii() else "-" for c in self.run.lower())
        return label[:40].strip("-") or "plan"

    def stamp(self, target: str, carries: str = "") -> list[str]:
        """Comment lines for the head of every file; `carries`: what a container image holds instead."""
        other = f"; {carries}" if carries else ""
        return [
            f"BestServe {version('bestserve')} export for {target}: generated, not run.",
            f"Run {self.run}, strategy {self.strategy}.",
            f"Planned for {self.engine.name} {self.engine.version}{other}.",
        ]


def read_run(run: Path, strategy: str | None) -> tuple[Spec, Problem, Strategy]:
    """Question and strategy (None: the recommended one) of the finished run in the folder `run`.

    Raises `BestServeError` if there is no such run or recommendation, or if the strategy cannot exist.
    """
    path = run / "manifest.json"
    if not path.is_file():
        raise BestServeError("run", str(run), "holds no run", "the folder of a finished run")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("status") != "finished":
        raise BestServeError("run", str(run), "is not finished", "a finished run; `bestserve plan … --resume` first")
    chosen = strategy or manifest.get("recommended")
    if not chosen:
        raise BestServeError("strategy", None, "must be given, the run recommends none", "--strategy 2m-tp4@h100_sxm")
    spec = parse_spec(read_yaml(run / "spec.yaml", field="run"), folder=run)
    problem = spec.problem()
    parsed = Strategy.parse(chosen)
    existing_system(problem, parsed)
    return spec, problem, parsed


def serving_strategies(run: Path, demand_req_s: float) -> list[tuple[Strategy, float]]:
    """The run's strategies that carry the demand, with their $/h, cheapest first."""
    import pandas as pd

    table = pd.read_parquet(run / "evaluations.parquet", columns=["strategy", "status", "goodput_req_s", "usd_per_h"])
    table = table[(table["status"] == "ok") & (table["goodput_req_s"] >= demand_req_s)]
    table = table.sort_values(["usd_per_h", "goodput_req_s"], ascending=[True, False])
    return [
        (Strategy.parse(text), usd) for text, usd in zip(table["strategy"], table["usd_per_h"].tolist(), strict=True)
    ]


def deployment_of(strategy: Strategy, spec: Spec, problem: Problem, *, checkpoint: str | None = None) -> Deployment:
    """The deployment of a strategy that exists."""
    instances = [instance_of(problem, pool) for pool in strategy.pools]
    room = min(instance.capacity_tokens for instance in instances if isinstance(instance, Instance))
    longest = longest_request_tokens(problem.workload.lengths)
    attention = [group.attention for group in problem.model.layers]
    kv_heads = [a.num_kv_heads for a in attention if hasattr(a, "num_kv_heads")]
    return Deployment(
        run=spec.name,
        strategy=strategy,
        engine=problem.engine,
        checkpoint=checkpoint_of(
            spec.model.id, problem.model, problem.weight_dtype, engine=spec.engine, given=checkpoint
        ),
        kv_dtype=problem.kv_dtype,
        pools=tuple(
            PoolPlan(
                name=POOL_NAMES[pool.role],
                count=pool.count,
                gpu=problem.gpu(pool.gpu),
                parallelism=pool.parallelism,
                limits=pool.limits(problem.engine.limits),
            )
            for pool in strategy.pools
        ),
        context_tokens=min(longest, room),
        longest_tokens=longest,
        cached_frac=problem.workload.cached_frac,
        num_kv_heads=min(kv_heads, default=None),
        sparse_latent=any(getattr(a, "index_topk", 0) > 0 for a in attention),
        windowed=any(getattr(a, "window_tokens", 0) > 0 for a in attention) or len(kv_heads) < len(attention),
    )


def longest_request_tokens(lengths: Lengths) -> int:
    """Prompt and answer of the longest request with a margin for templates, in whole steps of 256."""
    match lengths:
        case FixedLengths(input_tokens=i, output_tokens=o):
            longest = i + o
        case UniformLengths(input_max=i, output_max=o):
            longest = i + o
        case LognormalLengths():
            longest = lengths.input.max_tokens + lengths.output.max_tokens
        case EmpiricalLengths():
            longest = int(np.max(lengths.input_tokens + lengths.output_tokens))
    return -(-(longest + CONTEXT_MARGIN_TOKENS) // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
