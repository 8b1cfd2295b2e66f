"""How far the times behind an answer are known to be from measurement, ready to print."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from estimator.timing import FittedCurve
    from spaces.problem import Problem
    from spaces.strategy import Strategy

NAMES = {
    "gemm": "matrix products",
    "moe": "experts",
    "moe_sliced": "experts, a slice of each",
    "moe_power_law": "experts, uneven load",
    "context_attention": "attention over the prompt",
    "context_attention_windowed": "windowed attention over the prompt",
    "generation_attention": "attention while generating",
    "generation_attention_windowed": "windowed attention while generating",
    "latent_context_attention": "latent attention over the prompt",
    "latent_generation_attention": "latent attention while generating",
    "sparse_context_attention": "sparse attention over the prompt",
    "sparse_generation_attention": "sparse attention while generating",
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "all_to_all": "all-to-all",
    "dispatch": "tokens to their experts",
    "combine": "tokens back from their experts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownError:
    """Error of one kind of time. `tier`: fitted, borrowed or data_sheet; `median_frac` of |predicted/measured − 1|.

    `median_frac` None: nothing was measured. `origin`: what the curve was fitted on.
    """

    what: str
    gpu: str
    tier: str
    median_frac: float | None
    origin: str

    @property
    def basis(self) -> str:
        """What the time rests on, in words."""
        words = {"fitted": f"fitted on {self.origin}", "borrowed": f"borrowed from {self.origin}"}
        return words.get(self.tier, "data sheet and customary efficiency, never measured")


def known_errors(problem: Problem, strategy: Strategy) -> tuple[KnownError, ...]:
    """The fits behind the steps of `strategy`, per GPU type, largest error first."""
    found = [
        KnownError(
            what=f"{NAMES.get(kind.removeprefix('nccl:'), kind)}, {f'{dtype} GPUs' if dtype.isdigit() else dtype}",
            gpu=gpu,
            tier="data_sheet" if fitted is None else fitted.tier,
            median_frac=None if fitted is None else fitted.median_error_frac,
            origin="" if fitted is None else fitted.origin,
        )
        for (gpu, kind, dtype), fitted in _curves_used(problem, strategy).items()
    ]
    return tuple(sorted(found, key=lambda error: -(1.0 if error.median_frac is None else error.median_frac)))


def _curves_used(problem: Problem, strategy: Strategy) -> dict[tuple[str, str, str], FittedCurve | None]:
    """By (GPU, kind, dtype), what `step_kernels` asks for when it times the pools' stages; None where nothing fits."""
    from estimator.catalogue.timing import load_timing
    from estimator.operators import stage_operators
    from estimator.stage import step_kernels, token_grid

    used: dict[tuple[str, str, str], FittedCurve | None] = {}

    class Watched(dict[tuple[str, str], Any]):
        """Curves of one GPU that note which of them are looked up."""

        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            if key[0] != "all_reduce" or key in self:
                used[gpu, key[0], key[1]] = found
            return found

    for pool in strategy.pools:
        gpu, layout = pool.gpu, pool.parallelism
        timing = load_timing(problem.gpu(gpu), problem.engine.name)
        step_kernels(
            stage_operators(problem.model, layout, problem.weight_dtype, problem.kv_dtype),
            replace(timing, curves=Watched(timing.curves)),
            token_grid(64),
            num_layers=problem.model.num_layers / layout.pp,
            power_law=problem.engine.power_law_routing,
            block_scaled=problem.model.is_moe,
        )
    return used


def run_error_line(problem: Problem, strategy: Strategy) -> str:
    """How far whole runs like this one were from their prediction, and whether the fit had seen them."""
    from estimator.catalogue.run_errors import load_run_errors
    from estimator.run_errors import RunGroup
    from search.view import gpu_label

    card, engine, gpus = load_run_errors(), problem.engine.name, {pool.gpu for pool in strategy.pools}
    asked = RunGroup(
        engine=engine,
        gpu=gpus.pop() if len(gpus) == 1 else "",
        mode="disaggregated" if strategy.is_disaggregated else "collocated",
        kind="experts" if problem.model.is_moe else "dense",
    )
    tpot, ttft = (card.find(asked, f"{metric}_mean_ms") for metric in ("tpot", "ttft"))
    if tpot is None or ttft is None:
        return "No whole run of this kind was measured."
    group = tpot.group
    alike = f"{group.mode} runs" + (f" of {group.engine}" if group.engine else "")
    alike += f" on {gpu_label(group.gpu)}" if group.gpu else ""
    alike += {"experts": " with mixtures of experts", "dense": " with dense models", "": ""}[group.kind]
    missing = ""
    if asked.gpu and not group.gpu:
        missing = f"Too few {asked.mode} runs of {engine} on {gpu_label(asked.gpu)} were measured; "
    seen = "predicted by a fit that had not seen them" if card.is_held_out else "which the fit has seen"
    return (
        f"{missing}{'o' if missing else 'O'}n {tpot.num_runs} measured {alike}, {seen}, "
        f"mean TPOT was {tpot.median_frac:.0%} and mean TTFT {ttft.median_frac:.0%} off in the median."
    )
