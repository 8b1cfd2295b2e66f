"""Plain twins of fast forms: the same documented semantics, step by step, without a thought for speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from estimator.iteration import StepCost

BLOCK = 16


@dataclass(kw_only=True, eq=False)
class Job:
    """One request on its way through an instance; times are None until the event has happened."""

    arrival_s: float
    prompt_tokens: int
    seen_tokens: int
    output_tokens: int
    todo: int = 0
    held: int = 0
    left: int = 0
    decoding: bool = False
    start_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    finish_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen_tokens -= self.seen_tokens % BLOCK
        self.todo = self.prompt_tokens - self.seen_tokens
        self.left = self.output_tokens - 1

    def token(self, now: float, shown_s: float) -> None:
        """One more token has appeared, which its client sees at `shown_s`."""
        if self.first_s is None:
            self.first_s = shown_s
        else:
            assert self.last_s is not None
            self.gaps_s.append(now - self.last_s)
            self.left -= 1
        self.last_s = now
        if self.left == 0:
            self.finish_s = shown_s


def blocks(tokens: int) -> int:
    """KV blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


@dataclass(kw_only=True, eq=False)
class LaneTwin:
    """One rank of one micro-batch: residents in order of admission, and what waits."""

    cost: StepCost
    policy: str
    max_tokens: int
    max_seqs: int
    capacity: int
    waiting: list[Job] = field(default_factory=list)
    resident: list[Job] = field(default_factory=list)
    active: list[Job] = field(default_factory=list)
    prompts: list[Job] = field(default_factory=list)
    num_evicted: int = 0

    @property
    def decoding(self) -> list[Job]:
        """Residents that decode."""
        return [job for job in self.resident if job.decoding]

    def used(self, ahead: int = 0) -> int:
        """Blocks held, with `ahead` more tokens in each decoding sequence."""
        whole = self.policy != "chunked"
        return sum(blocks(job.held + (ahead if job.decoding else whole * job.todo)) for job in self.resident)

    def offer(self, job: Job) -> bool:
        """Whether the job can ever fit; if so it waits."""
        if blocks(job.todo + job.left) > self.capacity:
            return False
        self.waiting.append(job)
        return True

    def stage_s(self, now: float) -> float | None:
        """Puts the next step together; its stage time, or None if there is nothing to do."""
        self.active, self.prompts = [], []
        chunks = self._chunks(now)
        self.active = self.decoding if self.policy == "chunked" or not chunks else []
        cached = float(sum(job.held + job.seen_tokens for job in self.active))
        if chunks:
            ending = sum(job.todo == 0 for job in self.prompts)
            return self.cost.mixed_step_s(len(self.active), cached, chunks, ending)
        return self.cost.decode_step_s(len(self.active), cached) if self.active else None

    def _chunks(self, now: float) -> list[tuple[int, int]]:
        chunked, before = self.policy == "chunked", self.num_evicted
        if chunked:
            self._make_room()
        budget = self.max_tokens - (len(self.decoding) if chunked else 0)
        chunks: list[tuple[int, int]] = []
        under_way = [job for job in self.resident if not job.decoding]
        ahead = 1 if chunked else 0
        while budget > 0:
            job = under_way.pop(0) if under_way else self._next_waiting(evicted=self.num_evicted > before)
            if job is None:
                break
            new, reserve = min(job.todo, budget), job.todo if not chunked else min(job.todo, budget)
            mine = job in self.resident
            others = self.used(ahead) - (blocks(job.held + (0 if chunked else job.todo)) if mine else 0)
            if others + blocks(job.held + reserve) > self.capacity:
                if mine:
                    self._evict()
                break
            if not mine:
                self.waiting.remove(job)
                self.resident.append(job)
                job.start_s = now if job.start_s is None else job.start_s
            self.prompts.append(job)
            chunks.append((new, job.seen_tokens + job.held))
            job.todo, job.held, budget = job.todo - new, job.held + new, budget - new
        if not chunks and not chunked:
            self._make_room()
        return chunks

    def _next_waiting(self, *, evicted: bool) -> Job | None:
        full = len(self.resident) >= self.max_seqs or (self.policy == "static" and bool(self.decoding))
        return None if evicted or full or not self.waiting else self.waiting[0]

    def _make_room(self) -> None:
        while len(self.resident) > 1 and self.decoding and self.used(1) > self.capacity:
            self._evict()

    def _evict(self) -> None:
        job = self.resident.pop()
        job.todo += job.held + job.decoding
        job.held, job.decoding = 0, False
        self.waiting.insert(0, job)
        self.num_evicted += 1

    @property
    def num_tokens(self) -> int:
        """Output tokens of the step."""
        return len(self.active) + sum(job.todo == 0 for job in self.prompts)

    def end(self, now: float, shown_s: float) -> int:
        """Ends the step; returns the number of jobs that finished."""
        for job in self.active:
            job.held += 1
            job.token(now, shown_s)
        for job in self.prompts:
            if job.todo == 0:
                job.token(now, shown_s)
                job.decoding = True
        done = [job for job in self.resident if job.finish_s is not None]
        self.resident = [job for job in self.resident if job.finish_s is None]
        return len(done)


