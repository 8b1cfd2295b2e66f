"""Networks between nodes with a rate and a price: what a strategy pays whose traffic leaves its NVLink domain.

Where a network is part of a GPU's rent its price here is 0. A bought one is an annuity without resale,
a = C · w/(1 − (1 + w)^−n) / 8760, per GPU port and hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from estimator.errors import require

LINK_KINDS = ("nvlink", "pcie", "infiniband", "roce", "ethernet")
BITS_PER_BYTE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCard:
    """One way to join nodes: rate per GPU in one direction, price per GPU and hour (in `currency`), source and date.

    `bytes_per_s` None: the GPU's own port decides.
    """

    id: str
    kind: str
    bytes_per_s: float | None
    usd_per_gpu_h: float
    source: str
    date: str
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("id", "source", "date", "currency"):
            value = getattr(self, name)
            require(bool(value), field=f"link {self.id}.{name}", value=value, rule="must be given", accepted="text")
        require(
            self.kind in LINK_KINDS,
            field=f"link {self.id}.kind",
            value=self.kind,
            rule="is unknown",
            accepted=", ".join(LINK_KINDS),
        )
        require(
            self.bytes_per_s is None or (math.isfinite(self.bytes_per_s) and self.bytes_per_s > 0),
            field=f"link {self.id}.bytes_per_s",
            value=self.bytes_per_s,
            rule="must be positive and finite",
            accepted="bytes per second > 0",
        )
        require(
            math.isfinite(self.usd_per_gpu_h) and self.usd_per_gpu_h >= 0,
            field=f"link {self.id}.usd_per_gpu_h",
            value=self.usd_per_gpu_h,
            rule="must be finite and not negative",
            accepted="price per GPU and hour ≥ 0",
        )

    @property
    def gbit_s(self) -> float | None:
        """The rate in Gbit/s."""
        return None if self.bytes_per_s is None else self.bytes_per_s * BITS_PER_BYTE / 1e9
