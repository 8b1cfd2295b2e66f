"""What is known: models, GPUs, prices, links and servers as rows with their sources, for `bestserve catalogue`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def model_rows() -> list[Row]:
    """Bundled models."""
    from estimator.catalogue.models import load_model, model_ids

    shapes = [load_model(model) for model in model_ids()]
    return [
        {
            "model": shape.name,
            "parameters_1e9": round(shape.num_parameters / 1e9, 1),
            "active_1e9": round(shape.active_parameters / 1e9, 1),
            "layers": shape.num_layers,
            "source": shape.source,
        }
        for shape in shapes
    ]


def gpu_rows() -> list[Row]:
    """Bundled GPUs."""
    from estimator.catalogue.gpus import gpu_names, load_gpu

    return [
        {
            "gpu": gpu.name,
            "architecture": gpu.architecture,
            "memory_gb": gpu.memory_bytes / 1e9,
            "bandwidth_gb_s": gpu.bandwidth_bytes_per_s / 1e9,
            **{f"{dtype}_tflops": gpu.flop_per_s.get(dtype, 0.0) / 1e12 or None for dtype in ("bf16", "fp8", "fp4")},
            "gpus_per_node": gpu.gpus_per_node,
            "source": gpu.source,
            "date": gpu.date,
        }
        for gpu in map(load_gpu, gpu_names())
    ]


def price_rows() -> list[Row]:
    """Bundled price cards, by GPU and price."""
    from estimator.catalogue.prices import load_prices

    cards = sorted(load_prices().values(), key=lambda card: (card.gpu, card.usd_per_gpu_h, card.id))
    return [
        {
            "id": card.id,
            "gpu": card.gpu,
            "provider": card.provider,
            "kind": card.kind,
            "usd_per_gpu_h": card.usd_per_gpu_h,
            "gpus_per_node": card.gpus_per_node,
            "region": card.region,
            "date": card.date,
            "source": card.source,
        }
        for card in cards
    ]


def link_rows() -> list[Row]:
    """Bundled networks between nodes."""
    from estimator.catalogue.prices import load_links

    return [
        {
            "id": link.id,
            "kind": link.kind,
            "gbit_s_per_gpu": link.gbit_s,
            "usd_per_gpu_h": link.usd_per_gpu_h,
            "date": link.date,
            "source": link.source,
        }
        for link in load_links().values()
    ]


def server_rows() -> list[Row]:
    """Servers bought, as estimated."""
    from estimator.catalogue.prices import load_servers

    return [{"gpu": gpu, **server} for gpu, server in load_servers().items()]


ROWS: dict[str, Callable[[], list[Row]]] = {
    "models": model_rows,
    "gpus": gpu_rows,
    "prices": price_rows,
    "links": link_rows,
    "servers": server_rows,
}
