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
- *Ranks.* SGLang's DeepEP layouts divide whole experts among all ranks. On GB200 its decode instances within a tray are
  TP, with TP before them; before wide ones a tray is TP for long prompts and dep4 for short ones, whatever rows say.
  vLLM's there are dep4 before dep16 or tep4 (the recipes' names), where rows say TP.
- *Prefill steps of SGLang* on GB200 hold `--chunked-prefill-size` over the ranks (`SGLANG_PREFILL`); their caches, in
  transfer or not, `--max-total-tokens` where the recipe sets it.
- *SGLang's servers on B200* join norms to their all-reduces (`--enable-flashinfer-allreduce-fusion`).
- *TensorRT-LLM's prefill servers* run without overlap (`disable_overlap_scheduler`), the others' look a step ahead.
- *The first token travels with the KV cache*, so that waiting for a decode seat is part of TTFT.
- *A hand-over* takes the engine's `hand_over_s` and `hand_over_steps` beside the transfer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from estimator.catalogue.gpus import load_gpu
from estimator.engine import Engine, EngineCosts
from estimator.instance import BLOCK_TOKENS, EngineLimits, Instance
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
LONG_PROMPT_TOKENS = 8192  # of the two prompt lengths of the recipes


class PrefillTokens(NamedTuple):
    """Of one prefill rank: tokens of a step, and of all KV caches it holds (None: as many as fit)."""

    step: int
    held: int | None = None


SGLANG_PREFILL: Mapping[tuple[str, bool], PrefillTokens] = {
    ("narrow", False): PrefillTokens(8192, 8192),  # gb200-fp4 and -fp8/1k1k/low-latency.yaml
    ("narrow", True): PrefillTokens(24_576, 32_768),  # gb200-fp4/8k1k/low-latency.yaml
    ("tray", False): PrefillTokens(16_384, 131_072),  # gb200-fp4/1k1k/mid-curve.yaml: 65,536 over four ranks
    ("tray", True): PrefillTokens(131_072, 131_072),  # gb200-fp4/8k1k/mid-curve.yaml: TP
    ("wide", False): PrefillTokens(16_384),  # gb200-fp8/1k1k/mid-curve.yaml: 131,072 over eight ranks
    ("wide", True): PrefillTokens(16_384),  # gb200-fp8/8k1k/mid-curve.yaml
}  # by what prefill servers on GB200 are, before what, and whether prompts are long (recipes/ of NVIDIA/srt-slurm)
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


def _is_long(run: MeasuredRun) -> bool:
    return run.input_bounds[1] >= LONG_PROMPT_TOKENS


def _ranks(pool: PoolLayout) -> int:
    return pool.parallelism.tp * pool.parallelism.dp


def sglang_prefill(run: MeasuredRun) -> PrefillTokens | None:
    """What SGLang's recipe on GB200 lets a prefill rank take; None elsewhere."""
    if run.engine != "sglang" or len(run.pools) == 1 or not _in_rack(run):
        return None
    prefill, decode = run.pools
    kind = "narrow" if _ranks(decode) <= TRAY_GPUS else "tray" if _ranks(prefill) <= TRAY_GPUS else "wide"
    return SGLANG_PREFILL[kind, _is_long(run)]


def _sglang_tray(run: MeasuredRun, pool: PoolLayout) -> Parallelism:
    """Layout of an SGLang pool within a tray of GB200."""
    is_short_and_wide = pool is run.pools[0] and _ranks(run.pools[1]) > TRAY_GPUS and not _is_long(run)
    if is_short_and_wide:
        return replace(pool.parallelism, tp=1, dp=_ranks(pool), ep=_ranks(pool))
    return replace(pool.parallelism, tp=_ranks(pool), dp=1, ep=1)


def fuses_norms(run: MeasuredRun, told: bool | None) -> bool | None:
    """Whether the recipe has norms joined to all-reduces; `told` for other runs, None: the engine's default."""
    if run.engine == "sglang" and len(run.pools) > 1 and load_gpu(run.gpu).architecture == "blackwell":
        return not _in_rack(run) or told
    return told


def pool_parallelism(run: MeasuredRun, pool: PoolLayout) -> Parallelism:
    """The pool's layout as its recipe has it where the row names another."""
    layout = pool.parallelism
    num_ranks = layout.tp * layout.dp
    if exchanges_by_deepep(run, pool):
        return replace(layout, ep=num_ranks)
    if run.engine == "sglang" and len(run.pools) > 1 and _in_rack(run) and num_ranks <= TRAY_GPUS:
        return _sglang_tray(run, pool)
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
    found = sglang_prefill(run)
    if found is not None:
        return replace(limits, max_num_batched_tokens=found.step)
    if _in_rack(run):
        return replace(limits, max_num_batched_tokens=STEP_TOKENS)
    return limits


def pool_blocks(run: MeasuredRun, pool: PoolLayout, num_blocks: int) -> int:
    """KV blocks of a rank of that pool, of which `num_blocks` fit."""
    found = sglang_prefill(run) if pool is run.pools[0] else None
    if found is None or found.held is None:
        return num_blocks
    return min(num_blocks, found.held // BLOCK_TOKENS)


def pools_system(run: MeasuredRun, prefill: Instance, decode: Instance, costs: EngineCosts) -> Disaggregated:
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
            latency_s=costs.hand_over_s,
            latency_steps=costs.hand_over_steps,
        ),
        policy=NO_EVICT if run.engine == WHOLE_PROMPTS else replace(DISTSERVE, chunk_tokens=chunk_tokens),
        holds_first_token=True,
    )
