"""A measured run simulated: the same layout under the same load, its latencies in ms.

Where a row is silent: KV blocks hold fp8 if the weights are fp8 or fp4 (the recipes of the benchmarked engines set it),
bf16 otherwise; KV caches cross between pools over NVLink inside one domain and the network beyond it. A layout that our
memory model finds too large was run nevertheless: it is answered with all of the GPU's memory less the reserve, and if
that is too little for the run's longest request with KV blocks for four of them, and marked `relaxed`.

TensorRT-LLM in the gap analysis: Little's law on its TTFT (concurrency × excess / E2E = 0.7-0.9 at concurrency 8-32,
whatever the lengths) says that one request always waits for a slot: the batch limit was the concurrency, and padding of
the CUDA graphs holds one slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from estimator.build import instance_of, layout_kernels
from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.catalogue.recipes import Recipe, latent_out_of, recipe_of
from estimator.drafting import DraftKernels, draft_kernels
from estimator.dtypes import Dtypes, KvDtype, WeightDtype
from estimator.engine import Engine, EngineCosts, KernelFusion
from estimator.experts import EXPERT_BLOCK
from estimator.instance import BLOCK_TOKENS, EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.latency import Percentiles, summarise
from estimator.measured_runs import METRICS, MeasuredRun, PoolLayout
from estimator.memory import num_kv_blocks
from estimator.model import GatedDeltaNet, MoeFfn
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism
from estimator.replay_pools import fuses_norms, pool_blocks, pool_engine, pool_limits, pool_parallelism, pools_system
from estimator.requests import Requests
from estimator.simulate import simulate
from estimator.simulation import REJECTED, Simulation
from estimator.speculation import with_draft_layers
from estimator.stage import StepKernels
from estimator.system import Collocated, System
from estimator.timing import ExpertKernel

FALLBACK_REQUESTS = 4
SHORTEST_FRAC, STATED_REQUESTS_PER_SLOT = 0.8, 10  # of InferenceMAX's lengths and loads
NORM_FUSION_SINCE = {"vllm": (0, 16), "sglang": (0, 5, 9)}  # by default, engines.toml; TensorRT-LLM always has
SM103, SM103_NORM_FUSION_SINCE = ("b300_sxm", "gb300"), {"vllm": (0, 19)}  # pull requests 37755 and 37756, 2026-03-21
PATIENCE_S = 300.0  # aiohttp's default for a whole request, as inference-perf leaves it (openai_client.py, 2026-11-26)
DEPLOYMENT_NOTE = "concurrency_ne_batch"  # of rows whose concurrency is not one instance's; how many there were is open
SLOT_BOUND_ENGINE, SLOT_BOUND_SOURCE = "trtllm", "nvidia_internal_gap_analysis"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Predicted latencies of one run by metric in ms; `tier` of the times, `relaxed` memory."""

    latency_ms: dict[str, float]
    tier: str
    relaxed: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedPool:
    """What an instance of the pool is made of, whatever the engine's costs."""

    kernels: StepKernels
    parallelism: Parallelism
    limits: EngineLimits
    dtypes: Dtypes
    num_blocks: int
    relaxed: bool
    drafts: DraftKernels | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedRun:
    """A run with its kernels timed, its memory fitted and its requests drawn; `replay` adds an engine's costs."""

    run: MeasuredRun
    engine: Engine
    pools: tuple[PreparedPool, ...]
    requests: Requests


def prepare(run: MeasuredRun, engine: Engine | None = None) -> PreparedRun:
    """Everything of the run that the engine's costs do not change; default engine: the bundled card."""
    engine = _engine_of(run, engine or load_engine(run.engine))
    pools = tuple(_prepared_pool(run, pool, engine) for pool in run.pools)
    return PreparedRun(run=run, engine=engine, pools=pools, requests=_as_sent(run).requests())


def replay(prepared: PreparedRun, costs: EngineCosts | None = None) -> Simulation:
    """The run simulated; `costs` of the engine in the card's place if given."""
    run = prepared.run
    engine = prepared.engine if costs is None else replace(prepared.engine, costs={"": costs})
    instances = [_instance(run, pool, engine) for pool in prepared.pools]
    simulation = simulate(_system(run, instances, engine), prepared.requests, concurrency=run.concurrency)
    return simulation if run.rate_req_s is None else without_given_up(simulation)


