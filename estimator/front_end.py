"""When a server's scheduler sees the requests that clients send: the front end's queue, then overhead.

A front end takes requests one after another, `Instance.frontend_s` each. Then HTTP, tokenisation and scheduling delay
every request for itself, without a queue. The scheduler sees requests in the order in which they were sent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from estimator.instance import Instance
from estimator.requests import Requests

FloatArray = NDArray[np.float64]


class Sent(NamedTuple):
    """Per request, (num,) s: when sent, how long delayed behind the front end, and when the scheduler sees it."""

    sent_s: FloatArray
    delay_s: FloatArray
    visible_s: FloatArray


def send(instance: Instance, requests: Requests, *, open_loop: bool) -> Sent:
    """What the front end of `instance` makes of the requests; in a closed loop as if all were sent at 0.

    The kernels rewrite those that a closed loop sends later.
    """
    sent_s = requests.arrival_s if open_loop else np.zeros(len(requests))
    per_token_s = instance.overhead_s_per_token * requests.input_tokens.astype(np.float64)
    delay_s = np.asarray(instance.request_overhead_s + per_token_s)
    done_s = through_s(sent_s, instance.frontend_s)
    return Sent(
        sent_s=sent_s,
        delay_s=delay_s,
        visible_s=np.maximum.accumulate(done_s + delay_s) + (0.0 if open_loop else instance.cold_start_s),
    )


def through_s(sent_s: FloatArray, frontend_s: float) -> FloatArray:
    """When a front end that takes requests one after another, `frontend_s` each, has done each, (num,).

    Lindley (Math. Proc. Cambridge 48, 1952): e_i = max(e_{i−1}, sent_i) + f, so that e_i − (i + 1)·f never decreases.
    """
    before = np.arange(len(sent_s), dtype=np.float64) * frontend_s
    return np.asarray(before + frontend_s + np.maximum.accumulate(sent_s - before))
