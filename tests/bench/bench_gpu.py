"""What a GPU does against what its card says: `python -m tests.bench.bench_gpu h100_sxm` beside PyTorch on that GPU.

What engines run much alike is timed in CUDA graphs, bf16, weights read from memory:

- lone products at the shapes that three models have at TP 1 to 8, against `OperatorTiming.gemm_s`;
- the rate of a large product at first and under load that lasts, which the limit of power lowers;
- whole steps of dense models without their attention kernel (products, norms, rope, cache writes, activation, head),
  against the step of each engine's fitted costs without attention and host.

Nothing of it was fitted. Prints predicted over measured, 1 = equal, as `estimator/README.md` shows it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from estimator.build import step_cost_of
from estimator.catalogue.engines import load_engine
from estimator.catalogue.gpus import load_gpu
from estimator.catalogue.models import load_model
from estimator.catalogue.timing import load_timing
from estimator.engine import Engine
from estimator.hardware import Gpu
from estimator.instance import EngineLimits
from estimator.iteration import StepCost
from estimator.model import DenseFfn, GroupedQueryAttention, ModelShape
from estimator.operators import Gemm, GroupedAttention, stage_operators
from estimator.parallelism import Parallelism
from estimator.stage import step_kernels, token_grid

try:
    import torch
    from torch.nn import functional
except ImportError:  # a bench for machines with a GPU; nothing else here needs PyTorch
    sys.exit("bench_gpu: PyTorch is not installed; run it on a machine that has it and the GPU in question")

ENGINES = ("vllm", "sglang", "trtllm")
LONE = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-32B")
WHOLE = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-14B")
ROWS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SEQUENCES, PROMPTS = (1, 8, 32, 64, 128, 256), (512, 2048, 8192)
PAST_L2_BYTES = 300e6  # of weights, in turn: several times any L2 cache of today
REPLAYS = 7
LARGE, BURST, LOAD_S = 8192, 20, 3.0  # rows, columns and depth of the large product; products a burst; seconds of load
Tensor = Any  # PyTorch is not among the packages that types are checked with


def graph_s(call: Callable[[], object]) -> float:
    """Median seconds of a replay of `call` as a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e-3 * start.elapsed_time(end))
    return float(statistics.median(times))


def random(*shape: int) -> Tensor:
    """Weights or activations, bf16; zeros would take less power and run faster."""
    return torch.empty(*shape, device="cuda", dtype=torch.bfloat16).normal_(std=0.02)


def product_shapes() -> list[tuple[int, int]]:
    """(n, k) of all products but the head that the models have at tp 1 to 8."""
    shapes = set()
    for name in LONE:
        for tp in (1, 2, 4, 8):
            operators = stage_operators(load_model(name), Parallelism(tp=tp), "bf16", "bf16")
            shapes |= {(op.n, op.k) for op in operators if isinstance(op, Gemm) and op.role != "head"}
    return sorted(shapes)