def without_given_up(simulation: Simulation) -> Simulation:
    """The simulation as a client reports it that gives up after `PATIENCE_S`: those requests count as rejected.

    The server works on all the same: served in order, whoever waits too long is followed by others who have.
    """
    kept = simulation.e2e_s <= PATIENCE_S
    return replace(
        simulation,
        first_token_s=np.where(kept, simulation.first_token_s, np.nan),
        finish_s=np.where(kept, simulation.finish_s, np.nan),
        status=np.where(kept, simulation.status, REJECTED).astype(np.int8),
    )


def answer(run: MeasuredRun, engine: Engine | None = None) -> Answer:
    """Simulate the run under `engine`; default: the bundled card."""
    prepared = prepare(run, engine)
    summary = summarise(replay(prepared))
    latency = {"ttft": summary.ttft, "tpot": summary.tpot, "e2e": summary.e2e}
    return Answer(
        latency_ms={metric: _statistic_ms(latency, metric) for metric in METRICS},
        tier=_instance(run, prepared.pools[0], prepared.engine).tier,
        relaxed=any(pool.relaxed for pool in prepared.pools),
    )


def _statistic_ms(latency: dict[str, Percentiles], metric: str) -> float:
    name, statistic, _ = metric.split("_")
    return 1e3 * float(getattr(latency[name], f"{statistic}_s"))


def kv_dtype_of(run: MeasuredRun) -> KvDtype:
    """Format of the KV cache by the rule in the module's docstring."""
    stated = recipe_of(run).kv_dtype
    if stated is not None:
        return stated
    if run.source.endswith(SLOT_BOUND_SOURCE) and run.engine != SLOT_BOUND_ENGINE:
        return "bf16"  # --kv-cache-dtype auto
    return "fp8" if run.weight_dtype in ("fp8", "fp4") else "bf16"


def limits_of(run: MeasuredRun, engine: Engine) -> EngineLimits:
    """The row's limits, the engine's where it states none."""
    recipe = recipe_of(run)
    max_num_seqs = run.max_num_seqs or recipe.max_num_seqs or engine.limits.max_num_seqs
    if run.engine == SLOT_BOUND_ENGINE and run.source.endswith(SLOT_BOUND_SOURCE) and run.concurrency is not None:
        max_num_seqs = max(1, min(max_num_seqs, run.concurrency - 1))
    return EngineLimits(
        max_num_batched_tokens=run.max_num_batched_tokens
        or recipe.max_num_batched_tokens
        or engine.limits.max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
    )


def _as_sent(run: MeasuredRun) -> MeasuredRun:
    """The run with the load that its recipe knows better than its row."""
    recipe = recipe_of(run)
    if recipe.input_factor != 1.0:
        fewest, most = (round(recipe.input_factor * tokens) for tokens in run.input_bounds)
        run = replace(run, input_bounds=(fewest, most))
    if not recipe.inferencemax_load:
        return run
    (_, most_input), (_, most_output) = run.input_bounds, run.output_bounds
    return replace(
        run,
        input_bounds=(round(SHORTEST_FRAC * most_input), most_input),
        output_bounds=(round(SHORTEST_FRAC * most_output), most_output),
        num_requests=STATED_REQUESTS_PER_SLOT * (run.concurrency or 0),
    )


def _engine_of(run: MeasuredRun, engine: Engine) -> Engine:
    """The engine as the run started it."""
    recipe = recipe_of(run)
    engine = replace(engine, policy=recipe.policy or engine.policy)
    share = run.memory_utilisation_frac or recipe.memory_utilisation_frac
    if share is not None:
        engine = replace(engine, memory=replace(engine.memory, utilisation_frac=share))
    if recipe.graph_tokens is not None:
        engine = replace(engine, mixed_graph_tokens=recipe.graph_tokens)
    if recipe.speculation is not None:
        engine = replace(engine, asynchronous=False)  # SGLang's EAGLE worker takes no overlapped schedule (0.5.9)
    engine = replace(engine, fusion=_fusion_of(run, engine))
    if _is_early_vllm(run):
        engine = replace(engine, asynchronous=False)
    return replace(engine, expert_kernel=_expert_kernel(run))


def _is_early_vllm(run: MeasuredRun) -> bool:
    """Before 0.14 vLLM scheduled step by step (release notes of v0.14.0)."""
    return run.engine == "vllm" and run.engine_version is not None and run.engine_version < (0, 14)


