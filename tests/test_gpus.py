"""GPU cards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimator.catalogue.gpus import gpu_names, load_gpu
from estimator.errors import BestServeError


def test_every_card_is_physically_plausible() -> None:
    """Each bundled GPU states memory, links and peaks in SI units, and halving the number width doubles the peak."""
    for name in gpu_names():
        gpu = load_gpu(name)
        assert 40e9 < gpu.memory_bytes < 400e9
        assert 0.5e12 < gpu.bandwidth_bytes_per_s <= 8e12
        assert 100e12 < gpu.flop_per_s["bf16"] < 3e15
        if "fp8" in gpu.flop_per_s:
            assert gpu.flop_per_s["fp8"] / gpu.flop_per_s["bf16"] == pytest.approx(2.0, rel=0.02)
        assert gpu.network_bytes_per_s < max(gpu.nvlink_bytes_per_s, gpu.pcie_bytes_per_s)
        assert gpu.source
        assert gpu.date


def test_driver_memory_lies_near_the_printed_size() -> None:
    """The driver's total is within 8 % of the printed gigabytes, which vendors mean loosely."""
    printed_gb = {"h100_sxm": 80, "h200_sxm": 141, "a100_sxm": 80, "l40s": 48, "b200_sxm": 180, "gb200": 186}
    printed_gb |= {"h20": 96, "h100_pcie": 80, "h100_nvl": 94, "a100_pcie": 80, "mi300x": 192}
    for name, size in printed_gb.items():
        assert load_gpu(name).memory_bytes == pytest.approx(size * 1e9, rel=0.08)


def test_a_dtype_without_hardware_runs_at_the_next_wider_rate() -> None:
    """A100 has no fp8 and no fp4: weights are unpacked and multiplied in bf16."""
    gpu = load_gpu("a100_sxm")
    assert gpu.peak_flop_per_s("fp4") == gpu.peak_flop_per_s("fp8") == gpu.flop_per_s["bf16"]


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    """Asking for a GPU without a card names the cards there are."""
    with pytest.raises(BestServeError, match=r"gpu: 'tpu' is not a known GPU; accepted: .*h100_sxm"):
        load_gpu("tpu")


@pytest.mark.parametrize("field", ["source", "date"])
def test_a_card_without_origin_is_refused(field: str) -> None:
    """A GPU whose numbers come from nowhere cannot be made."""
    with pytest.raises(BestServeError, match=rf"gpu h100_sxm\.{field}: '' must be given"):
        replace(load_gpu("h100_sxm"), **{field: ""})  # type: ignore[arg-type]


def test_a_negative_bandwidth_is_refused() -> None:
    """Physical quantities are positive."""
    with pytest.raises(BestServeError, match=r"bandwidth_bytes_per_s: -1\.0 must be positive"):
        replace(load_gpu("h100_sxm"), bandwidth_bytes_per_s=-1.0)
