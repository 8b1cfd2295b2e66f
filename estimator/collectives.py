"""Seconds of collectives: a latency, and the bytes over the link that binds.

    all-reduce, gather, exchange:  t = launch + min( one-shot, extra + two-shot )
    one-shot: each GPU reads what it needs from every peer in one pass; small messages
    two-shot: reduce-scatter then all-gather, or a pipelined ring; more steps, fewer bytes; the only way beyond the
              `one_shot_bytes` that an engine has buffers for

| symbol | meaning |
|---|---|
| g | GPUs |
| B | bytes: of each GPU's message (all-reduce), part (gather), or parcels to all peers together (exchange) |
| wire bytes | one-shot all-reduce (g − 1)·B, two-shot 2(g − 1)/g·B; gather (g − 1)·B; exchange (g − 1)/g·B |

The link: NVLink inside its domain, PCIe inside a node without NVLink, else the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from estimator.hardware import Gpu
from estimator.roofline import Bounds, FloatArray

ExchangeWay = Literal["dispatch", "combine"]  # tokens to their experts, and back
CollectiveKind = Literal["all_reduce", "all_gather", "all_to_all"] | ExchangeWay
NETWORK_LAUNCH_S = 15e-6  # RDMA round trip and proxy thread of NCCL between nodes; an estimate, not measured


def link_bytes_per_s(gpu: Gpu, num_gpus: int) -> float:
    """Data-sheet rate, one direction per GPU, of the link that `num_gpus` neighbours share."""
    if gpu.nvlink_bytes_per_s > 0 and num_gpus <= gpu.nvlink_domain_gpus:
        return gpu.nvlink_bytes_per_s
    return gpu.pcie_bytes_per_s if num_gpus <= gpu.gpus_per_node else gpu.network_bytes_per_s


def wire_bytes(kind: CollectiveKind, num_bytes: FloatArray, num_gpus: int) -> tuple[FloatArray, FloatArray]:
    """Bytes through each GPU's link, one-shot and two-shot."""
    g = float(num_gpus)
    if kind == "all_reduce":
        return (g - 1.0) * num_bytes, 2.0 * (g - 1.0) / g * num_bytes
    once = (g - 1.0) * num_bytes if kind == "all_gather" else (g - 1.0) / g * num_bytes
    return once, once


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCurve:
    """One collective over one number of GPUs; formula in the module's docstring."""

    launch_s: float = 8e-6
    one_shot_frac: float = 0.3
    extra_s: float = 10e-6
    two_shot_frac: float = 0.7
    one_shot_bytes: float = 1e9

    BOUNDS: ClassVar[Bounds] = {
        "launch_s": (1e-6, 80e-6),
        "one_shot_frac": (0.005, 1.5),
        "extra_s": (0.0, 400e-6),
        "two_shot_frac": (0.01, 1.2),
        "one_shot_bytes": (0.0, 1e9),
    }

    def seconds(self, gpu: Gpu, kind: CollectiveKind, num_bytes: FloatArray, num_gpus: int) -> FloatArray:
        """Shape of num_bytes: s per call."""
        rate = link_bytes_per_s(gpu, num_gpus)
        once, twice = wire_bytes(kind, num_bytes, num_gpus)
        one_shot_s = once / (rate * self.one_shot_frac)
        two_shot_s = self.extra_s + twice / (rate * self.two_shot_frac)
        faster_s = np.minimum(one_shot_s, two_shot_s)
        return np.asarray(self.launch_s + np.where(num_bytes > self.one_shot_bytes, two_shot_s, faster_s))


def network_seconds(gpu: Gpu, kind: CollectiveKind, num_bytes: FloatArray, num_gpus: int) -> FloatArray:
    """The same across nodes: 80 % of the data sheet's rate, and a latency that grows with log2 g."""
    wire = wire_bytes(kind, num_bytes, num_gpus)[1]
    launch_s = NETWORK_LAUNCH_S * np.log2(max(num_gpus, 2))
    return np.asarray(launch_s + wire / (0.8 * gpu.network_bytes_per_s))
