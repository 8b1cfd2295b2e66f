"""Why a pool or a strategy cannot exist: named rules, each with its reason and the size of the violation.

Each rule is a function; its docstring is what `bestserve space` prints about it. Shape rules need no
memory arithmetic; the memory rule is the estimator's own (`spaces.problem.memory_fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from estimator.hardware import Gpu
from estimator.model import DenseFfn, GatedDeltaNet, GroupedQueryAttention, LatentAttention, MoeFfn
from estimator.outcome import Infeasible
from spaces.problem import Problem
from spaces.strategy import Pool, Strategy

Violation = tuple[str, float]  # reason in one sentence, relative size > 0


def heads(problem: Problem, pool: Pool) -> Violation | None:
    """Tensor parallelism divides the attention heads, and divides or multiplies the KV heads."""
    tp = pool.parallelism.tp
    for group in problem.model.layers:
        whole: tuple[int, ...]
        shared: tuple[int, ...] = ()
        match group.attention:
            case GroupedQueryAttention() as attention:
                whole, shared = (attention.num_heads,), (attention.num_kv_heads,)
            case LatentAttention() as latent:
                whole = (latent.num_heads,)
            case GatedDeltaNet() as net:
                whole = (net.num_key_heads, net.num_value_heads)
        for num in whole:
            if num % tp:
                return f"tp = {tp} does not divide {num} attention heads", (num % tp) / tp
        for num in shared:
            if num % tp and tp % num:
                return f"tp = {tp} neither divides nor multiplies {num} KV heads", (num % tp) / tp
    return None


def experts(problem: Problem, pool: Pool) -> Violation | None:
    """Expert parallelism needs experts and divides their number."""
    ep = pool.parallelism.ep
    if ep == 1:
        return None
    nums = [group.ffn.num_experts for group in problem.model.layers if isinstance(group.ffn, MoeFfn)]
    if not nums:
        return f"ep = {ep} in a model without experts", float(ep - 1)
    for num in nums:
        if num % ep:
            return f"ep = {ep} does not divide {num} experts", (num % ep) / ep
    return None


def data_parallel(problem: Problem, pool: Pool) -> Violation | None:
    """Attention data parallelism is for models with experts; a dense model gains nothing over more instances."""
    dp = pool.parallelism.dp
    if dp > 1 and not problem.model.is_moe:
        return f"dp = {dp} in a model without experts; count = {dp * pool.count} instances do the same", float(dp - 1)
    return None


def widths(problem: Problem, pool: Pool) -> Violation | None:
    """The GPUs that share a feed-forward block or an expert divide its width."""
    degrees = pool.parallelism
    for group in problem.model.layers:
        match group.ffn:
            case MoeFfn() as ffn:
                what, width, shares = "expert", ffn.intermediate_size, degrees.moe_tp
            case DenseFfn() as ffn:
                what, width, shares = "feed-forward", ffn.intermediate_size, degrees.tp
        if width % shares:
            return f"{shares} GPUs do not divide the {what} width of {width}", (width % shares) / shares
    return None


def expert_split(problem: Problem, pool: Pool) -> Violation | None:
    """Where the number of GPUs per expert (tp × dp / ep) is narrowed, it is one of those allowed."""
    allowed, shares = problem.space.expert_tp_of(pool.role), pool.parallelism.moe_tp
    if allowed is None or shares in allowed:
        return None
    nearest = min(allowed, key=lambda value: abs(value - shares))
    return f"{shares} GPUs share an expert, {', '.join(map(str, allowed))} allowed", abs(shares / nearest - 1)


def engine_support(problem: Problem, pool: Pool) -> Violation | None:
    """The engine can be started so: how it splits experts, joins tp with dp, hands caches over from stages."""
    engine, degrees = problem.engine, pool.parallelism
    can, whole = engine.support, degrees.tp * degrees.dp
    if not can.splits_experts and degrees.ep not in (1, whole):
        return f"{engine.name} sets ep to tp × dp = {whole}, not {degrees.ep}", 1.0 - 1.0 / degrees.ep
    if not can.joins_tp_and_dp and degrees.tp > 1 and degrees.dp > 1:
        return f"{engine.name} has no tp = {degrees.tp} beside dp = {degrees.dp}", min(degrees.tp, degrees.dp) - 1.0
    staged = {"p": can.staged_prefill, "d": can.staged_decode}.get(pool.role, True)
    if not staged and degrees.pp > 1:
        phase = "prefill" if pool.role == "p" else "decode"
        return f"{engine.name} hands no caches over with pp = {degrees.pp} in the {phase} pool", degrees.pp - 1.0
    return None


def layers(problem: Problem, pool: Pool) -> Violation | None:
    """Every pipeline stage holds a layer."""
    pp, num = pool.parallelism.pp, problem.model.num_layers
    return (f"pp = {pp} stages for {num} layers", pp / num - 1) if pp > num else None


def fast_links(problem: Problem, pool: Pool) -> Violation | None:
    """A tensor-parallel group stays inside one NVLink domain, or one node where the GPUs have no NVLink."""
    gpu, tp = problem.gpu(pool.gpu), pool.parallelism.tp
    domain = fast_domain_gpus(gpu)
    return (f"tp = {tp} reaches over the {domain} joined GPUs of {gpu.name}", tp / domain - 1) if tp > domain else None


def node_boundary(problem: Problem, pool: Pool) -> Violation | None:
    """A pipeline stage fits in one node (or NVLink domain), or fills whole ones."""
    gpu, degrees = problem.gpu(pool.gpu), pool.parallelism
    stage, node = degrees.tp * degrees.dp, max(problem.gpu(pool.gpu).gpus_per_node, fast_domain_gpus(gpu))
    if stage <= node or stage % node == 0:
        return None
    return f"a stage of {stage} GPUs neither fits in nor fills nodes of {node} {gpu.name}", (stage % node) / node


def fast_domain_gpus(gpu: Gpu) -> int:
    """GPUs that a tensor-parallel group may span."""
    return gpu.nvlink_domain_gpus if gpu.nvlink_bytes_per_s > 0 else gpu.gpus_per_node


PoolRule = Callable[[Problem, Pool], Violation | None]
_SHAPE = (
    layers,
    heads,
    experts,
    data_parallel,
    expert_split,
    engine_support,
    fast_links,
    node_boundary,
    widths,
)
SHAPE_RULES: Mapping[str, PoolRule] = MappingProxyType({rule.__name__: rule for rule in _SHAPE})


def gpu_budget(problem: Problem, strategy: Strategy) -> Violation | None:
    """All pools together stay within the GPU budget."""
    num, most = strategy.num_gpus, problem.space.max_gpus
    return (f"{num} GPUs, {most} allowed", num / most - 1) if num > most else None


def least_gpus(problem: Problem, strategy: Strategy) -> Violation | None:
    """All pools together use the GPUs asked for at least."""
    num, least = strategy.num_gpus, problem.space.min_gpus
    return (f"{num} GPUs, at least {least} asked for", 1 - num / least) if num < least else None


def instances(problem: Problem, strategy: Strategy) -> Violation | None:
    """Each pool has a number of instances that its role allows."""
    for pool in strategy.pools:
        choices = problem.space.of(pool.role)
        most = choices.max_count or pool.count
        if not choices.min_count <= pool.count <= most:
            upto = f" to {choices.max_count}" if choices.max_count else " or more"
            excess = max(choices.min_count - pool.count, pool.count - most)
            return f"{pool.count} instances, {choices.min_count}{upto} allowed", excess / pool.count
    return None


def owned(problem: Problem, strategy: Strategy) -> Violation | None:
    """No more GPUs of a type than the user owns, where that is stated."""
    for gpu, num in strategy.gpu_counts.items():
        most = problem.space.owned.get(gpu)
        if most is not None and num > most:
            return f"{num} {gpu}, {most} owned", (num - most) / max(most, 1)
    return None


def patterns(problem: Problem, strategy: Strategy) -> Violation | None:
    """The written form matches one of the `only` patterns, if any, and none of the forbidden ones."""
    space = problem.space
    if not space.only and not space.forbid:
        return None
    text = str(strategy)
    for pattern in space.forbid:
        if fnmatchcase(text, pattern):
            return f"forbidden by {pattern}", 1.0
    if space.only and not any(fnmatchcase(text, pattern) for pattern in space.only):
        return "matches none of the patterns allowed", 1.0
    return None


def whole_nodes(problem: Problem, strategy: Strategy) -> Violation | None:
    """Where whole nodes are asked for, the GPUs of each type fill them."""
    if not problem.space.whole_nodes:
        return None
    for name, num in strategy.gpu_counts.items():
        node = problem.gpu(name).gpus_per_node
        if num % node:
            return f"{num} {name} do not fill nodes of {node}", (num % node) / node
    return None


def providers_of(problem: Problem, gpus: Iterable[str]) -> set[str]:
    """Who sells these GPU types; types without a provider go anywhere and are left out."""
    return {problem.space.providers[gpu] for gpu in gpus if gpu in problem.space.providers}


def one_provider(problem: Problem, strategy: Strategy) -> Violation | None:
    """GPU types that work together are priced at one provider: caches cannot cross between two."""
    providers = providers_of(problem, strategy.gpu_counts)
    return (f"GPUs of {' and '.join(sorted(providers))}", len(providers) - 1.0) if len(providers) > 1 else None


StrategyRule = Callable[[Problem, Strategy], Violation | None]
STRATEGY_RULES: Mapping[str, StrategyRule] = MappingProxyType(
    {rule.__name__: rule for rule in (gpu_budget, least_gpus, instances, owned, whole_nodes, one_provider, patterns)}
)
MEMORY_RULE = "memory"
EXPLANATIONS: Mapping[str, str] = MappingProxyType(
    {name: " ".join((rule.__doc__ or "").split()) for name, rule in {**SHAPE_RULES, **STRATEGY_RULES}.items()}
    | {MEMORY_RULE: "Weights, and KV blocks for at least one request, fit in the GPUs' memory."}
)


def broken_shape(problem: Problem, pool: Pool) -> Infeasible | None:
    """The first shape rule that the pool breaks, or None."""
    for name, rule in SHAPE_RULES.items():
        violation = rule(problem, pool)
        if violation is not None:
            return Infeasible(rule=name, reason=violation[0], violation=violation[1])
    return None


def broken_strategy(problem: Problem, strategy: Strategy) -> Infeasible | None:
    """The first rule that the strategy breaks, shape rules first, memory left out; or None."""
    for pool in strategy.pools:
        broken = broken_shape(problem, pool)
        if broken is not None:
            return broken
    return broken_whole(problem, strategy)


def broken_whole(problem: Problem, strategy: Strategy) -> Infeasible | None:
    """The first rule about the whole strategy (budget, ownership, nodes, patterns) that it breaks, or None."""
    for name, rule in STRATEGY_RULES.items():
        violation = rule(problem, strategy)
        if violation is not None:
            return Infeasible(rule=name, reason=violation[0], violation=violation[1])
    return None