def lone_product_s(rows: int, n: int, k: int) -> float:
    """Seconds of C[rows,n] = A[rows,k]·B[k,n], each weight read from memory."""
    weights = random(int(PAST_L2_BYTES // (2 * n * k)) + 2, n, k)
    x, y = random(rows, k), random(rows, n)

    def all_in_turn() -> None:
        for weight in weights:
            torch.mm(x, weight.t(), out=y)

    return graph_s(all_in_turn) / len(weights)


@torch.compile(dynamic=True)
def norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Residual added, RMS norm of the sum, one kernel."""
    residual = residual + x
    wide = residual.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight).to(x.dtype), residual


@torch.compile(dynamic=True)
def activation(x: Tensor) -> Tensor:
    """SwiGLU, one kernel."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


@torch.compile(dynamic=True)
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, one kernel."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


@torch.compile(dynamic=True)
def head_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of every head, one kernel."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).to(x.dtype)


class DenseModel:
    """A dense model with random weights on the GPU, its attention kernel left out: queries pass for its result."""

    def __init__(self, shape: ModelShape) -> None:
        (group,) = shape.layers
        assert isinstance(group.attention, GroupedQueryAttention)
        assert isinstance(group.ffn, DenseFfn)
        self.attention, h, f = group.attention, shape.hidden_size, group.ffn.intermediate_size
        a = self.attention
        self.queries, self.keys, self.head_dim = a.num_heads, a.num_kv_heads, a.head_dim
        width = a.num_heads * a.head_dim
        sizes = ((width + 2 * a.num_kv_heads * a.head_dim, h), (h, width), (2 * f, h), (h, f))
        self.layers = [[random(*size) for size in sizes] for _ in range(group.count)]
        self.head, self.ones = random(shape.vocab_size, h), torch.ones(h, device="cuda")
        self.cos = random(max(PROMPTS), 1, a.head_dim // 2)

    def step(self, x: Tensor, num_sampled: int) -> Tensor:
        """Tokens x (m, hidden) through all layers; the last `num_sampled` rows through the head to a token each."""
        m, heads = len(x), self.queries + self.keys
        cos, residual = self.cos[:m], torch.zeros_like(x)
        cache = torch.empty(2, m, self.keys, self.head_dim, device="cuda", dtype=x.dtype)
        for qkv, out, up, down in self.layers:
            x, residual = norm(x, residual, self.ones)
            mixed = torch.mm(x, qkv.t()).view(m, -1, self.head_dim)
            turned = mixed[:, :heads]
            if self.attention.qk_norm:
                turned = head_norm(turned, self.ones[: self.head_dim])
            turned = rope(turned, cos, cos)
            cache[0], cache[1] = turned[:, self.queries :], mixed[:, heads:]
            x = torch.mm(turned[:, : self.queries].reshape(m, -1), out.t())
            x, residual = norm(x, residual, self.ones)
            x = torch.mm(activation(torch.mm(x, up.t())), down.t())
        return torch.mm(norm(x, residual, self.ones)[0][-num_sampled:], self.head.t()).argmax(-1)


def predicted_steps(shape: ModelShape, gpu: Gpu, engine: Engine) -> StepCost:
    """An engine's steps on one GPU without attention and without host."""
    limits = EngineLimits(max_num_batched_tokens=max(PROMPTS), max_num_seqs=max(SEQUENCES))
    bare = replace(
        engine.costs_on(gpu.architecture),
        **dict.fromkeys(("host_s", "host_s_per_seq", "sync_host_s", "sync_host_s_per_seq", "prefill_host_s"), 0.0),
    )
    operators = stage_operators(shape, Parallelism(), "bf16", "bf16")
    kernels = step_kernels(
        [op for op in operators if not isinstance(op, GroupedAttention)],
        load_timing(gpu, engine.name),
        token_grid(max(PROMPTS)),
        num_layers=0.0,  # no host that launches layers one by one
        power_law=False,
        block_scaled=False,
    )
    return step_cost_of(kernels, replace(engine, costs={"": bare}), gpu.architecture, limits)


def lone_rows(gpu: Gpu) -> Iterator[list[str]]:
    """A line per number of rows: median and P90 of |predicted/measured - 1|, and the median ratio, by engine."""
    timings = [load_timing(gpu, engine) for engine in ENGINES]
    shapes = product_shapes()
    for rows in ROWS:
        measured = np.array([lone_product_s(rows, n, k) for n, k in shapes])
        cells = []
        for timing in timings:
            ratio = np.array([float(timing.gemm_s(rows, n=n, k=k, dtype="bf16")) for n, k in shapes]) / measured
            error = 100 * np.abs(ratio - 1)
            cells.append(f"{np.median(ratio):.2f} ({np.median(error):.0f} / {np.percentile(error, 90):.0f} %)")
        yield [f"{rows}", *cells]


def step_ratios(gpu: Gpu, name: str) -> Iterator[tuple[str, list[float]]]:
    """Every step of a model and predicted over measured by engine."""
    shape = load_model(name)
    costs = [predicted_steps(shape, gpu, load_engine(engine)) for engine in ENGINES]
    model = DenseModel(shape)
    for tokens, num_sampled in [*((n, n) for n in SEQUENCES), *((p, 1) for p in PROMPTS)]:
        x = random(tokens, shape.hidden_size)
        model.step(x, num_sampled)  # compiles
        measured_s = graph_s(lambda x=x, n=num_sampled: model.step(x, n))  # type: ignore[misc]
        decodes = num_sampled == tokens
        seconds = [c.decode_s[tokens] if decodes else c.mixed_s[tokens] + c.head_s[1] for c in costs]
        yield f"decode of {tokens}" if decodes else f"prompt of {tokens}", [s / measured_s for s in seconds]


def whole_rows(gpu: Gpu) -> Iterator[list[str]]:
    """A line per step: least and greatest ratio over the models, by engine."""
    found: dict[str, list[list[float]]] = {}
    for name in WHOLE:
        for step, ratios in step_ratios(gpu, name):
            found.setdefault(step, []).append(ratios)
        torch.cuda.empty_cache()
    for step, by_model in found.items():
        yield [step, *(f"{min(ratios):.2f} to {max(ratios):.2f}" for ratios in zip(*by_model, strict=True))]


def burst_tflop_s(x: Tensor, weight: Tensor) -> float:
    """TFLOP/s over a burst of large products."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(BURST):
        torch.mm(x, weight.t())
    end.record()
    torch.cuda.synchronize()
    return float(BURST * 2.0 * LARGE**3 / (1e-3 * start.elapsed_time(end)) / 1e12)


def sustained_tflop_s() -> tuple[float, float]:
    """Of a large bf16 product: in the first burst after a rest, and in the last of `LOAD_S` seconds."""
    x, weight = random(LARGE, LARGE), random(LARGE, LARGE)
    burst_tflop_s(x, weight)
    time.sleep(LOAD_S)
    first = last = burst_tflop_s(x, weight)
    until = time.monotonic() + LOAD_S
    while time.monotonic() < until:
        last = burst_tflop_s(x, weight)
    return first, last


def print_table(heading: Sequence[str], lines: Iterator[list[str]]) -> None:
    """A Markdown table, line by line as it is measured."""
    print("| " + " | ".join(heading) + " |\n" + "|---" * len(heading) + "|")
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def main(gpu_name: str) -> None:
    """Prints both tables for the GPU at hand, which must be the one the card is of."""
    gpu = load_gpu(gpu_name)
    torch._dynamo.config.recompile_limit = 64
    print(f"{torch.cuda.get_device_name()} against {gpu.name}, PyTorch {torch.__version__}\n")
    print_table(["rows", *ENGINES], lone_rows(gpu))
    first, last = sustained_tflop_s()
    print(f"\n{LARGE}³ in bf16: {first:.0f} TFLOP/s at first, {last:.0f} after {LOAD_S:.0f} s\n")
    print_table(["step", *ENGINES], whole_rows(gpu))


if __name__ == "__main__":
    main(sys.argv[1])
