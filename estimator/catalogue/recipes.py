"""Launch recipes of published benchmarks: what `recipes.toml` knows of a measured run that its row leaves open."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.dtypes import KvDtype, WeightDtype
from estimator.errors import require
from estimator.measured_runs import MeasuredRun
from estimator.model import GatedDeltaNet, LatentAttention, ModelShape, MoeFfn
from estimator.speculation import Speculation
from estimator.system import CollocatedPolicy

Family = Literal["dense", "moe", "mxfp4", "latent", "sparse", "hybrid"]
ExpertGroups = Literal["none", "all"]
LEAST_CHUNK_TOKENS = 2048  # vLLM's SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS
EQUAL = ("engine", "architecture", "gpu", "isl", "osl", "ep")  # conditions with one value
BUSY_CONCURRENCY = 16  # from here the scripts let the scheduler look at its queue less often


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings of one run; None = the engine's default."""

    kv_dtype: KvDtype | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    memory_utilisation_frac: float | None = None
    policy: CollocatedPolicy | None = None
    starts_cold: bool = False
    inferencemax_load: bool = False
    poll_steps: int = 1
    wait_steps: int = 0
    speculation: Speculation | None = None
    output_s_per_token: float = 0.0
    fuses_norms: bool | None = None
    attention_dp: bool = True  # attention is divided among ranks where the row says so
    expert_groups: ExpertGroups | None = None  # as the script started the server, where its rows say otherwise
    graph_tokens: int | None = None  # steps with prompts replay CUDA graphs up to so many
    tuning_s: float = 0.0  # the server stands still so long before its first full step of prompts
    input_factor: float = 1.0  # tokens of a prompt as the server counts them, over those its client meant to send


def family_of(model: ModelShape) -> Family:
    """The kind of attention and experts that recipes tell apart."""
    attentions = [group.attention for group in model.layers]
    latent = [attention for attention in attentions if isinstance(attention, LatentAttention)]
    if latent:
        return "sparse" if any(attention.index_topk for attention in latent) else "latent"
    if any(isinstance(attention, GatedDeltaNet) for attention in attentions):
        return "hybrid"
    if model.expert_quantization is not None and model.expert_quantization.dtype == "fp4":
        return "mxfp4"
    return "moe" if any(isinstance(group.ffn, MoeFfn) for group in model.layers) else "dense"


@lru_cache(maxsize=1)
def _card() -> dict[str, Any]:
    card = tomllib.loads(files("estimator.catalogue").joinpath("recipes.toml").read_text(encoding="utf-8"))
    for name in ("source", "date"):
        value = card.get(name)
        require(bool(value), field=f"recipes.{name}", value=value, rule="must be given", accepted="text")
    return card


@lru_cache(maxsize=4096)
def _found(facts: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return next((entry for entry in _card()["recipe"] if _fits(entry, dict(facts))), {})


def _facts(run: MeasuredRun) -> dict[str, Any]:
    """What recipes ask of a run."""
    return {
        "source": run.source,
        "mode": run.mode,
        "engine": run.engine,
        "version": run.engine_version or (),
        "gpu": run.gpu,
        "architecture": load_gpu(run.gpu).architecture,
        "concurrency": run.concurrency or 0,
        "isl": run.input_bounds[1],
        "osl": run.output_bounds[1],
        "family": family_of(load_model(run.model)),
        "weight": run.weight_dtype,
        "tp": run.pools[0].parallelism.tp,
        "ep": run.pools[0].parallelism.ep,
        "note": run.note,
    }


def recipe_of(run: MeasuredRun) -> Recipe:
    """The first recipe whose conditions the run meets, or defaults."""
    found = _found(tuple(_facts(run).items()))
    max_num_seqs, tokens, drafts = (found.get(n) for n in ("max_num_seqs", "max_num_batched_tokens", "draft_tokens"))
    if "chunk_isl" in found:
        decodes = (run.concurrency or 0) if found.get("chunk_seqs", False) else 0
        tokens = max(LEAST_CHUNK_TOKENS, found["chunk_isl"] * run.input_bounds[1] + decodes)
    return Recipe(
        kv_dtype=found.get("kv"),
        max_num_batched_tokens=tokens,
        max_num_seqs=run.concurrency if max_num_seqs == 0 else max_num_seqs,
        memory_utilisation_frac=found.get("memory_utilisation_frac"),
        policy=found.get("policy"),
        starts_cold=_starts_cold(run, repeats=found.get("inferencemax_load", False)),
        inferencemax_load=found.get("inferencemax_load", False),
        poll_steps=found.get("poll_steps", [1, 1])[(run.concurrency or 0) >= BUSY_CONCURRENCY],
        wait_steps=found.get("wait_steps", 0),
        output_s_per_token=found.get("output_s_per_token", 0.0),
        fuses_norms=found.get("fuses_norms"),
        attention_dp=found.get("attention_dp", True),
        expert_groups=found.get("expert_groups"),
        graph_tokens=found.get("graph_tokens"),
        tuning_s=found.get("tuning_s", 0.0),
        input_factor=_input_factor(run),
        speculation=drafts and Speculation(draft_tokens=drafts, acceptance=found["acceptance"]),
    )


def latent_out_of(run: MeasuredRun) -> WeightDtype | None:
    """Format of the product behind latent attention where the run's checkpoint treats it by itself."""
    is_fp4 = run.weight_dtype == "fp4" and run.engine in _card()["fp4_output_engines"]
    return "fp4" if is_fp4 and family_of(load_model(run.model)) == "latent" else None


def _starts_cold(run: MeasuredRun, *, repeats: bool) -> bool:
    """Whether the burst meets a fresh server that compiles kernels when they first run; `repeats` such a row."""
    card, facts = _card(), {**_facts(run), "mode": "collocated"}  # two pools start cold alike
    fresh = repeats or any(source in run.source for source in card["cold_sources"])
    return fresh and any(_fits({"source": "", **entry}, facts) for entry in card["cold"])


def _input_factor(run: MeasuredRun) -> float:
    facts = _facts(run)
    entries = (entry for entry in _card()["retokenised"] if _fits({"source": "", **entry}, facts))
    return float(next(entries, {"input_factor": 1.0})["input_factor"])


def _fits(entry: dict[str, Any], facts: dict[str, Any]) -> bool:
    return (
        entry["source"] in facts["source"]
        and facts["mode"] == "collocated"
        and facts["version"] >= tuple(entry.get("since", ()))
        and not (entry.get("unversioned", False) and facts["version"])
        and ("before" not in entry or facts["version"] < tuple(entry["before"]))
        and facts["gpu"] not in entry.get("not_gpu", ())
        and ("note_lacks" not in entry or entry["note_lacks"] not in facts["note"])
        and facts["concurrency"] >= entry.get("least_concurrency", 0)
        and all(entry[name] == facts[name] for name in EQUAL if name in entry)
        and all(facts[name] in entry[name] for name in ("family", "weight", "tp") if name in entry)
    )
