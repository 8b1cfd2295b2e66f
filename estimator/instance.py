"""One model replica made concrete: its step cost, its limits, its memory for KV blocks."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.errors import require
from estimator.iteration import StepCost
from estimator.parallelism import Parallelism

BLOCK_TOKENS = 16  # vLLM's default KV block; SGLang pages and TRT-LLM blocks are counted in these too


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Per attention-dp rank: tokens of one step and sequences resident at a time."""

    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256

    def __post_init__(self) -> None:
        for name in ("max_num_batched_tokens", "max_num_seqs"):
            value = getattr(self, name)
            require(value >= 1, field=name, value=value, rule="must be at least 1", accepted="a whole number ≥ 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instance:
    """What the event kernels need of one replica.

    `num_kv_blocks`: blocks of `BLOCK_TOKENS` tokens per attention-dp rank. `shared_prefix_blocks` of them hold cached
    prefixes for good. `kv_bytes_per_token`: of the whole instance, what a hand-over must move. `request_overhead_s`:
    HTTP, tokenisation and scheduling before the first step, part of TTFT and no step; `overhead_s_per_token` more for
    each prompt token. `frontend_s`: what the front end does for one request after another; `output_s_per_token`: and
    for one output token of all sequences after another, beside it (collocated instances only). `cold_start_s`: the
    burst of a closed loop waits so long for kernels that nobody has warmed up. The scheduler looks at its queue every
    `poll_steps` decode steps and after every step with prompts; it holds prompts back for `wait_steps` decode steps
    until they fill a step (both on one stage only); `looks_ahead`: it puts the next step together when the present one
    begins. `reserves_output`: it admits a request only where blocks for its whole output are left, and never evicts
    (collocated instances; two pools have a policy of their own).
    `stage_transfer_s`: hand-over of activations to the next pipeline stage. `tier`: what the times rest on, worst
    operator first (`fitted`, `borrowed`, `data_sheet`).
    """

    cost: StepCost
    limits: EngineLimits
    parallelism: Parallelism
    gpu: str
    num_kv_blocks: int
    kv_bytes_per_token: float
    request_overhead_s: float = 0.0
    stage_transfer_s: float = 0.0
    frontend_s: float = 0.0
    output_s_per_token: float = 0.0
    overhead_s_per_token: float = 0.0
    cold_start_s: float = 0.0
    poll_steps: int = 1
    wait_steps: int = 0
    looks_ahead: bool = False
    reserves_output: bool = False
    shared_prefix_blocks: int = 0
    tier: str = "data_sheet"

    @property
    def num_gpus(self) -> int:
        """GPUs of the replica."""
        return self.parallelism.num_gpus

    @property
    def capacity_tokens(self) -> int:
        """KV tokens that one attention-dp rank can hold for its own requests."""
        return (self.num_kv_blocks - self.shared_prefix_blocks) * BLOCK_TOKENS