@dataclass(kw_only=True, eq=False)
class InstanceTwin:
    """dp × pp lanes that step together."""

    lanes: list[LaneTwin]
    dp: int = 1
    pp: int = 1
    hop_s: float = 0.0
    start_s: float = 0.0
    end_s: float | None = None
    output_s: float = 0.0
    shown_s: float = 0.0
    kv_block_s: float = 0.0
    num_offered: int = 0
    outstanding: int = 0

    def plan(self, now: float) -> None:
        """Starts the next step, if there is anything to do."""
        stages = [lane.stage_s(now) for lane in self.lanes]
        if all(stage is None for stage in stages):
            return
        times = [[s or 0.0 for s in stages[j * self.dp : (j + 1) * self.dp]] for j in range(self.pp)]
        batches = [max(ranks) for ranks in times]
        span = max(sum(batches), self.pp * max(batches) + self.hop_s) if self.pp > 1 else batches[0]
        self.kv_block_s += span * sum(lane.used(1 if lane.active else 0) for lane in self.lanes)
        self.start_s, self.end_s = now, now + span


@dataclass(kw_only=True, eq=False)
class FleetTwin:
    """Instances behind a router: call `run` once. `choose` maps (turn, outstanding) to an instance."""

    instances: list[InstanceTwin]
    jobs: list[Job]
    choose: Callable[[int, list[int]], int] = lambda turn, held: turn % len(held)
    concurrency: int | None = None

    def run(self) -> None:
        """Fills the times of every job. In a closed loop arrival times are rewritten."""
        coming = self.jobs[: self.concurrency]
        self._later = self.jobs[len(coming) :]
        turn = 0
        for job in coming:
            job.arrival_s = 0.0 if self.concurrency else job.arrival_s
        while True:
            times = [i.end_s for i in self.instances if i.end_s is not None] + [job.arrival_s for job in coming[:1]]
            if not times:
                return
            now = min(times)
            for instance in self.instances:
                if instance.end_s == now:
                    instance.end_s = None
                    tokens = sum(lane.num_tokens for lane in instance.lanes)
                    instance.shown_s = max(instance.shown_s, now) + tokens * instance.output_s
                    ended = sum(lane.end(now, instance.shown_s) for lane in instance.lanes)
                    instance.outstanding -= ended
                    self._send(coming, ended, instance.shown_s)
            while coming and coming[0].arrival_s <= now:
                instance = self.instances[self.choose(turn, [i.outstanding for i in self.instances])]
                if instance.lanes[instance.num_offered % len(instance.lanes)].offer(coming.pop(0)):
                    instance.num_offered += 1
                    instance.outstanding += 1
                else:
                    self._send(coming, 1, now)
                turn += 1
            for instance in self.instances:
                if instance.end_s is None:
                    instance.plan(now)

    def _send(self, coming: list[Job], num: int, now: float) -> None:
        for job in self._later[:num] if self.concurrency else []:
            job.arrival_s = now
            coming.append(job)
            self._later.pop(0)
