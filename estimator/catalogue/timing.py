"""Operator cards: `operators/<gpu>.json`, curves fitted by `estimator.calibrate`, resolved for a GPU and an engine.

A curve that this GPU and engine lack is borrowed, in this order: the same GPU under another engine; another GPU of the
architecture (same engine first) scaled by its data sheet; a sister number format. What is still missing is left to the
curves' data-sheet defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from estimator.attention import DecodeCurve, PrefillCurve
from estimator.catalogue.gpus import gpu_names, load_gpu
from estimator.collectives import LinkCurve
from estimator.errors import require
from estimator.experts import ExpertCurve
from estimator.hardware import Gpu
from estimator.roofline import ElementwiseCurve, GemmCurve, RankingCurve, RecurrentCurve
from estimator.timing import FittedCurve, OperatorTiming, Tier

CURVES: Mapping[str, type[Any]] = {
    "gemm": GemmCurve,
    "moe": ExpertCurve,
    "moe_sliced": ExpertCurve,
    "context_attention": PrefillCurve,
    "context_attention_windowed": PrefillCurve,
    "generation_attention": DecodeCurve,
    "generation_attention_windowed": DecodeCurve,
    "latent_context_attention": PrefillCurve,
    "latent_generation_attention": DecodeCurve,
    "sparse_context_attention": PrefillCurve,
    "sparse_generation_attention": DecodeCurve,
    "index_generation": RankingCurve,
    "delta_net_context": RecurrentCurve,
    "delta_net_generation": ElementwiseCurve,
    "all_reduce": LinkCurve,
    "all_gather": LinkCurve,
    "all_to_all": LinkCurve,
    "dispatch": LinkCurve,
    "combine": LinkCurve,
}
SISTER_DTYPES: Mapping[str, tuple[str, ...]] = {
    "fp8": ("fp8_block", "bf16"),
    "fp8_block": ("fp8",),
    "fp4": ("mxfp4", "fp8"),
    "mxfp4": ("fp4", "fp8_block"),
    "int4": ("bf16",),
    "bf16": ("fp8",),
}  # from which a missing format borrows its efficiencies, nearest first
SISTER_KINDS: Mapping[str, str] = {
    "sparse_generation_attention": "latent_generation_attention",
    "context_attention_windowed": "context_attention",
    "generation_attention_windowed": "generation_attention",
}
OWN_KINDS = ("moe_sliced",)  # what an engine does in place of another kind; of no meaning under others
NOT_SERVED = {("sglang", "hopper", "latent_context_attention")}
# op_context_mla of SGLang on Hopper is FlashAttention 3 over absorbed heads, 3 times as long; its servers expand keys
# and values of fresh prompts (AttnForwardMethod.MHA in models/deepseek_v2.py, 0.4.6 to 0.5.9), as vLLM's kernel does
ENGINES = ("vllm", "sglang", "trtllm")
LIBRARIES = ("deepep", "nccl")  # exchanges of tokens and collectives that every engine may use, the better one first
DEEPEP_KINDS = ("dispatch", "combine")
DEEPGEMM, DEEPGEMM_ENGINE = ("moe", "fp8_block"), "trtllm"
Key = tuple[str, str, str]  # engine, kind, dtype


def read_card(card: Mapping[str, Any]) -> dict[Key, FittedCurve]:
    """Curves of one GPU's card by (engine, kind, dtype); `BestServeError` without a source or out of bounds."""
    name = f"operator card {card.get('gpu', '?')}"
    for key in ("gpu", "source", "date"):
        require(bool(card.get(key)), field=f"{name}.{key}", value=card.get(key), rule="must be given", accepted="text")
    curves = {}
    for entry in card["curves"]:
        kind = entry["kind"]
        require(kind in CURVES, field=f"{name}.kind", value=kind, rule="is unknown", accepted=", ".join(CURVES))
        curve_type = CURVES[kind]
        for parameter, value in entry["parameters"].items():
            bounds = curve_type.BOUNDS.get(parameter)
            require(
                bounds is not None and bounds[0] <= value <= bounds[1],
                field=f"{name}.{kind}.{parameter}",
                value=value,
                rule="is outside its physical bound",
                accepted=f"{bounds[0]:g} to {bounds[1]:g}" if bounds else ", ".join(curve_type.BOUNDS),
            )
        curves[entry["engine"], kind, entry["dtype"]] = FittedCurve(
            curve=curve_type(**entry["parameters"]),
            tier="fitted",
            median_error_frac=entry["median_error_frac"],
            origin=f"{card['gpu']} {entry['engine']} {entry['version']} {entry['dtype']}",
        )
    return curves


