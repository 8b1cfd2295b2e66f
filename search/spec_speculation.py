"""How a model drafts tokens ahead, as a spec writes it."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from estimator.speculation import Speculation
from search.edge import Edge


class MultiTokenPredictionSpec(Edge):
    """Drafts of the model's own prediction layers, verified in the next step."""

    draft_tokens: PositiveInt = Field(default=1, description="tokens drafted per sequence and step, 1 to 8")
    acceptance: float = Field(
        description="chance that a drafted token is accepted, given that those before it were, 0 to 1"
    )

    def speculation(self) -> Speculation:
        """As the estimator takes it; `BestServeError` for a number out of range."""
        return Speculation(draft_tokens=self.draft_tokens, acceptance=self.acceptance)
