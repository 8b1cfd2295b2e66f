"""Closed forms beside the event kernels: `python -m tests.bench.bench_queueing`.

Prints the table of `estimator/README.md`, section "Closed forms". Each row runs a kernel in the limit that the form
describes: a seat is a server when steps take a fixed time, tokens are the work, and a step is short beside a service.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from estimator import queueing
from estimator.build import build_instance
from estimator.capacity import MeanRequest, decode_fixed_point, instance_rate_req_s
from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.instance import EngineLimits, Instance
from estimator.iteration import StepCost
from estimator.parallelism import Parallelism
from estimator.requests import Requests
from estimator.simulate import simulate
from estimator.simulation import Simulation
from estimator.system import Collocated, Disaggregated, KvLink
from tests.test_goodput import CHAT

NUM = 400_000
MEAN_STEPS = 5_000.0  # a step is then a short time beside a service
LOADS = (0.3, 0.6, 0.8)


def servers(num_seats: int, *, step_s: float = 1.0, per_seq_s: float = 0.0) -> Instance:
    """`num_seats` seats; a step takes step_s + n·per_seq_s with n sequences, one-token prompts among them."""
    num_seqs = np.arange(num_seats + 1.0)
    cost = StepCost(
        decode_s=step_s + per_seq_s * num_seqs,
        mixed_s=np.asarray(step_s + per_seq_s * np.arange(4_097), dtype=np.float64),
        head_s=np.zeros(num_seats + 1),
        kv_read_s_per_token=np.zeros(num_seats + 1),
        window_read_s_per_token=np.zeros(num_seats + 1),
        window_tokens=0,
        attention_s_per_pair=0.0,
        window_attention_s_per_pair=0.0,
    )
    limits = EngineLimits(max_num_batched_tokens=4_096, max_num_seqs=num_seats)
    return Instance(
        cost=cost,
        limits=limits,
        parallelism=Parallelism(),
        gpu="g",
        num_kv_blocks=10_000_000,
        kv_bytes_per_token=1.0,
    )


def prompts(mean_s: float, *, stages: int = 1) -> Instance:
    """One prompt of 4,096 tokens at a time, `mean_s` through all stages."""
    lone = servers(4)
    cost = replace(lone.cost, mixed_s=np.arange(4_097) * mean_s / 4_096 / stages)
    return replace(lone, cost=cost, parallelism=Parallelism(pp=stages))


def traffic(rate: float, steps: NDArray[np.int64], *, prompt_tokens: NDArray[np.int64] | int = 1) -> Requests:
    """Poisson arrivals of requests that take so many steps, the first of them for the prompt."""
    num = len(steps)
    return Requests(
        arrival_s=np.cumsum(np.random.default_rng(11).exponential(1.0 / rate, num)),
        input_tokens=np.broadcast_to(np.asarray(prompt_tokens, np.int64), num).copy(),
        output_tokens=steps,
        cached_tokens=np.zeros(num, np.int64),
    )


def geometric() -> NDArray[np.int64]:
    """Steps of mean `MEAN_STEPS`, nearly exponential."""
    return np.asarray(np.random.default_rng(12).geometric(1.0 / MEAN_STEPS, NUM), dtype=np.int64)


def lognormal(scv: float) -> NDArray[np.int64]:
    """Steps of mean `MEAN_STEPS` and that squared coefficient of variation."""
    sigma2 = np.log1p(scv)
    normal = np.random.default_rng(13).standard_normal(NUM)
    steps = np.exp(np.log(MEAN_STEPS) - sigma2 / 2 + np.sqrt(sigma2) * normal)
    return np.asarray(np.maximum(1, np.rint(steps)), dtype=np.int64)


def row(form: str, setting: str, laws: list[float], kernel: list[float]) -> None:
    """Prints a line: the relative error of the form against the kernel at each load."""
    errors = ", ".join(f"{100 * (law / seen - 1):+.1f} %" for law, seen in zip(laws, kernel, strict=True))
    print(f"| {form} | {setting} | {errors} |")


def run(instance: Instance, requests: Requests) -> Simulation:
    """The kernel on one instance."""
    return simulate(Collocated(instance=instance), requests)


def mean_wait_s(simulation: Simulation) -> float:
    """Mean from arrival to the first step, without the first twentieth."""
    wait = simulation.prefill_start_s - simulation.arrival_s
    return float(wait[len(wait) // 20 :].mean())


def mean_sojourn_s(simulation: Simulation) -> float:
    """Mean from arrival to the end, without the first twentieth."""
    return float(simulation.e2e_s[len(simulation.e2e_s) // 20 :].mean())


def one_server() -> None:
    """M/D/1, M/M/1, M/G/1."""
    fixed, ones = 4096, np.ones(NUM, np.int64)
    seen = [mean_wait_s(run(prompts(1.0), traffic(rho, ones, prompt_tokens=fixed))) for rho in LOADS]
    row(
        "M/D/1 wait (Pollaczek-Khinchine)",
        "equal prompts that fill a step",
        [queueing.md1_wait_s(rho, 1.0) for rho in LOADS],
        seen,
    )
    runs = [run(servers(1), traffic(rho / MEAN_STEPS, geometric())) for rho in LOADS]
    laws = [queueing.mm1_wait_s(rho / MEAN_STEPS, MEAN_STEPS) for rho in LOADS]
    row("M/M/1 wait", "one seat, geometric outputs", laws, [mean_wait_s(r) for r in runs])
    laws = [queueing.mm1_sojourn_quantile_s(rho / MEAN_STEPS, MEAN_STEPS, 0.99) for rho in LOADS]
    row("M/M/1 sojourn, p99", "the same", laws, [float(np.quantile(r.e2e_s[NUM // 20 :], 0.99)) for r in runs])
    for scv in (0.5, 2.0):
        steps = lognormal(scv)
        mean, spread = float(steps.mean()), float(steps.var() / steps.mean() ** 2)
        seen = [mean_wait_s(run(servers(1), traffic(rho / mean, steps))) for rho in LOADS]
        laws = [queueing.mg1_wait_s(rho / mean, mean, spread) for rho in LOADS]
        row("M/G/1 wait (Pollaczek-Khinchine)", f"one seat, lognormal outputs of scv {scv:g}", laws, seen)


def many_servers() -> None:
    """M/M/c and M/G/c; at ρ = 0.3 hardly anybody waits."""
    loads = LOADS[1:]
    for num in (4, 16):
        seen = [mean_wait_s(run(servers(num), traffic(num * rho / MEAN_STEPS, geometric()))) for rho in loads]
        laws = [queueing.mmc_wait_s(num * rho / MEAN_STEPS, MEAN_STEPS, num) for rho in loads]
        row("M/M/c wait (Erlang C), ρ = 0.6, 0.8", f"{num} seats, geometric outputs", laws, seen)
    for scv in (0.5, 2.0):
        steps = lognormal(scv)
        mean, spread = float(steps.mean()), float(steps.var() / steps.mean() ** 2)
        seen = [mean_wait_s(run(servers(8), traffic(8 * rho / mean, steps))) for rho in loads]
        laws = [queueing.mgc_wait_s(8 * rho / mean, mean, 8, service_scv=spread) for rho in loads]
        row("M/G/c wait (Allen-Cunneen), ρ = 0.6, 0.8", f"8 seats, lognormal outputs of scv {scv:g}", laws, seen)


def tandem() -> None:
    """A prefill pool of one seat and exponential prompts, then a decode pool of 4 seats and exponential outputs."""
    mean_tokens = 200.0
    lengths = np.minimum(np.random.default_rng(14).geometric(1 / mean_tokens, NUM), 4_096)
    first = servers(1)
    first = replace(first, cost=replace(first.cost, mixed_s=np.arange(4_097.0)))  # 1 s per prompt token
    link = KvLink(egress_bytes_per_s=1e15, ingress_bytes_per_s=1e15)
    step_s = 4.0 * mean_tokens / MEAN_STEPS
    system = Disaggregated(prefill=first, num_prefill=1, decode=servers(4, step_s=step_s), num_decode=1, link=link)
    steps, laws, seen = geometric() + 1, [], []
    for rho in LOADS:
        rate = rho / mean_tokens
        laws.append(queueing.tandem_sojourn_s(rate, ((float(lengths.mean()), 1), (4.0 * mean_tokens, 4))))
        seen.append(mean_sojourn_s(simulate(system, traffic(rate, steps, prompt_tokens=lengths))))
    row("tandem M/M/1 → M/M/4, time in system (Jackson)", "prefill pool, then decode pool of 4 seats", laws, seen)


def sharing() -> None:
    """Processor sharing with a constant and with a batch-dependent rate; the fixed point."""
    for name, steps in (("geometric", geometric()), ("lognormal of scv 2", lognormal(2.0))):
        mean = float(steps.mean())
        pure = servers(512, step_s=0.0, per_seq_s=1.0)
        seen = [mean_sojourn_s(run(pure, traffic(rho / mean, steps))) for rho in LOADS]
        laws = [queueing.processor_sharing_s(rho / mean, mean) for rho in LOADS]
        row("M/G/1 processor sharing, time in system", f"step time ∝ batch, {name} outputs", laws, seen)
    steps = geometric()
    base_s, per_seq_s = 0.8, 0.02
    n = np.arange(1, 257)
    speed = n * (base_s + per_seq_s) / (base_s + per_seq_s * n)
    alone_s = MEAN_STEPS * (base_s + per_seq_s)
    mixed = servers(256, step_s=base_s, per_seq_s=per_seq_s)
    laws, seen, fixed = [], [], []
    for rho in LOADS:
        rate = rho * float(speed[-1]) / alone_s
        requests = traffic(rate, steps)
        laws.append(queueing.shared_rate_mean_seqs(rate * alone_s, tuple(speed)) / rate)
        seen.append(mean_sojourn_s(run(mixed, requests)))
        point = decode_fixed_point(mixed, MeanRequest.of(requests, 0), rate)
        fixed.append(np.inf if point is None else point[0] / rate)
    row("processor sharing, batch-dependent rate (Cohen)", "step 0.8 s + 0.02 s per sequence", laws, seen)
    row("fixed point of batch, step and rate (Little)", "the same", fixed, seen)


def serving() -> None:
    """DistServe's prefill forms and the capacity bound."""
    ones = np.ones(NUM, np.int64)
    rates = [0.3, 0.6, 0.8]
    seen = [mean_sojourn_s(run(prompts(1.0), traffic(rate, ones, prompt_tokens=4_096))) for rate in rates]
    row(
        "DistServe eq. 1, TTFT",
        "equal prompts that fill a step",
        [queueing.distserve_ttft_s(r, 1.0) for r in rates],
        seen,
    )
    rates = [0.6, 1.2, 1.6]
    laws = [queueing.distserve_two_stages_ttft_s(rate, 1.0) for rate in rates]
    two = prompts(1.0, stages=2)
    link = KvLink(egress_bytes_per_s=1e15, ingress_bytes_per_s=1e15)
    pools = Disaggregated(prefill=two, num_prefill=1, decode=servers(1), num_decode=1, link=link)
    for name, system in (("collocated", Collocated(instance=two)), ("a prefill pool", pools)):
        seen = [mean_sojourn_s(simulate(system, traffic(rate, ones, prompt_tokens=4_096))) for rate in rates]
        row("DistServe eq. 2, TTFT over two stages", f"the same, pp = 2, {name}", laws, seen)
    capacity()


