"""From the spec's words to the frozen objects that planning uses: SI units, cards, traffic, targets, choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import gpu_names, load_gpu
from estimator.catalogue.models import load_model
from estimator.engine import Engine
from estimator.errors import BestServeError
from estimator.hardware import Gpu
from estimator.recalibrate import recalibrated
from estimator.slo import Slo, SloClass, SloTarget
from estimator.speculation import require_draft_layers
from estimator.workload import (
    Arrivals,
    ClassLengths,
    ConstantArrivals,
    EmpiricalLengths,
    FixedLengths,
    GammaArrivals,
    Lengths,
    LognormalLengths,
    LognormalTokens,
    PoissonArrivals,
    ScaledLengths,
    TraceArrivals,
    UniformLengths,
    Workload,
)
from search.edge import nearest_names
from search.prices import OWN, cards_of
from search.spec import (
    ClassSpec,
    ConstantSpec,
    EmpiricalTokens,
    FixedTokens,
    GammaSpec,
    GpuSpec,
    LengthsSpec,
    LognormalLengthsSpec,
    SloSpec,
    Spec,
    TraceSpec,
    TrafficSpec,
    UniformTokens,
)
from search.spec_search import PoolSearchSpec
from search.traces import load_trace
from spaces.choices import EVERYTHING, PoolChoices, SearchSpace
from spaces.problem import Problem
from spaces.strategy import COLLOCATED_POLICIES, DISAGGREGATED_POLICIES, Role

BITS_PER_BYTE = 8


def problem_of(spec: Spec) -> Problem:
    """The planning problem, in SI units. Raises `BestServeError` for names that do not exist."""
    link, drafts = spec.link, spec.model.multi_token_prediction
    model = load_model(spec.model.id)
    if drafts is not None:
        require_draft_layers(model)
    return Problem(
        model=model,
        engine=engine_of(spec),
        gpus={gpu.name: gpu for gpu in map(gpu_of, spec.gpus)},
        weight_dtype=spec.model.weights,
        kv_dtype=spec.model.kv,
        workload=workload_of(spec.traffic, spec.classes),
        slo=slo_of_spec(spec),
        space=space_of(spec),
        network_bytes_per_s=link.gbit_s_per_gpu * 1e9 / BITS_PER_BYTE if link.gbit_s_per_gpu else None,
        link_latency_s=link.latency_us / 1e6,
        speculation=None if drafts is None else drafts.speculation(),
    )


def engine_of(spec: Spec) -> Engine:
    """The bundled engine, corrected by the spec's calibration; raises `BestServeError` for a card of another engine."""
    engine, card = load_engine(spec.engine), spec.calibration
    if card is None:
        return engine
    if isinstance(card, str):
        raise BestServeError("calibration", card, "has not been read", "a spec that load_spec or parse_spec read")
    if card.engine != spec.engine:
        raise BestServeError("calibration", card.engine, "is of another engine", f"a card of {spec.engine}")
    return recalibrated(engine, card.recalibration())


def gpu_of(given: str | GpuSpec) -> Gpu:
    """The card of a named or described GPU."""
    if isinstance(given, str):
        if given not in gpu_names():
            raise BestServeError("gpus", given, "is not a known GPU", nearest_names(given, gpu_names()))
        return load_gpu(given)
    peaks = {"bf16": given.bf16_tflops, "fp8": given.fp8_tflops, "fp4": given.fp4_tflops}
    return Gpu(
        name=given.name,
        architecture=given.architecture,
        memory_bytes=given.memory_gb * 1e9,
        bandwidth_bytes_per_s=given.bandwidth_gb_s * 1e9,
        flop_per_s={dtype: tflops * 1e12 for dtype, tflops in peaks.items() if tflops is not None},
        num_sms=given.num_sms,
        gpus_per_node=given.gpus_per_node,
        nvlink_domain_gpus=given.nvlink_domain_gpus,
        nvlink_bytes_per_s=given.nvlink_gb_s * 1e9,
        pcie_bytes_per_s=given.pcie_gb_s * 1e9,
        network_bytes_per_s=given.network_gb_s * 1e9,
        power_w=given.power_w,
        source=given.source,
        date=given.date,
    )


def workload_of(traffic: TrafficSpec, classes: Sequence[ClassSpec] = ()) -> Workload:
    """Lengths and arrivals; trace files are read here. Classes may have lengths of their own."""
    lengths = _lengths(traffic.lengths)
    if any(each.lengths is not None for each in classes):
        lengths = ClassLengths(
            lengths=tuple(lengths if each.lengths is None else _lengths(each.lengths) for each in classes),
            shares=tuple(each.share for each in classes),
        )
    if (traffic.input_scale, traffic.output_scale) != (1.0, 1.0):
        lengths = ScaledLengths(base=lengths, input_factor=traffic.input_scale, output_factor=traffic.output_scale)
    return Workload(lengths=lengths, arrivals=_arrivals(traffic), cached_frac=traffic.cached_frac)


