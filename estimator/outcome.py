"""Outcomes that are answers, not errors: a strategy that does not fit, and one that cannot keep up.

Both carry the size of the violation (> 0, relative) so that a sampler learns from them. A failure (our bug) is a third
outcome and travels as an exception.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """The strategy cannot exist: `rule` is the rule's name, `reason` one sentence, `violation` > 0 relative."""

    rule: str
    reason: str
    violation: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstable:
    """No arrival rate meets the SLO; `violation`: excess of the lightest load (ρ − 1, or over the SLO)."""

    reason: str
    violation: float = 1.0