def _expert_kernel(run: MeasuredRun) -> ExpertKernel:
    """Which kernel vLLM's version ran block-scaled experts with on Hopper; today's elsewhere.

    Before 0.14 DeepGEMM at any size (triton_deep_gemm_moe.py at v0.12.0: `is_deep_gemm_e8m0_used()` decides before the
    size does); to 0.16 FlashInfer's CUTLASS (vllm-project/vllm issue 34249, 2026-02-10); then that for divided experts
    and Triton for sliced ones (oracle/fp8.py, `_get_priority_backends`; pull request 34260).
    """
    if run.engine != "vllm" or run.engine_version is None or load_gpu(run.gpu).architecture != "hopper":
        return "of_layout"
    return "grouped" if _is_early_vllm(run) else "divided" if run.engine_version < (0, 17) else "of_layout"


def _is_before(run: MeasuredRun, since: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the run states a version older than its engine's in `since`."""
    first = since.get(run.engine)
    return first is not None and run.engine_version is not None and run.engine_version < first


def _fusion_of(run: MeasuredRun, engine: Engine) -> KernelFusion:
    """The kernels that the run's version joined, or its script had it join."""
    told = fuses_norms(run, recipe_of(run).fuses_norms)
    if run.gpu in SM103 and _is_before(run, SM103_NORM_FUSION_SINCE):
        return replace(engine.fusion, norm_tokens=0)  # the engine has no buffers for these GPUs yet, asked or not
    early = _is_before(run, NORM_FUSION_SINCE)
    if told is None:
        return replace(engine.fusion, norm_tokens=0) if early else engine.fusion
    return replace(engine.fusion, norm_tokens=told * engine.fusion.norm_tokens, norm_needs_experts=False)


def _prepared_pool(run: MeasuredRun, pool: PoolLayout, engine: Engine) -> PreparedPool:
    engine = pool_engine(run, pool, engine)
    limits = pool_limits(run, pool, limits_of(run, engine))
    dtypes = Dtypes(weight=_weight_dtype(run), kv=kv_dtype_of(run), latent_out=latent_out_of(run))
    parallelism = launched(_possible(run.model, pool_parallelism(run, pool), run.weight_dtype), recipe_of(run))
    blocks, relaxed = _blocks(run, parallelism, dtypes, limits, engine)
    model, gpu, speculation = load_model(run.model), load_gpu(run.gpu), recipe_of(run).speculation
    drafts = None
    if speculation is not None:
        drafts = draft_kernels(model, gpu, engine, parallelism, dtypes, limits, speculation)
    return PreparedPool(
        kernels=_kernels(run.model, run.gpu, _kind_of(engine), parallelism, dtypes, limits),
        parallelism=parallelism,
        limits=limits,
        dtypes=dtypes,
        num_blocks=pool_blocks(run, pool, blocks),
        relaxed=relaxed,
        drafts=drafts,
    )


def launched(parallelism: Parallelism, recipe: Recipe) -> Parallelism:
    """The layout that the script started, whatever its rows are listed under."""
    if not recipe.attention_dp:
        parallelism = replace(parallelism, tp=parallelism.tp * parallelism.dp, dp=1)
    if recipe.expert_groups is None:
        return parallelism
    return replace(parallelism, ep=1 if recipe.expert_groups == "none" else parallelism.tp * parallelism.dp)


def _blocks(
    run: MeasuredRun, parallelism: Parallelism, dtypes: Dtypes, limits: EngineLimits, engine: Engine
) -> tuple[int, bool]:
    """KV blocks, and whether memory had to be relaxed for them."""
    model, gpu = load_model(run.model), load_gpu(run.gpu)
    longest = run.input_bounds[1] + run.output_bounds[1]
    if recipe_of(run).speculation is not None:
        model = with_draft_layers(model)
    for share, relaxed in ((engine.memory.utilisation_frac, False), (1.0, True)):
        policy = replace(engine.memory, utilisation_frac=share)
        blocks = num_kv_blocks(model, gpu, parallelism, dtypes=dtypes, limits=limits, policy=policy)
        if not isinstance(blocks, Infeasible) and blocks * BLOCK_TOKENS >= longest:
            return blocks, relaxed
    return -(-FALLBACK_REQUESTS * longest // BLOCK_TOKENS), True


def _instance(run: MeasuredRun, pool: PreparedPool, engine: Engine) -> Instance:
    recipe = recipe_of(run)
    instance = instance_of(
        pool.kernels,
        load_model(run.model),
        load_gpu(run.gpu),
        engine,
        parallelism=pool.parallelism,
        limits=pool.limits,
        dtypes=pool.dtypes,
        num_blocks=pool.num_blocks,
    )
    assert isinstance(instance, Instance)  # its blocks were given
    if pool.drafts is not None and recipe.speculation is not None:
        cost = pool.drafts.cost(load_gpu(run.gpu), engine, pool.limits, recipe.speculation)
        instance = replace(instance, cost=cost)
    instance = replace(instance, cost=_sharing_a_prefix(run, instance.cost))
    burst_tokens = (run.concurrency or 0) * sum(run.input_bounds) / 2
    starts_cold = recipe.starts_cold and (len(run.pools) == 1 or burst_tokens >= _step_tokens(pool))
    cold_start_s = starts_cold * _cold_start_s(run.model, engine.costs_on(load_gpu(run.gpu).architecture))
    if burst_tokens >= pool.limits.max_num_batched_tokens:
        cold_start_s += recipe.tuning_s
    return replace(
        instance,
        poll_steps=recipe.poll_steps,
        wait_steps=recipe.wait_steps,
        cold_start_s=cold_start_s,
        output_s_per_token=recipe.output_s_per_token,
    )


def _step_tokens(pool: PreparedPool) -> int:
    """Of all ranks of an instance. Smaller shapes have run for the test prompt before the burst."""
    return pool.limits.max_num_batched_tokens * pool.parallelism.dp


def _cold_start_s(model: str, costs: EngineCosts) -> float:
    """How long a fresh server compiles and tunes kernels before its first prompts; delta nets bring their own."""
    has_delta_nets = any(isinstance(group.attention, GatedDeltaNet) for group in load_model(model).layers)
    return costs.cold_start_s + has_delta_nets * costs.delta_cold_s


def _sharing_a_prefix(run: MeasuredRun, cost: StepCost) -> StepCost:
    """Blocks that all sequences share come from the L2 cache while decode attention waits for memory."""
    shared = run.shared_prefix_tokens // BLOCK_TOKENS * BLOCK_TOKENS
    held = sum(run.input_bounds) / 2 + sum(run.output_bounds) / 4
    return replace(cost, kv_read_s_per_token=cost.kv_read_s_per_token * (1.0 - shared / held))


def _possible(model: str, parallelism: Parallelism, weight_dtype: str) -> Parallelism:
    """The layout, with whole experts where the row's split of each would cut a block of 128 fp8 weights.

    No engine starts so (vLLM's `Fp8MoEMethod.create_weights` and SGLang's raise where `intermediate_size_per_partition`
    is no multiple of block_n); those rows name expert parallelism otherwise, or leave the scripts' `EP_SIZE` out.
    """
    widths = [group.ffn.intermediate_size for group in load_model(model).layers if isinstance(group.ffn, MoeFfn)]
    blocks = weight_dtype == "fp8" and any(width % (EXPERT_BLOCK * parallelism.moe_tp) for width in widths)
    if blocks or any(width < EXPERT_BLOCK * parallelism.moe_tp for width in widths):
        return replace(parallelism, ep=parallelism.tp * parallelism.dp)
    return parallelism


Kind = tuple[str, ExpertKernel, bool, bool, KernelFusion]


def _kind_of(engine: Engine) -> Kind:
    """What an engine's kernels depend on: its name, how it runs experts, what it joins."""
    return engine.name, engine.expert_kernel, engine.power_law_routing, engine.deepep, engine.fusion


@lru_cache(maxsize=1024)
def _kernels(
    model: str, gpu: str, kind: Kind, parallelism: Parallelism, dtypes: Dtypes, limits: EngineLimits
) -> StepKernels:
    most_tokens = max(limits.max_num_batched_tokens, limits.max_num_seqs)
    name, kernel, power_law, deepep, fusion = kind
    engine = replace(load_engine(name), expert_kernel=kernel, power_law_routing=power_law, deepep=deepep, fusion=fusion)
    return layout_kernels(load_model(model), load_gpu(gpu), engine, parallelism, dtypes, most_tokens)


def _weight_dtype(run: MeasuredRun) -> WeightDtype:
    return Dtypes(weight=run.weight_dtype).weight  # type: ignore[arg-type]  # checked by Dtypes itself


def num_instances(run: MeasuredRun) -> int:
    """Of a collocated run; where its concurrency is a whole deployment's, as many as fill an NVLink domain."""
    if DEPLOYMENT_NOTE not in run.note:
        return run.pools[0].num_instances
    return max(run.pools[0].num_instances, load_gpu(run.gpu).nvlink_domain_gpus // run.pools[0].parallelism.num_gpus)


def _system(run: MeasuredRun, instances: list[Instance], engine: Engine) -> System:
    if len(instances) == 1:
        return Collocated(instance=instances[0], num_instances=num_instances(run), policy=engine.policy)
    prefill, decode = instances
    return pools_system(run, prefill, decode, engine.costs_on(load_gpu(run.gpu).architecture))
