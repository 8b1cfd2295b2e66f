"""GPUs and the links between them, as their data sheets state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from estimator.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU type as sold in a node.

    `flop_per_s`: dense peak per compute dtype (`bf16`, `fp8`, `fp4`; absent = not native). `nvlink_bytes_per_s`: one
    direction, per GPU, inside the NVLink domain of `nvlink_domain_gpus` (0 bytes/s: PCIe only, then
    `pcie_bytes_per_s`). `network_bytes_per_s`: one direction, per GPU, out of the node.
    """

    name: str
    architecture: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flop_per_s: Mapping[str, float] = field(hash=False)
    num_sms: int
    gpus_per_node: int
    nvlink_domain_gpus: int
    nvlink_bytes_per_s: float
    pcie_bytes_per_s: float
    network_bytes_per_s: float
    power_w: float
    source: str
    date: str

    def __post_init__(self) -> None:
        positive = ("memory_bytes", "bandwidth_bytes_per_s", "num_sms", "gpus_per_node", "pcie_bytes_per_s", "power_w")
        for name in positive:
            value = getattr(self, name)
            require(value > 0, field=f"gpu {self.name}.{name}", value=value, rule="must be positive", accepted="> 0")
        for name in ("source", "date"):
            value = getattr(self, name)
            require(bool(value), field=f"gpu {self.name}.{name}", value=value, rule="must be given", accepted="text")

    def peak_flop_per_s(self, dtype: str) -> float:
        """Dense peak of `dtype`; a dtype the GPU lacks runs at its next wider one's rate (weights are unpacked)."""
        for candidate in {"fp4": ("fp4", "fp8", "bf16"), "fp8": ("fp8", "bf16")}.get(dtype, ("bf16",)):
            if candidate in self.flop_per_s:
                return self.flop_per_s[candidate]
        return self.flop_per_s["bf16"]