def capacity() -> None:
    """The most that an 8-billion-parameter model on one GPU serves, by formula and in a closed loop."""
    model, gpu, engine = load_model("llama-3.1-8b"), load_gpu("h100_sxm"), load_engine("vllm")
    requests = CHAT.draw(1.0, 20_000, 0)
    laws, seen = [], []
    for seats in (32, 128, 512):
        limits = EngineLimits(max_num_batched_tokens=2048, max_num_seqs=seats)
        instance = build_instance(
            model=model,
            gpu=gpu,
            engine=engine,
            parallelism=Parallelism(),
            limits=limits,
            weight_dtype="bf16",
            kv_dtype="bf16",
        )
        assert isinstance(instance, Instance), instance
        laws.append(instance_rate_req_s(instance, MeanRequest.of(requests, 0)))
        busy = simulate(Collocated(instance=instance), requests, concurrency=2 * seats)
        seen.append(len(requests) / float(busy.finish_s.max()))
    row(
        "most requests per second (`capacity.py`)",
        "Llama 3.1 8B on an H100, 32, 128 and 512 seats full",
        laws,
        seen,
    )


def main() -> None:
    """The table."""
    print(
        f"| closed form | kernel in its limit | error of the form at ρ = {', '.join(map(str, LOADS))} |\n|---|---|---|"
    )
    one_server()
    many_servers()
    tandem()
    sharing()
    serving()


if __name__ == "__main__":
    main()
