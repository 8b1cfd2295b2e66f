"""Per-GPU shapes of attention in the form that the curves take; fit and prediction share them."""

from __future__ import annotations

from estimator.attention import HeadShape
from estimator.roofline import ACTIVATION_BYTES, FloatArray

Number = FloatArray | float
STATE_BYTES = 4.0  # delta-net states are float32
CHUNK_TOKENS = 64.0  # of the chunked delta rule (flash-linear-attention, chunk_gated_delta_rule_fwd)


def grouped_heads(num_heads: Number, num_kv_heads: Number, head_dim: Number, number_bytes: float) -> HeadShape:
    """Grouped-query attention: keys and values of `head_dim` each."""
    return HeadShape(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        dims=2.0 * head_dim,
        kv_bytes=2.0 * head_dim * number_bytes,
        io_bytes=ACTIVATION_BYTES * 2.0 * (num_heads + num_kv_heads) * head_dim,
    )


def latent_heads(
    num_heads: Number, dims: tuple[float, float, float, float], number_bytes: float, *, expanded: bool
) -> HeadShape:
    """Latent attention of (rank, nope, rope, value) dims.

    Prefill expands keys (nope + rope) and values per head; decode multiplies all heads with the one latent vector of
    rank + rope that is cached per token (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    """
    rank, nope, rope, value = dims
    if expanded:
        width = nope + rope + value
        io_bytes = ACTIVATION_BYTES * 2.0 * num_heads * width
        return HeadShape(num_heads=num_heads, num_kv_heads=num_heads, dims=width, kv_bytes=0.0, io_bytes=io_bytes)
    width = 2.0 * rank + rope
    return HeadShape(
        num_heads=num_heads,
        num_kv_heads=1.0,
        dims=width,
        kv_bytes=(rank + rope) * number_bytes,
        io_bytes=ACTIVATION_BYTES * num_heads * width,
    )


def delta_net_bytes_per_token(
    num_key_heads: Number, num_value_heads: Number, key_dim: Number, value_dim: Number, conv_kernel: Number
) -> tuple[Number, Number]:
    """Moved per prefill token: through the convolution and the chunked rule with its outputs; between their kernels.

    The latter is what the chunks are solved for, written and read by each value head: transformed keys, values before
    and after the correction by the state, and one state a chunk (Yang et al. 2024, arXiv 2412.06464, section 3.3).
    """
    channels = 2.0 * num_key_heads * key_dim + num_value_heads * value_dim
    solved = key_dim + 2.0 * value_dim + key_dim * value_dim / CHUNK_TOKENS
    streamed = 3.0 * channels + num_value_heads * value_dim
    return ACTIVATION_BYTES * streamed, ACTIVATION_BYTES * 2.0 * num_value_heads * solved


def delta_net_bytes_per_seq(
    num_key_heads: Number, num_value_heads: Number, key_dim: Number, value_dim: Number, conv_kernel: Number
) -> Number:
    """Moved per decoding sequence: the float32 state and the convolution's window, read and written."""
    channels = 2.0 * num_key_heads * key_dim + num_value_heads * value_dim
    state = STATE_BYTES * num_value_heads * key_dim * value_dim
    return 2.0 * (state + ACTIVATION_BYTES * conv_kernel * channels)
