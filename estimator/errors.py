"""The one family of errors for wrong input; infeasible and unstable are values (`estimator.outcome`), not errors."""

from __future__ import annotations


class BestServeError(ValueError):
    """Wrong input, told in one sentence: the field, the value with its unit, the rule, and what would be accepted.

    The command line prints the sentence and exits with code 2.
    """

    def __init__(self, field: str, value: object, rule: str, accepted: str) -> None:
        self.field, self.value, self.rule, self.accepted = field, value, rule, accepted
        super().__init__(f"{field}: {value!r} {rule}; accepted: {accepted}.")

    def __reduce__(self) -> tuple[type[BestServeError], tuple[str, object, str, str]]:
        """Pickle by the four parts, so that a Ray worker's error arrives whole."""
        return type(self), (self.field, self.value, self.rule, self.accepted)


def require(condition: bool, *, field: str, value: object, rule: str, accepted: str) -> None:
    """Raise `BestServeError` unless the condition holds."""
    if not condition:
        raise BestServeError(field, value, rule, accepted)
