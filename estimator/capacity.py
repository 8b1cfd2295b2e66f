"""How much an instance can serve at most, from its step cost alone: the bracket of the goodput search.

| symbol | meaning |
|---|---|
| I, P | computed prompt tokens of a mean request, and (new, seen) pairs of its prefill attention |
| d | its decode steps, (OSL − 1)/a |
| s | cached tokens that a decoding sequence holds, averaged over its steps |
| τ(n) | time of a step with n decoding sequences and its share of prefill |

A request takes of the instance x(n) = (d/n)·(decode(n) + g_n(p)) + c·P, where decode(n) is a pure decode step of n
sequences of mean context, p = n·I/d prompt tokens go with it on average, and g_n(p) is the least that they add. A step
with a prompt has all of it, or as much as fits: m = max(p, min(I, room)) tokens, so that g_n(p) = (p/m)·h(m), with h
the lower convex hull of what steps of so many prompt tokens add (Jensen), or less in steps of their own. The rate is at
most 1/min x(n) over the n that fit (sequences, KV blocks). With a TPOT limit L the mean step τ(n) = n·x(n)/d, less what
a sequence's own prompt adds, may be a·L at most; over pp stages, through which every token goes, pp such steps and the
hops. Mean contexts stand for their distribution and waiting is left out: the answer is an estimate from above, which
the search checks by simulation on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from estimator.instance import Instance
from estimator.requests import Requests
from estimator.slo import Slo
from estimator.system import Collocated, System

FloatArray = NDArray[np.float64]
NUM_CHUNKS = 32  # prompt-token counts tried per step


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanRequest:
    """What one request asks for on average; `cached_token_steps` = Σ over decode steps of tokens held."""

    prompt_tokens: float
    computed_tokens: float
    pairs: float
    window_pairs: float
    decode_tokens: float
    cached_token_steps: float

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, requests: Requests, window_tokens: int) -> MeanRequest:
        """Mean over `requests`; `window_tokens` as in `StepCost`. Strategies are judged on the same requests: kept."""
        prompt = requests.input_tokens.astype(np.float64)
        cached = requests.cached_tokens.astype(np.float64)
        gaps = requests.output_tokens - 1.0
        window = float(window_tokens)
        window_pairs = _window_pairs(prompt, window) - _window_pairs(cached, window)
        return cls(
            prompt_tokens=float(prompt.mean()),
            computed_tokens=float((prompt - cached).mean()),
            pairs=float((prompt * (prompt + 1.0) - cached * (cached + 1.0)).mean() / 2.0),
            window_pairs=float(window_pairs.mean()),
            decode_tokens=float(gaps.mean()),
            cached_token_steps=float((gaps * (prompt + gaps / 2.0)).mean()),
        )

    @property
    def context_tokens(self) -> float:
        """s: tokens held by a decoding sequence, averaged over decode steps."""
        return self.cached_token_steps / self.decode_tokens if self.decode_tokens > 0 else self.prompt_tokens


def _window_pairs(tokens: FloatArray, window: float) -> FloatArray:
    """Σ_{t ≤ tokens} min(t, window)."""
    inside = np.minimum(tokens, window)
    return np.asarray(inside * (inside + 1.0) / 2.0 + (tokens - inside) * window, dtype=np.float64)


def screen(system: System, requests: Requests, slo: Slo | None = None) -> float:
    """Estimate from above of the rate (req/s) that `system` can serve, within a TPOT limit if `slo` has one.

    `requests`: a sample of the traffic; only its lengths count.
    """
    limit_s = math.inf if slo is None else tpot_limit_s(slo)
    if isinstance(system, Collocated):
        mean = MeanRequest.of(requests, system.instance.cost.window_tokens)
        return system.num_instances * instance_rate_req_s(system.instance, mean, tpot_s=limit_s)
    prefill = MeanRequest.of(requests, system.prefill.cost.window_tokens)
    decode = MeanRequest.of(requests, system.decode.cost.window_tokens)
    return min(
        system.num_prefill * instance_rate_req_s(system.prefill, prefill, decode=False),
        system.num_decode * instance_rate_req_s(system.decode, decode, tpot_s=limit_s, prefill=False),
        link_rate_req_s(system, prefill.prompt_tokens),
    )


def tpot_limit_s(slo: Slo) -> float:
    """The tightest limit on TPOT; ∞ where the SLO has none."""
    return min((target.limit_s for target in slo.targets if target.metric == "tpot"), default=math.inf)


def link_rate_req_s(system: System, prompt_tokens: float) -> float:
    """Requests per second that the KV link can carry: the sum of all senders or of all receivers, if lower."""
    if isinstance(system, Collocated):
        return math.inf
    num_bytes = prompt_tokens * system.prefill.kv_bytes_per_token
    bytes_per_s = min(
        system.num_prefill * system.link.egress_bytes_per_s, system.num_decode * system.link.ingress_bytes_per_s
    )
    return bytes_per_s / num_bytes if num_bytes > 0 else math.inf


def instance_rate_req_s(
    instance: Instance, mean: MeanRequest, *, tpot_s: float = math.inf, prefill: bool = True, decode: bool = True
) -> float:
    """Requests per second of one instance doing prefill, decode or both; 0 if one mean step is over the limit.

    The ranks of attention dp work side by side; pipeline stages hold their own micro-batches, so sequences and KV
    blocks are divided among them and a step ends once per stage time.
    """
    cost, ranks = instance.cost, instance.parallelism.dp
    attention_s = cost.attention_s_per_pair * mean.pairs + cost.window_attention_s_per_pair * mean.window_pairs
    if not decode or mean.decode_tokens == 0:
        prefill_s = mean.computed_tokens * _own_step_s_per_token(instance) + attention_s if prefill else 0.0
        return ranks / prefill_s if prefill_s > 0 else math.inf
    num_seqs = _batches(instance, mean.context_tokens)
    decode_s = decode_steps_s(instance, num_seqs, mean.context_tokens)
    num_steps = mean.decode_tokens / cost.accepted_tokens_per_step
    request_s = num_steps * decode_s / num_seqs
    if prefill:
        per_step = np.asarray(mean.computed_tokens * num_seqs / num_steps, dtype=np.float64)
        added_s = _added_s(instance, num_seqs, per_step, mean.computed_tokens)
        request_s = request_s + added_s * num_steps / num_seqs + attention_s
    others_s = (request_s * num_seqs / num_steps - decode_s) * (
        1.0 - 1.0 / num_seqs
    )  # nobody decodes in its own prompt
    step_s = instance.parallelism.pp * (decode_s + others_s) + hops_s(instance)
    within = step_s <= tpot_s * cost.accepted_tokens_per_step
    return ranks / float(request_s[within].min()) if within.any() else 0.0


def hops_s(instance: Instance) -> float:
    """Hand-overs from stage to stage that a step takes."""
    return (instance.parallelism.pp - 1) * instance.stage_transfer_s


def decode_steps_s(instance: Instance, num_seqs: NDArray[np.int64], context_tokens: float) -> FloatArray:
    """(len(num_seqs),) s: pure decode steps of so many sequences holding `context_tokens` each."""
    cost = instance.cost
    in_window = min(context_tokens, float(cost.window_tokens))
    return np.asarray(
        cost.decode_s[num_seqs]
        + num_seqs
        * (cost.kv_read_s_per_token[num_seqs] * context_tokens + cost.window_read_s_per_token[num_seqs] * in_window),
        dtype=np.float64,
    )


def decode_fixed_point(instance: Instance, mean: MeanRequest, rate_req_s: float) -> tuple[float, float] | None:
    """(mean batch n, step time τ in s) of a decode instance at `rate_req_s`; None if no batch keeps up.

    Little's law for the sequences, n = λ·d·τ(n), with τ the step of n sequences of mean context, linear between whole
    n: the least n whose batch serves n/τ(n) ≥ λd steps a second. Fluctuation of n and joining in whole steps are left
    out. One rank, one stage.
    """
    num_steps_per_s = rate_req_s * mean.decode_tokens / instance.cost.accepted_tokens_per_step
    num_seqs = _batches(instance, mean.context_tokens)
    steps_s = decode_steps_s(instance, num_seqs, mean.context_tokens)
    enough = np.flatnonzero(num_seqs >= num_steps_per_s * steps_s)
    if len(enough) == 0:
        return None
    k = int(enough[0])
    if k == 0:
        return num_steps_per_s * float(steps_s[0]), float(steps_s[0])
    slope = float(steps_s[k] - steps_s[k - 1])  # τ(n) = τ_{k−1} + slope·(n − n_{k−1})
    n = num_steps_per_s * (float(steps_s[k - 1]) - slope * float(num_seqs[k - 1])) / (1.0 - num_steps_per_s * slope)
    return n, n / num_steps_per_s


def _batches(instance: Instance, context_tokens: float) -> NDArray[np.int64]:
    """Every batch size from 1 to the most sequences that fit one pipeline stage's micro-batch."""
    fitting = instance.capacity_tokens / max(context_tokens, 1.0)
    most = min(float(instance.limits.max_num_seqs), max(fitting, 1.0)) / instance.parallelism.pp
    top = min(math.ceil(most), len(instance.cost.decode_s) - 1)
    return np.arange(1, max(top, 1) + 1, dtype=np.int64)