def _lengths(given: LengthsSpec) -> Lengths:
    match given:
        case FixedTokens(input_tokens=input_tokens, output_tokens=output_tokens):
            return FixedLengths(input_tokens=input_tokens, output_tokens=output_tokens)
        case UniformTokens(input_tokens=i, output_tokens=o):
            return UniformLengths(input_min=i.min, input_max=i.max, output_min=o.min, output_max=o.max)
        case LognormalLengthsSpec(input_tokens=i, output_tokens=o, correlation=correlation):
            sides = [LognormalTokens(median_tokens=t.median, sigma=t.sigma, max_tokens=t.max) for t in (i, o)]
            return LognormalLengths(input=sides[0], output=sides[1], correlation=correlation)
        case EmpiricalTokens(path=path):
            trace = load_trace(Path(path))
            return EmpiricalLengths(input_tokens=trace.input_tokens, output_tokens=trace.output_tokens)


def _arrivals(traffic: TrafficSpec) -> Arrivals:
    match traffic.arrivals:
        case GammaSpec(cv=cv):
            return GammaArrivals(cv=cv)
        case ConstantSpec():
            return ConstantArrivals()
        case TraceSpec(path=path):
            return TraceArrivals(observed_s=np.diff(load_trace(Path(path)).arrival_s))
    return PoissonArrivals()


def slo_of_spec(spec: Spec) -> Slo:
    """The spec's one SLO, or one for each of its classes."""
    if spec.slo is not None:
        return slo_of(spec.slo)
    return Slo.of_classes(tuple(SloClass(name=c.name, share=c.share, slo=slo_of(c.slo)) for c in spec.classes))


def slo_of(spec: SloSpec) -> Slo:
    """Targets in seconds."""
    if spec.share is not None:
        limits = {"ttft": spec.ttft_ms, "tpot": spec.tpot_ms, "e2e": spec.e2e_ms}
        targets = [SloTarget(metric=m, limit_s=ms / 1e3) for m, ms in limits.items() if ms is not None]  # type: ignore[arg-type]
        return Slo(targets=tuple(targets), share=spec.share)
    metrics = {"ttft": spec.ttft, "tpot": spec.tpot, "e2e": spec.e2e}
    return Slo(
        targets=tuple(
            SloTarget(metric=metric, limit_s=ms / 1e3, percentile=percentile)  # type: ignore[arg-type]
            for metric, limits in metrics.items()
            if limits is not None
            for percentile, ms in limits.limits()
        )
    )


def space_of(spec: Spec) -> SearchSpace:
    """What may be chosen; choices left out keep the space's own defaults."""
    search = spec.search
    named = {name: getattr(search, name) for name in ("tp", "pp", "dp", "ep", "expert_tp", "only", "forbid", "routers")}
    named |= {"max_num_batched_tokens": search.tokens, "max_num_seqs": search.seqs}
    for architecture, known in (("collocated", COLLOCATED_POLICIES), ("disaggregated", DISAGGREGATED_POLICIES)):
        chosen = [policy for policy in search.policies or () if policy in known]
        named[f"{architecture}_policies"] = chosen or None
    given: dict[str, Any] = {name: tuple(values) for name, values in named.items() if values is not None}
    pools: dict[Role, PoolChoices] = {
        "m": pool_choices(search.collocated, None),
        "p": pool_choices(search.prefill, search.prefill_gpus),
        "d": pool_choices(search.decode, search.decode_gpus),
    }
    return SearchSpace(
        providers={gpu: card.provider for gpu, card in cards_of(spec).items() if card.provider != OWN},
        max_gpus=search.max_gpus,
        min_gpus=search.min_gpus,
        gpus=tuple(spec.gpu_names),
        architectures=tuple(search.architectures),
        owned=dict(search.owned),
        whole_nodes=search.whole_nodes,
        pools={role: choices for role, choices in pools.items() if choices != EVERYTHING},
        **given,
    )


def pool_choices(given: PoolSearchSpec | None, gpus: list[str] | None) -> PoolChoices:
    """What one kind of pool may choose beside the common choices; `gpus` where it names none of its own."""
    if given is None:
        return PoolChoices(gpus=tuple(gpus or ()))
    degrees = {name: getattr(given, name) for name in ("tp", "pp", "dp", "ep", "expert_tp")}
    return PoolChoices(
        gpus=tuple(given.gpus or gpus or ()),
        min_count=given.count.min if given.count else 1,
        max_count=given.count.max if given.count else None,
        **{name: None if values is None else tuple(values) for name, values in degrees.items()},
    )
