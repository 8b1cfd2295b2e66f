"""Latent attention as a whole against its parts: `python -m estimator.calibrate_modules MEASURED_DIR`.

`op_mla_*_module.parquet` (ai-dynamo/aiconfigurator, Apache-2.0, August 2026) time a layer's attention of DeepSeek-V3
with its projections. Nothing is fitted here: the operators of the module, each timed by its own card, are added up.
What is left shows both the cards' error and what an engine does between kernels. Tables that the host launched one
kernel at a time (vLLM's) are bound by it at few tokens and say little about a step replayed from a graph.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from estimator.calibrate_groups import KV_DTYPES, by_columns, newest_rows
from estimator.calibrate_sparse import module_operators, parts_s
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.catalogue.timing import load_timing
from estimator.dtypes import KvDtype, WeightDtype
from estimator.roofline import FloatArray
from estimator.timing import OperatorTiming
from estimator.work import LatentAttentionOp

MODEL = "deepseek-ai/DeepSeek-V3"
WEIGHTS: dict[str, WeightDtype] = {"bfloat16": "bf16", "fp8_block": "fp8", "nvfp4": "fp4"}
MOST_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleError:
    """|Σ parts/measured − 1| of one (phase, GPU, engine, weights, KV): median, 90th percentile, median ratio."""

    phase: str
    gpu: str
    engine: str
    weight: str
    kv: str
    median_frac: float
    p90_frac: float
    ratio: float
    num_rows: int


def module_errors(folder: Path, gpus: frozenset[str] = frozenset()) -> Iterator[ModuleError]:
    """Of decode modules over at least 128 cached tokens and prefill modules of at least 64, on `gpus` or all."""
    for phase, length, least in (("generation", "step", 128), ("context", "isl", 64)):
        table = pd.read_parquet(folder / f"op_mla_{phase}_module.parquet")
        table = table[(table["model"] == MODEL) & (table[length] >= least)]
        if gpus:
            table = table[table["gpu"].isin(gpus)]
        for rows in by_columns(table, "gpu", "backend", "gemm_type", "kv_cache_dtype"):
            rows = newest_rows(rows)
            rows = rows.sample(min(len(rows), MOST_ROWS), random_state=0)
            first = rows.iloc[0]
            timing = load_timing(load_gpu(str(first["gpu"])), str(first["backend"]))
            weight, kv = WEIGHTS[str(first["gemm_type"])], KV_DTYPES[str(first["kv_cache_dtype"])]
            ratio = _composed_s(rows, timing, weight, kv, phase) / (
                rows["latency_us"].to_numpy(dtype=np.float64) * 1e-6
            )
            yield ModuleError(
                phase=phase,
                gpu=str(first["gpu"]),
                engine=str(first["backend"]),
                weight=weight,
                kv=kv,
                median_frac=float(np.median(np.abs(ratio - 1.0))),
                p90_frac=float(np.quantile(np.abs(ratio - 1.0), 0.9)),
                ratio=float(np.median(ratio)),
                num_rows=len(rows),
            )


def _composed_s(rows: pd.DataFrame, timing: OperatorTiming, weight: WeightDtype, kv: KvDtype, phase: str) -> FloatArray:
    """Σ of the module's operators, shape (num_rows,)."""
    model = load_model(MODEL)
    seconds = np.zeros(len(rows))
    batch = rows["batch_size"].to_numpy(dtype=np.float64)
    length = rows["isl" if phase == "context" else "step"].to_numpy(dtype=np.float64)
    for num_heads in rows["num_heads"].unique():
        mine = (rows["num_heads"] == num_heads).to_numpy()
        n, size = batch[mine], length[mine]
        parts, attention = module_operators(model, int(num_heads), weight)
        assert isinstance(attention, LatentAttentionOp)  # of this model
        seconds[mine] = parts_s(parts, timing, n * size if phase == "context" else n)
        seconds[mine] += _attention_s(timing, replace(attention, kv_dtype=kv), phase, n=n, length=size)
    return seconds


def _attention_s(
    timing: OperatorTiming, op: LatentAttentionOp, phase: str, *, n: FloatArray, length: FloatArray
) -> FloatArray:
    if phase == "context":
        prefill = timing.latent_context_attention(op)
        pairs = n * length * (length + 1.0) / 2.0
        thin = np.sqrt(1.0 + (prefill.thin_tokens / (n * length)) ** 2)
        return np.asarray(prefill.launch_s + prefill.s_per_pair * pairs * thin + prefill.s_per_token * n * length)
    line = timing.latent_generation_attention(n, op)
    return np.asarray(line.launch_s + (line.s_per_cached_token + line.s_per_held_token) * n * (length + 1.0))


def main(arguments: list[str]) -> int:
    """Print a Markdown table of every group of the folder given."""
    print("| phase | GPU | engine | weights | KV | rows | median | P90 | parts over whole |")
    print("|---|---|---|---|---|---|---|---|---|")
    for error in module_errors(Path(arguments[0])):
        errors = f"{100 * error.median_frac:.1f} % | {100 * error.p90_frac:.0f} % | {error.ratio:.2f}"
        key = f"{error.phase} | {error.gpu} | {error.engine} | {error.weight} | {error.kv} | {error.num_rows}"
        print(f"| {key} | {errors} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
