"""A measured run of two pools as a system: what its row leaves open about seats, steps, experts and hand-overs.

From launch recipes (`nvidia-master.yaml` of SemiAnalysisAI/InferenceX and the files it names in srt-slurm, Apache-2.0,
read 2026-11-26) and the engines' code:

- *TensorRT-LLM's decode seats* are its `max_batch_size`, of `BATCH_SIZES` the largest within a rank's share of the
  concurrency. A server is started for every concurrency, but for fp4 with short outputs, where one is driven at a list.
- *TensorRT-LLM admits* a request when blocks for its whole output are free (GUARANTEED_NO_EVICT, its default).
- *TensorRT-LLM computes whole prompts*, as many as the token budget holds: 16,384 tokens, or one long prompt. vLLM and
  SGLang cut prompts into chunks, on GB200 of 16,384 tokens of a rank.
- *Experts are balanced* by redundant copies (EPLB) under SGLang in DeepEP layouts of GB200, and under TensorRT-LLM in
  fp4 where a decode instance holds `BALANCED_SEATS` or more. SGLang's DeepEP layouts run DeepGEMM, as TensorRT-LLM.
- *Ranks.* SGLang's DeepEP layouts divide whole experts among all ranks. vLLM's on GB200 are dep4 before dep16 or tep4
  (the recipes' names), where rows say TP.
- *TensorRT-LLM's prefill servers* run without overlap (`disable_overlap_scheduler`), the others' look a step ahead.
- *The first token travels with the KV cache*, so that waiting for a decode seat is part of TTFT.
- *A hand-over* takes the engine's `hand_over_s` beside the transfer.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.catalogue.gpus import load_gpu
from estimator.engine import Engine
from estimator.instance import EngineLimits, Instance
from estimator.measured_runs import MeasuredRun, PoolLayout
from estimator.parallelism import Parallelism
from estimator.system import DISTSERVE, Disaggregated, KvLink

LINK_FRAC = 0.7  # share of a link's rate a hand-over reaches
WHOLE_PROMPTS = "trtllm"  # the engine without chunks by default, and whose batch limits are built in
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024)
SHORT_OUTPUT_TOKENS = 1024
STEP_TOKENS = 16_384  # of a prefill rank
LONG_PROMPT_MARGIN_TOKENS = 40
BALANCED_SEATS = 4096  # of a decode instance
DEEPEP_RANKS = 8  # SGLang's layouts on GB200 with as many ranks or more exchange tokens through DeepEP
TRAY_GPUS = 4  # decode instances of vLLM's recipes on GB200 that are wider divide attention among ranks
SHARED_DOMAIN_GPUS = 8  # more in an NVLink domain: the racks of GB200 and GB300
NO_EVICT = replace(DISTSERVE, name="no_evict", admission="reserve_static", bucket_tokens=1, prediction_accuracy=1.0)


def decode_seats(run: MeasuredRun) -> int | None:
    """Sequences that one decode rank holds, None where the engine's own limit counts."""
    one_server = run.weight_dtype == "fp4" and run.output_bounds[1] <= SHORT_OUTPUT_TOKENS
    driven_at = run.highest_concurrency if one_server else run.concurrency
    if run.engine != WHOLE_PROMPTS or driven_at is None:
        return None
    pool = run.pools[1]
    share = driven_at // (pool.num_instances * pool.parallelism.dp)
    return max((size for size in BATCH_SIZES if size <= share), default=1)


def exchanges_by_deepep(run: MeasuredRun, pool: PoolLayout) -> bool:
    """Whether SGLang's recipe for the pool is one with DeepEP and balanced experts."""
    is_wide = pool.parallelism.dp >= DEEPEP_RANKS
    return len(run.pools) > 1 and run.engine == "sglang" and _in_rack(run) and is_wide


def _in_rack(run: MeasuredRun) -> bool:
    return load_gpu(run.gpu).nvlink_domain_gpus > SHARED_DOMAIN_GPUS


def pool_parallelism(run: MeasuredRun, pool: PoolLayout) -> Parallelism:
    """The pool's layout as its recipe has it where the row names another."""
    layout = pool.parallelism
    num_ranks = layout.tp * layout.dp
    if exchanges_by_deepep(run, pool):
        return replace(layout, ep=num_ranks)
    divides = len(run.pools) > 1 and (pool is run.pools[0] or num_ranks > TRAY_GPUS)
    if run.engine == "vllm" and _in_rack(run) and divides and layout.ep == num_ranks:
        return replace(layout, tp=1, dp=num_ranks)
    return layout


def pool_engine(run: MeasuredRun, pool: PoolLayout, engine: Engine) -> Engine:
    """The engine as the recipe starts it in that pool."""
    if exchanges_by_deepep(run, pool):
        return replace(engine, power_law_routing=False, deepep=True)
    seats = decode_seats(run) if len(run.pools) > 1 and pool is run.pools[1] else None
    if run.weight_dtype == "fp4" and (seats or 0) * pool.parallelism.dp >= BALANCED_SEATS:
        return replace(engine, power_law_routing=False)
    return engine


def pool_limits(run: MeasuredRun, pool: PoolLayout, limits: EngineLimits) -> EngineLimits:
    """The engine's limits in that pool."""
    if len(run.pools) == 1 or pool is not run.pools[0] or run.max_num_batched_tokens is not None:
        return limits
    if run.engine == WHOLE_PROMPTS:
        longest = run.input_bounds[1] + LONG_PROMPT_MARGIN_TOKENS
        tokens = longest if 2 * longest > STEP_TOKENS else STEP_TOKENS
        return replace(limits, max_num_batched_tokens=tokens)
    if _in_rack(run):
        return replace(limits, max_num_batched_tokens=STEP_TOKENS)
    return limits


def pools_system(run: MeasuredRun, prefill: Instance, decode: Instance, hand_over_s: float) -> Disaggregated:
    """The system that the row describes."""
    seats = decode_seats(run)
    if seats is not None:
        limits = replace(decode.limits, max_num_seqs=min(seats, decode.limits.max_num_seqs))
        decode = replace(decode, limits=limits)
    if run.engine == WHOLE_PROMPTS:
        prefill = replace(prefill, looks_ahead=False)
    gpu = load_gpu(run.gpu)
    per_gpu = gpu.nvlink_bytes_per_s if run.num_gpus <= gpu.nvlink_domain_gpus else gpu.network_bytes_per_s
    chunk_tokens = 0 if run.engine == WHOLE_PROMPTS else prefill.limits.max_num_batched_tokens
    return Disaggregated(
        prefill=prefill,
        num_prefill=run.pools[0].num_instances,
        decode=decode,
        num_decode=run.pools[1].num_instances,
        link=KvLink(
            egress_bytes_per_s=LINK_FRAC * per_gpu * prefill.num_gpus,
            ingress_bytes_per_s=LINK_FRAC * per_gpu * decode.num_gpus,
            latency_s=hand_over_s,
        ),
        policy=NO_EVICT if run.engine == WHOLE_PROMPTS else replace(DISTSERVE, chunk_tokens=chunk_tokens),
        holds_first_token=True,
    )
