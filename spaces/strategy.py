"""A serving strategy: pools of equal instances, and its one written form.

    strategy := pool ["+" pool]                         one collocated pool, or a prefill pool and a decode pool
    pool     := COUNT ROLE "-tp" N ["-pp" N] ["-dp" N] ["-ep" N] "@" GPU {"," option}
    ROLE     := "m" (collocated) | "p" (prefill) | "d" (decode)
    option   := "tokens=" N | "seqs=" N | "policy=" NAME | "router=" NAME

`2m-tp4@h100_sxm` is two collocated instances of TP4; `3p-tp2@h100_sxm+5d-tp4@h200_sxm` three prefill instances and five
decode instances. Degrees of 1 are left out (tp is always printed); limits left out are the engine's own. Policy and
router stand on the first pool, for the whole strategy, and are left out where they are the default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from estimator.errors import BestServeError, require
from estimator.instance import EngineLimits
from estimator.parallelism import Parallelism

Role = Literal["m", "p", "d"]
COLLOCATED_POLICIES = ("chunked", "prefill_first", "static")
DISAGGREGATED_POLICIES = ("distserve", "tetriinfer")
ROUTERS = ("round_robin", "random", "least_outstanding", "power_of_two")
_POOL = re.compile(
    r"(?P<count>\d+)(?P<role>[mpd])(?:-tp(?P<tp>\d+))?(?:-pp(?P<pp>\d+))?(?:-dp(?P<dp>\d+))?(?:-ep(?P<ep>\d+))?"
    r"@(?P<gpu>[A-Za-z0-9][A-Za-z0-9_.\-]*)(?P<options>(?:,[^,+]*)*)"
)
_FORM = "2m-tp4@h100_sxm or 3p-tp2@h100_sxm+5d-tp4@h200_sxm, each with ,tokens=N,seqs=N,policy=NAME,router=NAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """`count` equal instances on one GPU type; limits of None are the engine's own."""

    role: Role
    count: int
    gpu: str
    parallelism: Parallelism
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None

    def __post_init__(self) -> None:
        require(self.role in ("m", "p", "d"), field="role", value=self.role, rule="unknown", accepted="m, p or d")
        for name in ("count", "max_num_batched_tokens", "max_num_seqs"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                field=name,
                value=value,
                rule="must be at least 1",
                accepted="a whole number ≥ 1",
            )

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole pool."""
        return self.count * self.parallelism.num_gpus

    def limits(self, default: EngineLimits) -> EngineLimits:
        """The pool's limits, the engine's `default` where it names none."""
        return EngineLimits(
            max_num_batched_tokens=self.max_num_batched_tokens or default.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs or default.max_num_seqs,
        )

    def written(self, policy: str | None = None, router: str | None = None) -> str:
        """The pool's part of the written form, with the strategy's policy and router if these are to be named."""
        degrees = self.parallelism
        layout = f"-tp{degrees.tp}" + "".join(
            f"-{name}{getattr(degrees, name)}" for name in ("pp", "dp", "ep") if getattr(degrees, name) != 1
        )
        options = {"tokens": self.max_num_batched_tokens, "seqs": self.max_num_seqs, "policy": policy, "router": router}
        written = "".join(f",{name}={value}" for name, value in options.items() if value is not None)
        return f"{self.count}{self.role}{layout}@{self.gpu}{written}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One collocated pool, or a prefill pool and a decode pool in that order, run under `policy` behind `router`.

    An empty policy means the default: `chunked` collocated, `distserve` disaggregated.
    """

    pools: tuple[Pool, ...]
    policy: str = ""
    router: str = ROUTERS[0]

    def __post_init__(self) -> None:
        roles = "".join(pool.role for pool in self.pools)
        require(
            roles in ("m", "pd"), field="strategy", value=roles, rule="pools must be m, or p and then d", accepted=_FORM
        )
        policies = DISAGGREGATED_POLICIES if self.is_disaggregated else COLLOCATED_POLICIES
        if not self.policy:
            object.__setattr__(self, "policy", policies[0])
        require(
            self.policy in policies,
            field="policy",
            value=self.policy,
            rule=f"does not exist for {'disaggregated' if self.is_disaggregated else 'collocated'} strategies",
            accepted=", ".join(policies),
        )
        require(
            self.router in ROUTERS, field="router", value=self.router, rule="is unknown", accepted=", ".join(ROUTERS)
        )

    @property
    def is_disaggregated(self) -> bool:
        """Whether prefill and decode have pools of their own."""
        return len(self.pools) == 2

    @property
    def num_gpus(self) -> int:
        """GPUs of all pools."""
        return sum(pool.num_gpus for pool in self.pools)

    @property
    def gpu_counts(self) -> dict[str, int]:
        """GPUs used of each type."""
        counts: dict[str, int] = {}
        for pool in self.pools:
            counts[pool.gpu] = counts.get(pool.gpu, 0) + pool.num_gpus
        return counts

    def __str__(self) -> str:
        """The written form; `Strategy.parse` reads it back equal."""
        default = DISAGGREGATED_POLICIES[0] if self.is_disaggregated else COLLOCATED_POLICIES[0]
        policy = self.policy if self.policy != default else None
        router = self.router if self.router != ROUTERS[0] else None
        first, *others = self.pools
        return "+".join([first.written(policy, router), *(pool.written() for pool in others)])

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """The strategy written as `text`; raises `BestServeError` that names the part it cannot read."""
        pools, options = [], []
        for part in text.strip().split("+"):
            pool, named = _parse_pool(part.strip())
            pools.append(pool)
            options.append(named)
        for name in ("policy", "router"):
            if any(name in named for named in options[1:]):
                raise BestServeError(
                    "strategy", text, f"gives a {name} on the second pool", f"{name}=NAME on the first"
                )
        first = options[0]
        return cls(pools=tuple(pools), policy=first.get("policy", ""), router=first.get("router", ROUTERS[0]))


def _parse_pool(text: str) -> tuple[Pool, dict[str, str]]:
    match = _POOL.fullmatch(text)
    if match is None:
        raise BestServeError("strategy", text, "is not a pool", _FORM)
    options = _parse_options(match["options"])
    degrees = {name: int(match[name] or 1) for name in ("tp", "pp", "dp", "ep")}
    pool = Pool(
        role=cast(Role, match["role"]),
        count=int(match["count"]),
        gpu=match["gpu"],
        parallelism=Parallelism(**degrees),
        max_num_batched_tokens=_whole(options, "tokens"),
        max_num_seqs=_whole(options, "seqs"),
    )
    return pool, options


def _parse_options(text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for option in text.split(",")[1:]:
        name, _, value = option.partition("=")
        known = name in ("tokens", "seqs", "policy", "router") and name not in options and bool(value)
        require(
            known,
            field="strategy",
            value=option,
            rule="is not an option of a pool",
            accepted="tokens=N, seqs=N, policy=NAME, router=NAME, each once",
        )
        options[name] = value
    return options


def _whole(options: dict[str, str], name: str) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    require(
        value.isascii() and value.isdigit(),
        field=name,
        value=value,
        rule="must be a whole number",
        accepted=f"{name}=256",
    )
    return int(value)
