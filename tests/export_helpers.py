"""Deployments made directly from a strategy, without a run or a simulation; and readers of what exports wrote."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from ruamel.yaml import YAML

from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.parallelism import Parallelism
from search.export.checkpoint import Checkpoint
from search.export.deployment import POOL_NAMES, Deployment, PoolPlan
from spaces.strategy import COLLOCATED_POLICIES, DISAGGREGATED_POLICIES, ROUTERS, Pool, Role, Strategy

GPUS = ("h100_sxm", "h200_sxm", "l40s", "b300_sxm", "gb200")


def deployment_for(strategy: Strategy | str, engine: str = "vllm", **changes: Any) -> Deployment:
    """A deployment of the strategy on one of the bundled engines; a dense 8B model unless `changes` says else."""
    parsed = Strategy.parse(strategy) if isinstance(strategy, str) else strategy
    card = load_engine(engine)
    given: dict[str, Any] = {
        "run": "Some run",
        "strategy": parsed,
        "engine": card,
        "checkpoint": Checkpoint(path="meta-llama/Llama-3.1-8B"),
        "kv_dtype": "bf16",
        "pools": tuple(
            PoolPlan(
                name=POOL_NAMES[pool.role],
                count=pool.count,
                gpu=load_gpu(pool.gpu),
                parallelism=pool.parallelism,
                limits=pool.limits(card.limits),
            )
            for pool in parsed.pools
        ),
        "context_tokens": 2048,
        "longest_tokens": 2048,
        "cached_frac": 0.0,
        "num_kv_heads": 8,
        "sparse_latent": False,
        "windowed": False,
    }
    return Deployment(**(given | changes))


@st.composite
def pools(draw: st.DrawFn, role: Role, gpu: str) -> Pool:
    """Any pool that could be written down, fast-link and memory rules left out."""
    tp, pp, dp = (draw(st.sampled_from(choices)) for choices in ((1, 2, 4, 8), (1, 2), (1, 2, 4)))
    ep = draw(st.sampled_from([1, tp * dp, *(n for n in (2, 4, 8, 16) if (tp * dp) % n == 0)]))
    return Pool(
        role=role,
        count=draw(st.integers(1, 6)),
        gpu=gpu,
        parallelism=Parallelism(tp=tp, pp=pp, dp=dp, ep=ep),
        max_num_batched_tokens=draw(st.sampled_from([2048, 16384, None, 512])),
        max_num_seqs=draw(st.sampled_from([None, 64, 1024])),
    )


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    """Collocated and disaggregated strategies of every policy and router, on one GPU type or two."""
    gpu, router = draw(st.sampled_from(GPUS)), draw(st.sampled_from((ROUTERS[0], *ROUTERS)))
    if draw(st.booleans()):
        policy = draw(st.sampled_from((*COLLOCATED_POLICIES, "chunked", "chunked")))
        return Strategy(pools=(draw(pools("m", gpu)),), policy=policy, router=router)
    other = draw(st.sampled_from((gpu, gpu, "h100_sxm", "b300_sxm")))
    both = (draw(pools("p", gpu)), draw(pools("d", other)))
    policy = draw(st.sampled_from((*DISAGGREGATED_POLICIES, "distserve", "distserve")))
    return Strategy(pools=both, policy=policy, router=router)


def load_yaml(text: str) -> Any:
    """What another YAML reader sees in an exported file."""
    return YAML(typ="safe", pure=True).load(text)


def exported_words(script: str) -> list[str]:
    """The words of a script's command, as the shell would split them; host variables stay as written."""
    command = script[script.index("\nexec ") + len("\nexec ") :]
    return shlex.split(command)


def environment_of(script: str) -> dict[str, str]:
    """What a script exports."""
    lines = [line.removeprefix("export ") for line in script.splitlines() if line.startswith("export ")]
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def flags_of(words: list[str]) -> dict[str, str]:
    """Flags with their first value, from separate or joined words; a switch has the value `""`."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, joined, value = word.partition("=")
            following = words[index + 1] if index + 1 < len(words) else "--"
            found[name] = value if joined else "" if following.startswith("--") else following
    return found


def known(options: Mapping[str, Any], name: str) -> bool:
    """Whether an option or the positive form of a negated switch is recorded."""
    return name in options or name.replace("--no-", "--", 1) in options
