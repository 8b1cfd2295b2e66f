"""Plain twins of fast forms: the same documented semantics, step by step, without a thought for speed."""

from __future__ import annotations

import math
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

    @property
    def whole(self) -> int:
        """Tokens of its own that it will hold in the end."""
        return self.prompt_tokens - self.seen_tokens + self.output_tokens - 1

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
    """One rank of one micro-batch: residents in order of admission; micro-batches share `waiting`."""

    cost: StepCost
    policy: str
    max_tokens: int
    max_seqs: int
    capacity: int
    reserves: bool = False
    waiting: list[Job] = field(default_factory=list)
    resident: list[Job] = field(default_factory=list)
    active: list[Job] = field(default_factory=list)
    prompts: list[Job] = field(default_factory=list)
    num_evicted: int = 0
    horizon_s: float = math.inf

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

    def stage_s(self, now: float, horizon_s: float) -> float | None:
        """Puts the next step together, with arrivals up to `horizon_s`; its stage time, or None with nothing to do."""
        self.active, self.prompts, self.horizon_s = [], [], horizon_s
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

    def can_take_over(self, job: Job) -> bool:
        """Whether the lane, not under way, has a seat and blocks for the next chunk of a prompt of another lane."""
        chunked = self.policy == "chunked"
        new = min(job.todo, self.max_tokens - len(self.decoding)) if chunked else job.todo
        no_seat = len(self.resident) >= self.max_seqs or (self.policy == "static" and bool(self.decoding))
        no_seat = no_seat or not self.may_promise(job)
        if no_seat or new <= 0 or any(not other.decoding for other in self.resident):
            return False
        return self.used(1 if chunked else 0) + blocks(job.held + new) <= self.capacity

    def _next_waiting(self, *, evicted: bool) -> Job | None:
        full = len(self.resident) >= self.max_seqs or (self.policy == "static" and bool(self.decoding))
        late = bool(self.waiting) and self.waiting[0].arrival_s > self.horizon_s
        if evicted or full or late or not self.waiting:
            return None
        return self.waiting[0] if self.may_promise(self.waiting[0]) else None

    def may_promise(self, job: Job) -> bool:
        """Whether what the job and the residents will hold in the end fits together, where the lane reserves."""
        return not self.reserves or sum(blocks(one.whole) for one in [*self.resident, job]) <= self.capacity

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
class MicroBatchTwin:
    """dp lanes that step together."""

    lanes: list[LaneTwin]
    came_s: float = 0.0
    end_s: float | None = None  # of the step in flight

    @property
    def is_empty(self) -> bool:
        """Nobody is resident."""
        return not any(lane.resident for lane in self.lanes)

    @property
    def used(self) -> int:
        """Blocks held, those opened by the step in flight among them."""
        return sum(lane.used(1 if lane.active and self.end_s is not None else 0) for lane in self.lanes)


