"""What is known of one strategy, as one flat, price-free record; light to import, unlike what fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Status = Literal["ok", "infeasible", "unstable", "failed"]
NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is known of one strategy. `violation` > 0 unless ok; latencies in s at the goodput, NaN unless ok.

    `strategy` is the written form; `failed` is our bug, `reason` then holds the end of the traceback. `prefill_…` are
    NaN for collocated strategies. `low`/`high` bound the goodput. `is_explored`: found on few requests, to choose by;
    an answer rests on others.
    """

    strategy: str
    status: Status
    rule: str = ""
    reason: str = ""
    violation: float = 0.0
    goodput_req_s: float = 0.0
    low_req_s: float = 0.0
    high_req_s: float = 0.0
    binding_limit: str = ""
    tier: str = ""
    ttft_mean_s: float = NAN
    ttft_p50_s: float = NAN
    ttft_p90_s: float = NAN
    ttft_p99_s: float = NAN
    tpot_mean_s: float = NAN
    tpot_p50_s: float = NAN
    tpot_p90_s: float = NAN
    tpot_p99_s: float = NAN
    e2e_mean_s: float = NAN
    e2e_p50_s: float = NAN
    e2e_p90_s: float = NAN
    e2e_p99_s: float = NAN
    throughput_tokens_per_s: float = NAN
    decode_utilisation_frac: float = NAN
    decode_mean_batch_seqs: float = NAN
    prefill_utilisation_frac: float = NAN
    num_simulated_requests: int = 0
    is_explored: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether the strategy serves some load within the SLO."""
        return self.status == "ok"

    @property
    def key(self) -> str:
        """Its place in a storage: one per strategy and effort."""
        return key_of(self.strategy, exploring=self.is_explored)

    def as_dict(self) -> dict[str, Any]:
        """Field names to plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """From `as_dict`, after JSON; unknown fields of a later version are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def key_of(strategy: str, *, exploring: bool) -> str:
    """The key under which the strategy's evaluation is kept; its written form at full effort."""
    return f"{strategy} explored" if exploring else strategy
