"""Routers: the choice by hand, its ties, and the shares that the draws imply."""

from __future__ import annotations

import numpy as np
import pytest

from estimator.kernels.routing import LEAST_OUTSTANDING, POWER_OF_TWO, RANDOM, ROUND_ROBIN, choose, router_draws

NO_DRAWS = np.zeros((0, 2))


def test_round_robin_takes_turns() -> None:
    """Request k goes to instance k mod n, however much that one holds."""
    held = np.array([9, 0, 4])
    assert [choose(ROUND_ROBIN, turn, held, NO_DRAWS) for turn in range(5)] == [0, 1, 2, 0, 1]


def test_least_outstanding_takes_the_first_of_equals() -> None:
    """The fewest held wins, and of equals the lowest index."""
    assert choose(LEAST_OUTSTANDING, 7, np.array([3, 1, 2, 1]), NO_DRAWS) == 1


@pytest.mark.parametrize(
    ("draws", "winner"),
    [((0.9, 0.0), 0), ((0.0, 0.9), 0), ((0.4, 0.5), 1), ((0.9, 0.6), 2)],
)
def test_power_of_two_compares_two_different(draws: tuple[float, float], winner: int) -> None:
    """Holding (0, 5, 5): drawn {2, 0} and {0, 2} give 0; {1, 2} and {2, 1} tie and give the first drawn."""
    assert choose(POWER_OF_TWO, 0, np.array([0, 5, 5]), np.array([draws])) == winner


@pytest.mark.parametrize("router", [RANDOM, POWER_OF_TWO])
def test_draws_are_fair(router: int) -> None:
    """With equal loads each of 5 instances is taken a fifth of the time, within 4 standard errors."""
    num = 20_000
    draws = router_draws(router, num, 3)
    taken = [choose(router, turn, np.zeros(5, np.int64), draws) for turn in range(num)]
    share = np.bincount(taken, minlength=5) / num
    assert np.abs(share - 0.2).max() < 4 * (0.2 * 0.8 / num) ** 0.5


def test_only_what_draws_has_draws() -> None:
    """Round robin and least outstanding need no random numbers; one instance takes everything."""
    assert router_draws(ROUND_ROBIN, 10, 0).shape == router_draws(LEAST_OUTSTANDING, 10, 0).shape == (0, 2)
    assert choose(POWER_OF_TWO, 3, np.zeros(1, np.int64), NO_DRAWS) == 0
