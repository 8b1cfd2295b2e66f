"""The run spec: what a person writes in YAML, checked once, and turned into SI units and frozen objects.

Every field's description says what is accepted; `bestserve schema` prints them as a JSON Schema for editors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from estimator.errors import BestServeError
from search.edge import Edge, read_yaml, validated
from search.spec_calibration import CalibrationSpec, load_calibration
from search.spec_money import Day, DemandSpec, LinkSpec, OwnershipSpec, PriceSpec
from search.spec_search import SearchSpec
from search.spec_speculation import MultiTokenPredictionSpec

if TYPE_CHECKING:
    from estimator.cost import PriceCard
    from spaces.problem import Problem

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]


class ModelSpec(Edge):
    """Which model, in which number formats."""

    id: str = Field(description="a bundled id (`bestserve catalogue models`), or a path to config.json or its folder")
    weights: Literal["bf16", "fp8", "fp4", "int4"] = Field(default="bf16", description="number format of the weights")
    kv: Literal["bf16", "fp8"] = Field(default="bf16", description="number format of the KV cache")
    multi_token_prediction: MultiTokenPredictionSpec | None = Field(
        default=None,
        description="{draft_tokens: 1, acceptance: 0.8}: the model drafts ahead; absent = it does not",
    )


class FixedTokens(Edge):
    """Every request has the same lengths."""

    kind: Literal["fixed"]
    input_tokens: PositiveInt = Field(description="whole tokens ≥ 1")
    output_tokens: PositiveInt = Field(description="whole tokens ≥ 1")


class TokenRange(Edge):
    """Whole tokens from `min` to `max`, both included."""

    min: PositiveInt = Field(description="whole tokens ≥ 1")
    max: PositiveInt = Field(description="whole tokens ≥ min")

    @model_validator(mode="after")
    def _ordered(self) -> TokenRange:
        if self.max < self.min:
            raise BestServeError("max", self.max, f"must not be below min = {self.min}", f"tokens ≥ {self.min}")
        return self


class UniformTokens(Edge):
    """Lengths drawn uniformly."""

    kind: Literal["uniform"]
    input_tokens: TokenRange = Field(description="{min: …, max: …}")
    output_tokens: TokenRange = Field(description="{min: …, max: …}")


class LognormalTokens(Edge):
    """ln(length) is normal around ln(median) with deviation `sigma`, cut at `max`."""

    median: Positive = Field(description="tokens > 0")
    sigma: Positive = Field(description="standard deviation of the logarithm, > 0")
    max: PositiveInt = Field(description="longest length, whole tokens")

    @model_validator(mode="after")
    def _reachable(self) -> LognormalTokens:
        if self.max < self.median:
            raise BestServeError("max", self.max, f"must not be below the median {self.median:g}", f"≥ {self.median:g}")
        return self


class LognormalLengthsSpec(Edge):
    """Input and output drawn independently or, with `correlation`, jointly lognormal."""

    kind: Literal["lognormal"]
    input_tokens: LognormalTokens = Field(description="{median: …, sigma: …, max: …}")
    output_tokens: LognormalTokens = Field(description="{median: …, sigma: …, max: …}")
    correlation: float = Field(default=0.0, gt=-1, lt=1, description="of the two logarithms, between -1 and 1")


class EmpiricalTokens(Edge):
    """Pairs drawn from a trace file."""

    kind: Literal["empirical"]
    path: str = Field(description="a trace: Azure CSV, Mooncake JSONL, BurstGPT CSV or arrived_at,input_tokens,…")


LengthsSpec = Annotated[
    FixedTokens | UniformTokens | LognormalLengthsSpec | EmpiricalTokens, Field(discriminator="kind")
]


class PoissonSpec(Edge):
    """Independent arrivals."""

    kind: Literal["poisson"]


class GammaSpec(Edge):
    """Gamma gaps: cv above 1 is burstier than Poisson."""

    kind: Literal["gamma"]
    cv: Positive = Field(description="coefficient of variation of the gaps, > 0; 1 is Poisson")


class ConstantSpec(Edge):
    """Equal gaps."""

    kind: Literal["constant"]


class TraceSpec(Edge):
    """The gaps of a trace, scaled to the rate."""

    kind: Literal["trace"]
    path: str = Field(description="a trace file, as for empirical lengths")


ArrivalsSpec = Annotated[PoissonSpec | GammaSpec | ConstantSpec | TraceSpec, Field(discriminator="kind")]


class TrafficSpec(Edge):
    """The demand and what the requests look like."""

    rate_req_s: Positive = Field(description="the demand to serve, requests per second > 0")
    lengths: LengthsSpec = Field(description="{kind: fixed|uniform|lognormal|empirical, …}")
    arrivals: ArrivalsSpec = Field(
        default_factory=lambda: PoissonSpec(kind="poisson"), description="{kind: poisson|gamma|constant|trace, …}"
    )
    cached_frac: float = Field(default=0.0, ge=0, lt=1, description="share of each prompt already in the prefix cache")
    input_scale: Positive = Field(default=1.0, description="every input length times this, > 0")
    output_scale: Positive = Field(default=1.0, description="every output length times this, > 0")


class PercentileLimits(Edge):
    """Limits of one metric, each at a percentile."""

    p50_ms: Positive | None = Field(default=None, description="milliseconds > 0")
    p90_ms: Positive | None = Field(default=None, description="milliseconds > 0")
    p95_ms: Positive | None = Field(default=None, description="milliseconds > 0")
    p99_ms: Positive | None = Field(default=None, description="milliseconds > 0")

    @model_validator(mode="after")
    def _some(self) -> PercentileLimits:
        if not self.limits():
            raise BestServeError("percentile", None, "must be given", "p50_ms, p90_ms, p95_ms or p99_ms")
        return self

    def limits(self) -> list[tuple[float, float]]:
        """(percentile, limit in ms) of each limit given."""
        given = [(float(name[1:3]), getattr(self, name)) for name in type(self).model_fields]
        return [(percentile, limit_ms) for percentile, limit_ms in given if limit_ms is not None]


class SloSpec(Edge):
    """Either percentiles per metric (`ttft: {p90_ms: 1500}`), or one `share` of requests within all `*_ms` limits."""

    ttft: PercentileLimits | None = Field(default=None, description="time to first token, {p90_ms: …}")
    tpot: PercentileLimits | None = Field(
        default=None, description="time per output token after the first, {p90_ms: …}"
    )
    e2e: PercentileLimits | None = Field(default=None, description="whole request, {p90_ms: …}")
    share: float | None = Field(
        default=None, gt=0, le=1, description="share of requests that meets all limits, for example 0.9"
    )
    ttft_ms: Positive | None = Field(default=None, description="milliseconds > 0, only with share")
    tpot_ms: Positive | None = Field(default=None, description="milliseconds > 0, only with share")
    e2e_ms: Positive | None = Field(default=None, description="milliseconds > 0, only with share")

    @model_validator(mode="after")
    def _one_form(self) -> SloSpec:
        shared = [m for m in ("ttft_ms", "tpot_ms", "e2e_ms") if getattr(self, m) is not None]
        single = [m for m in ("ttft", "tpot", "e2e") if getattr(self, m) is not None]
        forms = "either percentiles, {ttft: {p90_ms: 1500}}, or a share, {share: 0.9, ttft_ms: 1500, tpot_ms: 50}"
        if self.share is None and shared:
            raise BestServeError(shared[0], getattr(self, shared[0]), "needs a share", forms)
        if self.share is not None and single:
            raise BestServeError(single[0], "percentiles", "cannot be combined with a share", forms)
        if not shared and not single:
            raise BestServeError("limits", None, "must be given", forms)
        return self


class ClassSpec(Edge):
    """One class of requests with targets of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="letters, digits, _ -, for example chat")
    share: float = Field(gt=0, le=1, description="share of all requests; the classes' shares add up to 1")
    slo: SloSpec = Field(description="{ttft: {p90_ms: …}, tpot: {p90_ms: …}}")
    lengths: LengthsSpec | None = Field(default=None, description="lengths of its own; default: the traffic's")


