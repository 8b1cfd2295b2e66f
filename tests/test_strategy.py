"""The written form of strategies."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.errors import BestServeError
from estimator.instance import EngineLimits
from estimator.parallelism import Parallelism
from spaces.strategy import COLLOCATED_POLICIES, DISAGGREGATED_POLICIES, ROUTERS, Pool, Role, Strategy

DEGREES = st.sampled_from([1, 2, 4, 8])


@st.composite
def pools(draw: st.DrawFn, role: Role) -> Pool:
    """Any pool of one role."""
    tp, pp, dp = draw(DEGREES), draw(DEGREES), draw(DEGREES)
    ep = draw(st.sampled_from([n for n in (1, 2, 4, 8, 16) if tp * dp % n == 0]))
    return Pool(
        role=role,
        count=draw(st.integers(1, 4096)),
        gpu=draw(st.sampled_from(["h100_sxm", "l40s", "my-gpu.2"])),
        parallelism=Parallelism(tp=tp, pp=pp, dp=dp, ep=ep),
        max_num_batched_tokens=draw(st.none() | st.integers(1, 1 << 20)),
        max_num_seqs=draw(st.none() | st.integers(1, 4096)),
    )


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    """Any strategy."""
    router = draw(st.sampled_from(ROUTERS))
    if draw(st.booleans()):
        return Strategy(pools=(draw(pools("m")),), policy=draw(st.sampled_from(COLLOCATED_POLICIES)), router=router)
    pair = (draw(pools("p")), draw(pools("d")))
    return Strategy(pools=pair, policy=draw(st.sampled_from(DISAGGREGATED_POLICIES)), router=router)


@given(strategies())
def test_written_form_reads_back_equal(strategy: Strategy) -> None:
    """Parsing what a strategy prints gives an equal strategy with an equal hash."""
    again = Strategy.parse(str(strategy))
    assert again == strategy
    assert hash(again) == hash(strategy)


@pytest.mark.parametrize(
    "text",
    [
        "2m-tp4@h100_sxm",
        "3p-tp2@h100_sxm+5d-tp4@h200_sxm",
        "1m-tp2-pp2-dp4-ep8@h100_sxm",
        "2m-tp4@h100_sxm,tokens=8192,seqs=256",
        "1p-tp1@l40s,tokens=16384,policy=tetriinfer+2d-tp1@l40s,seqs=512",
        "8m-tp1@l40s,seqs=64,policy=static,router=least_outstanding",
    ],
)
def test_known_forms_print_back_the_same(text: str) -> None:
    """The documented written forms print back character by character."""
    assert str(Strategy.parse(text)) == text


def test_counts_gpus_by_type() -> None:
    """A strategy's GPUs are count × tp × pp × dp, summed by GPU type."""
    strategy = Strategy.parse("3p-tp2@h100_sxm+5d-tp2-dp2@h200_sxm")
    assert strategy.gpu_counts == {"h100_sxm": 6, "h200_sxm": 20}
    assert strategy.num_gpus == 26


def test_limits_fall_back_to_the_engine() -> None:
    """A limit the pool does not name is the engine's."""
    pool = Strategy.parse("1m-tp1@l40s,seqs=64").pools[0]
    default = EngineLimits(max_num_batched_tokens=2048, max_num_seqs=256)
    assert pool.limits(default) == EngineLimits(max_num_batched_tokens=2048, max_num_seqs=64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a pool"),
        ("2x-tp4@h100_sxm", "is not a pool"),
        ("2m-tp4", "is not a pool"),
        ("2m-pp2-tp4@h100_sxm", "is not a pool"),
        ("0m-tp4@h100_sxm", "count: 0 must be at least 1"),
        ("1m-tp0@h100_sxm", "tp: 0 must be at least 1"),
        ("1m-tp2-ep3@h100_sxm", "ep: 3 must divide tp × dp = 2"),
        ("1m-tp1@l40s,tokens=many", "tokens: 'many' must be a whole number"),
        ("1m-tp1@l40s,seqs=1,seqs=2", "is not an option"),
        ("1m-tp1@l40s,batch=2", "'batch=2' is not an option"),
        ("1p-tp1@l40s", "pools must be m, or p and then d"),
        ("1d-tp1@l40s+1p-tp1@l40s", "pools must be m, or p and then d"),
        ("1m-tp1@l40s,policy=tetriinfer", "does not exist for collocated"),
        ("1p-tp1@l40s+1d-tp1@l40s,policy=tetriinfer", "policy on the second pool"),
        ("1p-tp1@l40s+1d-tp1@l40s,router=random", "router on the second pool"),
        ("2m-tp1@l40s,router=psychic", "router: 'psychic' is unknown"),
    ],
)
def test_unreadable_forms_name_the_part(text: str, message: str) -> None:
    """A form that does not parse raises with the part and the rule."""
    with pytest.raises(BestServeError, match=re.escape(message)):
        Strategy.parse(text)
