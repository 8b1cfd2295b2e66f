"""What is simulated: instances behind a router, collocated or in two pools joined by a KV link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from estimator.errors import require
from estimator.instance import Instance

CollocatedPolicy = Literal["chunked", "prefill_first", "static"]
Router = Literal["round_robin", "random", "least_outstanding", "power_of_two"]
PrefillOrder = Literal["fcfs", "sjf", "ljf"]
Admission = Literal["greedy", "reserve_static", "reserve_dynamic"]
Placement = Literal["round_robin", "random", "least_outstanding", "power_of_two", "heavy_light"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collocated:
    """`num_instances` equal instances, each doing prefill and decode."""

    instance: Instance
    num_instances: int = 1
    policy: CollocatedPolicy = "chunked"
    router: Router = "round_robin"

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole system."""
        return self.num_instances * self.instance.num_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLink:
    """Hand-over of KV caches: each prefill instance sends, each decode instance receives, one transfer at a time.

    A transfer of x bytes starts when the decode instance has set room aside, the sender is free and the receiver is
    free, holds both for x / min(egress, ingress), and is over `latency_s` and `latency_steps` of the receiver's decode
    steps later, as long as the one under way, but not before one that was booked earlier.
    """

    egress_bytes_per_s: float
    ingress_bytes_per_s: float
    latency_s: float = 0.0
    latency_steps: float = 0.0

    def __post_init__(self) -> None:
        for name in ("egress_bytes_per_s", "ingress_bytes_per_s"):
            value = getattr(self, name)
            require(value > 0, field=name, value=value, rule="must be positive", accepted="bytes per second > 0")
        for name, unit in (("latency_s", "seconds"), ("latency_steps", "steps")):
            value = getattr(self, name)
            require(value >= 0, field=name, value=value, rule="must not be negative", accepted=f"{unit} ≥ 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggregatedPolicy:
    """How the two pools are run. Defaults are DistServe's (arXiv 2401.09670): FCFS, whole prompts, greedy decode.

    `chunk_tokens` 0 = whole prompts packed up to the instance's token budget, otherwise prefill-only chunks of that
    size. `prefill_order` sorts within a scheduling batch of `scheduling_batch` requests. `decode_placement` chooses the
    decode instance when a prompt has ended, as routers choose, or `heavy_light`: once one has room, of two drawn the
    one with the lower ratio of heavy to light decodes (predicted output above `heavy_decode_tokens` or not).
    `bucket_tokens` and `prediction_accuracy` describe the output-length predictor that this and the reserving
    admissions use; the bucket's lower end counts.
    """

    name: str = "distserve"
    prefill_order: PrefillOrder = "fcfs"
    scheduling_batch: int = 1
    chunk_tokens: int = 0
    decode_placement: Placement = "round_robin"
    admission: Admission = "greedy"
    bucket_tokens: int = 200
    prediction_accuracy: float = 0.749
    heavy_decode_tokens: int = 128

    def __post_init__(self) -> None:
        for name, least in (("scheduling_batch", 1), ("chunk_tokens", 0), ("bucket_tokens", 1)):
            value = getattr(self, name)
            require(
                value >= least,
                field=name,
                value=value,
                rule=f"must be at least {least}",
                accepted=f"a whole number ≥ {least}",
            )
        require(
            0 <= self.prediction_accuracy <= 1,
            field="prediction_accuracy",
            value=self.prediction_accuracy,
            rule="must be a share",
            accepted="0 to 1",
        )


DISTSERVE = DisaggregatedPolicy()
TETRIINFER = DisaggregatedPolicy(
    name="tetriinfer",
    prefill_order="sjf",
    scheduling_batch=16,
    chunk_tokens=512,
    decode_placement="heavy_light",
    admission="reserve_dynamic",
)  # arXiv 2401.11181, sections 3.3-3.5: chunk 512, batch 16, buckets of 200 at 74.9 %, heavy > 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaggregated:
    """`num_prefill` prefill instances hand KV caches over `link` to `num_decode` decode instances.

    `holds_first_token`: the client sees the first token when the cache has arrived (it travels with it), not when the
    prompt ends.
    """

    prefill: Instance
    num_prefill: int
    decode: Instance
    num_decode: int
    link: KvLink
    policy: DisaggregatedPolicy = DISTSERVE
    router: Router = "round_robin"
    holds_first_token: bool = False

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole system."""
        return self.num_prefill * self.prefill.num_gpus + self.num_decode * self.decode.num_gpus


System = Collocated | Disaggregated
