"""Engine cards: `engines.toml` (defaults, by hand) joined with `engines_fit.json` (costs, fitted on whole runs)."""

from __future__ import annotations

import json
import tomllib
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from estimator.engine import Engine, EngineCosts, KernelFusion, LayoutSupport
from estimator.errors import require
from estimator.instance import EngineLimits
from estimator.memory import MemoryPolicy

_FOLDER = files("estimator.catalogue")
FIT_PATH = Path(str(_FOLDER.joinpath("engines_fit.json")))


@lru_cache(maxsize=1)
def _cards() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_FOLDER.joinpath("engines.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _fitted() -> dict[str, dict[str, dict[str, float]]]:
    if not FIT_PATH.is_file():
        return {}
    costs: dict[str, dict[str, dict[str, float]]] = json.loads(FIT_PATH.read_text(encoding="utf-8"))["costs"]
    return costs


def engine_names() -> list[str]:
    """Names of the bundled engines, sorted."""
    return sorted(_cards())


@cache
def load_engine(name: str) -> Engine:
    """The bundled engine `name`; `BestServeError` for an unknown one."""
    require(
        name in _cards(), field="engine", value=name, rule="is not a known engine", accepted=", ".join(engine_names())
    )
    card = _cards()[name]
    costs = {arch: EngineCosts(**values) for arch, values in _fitted().get(name, {}).items()}
    return Engine(
        name=name,
        version=card["version"],
        policy=card["policy"],
        limits=EngineLimits(max_num_batched_tokens=card["max_num_batched_tokens"], max_num_seqs=card["max_num_seqs"]),
        memory=MemoryPolicy(
            utilisation_frac=card["memory_utilisation_frac"],
            reserve_bytes=card["reserve_bytes"],
            activations_in_share=card["activations_in_share"],
            share_of_free=card["share_of_free"],
        ),
        power_law_routing=card["power_law_routing"],
        asynchronous=card["asynchronous"],
        reserves_output=card.get("reserves_output", False),
        mixed_graph_tokens=card.get("mixed_graph_tokens", 0),
        fusion=_fusion(card["fusion"]),
        support=LayoutSupport(**card["support"]),
        costs={"": EngineCosts(), **costs},
        source=card["source"],
        date=card["date"],
    )


def _fusion(card: dict[str, Any]) -> KernelFusion:
    return KernelFusion(**{name: _frozen(value) for name, value in card.items()})


def _frozen(value: Any) -> Any:
    """The value with tuples for lists, all the way down."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
