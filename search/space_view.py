"""A space in numbers and examples: how large, what each rule takes, what a strategy looks like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from spaces.rules import EXPLANATIONS
from spaces.space import Space

NUM_EXAMPLES = 5
MAX_LISTED = 200_000  # strategies that examples and patterns look through
ROLES = {"m": "collocated", "p": "prefill", "d": "decode"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleEffect:
    """What one rule takes: `shapes` that it forbids, or `strategies` that there would be without it; an example."""

    rule: str
    says: str
    shapes: int | None
    strategies: int | None
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceView:
    """`shapes` by kind of pool; `examples` spread over the space."""

    size: int
    shapes: dict[str, int]
    rules: tuple[RuleEffect, ...]
    examples: tuple[str, ...]


def space_view(space: Space) -> SpaceView:
    """The space described."""
    return SpaceView(
        size=space.size,
        shapes={ROLES[role]: len(shapes) for role, shapes in space.shapes.items()},
        rules=(*_shape_rules(space), *_strategy_rules(space)),
        examples=_examples(space),
    )


def _shape_rules(space: Space) -> list[RuleEffect]:
    return [
        RuleEffect(
            rule=rule,
            says=EXPLANATIONS[rule],
            shapes=removed.num_shapes,
            strategies=None,
            example=f"{removed.example}: {removed.reason}",
        )
        for rule, removed in space.removed.items()
    ]


def _strategy_rules(space: Space) -> list[RuleEffect]:
    """How many strategies more there would be without each of the user's own limits that is in force."""
    allowed = space.allowed
    without = {
        "least_gpus": replace(allowed, min_gpus=1),
        "owned": replace(allowed, owned={}),
        "whole_nodes": replace(allowed, whole_nodes=False),
        "one_provider": replace(allowed, providers={}),
        "instances": replace(
            allowed, pools={role: replace(pool, min_count=1, max_count=None) for role, pool in allowed.pools.items()}
        ),
    }
    if space.num_counted <= MAX_LISTED:
        without["patterns"] = replace(allowed, only=(), forbid=())
    effects = []
    for rule, wider in without.items():
        if wider == allowed:
            continue
        freed = Space(replace(space.problem, space=wider)).size - space.size
        effects.append(RuleEffect(rule=rule, says=EXPLANATIONS[rule], shapes=None, strategies=freed, example=""))
    return effects


def _examples(space: Space) -> tuple[str, ...]:
    """Strategies evenly spread over the first `MAX_LISTED` in the space's order, first and last among them."""
    num = min(space.num_counted, MAX_LISTED)
    step = max(1, (num - 1) // max(1, NUM_EXAMPLES - 1))
    return tuple(map(str, islice(islice(space, num), 0, None, step)))[:NUM_EXAMPLES]
