"""A measured run simulated: the same layout under the same load, its latencies in ms.

Where a row is silent: KV blocks hold fp8 if the weights are fp8 or fp4 (the recipes of the benchmarked engines set it),
bf16 otherwise; KV caches cross between pools over NVLink inside one domain and the network beyond it. A layout that our
memory model finds too large was run nevertheless: it is answered with all of the GPU's memory less the reserve, and if
that is too little with KV blocks for four of the run's longest requests, and marked `relaxed`.

TensorRT-LLM in the gap analysis: Little's law on its TTFT (concurrency × excess / E2E = 0.7-0.9 at concurrency 8-32,
whatever the lengths) says that one request always waits for a slot: the batch limit was the concurrency, and padding of
the CUDA graphs holds one slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from estimator.build import instance_of, layout_kernels
from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.dtypes import Dtypes, KvDtype, WeightDtype
from estimator.engine import Engine
from estimator.instance import BLOCK_TOKENS, EngineLimits, Instance
from estimator.latency import Percentiles, summarise
from estimator.measured_runs import METRICS, MeasuredRun, PoolLayout
from estimator.model import MoeFfn
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism
from estimator.replay_pools import pools_system
from estimator.simulate import simulate
from estimator.stage import StepKernels
from estimator.system import Collocated, System

FALLBACK_REQUESTS = 4
EXPERT_TILE = 128
SLOT_BOUND_ENGINE, SLOT_BOUND_SOURCE = "trtllm", "nvidia_internal_gap_analysis"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Predicted latencies of one run by metric in ms; `tier` of the times, `relaxed` memory."""

    latency_ms: dict[str, float]
    tier: str
    relaxed: bool


def answer(run: MeasuredRun, engine: Engine | None = None, *, hand_over_s: float | None = None) -> Answer:
    """Simulate the run under `engine` (default: the bundled card); `hand_over_s` of two pools in the card's place."""
    engine = engine or load_engine(run.engine)
    pools = [pool_instance(run, pool, engine) for pool in run.pools]
    system = _system(run, [instance for instance, _ in pools], engine, hand_over_s)
    summary = summarise(simulate(system, run.requests(), concurrency=run.concurrency))
    latency = {"ttft": summary.ttft, "tpot": summary.tpot, "e2e": summary.e2e}
    return Answer(
        latency_ms={metric: _statistic_ms(latency, metric) for metric in METRICS},
        tier=pools[0][0].tier,
        relaxed=any(relaxed for _, relaxed in pools),
    )


def _statistic_ms(latency: dict[str, Percentiles], metric: str) -> float:
    name, statistic, _ = metric.split("_")
    return 1e3 * float(getattr(latency[name], f"{statistic}_s"))


def kv_dtype_of(run: MeasuredRun) -> KvDtype:
    """Format of the KV cache by the rule in the module's docstring."""
    return "fp8" if run.weight_dtype in ("fp8", "fp4") else "bf16"


def limits_of(run: MeasuredRun, engine: Engine) -> EngineLimits:
    """The row's limits, the engine's where it states none."""
    max_num_seqs = run.max_num_seqs or engine.limits.max_num_seqs
    if run.engine == SLOT_BOUND_ENGINE and run.source.endswith(SLOT_BOUND_SOURCE) and run.concurrency is not None:
        max_num_seqs = max(1, min(max_num_seqs, run.concurrency - 1))
    return EngineLimits(
        max_num_batched_tokens=run.max_num_batched_tokens or engine.limits.max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
    )


def pool_instance(run: MeasuredRun, pool: PoolLayout, engine: Engine) -> tuple[Instance, bool]:
    """An instance of the pool, and whether its memory had to be relaxed."""
    if run.memory_utilisation_frac is not None:
        engine = replace(engine, memory=replace(engine.memory, utilisation_frac=run.memory_utilisation_frac))
    instance = _build(run, pool, engine)
    if isinstance(instance, Instance):
        return instance, False
    instance = _build(run, pool, replace(engine, memory=replace(engine.memory, utilisation_frac=1.0)))
    if isinstance(instance, Infeasible):
        longest = run.input_bounds[1] + run.output_bounds[1]
        instance = _build(run, pool, engine, num_blocks=-(-FALLBACK_REQUESTS * longest // BLOCK_TOKENS))
    assert isinstance(instance, Instance)  # its blocks were given
    return instance, True


def _build(run: MeasuredRun, pool: PoolLayout, engine: Engine, num_blocks: int | None = None) -> Instance | Infeasible:
    limits = limits_of(run, engine)
    dtypes = Dtypes(weight=_weight_dtype(run), kv=kv_dtype_of(run))
    parallelism = _possible(run.model, pool.parallelism)
    kernels = _kernels(run.model, run.gpu, run.engine, parallelism, dtypes, limits)
    return instance_of(
        kernels,
        load_model(run.model),
        load_gpu(run.gpu),
        engine,
        parallelism=parallelism,
        limits=limits,
        dtypes=dtypes,
        num_blocks=num_blocks,
    )


def _possible(model: str, parallelism: Parallelism) -> Parallelism:
    """The layout, with whole experts where the row's split would leave less of one than a kernel's tile on a GPU.

    No engine splits so (fp8 blocks are 128 wide); those rows of wide decode pools name expert parallelism otherwise.
    """
    widths = [group.ffn.intermediate_size for group in load_model(model).layers if isinstance(group.ffn, MoeFfn)]
    if widths and min(widths) < EXPERT_TILE * parallelism.moe_tp:
        return replace(parallelism, ep=parallelism.tp * parallelism.dp)
    return parallelism


@lru_cache(maxsize=1024)
def _kernels(
    model: str, gpu: str, engine: str, parallelism: Parallelism, dtypes: Dtypes, limits: EngineLimits
) -> StepKernels:
    most_tokens = max(limits.max_num_batched_tokens, limits.max_num_seqs)
    return layout_kernels(load_model(model), load_gpu(gpu), load_engine(engine), parallelism, dtypes, most_tokens)


def _weight_dtype(run: MeasuredRun) -> WeightDtype:
    return Dtypes(weight=run.weight_dtype).weight  # type: ignore[arg-type]  # checked by Dtypes itself


def _system(run: MeasuredRun, instances: list[Instance], engine: Engine, hand_over_s: float | None) -> System:
    if len(instances) == 1:
        return Collocated(instance=instances[0], num_instances=run.pools[0].num_instances, policy=engine.policy)
    prefill, decode = instances
    return pools_system(run, prefill, decode, hand_over_s)
