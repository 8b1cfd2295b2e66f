"""A layout of a model that drafts: the instance of `estimator.build` with the draft passes in its step.

The draft pass is a model of its own (`draft_pass`): embedding, projection 2h → h, one layer, head. It is timed once
with q tokens a sequence (the first pass) and once with one (every further pass); under pipeline parallelism it is
counted on the slowest stage, though the last one runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.build import StepPart, instance_of, layout_kernels, step_breakdown, step_cost_of
from estimator.catalogue.timing import load_timing
from estimator.dtypes import Dtypes
from estimator.engine import Engine
from estimator.errors import BestServeError
from estimator.hardware import Gpu
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.model import ModelShape
from estimator.operators import slowest_stage_operators
from estimator.outcome import Infeasible
from estimator.parallelism import Parallelism
from estimator.speculation import Speculation, draft_pass, with_draft_layers, with_drafts, without_host
from estimator.stage import StepKernels, step_kernels
from estimator.work import DeltaNetOp, Gemm, GroupedAttention, LatentAttentionOp, Operator, SparseAttentionOp


def build_drafting_instance(  # noqa: PLR0913  a layout has this many sides
    *,
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    parallelism: Parallelism,
    limits: EngineLimits,
    dtypes: Dtypes,
    speculation: Speculation,
) -> Instance | Infeasible:
    """The replica of a model that drafts, or why it cannot exist; its memory holds the draft layers too.

    Raises `BestServeError` for a model without prediction layers.
    """
    resident = with_draft_layers(model)
    try:
        kernels = draft_kernels(model, gpu, engine, parallelism, dtypes, limits, speculation)
    except BestServeError as error:
        return Infeasible(rule="divides", reason=str(error))
    instance = instance_of(kernels.body, resident, gpu, engine, parallelism=parallelism, limits=limits, dtypes=dtypes)
    if isinstance(instance, Infeasible):
        return instance
    return replace(instance, cost=kernels.cost(gpu, engine, limits, speculation))


def drafting_breakdown(  # noqa: PLR0913  a layout and a step have this many sides
    *,
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    parallelism: Parallelism,
    dtypes: Dtypes,
    num_seqs: int,
    cached_tokens: float,
    speculation: Speculation,
) -> list[StepPart]:
    """A decode step by operator, longest first: the body's at q tokens a sequence, and the draft passes as one part.

    The parts add up to the step of the drafting instance. The body's are those of a step of q·num_seqs sequences,
    brought to the seconds that num_seqs sequences of q tokens take (their cached tokens are read once).
    """
    q = speculation.tokens_per_seq
    limits = EngineLimits(max_num_batched_tokens=q * num_seqs, max_num_seqs=num_seqs)
    kernels = draft_kernels(model, gpu, engine, parallelism, dtypes, limits, speculation)
    body = step_cost_of(kernels.body, engine, gpu.architecture, limits, tokens_per_seq=q)
    whole = kernels.cost(gpu, engine, limits, speculation)
    body_s, whole_s = (cost.decode_step_s(num_seqs, cached_tokens) for cost in (body, whole))
    parts = step_breakdown(
        model=model,
        gpu=gpu,
        engine=engine,
        parallelism=parallelism,
        dtypes=dtypes,
        num_seqs=q * num_seqs,
        cached_tokens=cached_tokens,
    )
    share = body_s / sum(part.seconds for part in parts)
    drafts = StepPart(operator="draft", phase="decode", seconds=whole_s - body_s, bound="memory")
    return sorted([*(replace(part, seconds=share * part.seconds) for part in parts), drafts], key=lambda p: -p.seconds)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassKernels:
    """Of one draft pass: its layer and head, its projection, and a stage that runs nothing."""

    layer: StepKernels
    projection: StepKernels
    empty: StepKernels

    def cost(self, gpu: Gpu, engine: Engine, limits: EngineLimits, tokens_per_seq: int) -> StepCost:
        """The pass over `tokens_per_seq` tokens a sequence, without the engine's host code."""
        host, layer, extra = (
            step_cost_of(kernels, engine, gpu.architecture, limits, tokens_per_seq=tokens_per_seq)
            for kernels in (self.empty, self.layer, self.projection)
        )
        layer, extra = without_host(layer, host), without_host(extra, host)
        return replace(layer, decode_s=layer.decode_s + extra.decode_s, mixed_s=layer.mixed_s + extra.mixed_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DraftKernels:
    """Kernels of a model that drafts, whatever the engine's costs: the body's, the first pass's and a further one's."""

    body: StepKernels
    verify: PassKernels
    draft: PassKernels

    def cost(self, gpu: Gpu, engine: Engine, limits: EngineLimits, speculation: Speculation) -> StepCost:
        """The tables of a step."""
        q = speculation.tokens_per_seq
        body = step_cost_of(self.body, engine, gpu.architecture, limits, tokens_per_seq=q)
        verify, draft = self.verify.cost(gpu, engine, limits, q), self.draft.cost(gpu, engine, limits, 1)
        return with_drafts(body, verify, draft, speculation)


def draft_kernels(  # noqa: PLR0913  a layout has this many sides
    model: ModelShape,
    gpu: Gpu,
    engine: Engine,
    parallelism: Parallelism,
    dtypes: Dtypes,
    limits: EngineLimits,
    speculation: Speculation,
) -> DraftKernels:
    """Time the body and both kinds of draft pass; `BestServeError` where the model does not divide."""
    q = speculation.tokens_per_seq
    most_tokens = max(limits.max_num_batched_tokens, q * limits.max_num_seqs)

    def alone(operators: tuple[Operator, ...], like: StepKernels) -> StepKernels:
        timing, blocks = load_timing(gpu, engine.name, deepep=engine.deepep), model.is_moe
        power_law = engine.power_law_routing
        return step_kernels(operators, timing, like.tokens, num_layers=0.0, power_law=power_law, block_scaled=blocks)

    def timed(model: ModelShape, tokens_per_seq: int, parallelism: Parallelism) -> StepKernels:
        kernels = layout_kernels(model, gpu, engine, parallelism, dtypes, most_tokens)
        operators = verifying(slowest_stage_operators(model, parallelism, dtypes), tokens_per_seq)
        attention = alone(operators, kernels)
        for name in ("decode_launch_s", "read_s_per_token", "window_read_s_per_token"):
            setattr(kernels, name, getattr(attention, name))
        return kernels

    def drafting(tokens_per_seq: int) -> PassKernels:
        layer = timed(draft_pass(model), tokens_per_seq, replace(parallelism, pp=1))
        joined = Gemm(name="draft_projection", n=model.hidden_size, k=2 * model.hidden_size, dtype="bf16")
        return PassKernels(layer=layer, projection=alone((joined,), layer), empty=alone((), layer))

    return DraftKernels(body=timed(model, q, parallelism), verify=drafting(q), draft=drafting(1))


def verifying(operators: tuple[Operator, ...], tokens_per_seq: int) -> tuple[Operator, ...]:
    """Attention whose decode takes `tokens_per_seq` query tokens a sequence: they pack as further query heads.

    A delta net walks them one by one, each reading and writing the state.
    """
    packed: list[Operator] = []
    for op in operators:
        match op:
            case GroupedAttention() | LatentAttentionOp() | SparseAttentionOp():
                packed.append(replace(op, num_heads=op.num_heads * tokens_per_seq))
            case DeltaNetOp():
                packed.append(replace(op, count=op.count * tokens_per_seq))
            case _:
                pass
    return tuple(packed)