@cache
def _card(gpu_name: str) -> dict[Key, FittedCurve]:
    path = files("estimator.catalogue").joinpath("operators", f"{gpu_name}.json")
    return read_card(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def load_timing(gpu: Gpu, engine: str, *, deepep: bool = False) -> OperatorTiming:
    """Timing of `gpu` (bundled or one of your own) under `engine`; `BestServeError` for an unknown engine.

    `deepep`: tokens are exchanged by DeepEP's kernels instead of NCCL's, and block-scaled experts are DeepGEMM's, as
    measured under `DEEPGEMM_ENGINE`.
    """
    require(engine in ENGINES, field="engine", value=engine, rule="has no timings", accepted=", ".join(ENGINES))
    curves = _resolved(gpu.name, gpu.architecture, engine)
    if deepep:
        found = _resolved(gpu.name, gpu.architecture, DEEPGEMM_ENGINE).get(DEEPGEMM)
        curves = curves | ({DEEPGEMM: found} if found else {})
    else:
        curves = {key: fitted for key, fitted in curves.items() if key[0] not in DEEPEP_KINDS}
    return OperatorTiming(gpu=gpu, engine=engine, curves=curves)


@cache
def _resolved(gpu_name: str, architecture: str, engine: str) -> dict[tuple[str, str], FittedCurve]:
    sources = list(_sources(gpu_name, architecture, engine))
    curves: dict[tuple[str, str], FittedCurve] = {}
    for card_name, card_engine in sources:
        tier: Tier = "fitted" if card_name == gpu_name and card_engine in (engine, *LIBRARIES) else "borrowed"
        for (of_engine, kind, dtype), fitted in _card(card_name).items():
            if of_engine != card_engine or (of_engine == engine and (engine, architecture, kind) in NOT_SERVED):
                continue
            if kind in OWN_KINDS and of_engine != engine:
                continue
            key = (f"nccl:{kind}" if card_engine == "nccl" and kind == "all_reduce" else kind, dtype)
            curves.setdefault(key, replace(fitted, tier=tier))
    _borrow_kinds(curves)
    _borrow_dtypes(curves)
    return curves


def _sources(gpu_name: str, architecture: str, engine: str) -> Iterator[tuple[str, str]]:
    """(card, engine) in the order in which curves are taken."""
    engines = (engine, *LIBRARIES, *(other for other in ENGINES if other != engine))
    sisters = [name for name in gpu_names() if name != gpu_name and load_gpu(name).architecture == architecture]
    for name in (gpu_name, *sisters):
        for of_engine in engines:
            yield name, of_engine


def _borrow_kinds(curves: dict[tuple[str, str], FittedCurve]) -> None:
    for kind, sister in SISTER_KINDS.items():
        for (of_kind, dtype), fitted in list(curves.items()):
            if of_kind == sister:
                curves.setdefault((kind, dtype), replace(fitted, tier="borrowed"))


def _borrow_dtypes(curves: dict[tuple[str, str], FittedCurve]) -> None:
    measured = dict(curves)
    for kind in CURVES:
        for dtype, sisters in SISTER_DTYPES.items():
            for sister in sisters:
                if (kind, sister) in measured:
                    curves.setdefault((kind, dtype), replace(measured[kind, sister], tier="borrowed"))
