"""Model cards: `models/*.json`, the shape fields of each model's public `config.json` with its source and date."""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from estimator.errors import BestServeError
from estimator.hf_config import parse_hf_config
from estimator.model import ModelShape

_FOLDER = files("estimator.catalogue").joinpath("models")


@lru_cache(maxsize=1)
def _card_files() -> dict[str, str]:
    """File name of every card by the model's full id, sorted."""
    names = [entry.name for entry in _FOLDER.iterdir() if entry.name.endswith(".json")]
    return dict(sorted((name.removesuffix(".json").replace("--", "/", 1), name) for name in names))


def model_ids() -> list[str]:
    """Hugging Face ids of the bundled models, sorted."""
    return list(_card_files())


@cache
def load_model(id_or_path: str | Path) -> ModelShape:
    """The bundled model of that id (or of its last part, in any case), or the one a `config.json` describes.

    A path may name the file or its folder. Raises `BestServeError` for an unknown id and for a config it cannot read.
    """
    path = Path(id_or_path)
    if path.is_dir():
        return _load_file(path / "config.json")
    if path.suffix == ".json":
        return _load_file(path)
    wanted = str(id_or_path).lower()
    for model_id, name in _card_files().items():
        if wanted in (model_id.lower(), model_id.lower().split("/")[1]):
            return parse_hf_config(json.loads(_FOLDER.joinpath(name).read_text(encoding="utf-8")), model_id)
    accepted = f"{_nearest(wanted)}a path to config.json, or one of {', '.join(model_ids())}"
    raise BestServeError("model", str(id_or_path), "is not a bundled model", accepted)


def _nearest(wanted: str) -> str:
    """The bundled model whose id, or its last part, is most like `wanted` (small letters), as a suggestion."""
    names = {name.lower(): name for name in model_ids()}
    names |= {short.split("/")[1]: name for short, name in names.items()}
    near = get_close_matches(wanted, list(names), n=1, cutoff=0.6)
    return f"{names[near[0]]} (did you mean this?), " if near else ""


def _load_file(path: Path) -> ModelShape:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BestServeError("model", str(path), "cannot be read", "a path to config.json") from error
    except json.JSONDecodeError as error:
        raise BestServeError("model", str(path), f"is not JSON ({error})", "a path to config.json") from error
    if not isinstance(config, dict):
        raise BestServeError("model", str(path), "must hold one JSON object", "a Hugging Face config.json")
    return parse_hf_config(config, path.parent.name if path.name == "config.json" else path.stem.replace("--", "/", 1))
