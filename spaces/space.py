"""The strategies of one problem: shapes first, counts second. Countable without listing them, in one fixed order.

A *shape* is a pool of one instance (GPU, degrees, limits) that breaks no rule. A collocated strategy is a shape, a
policy and a count; a disaggregated one a prefill shape, a decode shape, a policy and two counts. The counts
(`spaces.counts`) depend only on the number of GPUs and their types, so counting groups shapes by those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Protocol

from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism
from spaces.choices import SearchSpace
from spaces.counts import Counts
from spaces.problem import Problem, memory_fit
from spaces.rules import broken_shape, broken_whole, providers_of
from spaces.strategy import Pool, Role, Strategy

Params = dict[str, str | int]


class Chooser(Protocol):
    """Who chooses: an Optuna trial, or parameters written down (`Recorded`)."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """One of the choices; the same name always comes with the same choices."""
        ...

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number, both ends included; the range may differ between calls."""
        ...


class Recorded:
    """A chooser that repeats given parameters and keeps the ranges it was asked for."""

    def __init__(self, params: Mapping[str, str | int]) -> None:
        self.params = params
        self.asked: dict[str, list[str] | tuple[int, int]] = {}

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """The choice written down."""
        self.asked[name] = list(choices)
        return str(self.params[name])

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """The number written down."""
        self.asked[name] = (low, high)
        return int(self.params[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What one rule took out: number of shapes, and one example with its reason."""

    num_shapes: int
    example: str
    reason: str


class Space:
    """Every feasible strategy of a problem. Making it checks each shape once, memory included."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.allowed: SearchSpace = problem.space
        self.counts = Counts(problem)
        self._reasons: dict[str, list[tuple[Pool, str]]] = {}
        self.shapes: dict[Role, tuple[Pool, ...]] = {role: tuple(self._feasible(role)) for role in self._roles()}

    def _roles(self) -> tuple[Role, ...]:
        roles: tuple[Role, ...] = ()
        if "collocated" in self.allowed.architectures:
            roles += ("m",)
        if "disaggregated" in self.allowed.architectures:
            roles += ("p", "d")
        return roles

    # ---- shapes

    def _feasible(self, role: Role) -> Iterator[Pool]:
        for gpu, degrees in product(self._gpus(role), self._degrees(role)):
            choices = [self._pool(role, gpu, degrees, tokens, seqs) for tokens, seqs in self._limits(role)]
            broken = broken_shape(self.problem, choices[0]) or self._too_many(choices[0])
            if broken is not None:
                self._reasons.setdefault(broken.rule, []).extend((pool, broken.reason) for pool in choices)
                continue
            largest = max(choices, key=lambda pool: (pool.max_num_batched_tokens or 0, pool.max_num_seqs or 0))
            if memory_fit(self.problem, largest) is None:
                yield from choices  # less room for activations and sequences never needs more memory
                continue
            for pool in choices:
                too_big = memory_fit(self.problem, pool)
                if too_big is None:
                    yield pool
                else:
                    self._reasons.setdefault(too_big.rule, []).append((pool, too_big.reason))

    def _gpus(self, role: Role) -> tuple[str, ...]:
        allowed = self.allowed.gpus or tuple(self.problem.gpus)
        narrowed = self.allowed.of(role).gpus
        return tuple(gpu for gpu in allowed if not narrowed or gpu in narrowed)

    def _degrees(self, role: Role) -> list[Parallelism]:
        choices = [self.allowed.degrees(role, name) for name in ("tp", "pp", "dp", "ep")]
        return [Parallelism(tp=tp, pp=pp, dp=dp, ep=ep) for tp, pp, dp, ep in product(*choices) if tp * dp % ep == 0]

    def _limits(self, role: Role) -> list[tuple[int | None, int | None]]:
        tokens = self.allowed.max_num_batched_tokens if role != "d" else (None,)
        seqs = self.allowed.max_num_seqs if role != "p" else (None,)
        return list(product(tokens, seqs))

    @staticmethod
    def _pool(role: Role, gpu: str, degrees: Parallelism, tokens: int | None, seqs: int | None) -> Pool:
        return Pool(role=role, count=1, gpu=gpu, parallelism=degrees, max_num_batched_tokens=tokens, max_num_seqs=seqs)

    def _too_many(self, shape: Pool) -> Infeasible | None:
        if self.max_count(shape) >= 1:
            return None
        most = self.max_gpus(shape.gpu)
        reason = f"{shape.num_gpus} GPUs of one instance, {most} {shape.gpu} allowed"
        return Infeasible(rule="gpu_budget", reason=reason, violation=shape.num_gpus / max(most, 1) - 1)

    def central(self, role: Role) -> tuple[Pool, ...]:
        """One shape per GPU and layout: the one with the middle limits of those allowed."""
        layouts = [limits for layouts in self._trees.get(role, {}).values() for limits in layouts.values()]
        return tuple(list(limits.values())[len(limits) // 2] for limits in layouts)

    def max_gpus(self, gpu: str) -> int:
        """Most GPUs of a type that a strategy may use."""
        return self.counts.max_gpus(gpu)

    @property
    def removed(self) -> dict[str, Removed]:
        """By rule: how many shapes it removed, with an example."""
        return {
            rule: Removed(num_shapes=len(pools), example=pools[0][0].written(), reason=pools[0][1])
            for rule, pools in self._reasons.items()
        }

    # ---- counting and listing

    def max_count(self, shape: Pool, beside: Mapping[str, int] | None = None) -> int:
        """Most instances of a shape within budget and ownership, `beside` GPUs (by type) already in use."""
        return self.counts.most(shape, beside)

    @cached_property
    def size(self) -> int:
        """Number of strategies. Patterns can only be counted by listing; else nothing is."""
        if self.allowed.only or self.allowed.forbid:
            return sum(1 for _ in self)
        return self.num_counted

    @cached_property
    def num_counted(self) -> int:
        """Number of strategies before patterns take theirs."""
        collocated = sum(num * len(self.counts.of_one(shape)) for shape, num in self._groups("m"))
        pairs = sum(
            num_p * num_d * self.counts.num_pairs(p, d)
            for (p, num_p), (d, num_d) in product(self._groups("p"), self._groups("d"))
            if self.may_pair(p, d)
        )
        return collocated * len(self.modes("collocated")) + pairs * len(self.modes("disaggregated"))

    def modes(self, architecture: str) -> list[tuple[str, str]]:
        """(policy, router) of the architecture's strategies."""
        return list(product(self._policies(architecture), self.allowed.routers))

    def may_pair(self, p: Pool, d: Pool) -> bool:
        """Whether one provider sells both GPU types."""
        return len(providers_of(self.problem, (p.gpu, d.gpu))) <= 1

    def _groups(self, role: Role) -> list[tuple[Pool, int]]:
        """One shape, and how many are alike, per GPU type and number of GPUs."""
        shapes = self.shapes.get(role, ())
        alike = Counter((shape.gpu, shape.num_gpus) for shape in shapes)
        first = {(shape.gpu, shape.num_gpus): shape for shape in reversed(shapes)}
        return [(first[key], num) for key, num in alike.items()]

    def _max_prefill(self, prefill: Pool, decode: Pool) -> int:
        """Most prefill instances that leave room for one decode instance."""
        return self.max_count(prefill, {decode.gpu: decode.num_gpus})

    def __iter__(self) -> Iterator[Strategy]:
        """Every strategy once, in a fixed order."""
        for (policy, router), shape in product(self.modes("collocated"), self.shapes.get("m", ())):
            for count in self.counts.of_one(shape).tolist():
                pool = replace(shape, count=count)
                yield from self._permitted(Strategy(pools=(pool,), policy=policy, router=router))
        modes = self.modes("disaggregated")
        for (policy, router), p, d in product(modes, self.shapes.get("p", ()), self.shapes.get("d", ())):
            for x, y in zip(*(counts.tolist() for counts in self.counts.of_pair(p, d)), strict=True):
                pools = (replace(p, count=x), replace(d, count=y))
                yield from self._permitted(Strategy(pools=pools, policy=policy, router=router))

    def _permitted(self, strategy: Strategy) -> Iterator[Strategy]:
        if broken_whole(self.problem, strategy) is None:
            yield strategy

    def __contains__(self, strategy: object) -> bool:
        """Whether the strategy is one of the space's."""
        if not isinstance(strategy, Strategy):
            return False
        modes = self.modes("disaggregated" if strategy.is_disaggregated else "collocated")
        known = all(replace(pool, count=1) in self._shape_sets.get(pool.role, ()) for pool in strategy.pools)
        return known and (strategy.policy, strategy.router) in modes and broken_whole(self.problem, strategy) is None

    @cached_property
    def _shape_sets(self) -> dict[Role, frozenset[Pool]]:
        return {role: frozenset(shapes) for role, shapes in self.shapes.items()}

    # ---- parameters for samplers

    def decode(self, chooser: Chooser) -> Strategy | None:
        """The strategy a chooser chooses: architecture, policy, shapes, then counts; None if no count fits the pair."""
        architecture = chooser.suggest_categorical("architecture", self._architectures)
        policies = self._policies(architecture)
        policy, routers = chooser.suggest_categorical(f"{architecture}_policy", policies), self.allowed.routers
        router = chooser.suggest_categorical("router", routers) if len(routers) > 1 else routers[0]
        if architecture == "collocated":
            shape = self._choose_shape(chooser, "m")
            count = chooser.suggest_int("m_count", 1, self.max_count(shape))
            return Strategy(pools=(replace(shape, count=count),), policy=policy, router=router)
        p, d = self._choose_shape(chooser, "p"), self._choose_shape(chooser, "d")
        most = self._max_prefill(p, d)
        if most < 1 or self.max_count(d, {p.gpu: p.num_gpus}) < 1:
            return None
        x = chooser.suggest_int("p_count", 1, most)
        y = chooser.suggest_int("d_count", 1, self.max_count(d, {p.gpu: x * p.num_gpus}))
        return Strategy(pools=(replace(p, count=x), replace(d, count=y)), policy=policy, router=router)

    def encode(self, strategy: Strategy) -> Params:
        """The parameters that `decode` turns into this strategy, which must be in the space."""
        architecture = "disaggregated" if strategy.is_disaggregated else "collocated"
        params: Params = {"architecture": architecture, f"{architecture}_policy": strategy.policy}
        if len(self.allowed.routers) > 1:
            params["router"] = strategy.router
        for pool in strategy.pools:
            role, layout = pool.role, _layout(pool)
            params[f"{role}_gpu"] = pool.gpu
            params[f"{role}_layout@{pool.gpu}"] = layout
            params[self._limits_name(role, pool.gpu, layout)] = _limits_text(pool)
            params[f"{role}_count"] = pool.count
        return params

    @cached_property
    def _architectures(self) -> list[str]:
        has_pairs = bool(self.shapes.get("p")) and bool(self.shapes.get("d"))
        available = {"collocated": bool(self.shapes.get("m")), "disaggregated": has_pairs}
        return [name for name in self.allowed.architectures if available[name]]

    def _policies(self, architecture: str) -> Sequence[str]:
        allowed = self.allowed
        return allowed.collocated_policies if architecture == "collocated" else allowed.disaggregated_policies

    def _choose_shape(self, chooser: Chooser, role: Role) -> Pool:
        tree = self._trees[role]
        gpu = chooser.suggest_categorical(f"{role}_gpu", list(tree))
        layout = chooser.suggest_categorical(f"{role}_layout@{gpu}", list(tree[gpu]))
        limits = tree[gpu][layout]
        return limits[chooser.suggest_categorical(self._limits_name(role, gpu, layout), list(limits))]

    def _limits_name(self, role: Role, gpu: str, layout: str) -> str:
        """One parameter for all layouts that allow every limit, one of its own for a layout that does not."""
        complete = len(self._trees[role][gpu][layout]) == len(self._limits(role))
        return f"{role}_limits" if complete else f"{role}_limits@{layout}@{gpu}"

    @cached_property
    def _trees(self) -> dict[Role, dict[str, dict[str, dict[str, Pool]]]]:
        """Role, GPU, layout, limits: shape."""
        trees: dict[Role, dict[str, dict[str, dict[str, Pool]]]] = {}
        for role, shapes in self.shapes.items():
            for shape in shapes:
                layouts = trees.setdefault(role, {}).setdefault(shape.gpu, {})
                layouts.setdefault(_layout(shape), {})[_limits_text(shape)] = shape
        return trees

    # ---- neighbours

    def neighbours(self, strategy: Strategy) -> list[Strategy]:
        """Strategies of the space one step away: a count by one, one pool's shape in one respect, policy or router."""
        architecture = "disaggregated" if strategy.is_disaggregated else "collocated"
        found = [replace(strategy, policy=policy) for policy in self._policies(architecture)]
        found += [replace(strategy, router=router) for router in self.allowed.routers]
        for index, pool in enumerate(strategy.pools):
            for other in self._beside(pool):
                pools = (*strategy.pools[:index], other, *strategy.pools[index + 1 :])
                found.append(replace(strategy, pools=pools))
        return [other for other in found if other != strategy and other in self]

    def _beside(self, pool: Pool) -> Iterator[Pool]:
        for step in (-1, 1):
            if pool.count + step >= 1:
                yield replace(pool, count=pool.count + step)
        for shape in self.shapes[pool.role]:
            same_gpu, same_layout = shape.gpu == pool.gpu, shape.parallelism == pool.parallelism
            same_limits = _limits_text(shape) == _limits_text(pool)
            if same_gpu + same_layout + same_limits == 2:
                count = max(1, round(pool.num_gpus / shape.num_gpus))
                yield replace(shape, count=count)


def _layout(pool: Pool) -> str:
    """Degrees as written in a strategy, `tp4-pp2`."""
    return pool.written().split("@")[0].partition("-")[2]


def _limits_text(pool: Pool) -> str:
    return f"tokens={pool.max_num_batched_tokens},seqs={pool.max_num_seqs}"
