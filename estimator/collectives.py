"""Collectives as latency plus bytes over the link that binds: NVLink domain, PCIe inside a node, network between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.hardware import Gpu

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCurve:
    """Data-sheet links with 70 % of their rate."""

    gpu: Gpu
    frac: float = 0.7
    launch_s: float = 5e-6

    def _rate(self, num_gpus: int) -> float:
        if self.gpu.nvlink_bytes_per_s > 0 and num_gpus <= self.gpu.nvlink_domain_gpus:
            return self.frac * self.gpu.nvlink_bytes_per_s
        if num_gpus <= self.gpu.gpus_per_node:
            return self.frac * self.gpu.pcie_bytes_per_s
        return self.frac * self.gpu.network_bytes_per_s

    def all_reduce_s(self, num_bytes: FloatArray, num_gpus: int) -> FloatArray:
        """Reduce-scatter then all-gather."""
        return 2.0 * self.all_gather_s(num_bytes, num_gpus)

    def all_gather_s(self, num_bytes: FloatArray, num_gpus: int) -> FloatArray:
        """(g − 1)/g of the bytes cross each GPU's link."""
        if num_gpus == 1:
            return np.zeros_like(num_bytes)
        return np.asarray(self.launch_s + (num_gpus - 1) / num_gpus * num_bytes / self._rate(num_gpus))

    def point_to_point_s(self, num_bytes: FloatArray, across_nodes: bool) -> FloatArray:
        """Bytes over the one link between two GPUs."""
        rate = self.frac * self.gpu.network_bytes_per_s if across_nodes else self._rate(2)
        return np.asarray(self.launch_s + num_bytes / rate)
