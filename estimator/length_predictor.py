"""Output lengths as a scheduler may know them: the bucket that a predictor names, right with a stated accuracy.

TetriInfer (arXiv 2401.11181), section 3.3.2: a classifier over buckets of 200 tokens is right for 74.9 % of requests;
the bucket's lower end is used. Which bucket a wrong answer names is not reported: here any other one, each as likely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from estimator.seeds import stream


def predicted_tokens(
    output_tokens: NDArray[np.int64], bucket_tokens: int, accuracy: float, seed: int
) -> NDArray[np.int64]:
    """Lower end of the predicted bucket, (num_requests,); buckets reach up to the longest output of the run."""
    bucket = output_tokens // bucket_tokens
    num_buckets = int(bucket.max(initial=0)) + 1
    draws = stream(seed, "predictor").random((len(output_tokens), 2))
    other = (draws[:, 1] * (num_buckets - 1)).astype(np.int64)
    other += other >= bucket
    is_wrong = (draws[:, 0] >= accuracy) & (num_buckets > 1)
    return np.where(is_wrong, other, bucket) * bucket_tokens
