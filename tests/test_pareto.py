"""Fronts and dominated areas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pareto import hypervolume, non_dominated

POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=40)


def test_a_rectangle_has_its_area() -> None:
    """One point of goodput 3 at cost 2, reference cost 10: 3 × 8 = 24."""
    assert hypervolume([3.0], [2.0], ref_usd_per_h=10.0) == pytest.approx(24.0)


def test_a_staircase_has_the_sum_of_its_steps() -> None:
    """Points (1, 1), (2, 2), (3, 3) against 4: 1 × 1 + 2 × 1 + 3 × 1 = 6; a dominated point adds nothing."""
    assert hypervolume([1, 2, 3, 1.5], [1, 2, 3, 2.5], ref_usd_per_h=4.0) == pytest.approx(6.0)


def test_points_beyond_the_reference_add_nothing() -> None:
    """Cost at or over the reference, or no goodput, dominates no area."""
    assert hypervolume([5.0, 0.0], [4.0, 1.0], ref_usd_per_h=4.0) == 0.0
    assert hypervolume([], [], ref_usd_per_h=4.0) == 0.0


def test_a_quarter_circle_approaches_its_area() -> None:
    """A front on the circle g² + (1 − c)² = 1 dominates π/4 within 1 % at 1,000 points."""
    angle = np.linspace(0, np.pi / 2, 1000)
    area = hypervolume(np.sin(angle), 1 - np.cos(angle), ref_usd_per_h=1.0)
    assert area == pytest.approx(np.pi / 4, rel=0.01)


@given(POINTS)
def test_front_is_what_pairwise_comparison_leaves(points: list[tuple[int, int]]) -> None:
    """The front is the set of points that no other point dominates, one of each."""
    undominated = {(g, c) for g, c in points if not any(h >= g and d <= c and (h, d) != (g, c) for h, d in points)}
    front = non_dominated([g for g, _ in points], [c for _, c in points])
    found = [points[i] for i in front]
    assert set(found) == undominated
    assert len(found) == len(undominated)
    assert [c for _, c in found] == sorted(c for _, c in found)


@given(POINTS)
def test_hypervolume_agrees_with_moocore(points: list[tuple[int, int]]) -> None:
    """An independent library gives the same area."""
    moocore = pytest.importorskip("moocore")
    expected = 0.0
    if points:
        losses = np.array([(-float(g), float(c)) for g, c in points])
        expected = float(moocore.hypervolume(losses, ref=[0.0, 15.0]))
    found = hypervolume([g for g, _ in points], [c for _, c in points], ref_usd_per_h=15.0)
    assert found == pytest.approx(expected)