class GpuSpec(Edge):
    """A GPU that the catalogue lacks, as its data sheet states it; peaks are dense."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="small letters, digits and _, for example my_gpu")
    architecture: str = Field(
        default="hopper", description="ampere, ada, hopper or blackwell: whose efficiencies are borrowed"
    )
    memory_gb: Positive = Field(description="GB (1e9 bytes) of memory")
    bandwidth_gb_s: Positive = Field(description="memory bandwidth, GB/s")
    bf16_tflops: Positive = Field(description="dense bf16 TFLOP/s")
    fp8_tflops: Positive | None = Field(default=None, description="dense fp8 TFLOP/s; leave out if not native")
    fp4_tflops: Positive | None = Field(default=None, description="dense fp4 TFLOP/s; leave out if not native")
    num_sms: PositiveInt = Field(description="streaming multiprocessors")
    gpus_per_node: PositiveInt = Field(default=8, description="GPUs bought together")
    nvlink_domain_gpus: PositiveInt = Field(default=8, description="GPUs that NVLink joins; 1 without NVLink")
    nvlink_gb_s: float = Field(default=0.0, ge=0, description="one direction per GPU, GB/s; 0 without NVLink")
    pcie_gb_s: Positive = Field(default=64.0, description="one direction per GPU, GB/s")
    network_gb_s: Positive = Field(default=50.0, description="one direction per GPU out of the node, GB/s")
    power_w: Positive = Field(description="board power, W")
    source: str = Field(min_length=1, description="where these numbers are from")
    date: Day = Field(description="when they were read, for example 2026-11-09")


class Spec(Edge):
    """One planning question."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="letters, digits, . _ -; names the run's folder")
    model: ModelSpec = Field(description="{id: …, weights: …, kv: …}")
    engine: Literal["vllm", "sglang", "trtllm"] = Field(default="vllm", description="vllm, sglang or trtllm")
    traffic: TrafficSpec = Field(description="{rate_req_s: …, lengths: …, arrivals: …}")
    slo: SloSpec | None = Field(default=None, description="{ttft: {p90_ms: …}, tpot: {p90_ms: …}}")
    classes: list[ClassSpec] = Field(
        default_factory=list, description="instead of slo: [{name: chat, share: 0.7, slo: {…}}, …]"
    )
    penalty_per_miss: float | None = Field(
        default=None, gt=0, description="price of a request that misses a target, where that is no hard rule"
    )
    gpus: Annotated[list[str | GpuSpec], Field(min_length=1)] = Field(description="names or described GPUs")
    prices: dict[str, str | PriceSpec] = Field(
        default_factory=dict,
        description="per GPU, a card's id, a kind such as spot, owned (see ownership), or {usd_per_gpu_h: …, …}",
    )
    price_file: str | None = Field(
        default=None, description="a TOML file with [[price]] tables; its cards go before the bundled ones"
    )
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="of every price of the run, e.g. EUR")
    ownership: OwnershipSpec | None = Field(default=None, description="{servers: {gpu: {price: …}}, years: 4, …}")
    demand: DemandSpec | None = Field(default=None, description="{diurnal: {peak_factor: 2}} or hourly, trace")
    search: SearchSpec = Field(default_factory=SearchSpec, description="limits of the search")
    link: LinkSpec = Field(default_factory=LinkSpec, description="the KV hand-over's link")
    calibration: str | CalibrationSpec | None = Field(
        default=None, description="a card that `bestserve verify --calibrate` wrote, or what it holds"
    )

    @property
    def gpu_names(self) -> list[str]:
        """Names of the GPUs in the order given."""
        return [gpu if isinstance(gpu, str) else gpu.name for gpu in self.gpus]

    def problem(self) -> Problem:
        """The planning problem in SI units; raises `BestServeError` for models or GPUs that do not exist."""
        from search.question import problem_of

        return problem_of(self)

    def cards(self) -> dict[str, PriceCard]:
        """The price card of each GPU; raises `BestServeError` where none is known."""
        from search.prices import cards_of

        return cards_of(self)

    @model_validator(mode="after")
    def _targets(self) -> Spec:
        if self.slo is None and not self.classes:
            raise BestServeError("slo", None, "must be given", "{ttft: {p90_ms: …}, tpot: {p90_ms: …}}, or classes")
        if self.slo is not None and self.classes:
            raise BestServeError("slo", "given", "cannot stand beside classes", "the targets of each class in its slo")
        names = [each.name for each in self.classes]
        if len(set(names)) < len(names):
            raise BestServeError("classes", ", ".join(names), "name one class twice", "each name once")
        total = sum(each.share for each in self.classes)
        if self.classes and abs(total - 1.0) > 1e-6:
            raise BestServeError(
                "classes", round(total, 6), "must have shares that add up to 1", "for example 0.7 and 0.3"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        names = self.gpu_names
        for field, gpus in self.search.named_gpus().items():
            for gpu in gpus:
                if gpu not in names:
                    raise BestServeError(f"search.{field}", gpu, "is not among the spec's gpus", ", ".join(names))
        for name in names:
            if names.count(name) > 1:
                raise BestServeError("gpus", name, "is named twice", "each GPU once")
        servers = self.ownership.servers if self.ownership is not None else {}
        for field, priced in (("prices", self.prices), ("ownership.servers", servers)):
            for name in priced:
                if name not in names:
                    raise BestServeError(f"{field}.{name}", name, "is not among the spec's gpus", ", ".join(names))
        if self.ownership is not None and self.ownership.server_price is not None and len(names) > 1:
            accepted = "servers: {" + names[0] + ": {price: …, source: …, date: …}}"
            rule = f"does not tell which of {len(names)} GPU types"
            raise BestServeError("ownership.server_price", self.ownership.server_price, rule, accepted)
        return self


def load_spec(path: str | Path) -> Spec:
    """The checked spec of a YAML file; files it names are looked up beside it.

    Raises `BestServeError` in one sentence for anything wrong.
    """
    path = Path(path)
    return parse_spec(read_yaml(path), folder=path.parent)


def parse_spec(given: Any, *, folder: Path) -> Spec:
    """The checked spec of a mapping; relative paths are taken from `folder`."""
    spec = validated(Spec, given)
    lengths, arrivals = spec.traffic.lengths, spec.traffic.arrivals
    if isinstance(lengths, EmpiricalTokens):
        lengths = lengths.model_copy(update={"path": _beside(lengths.path, folder, "traffic.lengths.path")})
    classes = [_class_beside(each, folder) for each in spec.classes]
    if isinstance(arrivals, TraceSpec):
        arrivals = arrivals.model_copy(update={"path": _beside(arrivals.path, folder, "traffic.arrivals.path")})
    traffic = spec.traffic.model_copy(update={"lengths": lengths, "arrivals": arrivals})
    price_file, demand = spec.price_file, spec.demand
    if price_file is not None:
        price_file = _beside(price_file, folder, "price_file")
    if demand is not None and demand.trace is not None:
        demand = demand.model_copy(update={"trace": _beside(demand.trace, folder, "demand.trace")})
    model = spec.model
    if (folder / model.id).exists():
        model = model.model_copy(update={"id": str((folder / model.id).resolve())})
    card = spec.calibration
    if isinstance(card, str):
        card = load_calibration(Path(_beside(card, folder, "calibration")))
    return spec.model_copy(
        update={
            **{"traffic": traffic, "model": model, "calibration": card, "classes": classes},
            **{"price_file": price_file, "demand": demand},
        }
    )


def _class_beside(each: ClassSpec, folder: Path) -> ClassSpec:
    """The class with the path of its trace made absolute."""
    if not isinstance(each.lengths, EmpiricalTokens):
        return each
    path = _beside(each.lengths.path, folder, f"classes.{each.name}.lengths.path")
    return each.model_copy(update={"lengths": each.lengths.model_copy(update={"path": path})})


def load_run_spec(folder: Path) -> Spec:
    """The spec frozen in a run's folder, with the price cards frozen beside it, whatever the catalogue says today."""
    from search.prices import FROZEN

    given = read_yaml(folder / "spec.yaml")
    if isinstance(given, dict) and (folder / FROZEN).is_file():
        given = {name: value for name, value in given.items() if name != "prices"} | {"price_file": FROZEN}
    return parse_spec(given, folder=folder)


def _beside(path: str, folder: Path, field: str) -> str:
    """A file's absolute path, or `BestServeError` if it does not exist."""
    found = (folder / path).resolve()
    if not found.is_file():
        raise BestServeError(field, path, "does not exist", f"the path of a file, from {folder}")
    return str(found)
