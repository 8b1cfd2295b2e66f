"""Which of n equal instances takes the next request of one arrival stream.

| router | choice, given the requests that each instance holds (waiting or resident) |
|---|---|
| round robin | the turn-th request goes to instance turn mod n |
| random | uniform, by one draw |
| least outstanding | the fewest held; of equals the lowest index |
| power of two | of two different instances drawn uniformly the one that holds fewer; of equals the first drawn |

Power of two choices: Mitzenmacher, IEEE TPDS 12(10), 2001. Draws are made outside: a kernel is handed two uniform
numbers per request.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
from numba import njit
from numpy.typing import NDArray

from estimator.seeds import stream

ROUND_ROBIN, RANDOM, LEAST_OUTSTANDING, POWER_OF_TWO = 0, 1, 2, 3
ROUTERS = MappingProxyType(
    {
        "round_robin": ROUND_ROBIN,
        "random": RANDOM,
        "least_outstanding": LEAST_OUTSTANDING,
        "power_of_two": POWER_OF_TWO,
    }
)


def router_draws(router: int, num_requests: int, seed: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), (num_requests, 2), for `choose`; (0, 2) for a router that draws none."""
    if router not in (RANDOM, POWER_OF_TWO):
        return np.zeros((0, 2))
    return stream(seed, "router").random((num_requests, 2))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def choose(router: int, turn: int, outstanding: NDArray[np.int64], draws: NDArray[np.float64]) -> int:
    """Index of the instance that takes request number `turn`; `outstanding` (n,), `draws` of `router_draws`."""
    num = len(outstanding)
    if num == 1:
        return 0
    if router == ROUND_ROBIN:
        return turn % num
    if router == LEAST_OUTSTANDING:
        best = 0
        for k in range(1, num):
            if outstanding[k] < outstanding[best]:
                best = k
        return best
    first = int(draws[turn, 0] * num)
    if router == RANDOM:
        return first
    second = int(draws[turn, 1] * (num - 1))
    second += second >= first
    return second if outstanding[second] < outstanding[first] else first