@dataclass(kw_only=True, eq=False)
class InstanceTwin:
    """One micro-batch per pipeline stage, each in one stage at a time; a queue per rank."""

    batches: list[MicroBatchTwin]
    hop_s: float = 0.0
    output_s: float = 0.0
    looks_ahead: bool = False
    same_s: float = 0.0
    free_s: list[float] = field(default_factory=list)
    started_s: float = 0.0
    shown_s: float = 0.0
    kept_s: float = 0.0
    kv_block_s: float = 0.0
    num_offered: int = 0
    outstanding: int = 0
    cut: dict[int, tuple[Job, LaneTwin]] = field(default_factory=dict)  # a rank's prompt with tokens left, and where

    def __post_init__(self) -> None:
        self.free_s = [0.0] * len(self.batches)

    def offer(self, job: Job) -> bool:
        """Puts the job into the queue of the next rank; False if it never fits."""
        lanes = self.batches[0].lanes
        if not lanes[self.num_offered % len(lanes)].offer(job):
            return False
        self.num_offered += 1
        self.outstanding += 1
        return True

    @property
    def num_evicted(self) -> int:
        """Evictions of all lanes."""
        return sum(lane.num_evicted for batch in self.batches for lane in batch.lanes)

    @property
    def flying(self) -> list[MicroBatchTwin]:
        """Micro-batches on their way through the stages, the first to leave first."""
        return sorted((b for b in self.batches if b.end_s is not None), key=lambda b: b.end_s or 0.0)

    def _next(self) -> MicroBatchTwin | None:
        here = [b for b in self.batches if b.end_s is None]
        ready = sorted((b for b in here if not b.is_empty), key=lambda b: b.came_s)
        somebody_waits = bool(self.cut) or any(lane.waiting for lane in self.batches[0].lanes)
        return ready[0] if ready else here[0] if here and somebody_waits else None

    def next_s(self) -> float:
        """When a micro-batch leaves, or can enter."""
        ends = [b.end_s for b in self.flying if b.end_s is not None]
        return min([*ends, self.free_s[0]] if self._next() else [*ends, math.inf])

    def _keep(self, now: float) -> None:
        self.kv_block_s += (now - self.kept_s) * sum(batch.used for batch in self.batches)
        self.kept_s = now

    def leave(self, limit_s: float) -> int:
        """Ends the first step that is over by then; returns the number of jobs that finished, -1 without a step."""
        batch = self.flying[0] if self.flying else None
        if batch is None or batch.end_s is None or batch.end_s > limit_s:
            return -1
        now = batch.end_s
        self._keep(now)
        batch.came_s, batch.end_s = now, None
        self.shown_s = max(self.shown_s, now) + sum(lane.num_tokens for lane in batch.lanes) * self.output_s
        ended = sum(lane.end(now, self.shown_s) for lane in batch.lanes)
        self.outstanding -= ended
        return ended

    def enter(self, now: float) -> None:
        """Starts the next step, if stage 1 is free and there is anything to do."""
        batch = self._next()
        if batch is None or self.free_s[0] > now + self.same_s:
            return
        horizon_s = now + self.same_s
        if self.looks_ahead and not batch.is_empty and self.free_s[0] >= now - self.same_s:
            horizon_s = self.started_s + self.same_s
        start_s = max(now, self.free_s[0], 0.0 if batch.is_empty else batch.came_s)
        self._keep(start_s)
        stages = [self._stage_s(rank, lane, start_s, horizon_s) for rank, lane in enumerate(batch.lanes)]
        stage_s, end_s = max(s or 0.0 for s in stages), start_s - self.hop_s
        assert stage_s > 0
        for stage, free_s in enumerate(self.free_s):
            end_s = max(end_s + self.hop_s, free_s) + stage_s
            self.free_s[stage] = end_s
        self.started_s, batch.end_s = start_s, end_s

    def _stage_s(self, rank: int, lane: LaneTwin, now: float, horizon_s: float) -> float | None:
        """The lane's step, for which it takes over a prompt that another lane of the rank has begun."""
        if rank in self.cut:
            job, old = self.cut[rank]
            if old is not lane and lane.can_take_over(job):
                old.resident.remove(job)
                if job in old.prompts:
                    old.prompts.remove(job)
                lane.resident.append(job)
                self.cut[rank] = (job, lane)
        stage_s = lane.stage_s(now, horizon_s)
        if lane.resident and lane.resident[-1].todo > 0:
            self.cut[rank] = (lane.resident[-1], lane)
        elif rank in self.cut and self.cut[rank][1] is lane:
            del self.cut[rank]
        return stage_s


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
        turn, same_s = 0, self.instances[0].same_s
        for job in coming:
            job.arrival_s = 0.0 if self.concurrency else job.arrival_s
        while True:
            now = min([i.next_s() for i in self.instances] + [job.arrival_s for job in coming[:1]])
            if now == math.inf:
                return
            for instance in self.instances:
                while (ended := instance.leave(now + same_s)) >= 0:
                    self._send(coming, ended, instance.shown_s)
            while coming and coming[0].arrival_s <= now + same_s:
                instance = self.instances[self.choose(turn, [i.outstanding for i in self.instances])]
                if not instance.offer(coming.pop(0)):
                    self._send(coming, 1, now)
                turn += 1
            for instance in self.instances:
                instance.enter(now)

    def _send(self, coming: list[Job], num: int, now: float) -> None:
        for job in self._later[:num] if self.concurrency else []:
            job.arrival_s = now
            coming.append(job)
            self._later.pop(0)
