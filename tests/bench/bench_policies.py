"""Where each policy wins: `python -m tests.bench.bench_policies`.

Prints the table of `estimator/README.md`, section "Policies", and the figures on TetriInfer below it. Llama-3.1-8B in
bf16 on four H100 of one node under the vLLM card, at 30 % and 85 % of what chunked prefill carries. Two pools have the
split that carries most. Limits: P90 TTFT 0.5 s, P90 TPOT 25 ms. The policies alone are compared: the first token is
told when the prompt ends and a hand-over takes its transfer, without the engine's own overhead.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.goodput import Goodput, goodput
from estimator.latency import Percentiles
from estimator.simulate import simulate
from estimator.slo import Slo, SloTarget
from estimator.system import Collocated, Disaggregated, System
from estimator.workload import LognormalLengths, LognormalTokens, PoissonArrivals, Workload
from spaces.problem import Problem, system_of
from spaces.strategy import Strategy
from tests.small_problem import small_problem

NUM_GPUS, NUM_REQUESTS, LOADS = 4, 20_000, (0.3, 0.85)
SLO = Slo(targets=(SloTarget(metric="ttft", limit_s=0.5), SloTarget(metric="tpot", limit_s=0.025)))
POLICIES = {
    "chunked": ("4m-tp1@h100_sxm",),
    "prefill first": ("4m-tp1@h100_sxm,policy=prefill_first",),
    "DistServe": (
        "1p-tp1@h100_sxm+3d-tp1@h100_sxm",
        "2p-tp1@h100_sxm+2d-tp1@h100_sxm",
        "3p-tp1@h100_sxm+1d-tp1@h100_sxm",
    ),
    "TetriInfer": (
        "1p-tp1@h100_sxm,policy=tetriinfer+3d-tp1@h100_sxm",
        "2p-tp1@h100_sxm,policy=tetriinfer+2d-tp1@h100_sxm",
        "3p-tp1@h100_sxm,policy=tetriinfer+1d-tp1@h100_sxm",
    ),
}


def lengths(input_median: float, output_median: float) -> Workload:
    """Lognormal prompts and outputs about the two medians, Poisson arrivals."""
    return Workload(
        lengths=LognormalLengths(
            input=LognormalTokens(median_tokens=input_median, sigma=0.7, max_tokens=8000),
            output=LognormalTokens(median_tokens=output_median, sigma=0.7, max_tokens=2000),
        ),
        arrivals=PoissonArrivals(),
    )


WORKLOADS = {"prompt-heavy": lengths(2000, 60), "decode-heavy": lengths(150, 500), "mixed": lengths(600, 200)}


def best_of(problem: Problem, written: tuple[str, ...], workload: Workload) -> tuple[str, System, Goodput | None]:
    """The split with the highest goodput, as (its name, system, goodput); None where none keeps the limits."""
    found: list[tuple[float, str, System, Goodput | None]] = []
    for text in written:
        system = system_of(problem, Strategy.parse(text))
        assert not hasattr(system, "rule"), system
        if isinstance(system, Disaggregated):
            system = replace(
                system, holds_first_token=False, link=replace(system.link, latency_s=0.0, latency_steps=0.0)
            )
        answer = goodput(system, workload, SLO)
        kept = answer if isinstance(answer, Goodput) else None
        found.append((kept.rate_req_s if kept else 0.0, text, system, kept))
    best = max(found, key=lambda one: one[0])
    return best[1], best[2], best[3]


def variants(chosen: dict[str, tuple[str, System, Goodput | None]], workload: Workload) -> str:
    """Goodput per GPU of TetriInfer's split as it is, with round robin for decode, and with whole prompts besides."""
    _, system, answer = chosen["TetriInfer"]
    assert isinstance(system, Disaggregated)
    assert answer is not None
    rates = [answer.rate_req_s]
    in_turn = replace(system.policy, decode_placement="round_robin")
    for policy in (in_turn, replace(in_turn, chunk_tokens=0)):
        other = goodput(replace(system, policy=policy), workload, SLO)
        assert isinstance(other, Goodput)
        rates.append(other.rate_req_s)
    return ", ".join(f"{rate / NUM_GPUS:.1f}" for rate in rates)


def split_of(text: str) -> str:
    """`2p2d` of a written strategy, empty for a collocated one."""
    return "".join(part.split("-")[0] for part in text.split("+")) if "+" in text else ""


def main() -> None:
    """One row per workload, load and policy."""
    print("| traffic | load | policy | pools | goodput/GPU | TTFT mean | TTFT P90 | TPOT mean | TPOT P90 | job time |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    problem = small_problem(gpus=("h100_sxm",), max_gpus=NUM_GPUS)
    notes: list[str] = []
    for traffic, workload in WORKLOADS.items():
        chosen = {name: best_of(problem, written, workload) for name, written in POLICIES.items()}
        reference = chosen["chunked"][2]
        assert reference is not None
        notes.append(
            f"TetriInfer, {traffic}: as it is, round robin, and whole prompts: {variants(chosen, workload)}/s a GPU"
        )
        for load in LOADS:
            requests = workload.draw(load * reference.rate_req_s, NUM_REQUESTS, 0)
            for name, (text, system, answer) in chosen.items():
                run = simulate(system, requests)
                ttft, tpot = Percentiles.of(run.ttft_s), Percentiles.of(run.tpot_s)
                rate = f"{answer.rate_req_s / NUM_GPUS:.2f}/s" if answer else "none"
                print(
                    f"| {traffic} | {load:.0%} | {name} | {split_of(text)} | {rate} | {1e3 * ttft.mean_s:.0f} ms "
                    f"| {1e3 * ttft.p90_s:.0f} ms | {1e3 * tpot.mean_s:.1f} ms | {1e3 * tpot.p90_s:.1f} ms "
                    f"| {Percentiles.of(run.e2e_s).mean_s:.2f} s |",
                    flush=True,
                )
    one = chosen["chunked"][1]
    assert isinstance(one, Collocated)
    per_token_us = [1e6 * one.instance.cost.mixed_step_s(0, 0.0, [(num, 0)], 1) / num for num in (512, 8_192)]
    notes.append("a prompt token in a step of 512, of 8,192: {:.0f}, {:.0f} µs".format(*per_token_us))
    print("\n".join(["", *notes]))


if __name__ == "__main__":
    main()
