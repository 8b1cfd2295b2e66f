"""Cost of one engine step in O(1), from tables made once per instance.

| symbol | field | shape, unit |
|---|---|---|
| D[n] | `decode_s` | (max_num_seqs + 1,) s: pure decode step of n sequences, without reading the KV cache |
| M[T] | `mixed_s` | (max_num_batched_tokens + 1,) s: step that holds prefill, T tokens in all, no attention, no head |
| H[n] | `head_s` | (max_num_seqs + 1,) s: output head and sampling of n sequences (already inside D) |
| b[n] | `kv_read_s_per_token` | (max_num_seqs + 1,) s/token: decode attention over full-context layers |
| b_w[n] | `window_read_s_per_token` | (max_num_seqs + 1,) s/token: the same over windowed or top-k layers |
| W | `window_tokens` | tokens a windowed or top-k layer reads at most; 0 = no such layer |
| c | `attention_s_per_pair` | s per (new, seen) token pair of prefill attention, full-context layers |
| c_w | `window_attention_s_per_pair` | s per pair, windowed or top-k layers |
| E[T] | `pooled_s` | (max_num_batched_tokens + 1,) s: the part of M that experts take, T tokens on every rank |
| q | `decode_tokens_per_seq` | tokens one decoding sequence puts into a step (1 + draft tokens) |
| a | `accepted_tokens_per_step` | tokens one decoding sequence gains per step, 1 ≤ a ≤ q |

With n decoding sequences holding S cached tokens together, p prefill tokens in chunks of m_j new after h_j seen ones:

    decode step:  D[n] + b[n]·S + b_w[n]·min(S, nW)
    mixed step:   M[qn + p] + H[sampled] + b[n]·S + b_w[n]·min(S, nW) + c·Σ m_j·s_j + c_w·Σ m_j·min(s_j, W),
                  s_j = h_j + (m_j + 1)/2 the tokens a new token of chunk j sees on average

`sampled` counts the decoding sequences and the prompts that end in this step. For pp > 1 every entry is the time of the
slowest *stage*; for attention dp > 1 indices are per rank and the step takes the maximum over ranks. Experts serve the
tokens of all ranks together, so that ranks with unlike prompts step in max(M[T] − E[T]) + E[mean T].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


SECONDS = (
    *("decode_s", "mixed_s", "head_s", "kv_read_s_per_token", "window_read_s_per_token"),
    *("attention_s_per_pair", "window_attention_s_per_pair", "pooled_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepCost:
    """Tables of one instance's step time; symbols and shapes in the module's docstring."""

    decode_s: FloatArray
    mixed_s: FloatArray
    head_s: FloatArray
    kv_read_s_per_token: FloatArray
    window_read_s_per_token: FloatArray
    window_tokens: int
    attention_s_per_pair: float
    window_attention_s_per_pair: float
    decode_tokens_per_seq: int = 1
    accepted_tokens_per_step: float = 1.0
    pooled_s: FloatArray = field(default_factory=lambda: np.zeros(1))  # of a layout without experts

    def times(self, factor: float) -> StepCost:
        """The same steps, each `factor` times as long."""
        seconds = {name: factor * getattr(self, name) for name in SECONDS}
        return replace(self, **seconds) if factor != 1.0 else self

    def decode_step_s(self, num_seqs: int, cached_tokens: float) -> float:
        """Seconds of a pure decode step of `num_seqs` sequences that hold `cached_tokens` together."""
        return float(self.decode_s[num_seqs]) + self._kv_read_s(num_seqs, cached_tokens)

    def mixed_step_s(
        self, num_seqs: int, cached_tokens: float, chunks: list[tuple[int, int]], num_ending: int
    ) -> float:
        """Seconds of a step with prefill `chunks` of (new, seen) tokens, `num_ending` of which end their prompt."""
        tokens = self.decode_tokens_per_seq * num_seqs + sum(new for new, _ in chunks)
        mean_seen = [(new, seen + (new + 1) / 2) for new, seen in chunks]
        pairs = sum(new * seen for new, seen in mean_seen)
        window_pairs = sum(new * min(seen, self.window_tokens) for new, seen in mean_seen)
        return (
            float(self.mixed_s[tokens])
            + float(self.head_s[num_seqs + num_ending])
            + self._kv_read_s(num_seqs, cached_tokens)
            + self.attention_s_per_pair * pairs
            + self.window_attention_s_per_pair * window_pairs
        )

    def _kv_read_s(self, num_seqs: int, cached_tokens: float) -> float:
        in_window = min(cached_tokens, float(num_seqs * self.window_tokens))
        return (
            float(self.kv_read_s_per_token[num_seqs]) * cached_tokens
            + float(self.window_read_s_per_token[num_seqs]) * in_window
        )