@lru_cache(maxsize=32)
def _chunks(most: int) -> NDArray[np.int64]:
    return np.unique(np.geomspace(1, most, NUM_CHUNKS).round().astype(np.int64))


def _own_step_s_per_token(instance: Instance) -> float:
    chunks = _chunks(len(instance.cost.mixed_s) - 1)
    return float((instance.cost.mixed_s[chunks] / chunks).min())


def _added_s(instance: Instance, num_seqs: NDArray[np.int64], per_step: FloatArray, prompt_tokens: float) -> FloatArray:
    """g_n(p), (len(num_seqs),) s: least mean time that p = `per_step` prompt tokens add to a step of n sequences.

    Along the hull from no tokens on (gift wrapping: always the flattest line to a larger step), for all n at once; past
    the largest step, and in general at most, at the least cost of a token in steps of its own.
    """
    cost, own_s = instance.cost, _own_step_s_per_token(instance)
    chunks = np.concatenate(([0], _chunks(len(cost.mixed_s) - 1)))
    tokens = cost.decode_tokens_per_seq * num_seqs[:, None] + chunks
    is_step = tokens < len(cost.mixed_s)
    heads_s = (cost.head_s[num_seqs] - cost.decode_s[num_seqs])[:, None]
    added_s = np.maximum(cost.mixed_s[np.minimum(tokens, len(cost.mixed_s) - 1)] + heads_s, 0.0)
    added_s[~is_step] = np.inf
    added_s[:, 0] = 0.0
    room = np.where(is_step, chunks, 0).max(axis=1)
    width = np.maximum(np.maximum(per_step, np.minimum(prompt_tokens, room)), 1e-9)  # m
    hull_s, rows, at = own_s * width, np.arange(len(num_seqs)), np.zeros(len(num_seqs), np.int64)
    while len(rows) > 0:
        wider = chunks - chunks[at][:, None]
        slopes = np.where(wider > 0, (added_s[rows] - added_s[rows, at][:, None]) / np.maximum(wider, 1), np.inf)
        after = slopes.argmin(axis=1)
        slope = np.minimum(slopes[np.arange(len(rows)), after], own_s)
        reached_s = added_s[rows, at] + slope * (width[rows] - chunks[at])
        goes_on = (chunks[after] < width[rows]) & (slope < own_s)
        hull_s[rows] = np.minimum(hull_s[rows], np.where(goes_on, np.inf, reached_s))
        rows, at = rows[goes_on], after[goes_on]
    return np.asarray(hull_s * per_step / width, dtype=np.float64)
