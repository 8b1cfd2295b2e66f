"""What the user allows to be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from estimator.errors import BestServeError
from spaces.strategy import COLLOCATED_POLICIES, DISAGGREGATED_POLICIES, ROUTERS, Role

ARCHITECTURES = ("collocated", "disaggregated")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChoices:
    """What pools of one role may choose; None: as in the whole `SearchSpace`. `expert_tp`: tp × dp / ep."""

    gpus: tuple[str, ...] = ()
    tp: tuple[int, ...] | None = None
    pp: tuple[int, ...] | None = None
    dp: tuple[int, ...] | None = None
    ep: tuple[int, ...] | None = None
    expert_tp: tuple[int, ...] | None = None
    min_count: int = 1
    max_count: int | None = None


EVERYTHING = PoolChoices()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What may be chosen. Degrees and limits are lists of choices; a list of one value fixes it.

    `gpus` empty: every GPU of the problem; `pools`: what one role narrows further. `owned`: most GPUs of a type that
    may be used. `max_gpus`, `min_gpus`: of all types together. A limit of None is the engine's own. `expert_tp` None:
    whatever tp × dp / ep gives. `only`/`forbid`: shell patterns over the written form (`*-tp8@l40s*`); with `only`, at
    least one must match. `whole_nodes`: the GPUs of each type must fill whole nodes. `providers`: who sells a GPU type;
    types of different providers do not share a cluster, types without one go anywhere.
    Prefill pools choose a token budget and decode pools a number of sequences; the other limit hardly matters there.
    """

    max_gpus: int
    min_gpus: int = 1
    gpus: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ARCHITECTURES
    tp: tuple[int, ...] = (1, 2, 4, 8)
    pp: tuple[int, ...] = (1, 2, 4)
    dp: tuple[int, ...] = (1, 2, 4, 8)
    ep: tuple[int, ...] = (1, 2, 4, 8, 16)
    expert_tp: tuple[int, ...] | None = None
    max_num_batched_tokens: tuple[int | None, ...] = (2048, 8192, 16384)
    max_num_seqs: tuple[int | None, ...] = (64, 256, 1024)
    collocated_policies: tuple[str, ...] = COLLOCATED_POLICIES[:1]
    disaggregated_policies: tuple[str, ...] = DISAGGREGATED_POLICIES[:1]
    routers: tuple[str, ...] = ROUTERS[:1]
    pools: Mapping[Role, PoolChoices] = field(default_factory=dict)
    owned: Mapping[str, int] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    whole_nodes: bool = False
    providers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_gpus < 1:
            raise BestServeError("max_gpus", self.max_gpus, "must be at least 1", "a whole number ≥ 1")
        known = {
            "architectures": ARCHITECTURES,
            "collocated_policies": COLLOCATED_POLICIES,
            "disaggregated_policies": DISAGGREGATED_POLICIES,
            "routers": ROUTERS,
        }
        for name, accepted in known.items():
            for value in getattr(self, name):
                if value not in accepted:
                    raise BestServeError(name, value, "is unknown", ", ".join(accepted))
        for name in ("architectures", "routers", "tp", "pp", "dp", "ep", "max_num_batched_tokens", "max_num_seqs"):
            values = getattr(self, name)
            if not values or any(isinstance(value, int) and value < 1 for value in values):
                raise BestServeError(name, values, "must be choices of at least 1", "for example (1, 2, 4)")

    def of(self, role: Role) -> PoolChoices:
        """What pools of the role narrow."""
        return self.pools.get(role, EVERYTHING)

    def degrees(self, role: Role, name: str) -> tuple[int, ...]:
        """Allowed values of tp, pp, dp or ep for pools of the role."""
        own: tuple[int, ...] | None = getattr(self.of(role), name)
        common: tuple[int, ...] = getattr(self, name)
        return common if own is None else own

    def expert_tp_of(self, role: Role) -> tuple[int, ...] | None:
        """Allowed numbers of GPUs that share one expert, or None for any."""
        own = self.of(role).expert_tp
        return self.expert_tp if own is None else own
