"""What the event loop of several servers needs: the earliest of many times, first-in-first-out lists, marks.

Its functions are inlined (`forceinline`) and compiled without reference counts (`_nrt=False`: they allocate nothing),
without which handing the arrays from one to the next costs thirty times what they do.

| array | shape | meaning |
|---|---|---|
| times | (2·size,) | tournament tree of event times: leaf j at size + j, its winner (the minimum) at 1 |
| lists | (num_lists, 2) | first and last member of each list, −1 where it is empty |
| after | (num_members,) | the member behind each; a member is in one list at a time |
| marks | (num + 1, 2) | column 0: how many are marked, then which, in order; column 1: whether each one is |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]  # of a kernel: shape and type are given where it is made
NEVER = np.inf
EMPTY = -1
SAME_S = 1e-9  # events this close are at one time: less than any step, more than the rounding of an hour's clock
FEW = 32  # servers


class State(NamedTuple):
    """What all servers share: the requests, their lists, the events, the histogram of token gaps."""

    jobs: NDArray[np.void]
    lists: NDArray[np.int64]
    after: NDArray[np.int64]
    times: NDArray[np.float64]
    weights: NDArray[np.float64]


def new_times(num_leaves: int) -> NDArray[np.float64]:
    """A tree in which nothing will happen."""
    size = 1
    while size < num_leaves:
        size *= 2
    return np.full(2 * size, NEVER)


def new_marks(num: int) -> NDArray[np.int64]:
    """Room for marks on `num` things."""
    return np.zeros((num + 1, 2), np.int64)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def set_time(times, leaf, time):
    """Gives the leaf another event time."""
    at = (len(times) >> 1) + leaf
    times[at] = time
    while at > 1:
        other = times[at ^ 1]
        time = other if other < time else time
        at >>= 1
        times[at] = time


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def due(times, limit, found):
    """Leaves with a time of at most `limit`, in order of index, into `found`; returns how many."""
    size, num, at = len(times) >> 1, 0, 1
    if size <= FEW:  # looked at one by one
        for leaf in range(size):
            found[num] = leaf
            num += times[size + leaf] <= limit
        return num
    while True:
        if times[at] <= limit:
            if at < size:
                at *= 2
                continue
            found[num] = at - size
            num += 1
        while at % 2 == 1:  # up from right-hand children, then to the sibling
            at //= 2
        if at == 0:
            return num
        at += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def push(state, which, member):
    """Appends the member to the list."""
    state.after[member] = EMPTY
    if state.lists[which, 0] == EMPTY:
        state.lists[which, 0] = member
    else:
        state.after[state.lists[which, 1]] = member
    state.lists[which, 1] = member


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def push_front(state, which, member):
    """Puts the member before all others of the list."""
    state.after[member] = state.lists[which, 0]
    if state.lists[which, 0] == EMPTY:
        state.lists[which, 1] = member
    state.lists[which, 0] = member


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def pop(state, which):
    """Takes the first member of the list."""
    member = state.lists[which, 0]
    state.lists[which, 0] = state.after[member]
    return member


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def mark(marks, which):
    """Marks `which` unless it is marked already."""
    if marks[which, 1] == 0:
        marks[which, 1] = 1
        marks[marks[0, 0] + 1, 0] = which
        marks[0, 0] += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def take_marks(marks, taken):
    """Moves the marked into `taken` in order of index, unmarking them; returns how many."""
    num = marks[0, 0]
    for place in range(num):
        which = marks[place + 1, 0]
        marks[which, 1] = 0
        at = place
        while at > 0 and taken[at - 1] > which:
            taken[at] = taken[at - 1]
            at -= 1
        taken[at] = which
    marks[0, 0] = 0
    return num
