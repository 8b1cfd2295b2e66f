"""How one instance divides a model over its GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """Degrees of one instance: tensor `tp`, pipeline `pp`, attention data-parallel `dp`, expert `ep`.

    The instance uses tp × pp × dp GPUs. In expert layers the same tp × dp GPUs of a stage are re-divided into `ep`
    expert groups of `moe_tp` = tp × dp / ep GPUs each. Dense models have ep = 1 and moe_tp = tp × dp.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "ep"):
            value = getattr(self, name)
            require(value >= 1, field=name, value=value, rule="must be at least 1", accepted="a whole number ≥ 1")
        require(
            (self.tp * self.dp) % self.ep == 0,
            field="ep",
            value=self.ep,
            rule=f"must divide tp × dp = {self.tp * self.dp}",
            accepted="a divisor of tp × dp",
        )

    @property
    def num_gpus(self) -> int:
        """GPUs of the instance."""
        return self.tp * self.pp * self.dp

    @property
    def moe_tp(self) -> int:
        """GPUs that share one expert."""
        return self.tp * self.dp // self.ep
