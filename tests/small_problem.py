"""A small planning problem, and an evaluation of it that needs no simulation: for tests of the search alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.cost import PriceCard
from estimator.slo import Slo, SloTarget
from estimator.workload import FixedLengths, PoissonArrivals, Workload
from search.evaluate import Evaluation
from search.screen import Screen
from search.tariff import Tariff
from spaces.choices import SearchSpace
from spaces.problem import Problem
from spaces.rules import broken_strategy
from spaces.space import Space
from spaces.strategy import Pool, Strategy

USD_PER_H = {"h100_sxm": 3.0, "l40s": 1.0, "h200_sxm": 4.0}
SPEED = {"h100_sxm": 4.0, "l40s": 1.2, "h200_sxm": 5.0}


def small_problem(model: str = "llama-3.1-8b", gpus: tuple[str, ...] = ("h100_sxm", "l40s"), **choices: Any) -> Problem:
    """An 8B model in bf16 on H100 and L40S, up to 4 GPUs, a space of some hundred strategies."""
    narrow: dict[str, Any] = {
        "max_gpus": 4,
        "tp": (1, 2),
        "pp": (1, 2),
        "dp": (1,),
        "ep": (1,),
        "max_num_batched_tokens": (2048, 8192),
        "max_num_seqs": (64, 256),
    }
    return Problem(
        model=load_model(model),
        engine=load_engine("vllm"),
        gpus={name: load_gpu(name) for name in gpus},
        weight_dtype="bf16",
        kv_dtype="bf16",
        workload=Workload(lengths=FixedLengths(input_tokens=1000, output_tokens=100), arrivals=PoissonArrivals()),
        slo=Slo(targets=(SloTarget(metric="ttft", limit_s=1.0), SloTarget(metric="tpot", limit_s=0.05))),
        space=SearchSpace(**(narrow | choices)),
    )


def usd_per_h(gpu_counts: Mapping[str, int]) -> float:
    """Price without whole nodes."""
    return sum(USD_PER_H[gpu] * num for gpu, num in gpu_counts.items())


def tariff(network_usd_per_gpu_h: float = 0.0) -> Tariff:
    """The same prices, and one of the network."""
    cards = {
        gpu: PriceCard(
            id=gpu,
            provider="made up",
            gpu=gpu,
            gpus_per_node=1,
            kind="on_demand",
            usd_per_gpu_h=price,
            region="",
            source="made up",
            date="2026-11-25",
        )
        for gpu, price in USD_PER_H.items()
    }
    gpus = {gpu: load_gpu(gpu) for gpu in USD_PER_H}
    return Tariff(cards=cards, gpus=gpus, network_usd_per_gpu_h=network_usd_per_gpu_h)


def made_up(problem: Problem, strategy: Strategy, seed: int) -> Evaluation:
    """Goodput by a made-up law: pools in series, sublinear in tp, a little better with more instances."""
    broken = broken_strategy(problem, strategy)
    if broken is not None:
        return Evaluation(strategy=str(strategy), status="infeasible", rule=broken.rule, violation=broken.violation)
    rates = [pool_rate(pool) for pool in strategy.pools]
    if strategy.is_disaggregated:
        rates = [2.6 * rates[0], 1.7 * rates[1]]
    goodput = min(rates)
    return Evaluation(
        strategy=str(strategy),
        status="ok",
        goodput_req_s=goodput,
        low_req_s=0.99 * goodput,
        high_req_s=1.01 * goodput,
        binding_limit="ttft p90" if rates[0] == goodput else "tpot p90",
        prefill_utilisation_frac=0.9 * goodput / rates[0],
        decode_utilisation_frac=0.9 * goodput / rates[-1],
    )


def made_up_screen(space: Space, demand_req_s: float | None = None, reach: float | None = None) -> Screen:
    """The bound of made-up goodput: instances at their best, in ever larger pools."""

    def rate(shape: Pool) -> float:
        return 1.1 * {"m": 1.0, "p": 2.6, "d": 1.7}[shape.role] * pool_rate(shape)

    return Screen(space, tariff(), demand_req_s=demand_req_s, reach=reach, rate_of=rate)


def pool_rate(pool: Pool) -> float:
    """What a pool does of the work that prefill alone, decode alone and both take different shares of."""
    degrees = pool.parallelism
    layout: float = degrees.tp**0.85 * degrees.pp**0.7
    limits = (1.0 if pool.max_num_batched_tokens == 8192 else 0.9) * (1.0 if pool.max_num_seqs == 256 else 0.8)
    return SPEED[pool.gpu] * layout * limits * pool.count * (1.1 - 0.1 / pool.count)
