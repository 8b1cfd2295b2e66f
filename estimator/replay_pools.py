"""A measured run of two pools as a system: what its row leaves open about seats, prefill steps and hand-overs.

Four rules, from the rows' TTFT read as Little's law (requests ahead of the first token = concurrency × TTFT / E2E):

- *The first token travels with the KV cache*, so that waiting for a decode seat is part of TTFT.
- *TensorRT-LLM's decode seats* are its build's `max_batch_size`, the largest power of two within the share that an
  instance's rank has of the highest concurrency its deployment was driven at: of 36, 135, 192 and 245 requests on
  4 × 8, 15 × 8, 4 × 32 and 7 × 32 seats 4, 17, 63 and 21 wait.
- *TensorRT-LLM computes whole prompts*, as many as the token budget holds; vLLM and SGLang cut prompts into chunks of
  it, as they do by default. `prefill_max_batch`, 1 in every row, is not kept: at 28,000 prompt tokens a second and GPU
  prompts of 1,000 tokens were packed, and one prompt a step makes the error larger.
- *A hand-over* takes the engine's `hand_over_s` beside the transfer.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.catalogue.gpus import load_gpu
from estimator.instance import Instance
from estimator.measured_runs import MeasuredRun
from estimator.system import DISTSERVE, Disaggregated, KvLink

LINK_FRAC = 0.7  # share of a link's rate a hand-over reaches
WHOLE_PROMPTS = "trtllm"  # the engine without chunks by default, and whose batch limits are built in


def decode_seats(run: MeasuredRun) -> int | None:
    """Sequences that one decode rank holds, None where the engine's own limit counts."""
    highest = run.highest_concurrency or run.concurrency
    if run.engine != WHOLE_PROMPTS or highest is None:
        return None
    pool = run.pools[1]
    share = highest // (pool.num_instances * pool.parallelism.dp)
    return 1 << max(share.bit_length() - 1, 0)


def pools_system(run: MeasuredRun, prefill: Instance, decode: Instance, hand_over_s: float) -> Disaggregated:
    """The system that the row describes."""
    seats = decode_seats(run)
    if seats is not None:
        limits = replace(decode.limits, max_num_seqs=min(seats, decode.limits.max_num_seqs))
        decode = replace(decode, limits=limits)
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
        policy=replace(DISTSERVE, chunk_tokens=chunk_tokens),
        holds_first_token=True,
    )
