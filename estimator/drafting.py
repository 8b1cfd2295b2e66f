"""A layout of a model that drafts: the instance of `estimator.build` with the draft passes in its step.

The draft pass is a model of its own (`draft_pass`): embedding, projection 2h → h, one layer, head. It is timed once
with q tokens a sequence (the first pass) and once with one (every further pass); under pipeline parallelism it is
counted on the slowest stage, though the last one runs it.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.build import StepPart, instance_of, layout_kernels, step_breakdown, step_cost
from estimator.catalogue.timing import load_timing
from estimator.dtypes import Dtypes
from estimator.engine import Engine
from estimator.errors import BestServeError
from estimator.hardware import Gpu
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.model import ModelShape
from estimator.operators import stage_operators
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
    layout = _Layout(gpu, engine, parallelism, dtypes, limits, speculation.tokens_per_seq)
    try:
        kernels = layout.kernels(model, speculation.tokens_per_seq)
        draft = [layout.pass_cost(model, tokens) for tokens in (speculation.tokens_per_seq, 1)]
    except BestServeError as error:
        return Infeasible(rule="divides", reason=str(error))
    instance = instance_of(kernels, resident, gpu, engine, parallelism=parallelism, limits=limits, dtypes=dtypes)
    if isinstance(instance, Infeasible):
        return instance
    body = layout.cost(kernels, speculation.tokens_per_seq)
    return replace(instance, cost=with_drafts(body, draft[0], draft[1], speculation))


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
    layout = _Layout(gpu, engine, parallelism, dtypes, limits, q)
    body = layout.cost(layout.kernels(model, q), q)
    whole = with_drafts(body, layout.pass_cost(model, q), layout.pass_cost(model, 1), speculation)
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


class _Layout:
    """What the passes of one instance share."""

    def __init__(
        self,
        gpu: Gpu,
        engine: Engine,
        parallelism: Parallelism,
        dtypes: Dtypes,
        limits: EngineLimits,
        tokens_per_seq: int,
    ) -> None:
        self.gpu, self.engine, self.parallelism, self.dtypes, self.limits = gpu, engine, parallelism, dtypes, limits
        self.most_tokens = max(limits.max_num_batched_tokens, tokens_per_seq * limits.max_num_seqs)

    def kernels(self, model: ModelShape, tokens_per_seq: int, parallelism: Parallelism | None = None) -> StepKernels:
        """Kernels of a model whose decode attention multiplies `tokens_per_seq` query tokens a sequence."""
        parallelism = parallelism or self.parallelism
        kernels = layout_kernels(model, self.gpu, self.engine, parallelism, self.dtypes, self.most_tokens)
        if tokens_per_seq == 1:
            return kernels
        operators = stage_operators(model, parallelism, self.dtypes.weight, self.dtypes.kv)
        attention = self._alone(verifying(operators, tokens_per_seq), kernels, model)
        kernels.decode_launch_s = attention.decode_launch_s
        kernels.read_s_per_token = attention.read_s_per_token
        kernels.window_read_s_per_token = attention.window_read_s_per_token
        return kernels

    def pass_cost(self, model: ModelShape, tokens_per_seq: int) -> StepCost:
        """One draft pass over `tokens_per_seq` tokens a sequence, without the engine's host code."""
        draft = draft_pass(model)
        kernels = self.kernels(draft, tokens_per_seq, replace(self.parallelism, pp=1))
        joined = Gemm(name="draft_projection", n=model.hidden_size, k=2 * model.hidden_size, dtype="bf16")
        projection, empty = self._alone((joined,), kernels, model), self._alone((), kernels, model)
        host = self.cost(empty, tokens_per_seq)
        layer = without_host(self.cost(kernels, tokens_per_seq), host)
        extra = without_host(self.cost(projection, tokens_per_seq), host)
        return replace(layer, decode_s=layer.decode_s + extra.decode_s, mixed_s=layer.mixed_s + extra.mixed_s)

    def cost(self, kernels: StepKernels, tokens_per_seq: int) -> StepCost:
        """Tables of kernels under the engine's costs."""
        costs = self.engine.costs_on(self.gpu.architecture)
        return step_cost(
            kernels,
            costs,
            self.limits,
            tokens_per_seq=tokens_per_seq,
            asynchronous=self.engine.asynchronous,
            step_time_factor=self.engine.step_time_factor_on(self.gpu.architecture),
        )

    def _alone(self, operators: tuple[Operator, ...], like: StepKernels, model: ModelShape) -> StepKernels:
        return step_kernels(
            operators,
            load_timing(self.gpu, self.engine.name),
            like.tokens,
            num_layers=0.0,
            power_law=self.engine.power_law_routing,
            block_scaled=model.is_moe,
        )


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
