"""Plain twins of fast forms: the same documented semantics, step by step, without a thought for speed."""

from __future__ import annotations

from dataclasses import dataclass, field

from estimator.iteration import StepCost

HALF_BLOCK = 8.0


@dataclass(kw_only=True)
class Job:
    """One request on its way through the instance; times are None until the event has happened."""

    arrival_s: float
    prompt_tokens: int
    seen_tokens: int
    output_tokens: int
    todo: int = 0
    held: int = 0
    left: int = 0
    start_s: float | None = None
    first_s: float | None = None
    finish_s: float | None = None

    def __post_init__(self) -> None:
        self.todo = self.prompt_tokens - self.seen_tokens
        self.left = self.output_tokens - 1


@dataclass(kw_only=True)
class CollocatedTwin:
    """One instance, one token per step: call `run` once."""

    cost: StepCost
    policy: str
    max_tokens: int
    max_seqs: int
    capacity: float
    jobs: list[Job]
    waiting: list[Job] = field(default_factory=list)
    evicted: list[Job] = field(default_factory=list)
    prompts: list[Job] = field(default_factory=list)
    decoding: list[Job] = field(default_factory=list)

    def run(self) -> None:
        """Fills the times of every job."""
        coming, now = list(self.jobs), 0.0
        while True:
            while coming and coming[0].arrival_s <= now:
                self.waiting.append(coming.pop(0))
            if not (self.waiting or self.evicted or self.prompts or self.decoding):
                if not coming:
                    return
                now = coming[0].arrival_s
                continue
            now = self._step(now)

    def _step(self, now: float) -> float:
        chunks = self._chunks(now)
        if not chunks and not self.decoding:
            return now
        active = [] if chunks and self.policy != "chunked" else self.decoding
        if not chunks:
            self._evict()
        cached = float(sum(job.held + job.seen_tokens for job in active))
        if chunks:
            ending = sum(job.todo == 0 for job in self.prompts)
            now += self.cost.mixed_step_s(len(active), cached, chunks, ending)
        else:
            now += self.cost.decode_step_s(len(active), cached)
        for job in active:
            job.held, job.left = job.held + 1, job.left - 1
            if job.left == 0:
                job.finish_s = now
        self._end_prompts(now)
        return now

    def _chunks(self, now: float) -> list[tuple[int, int]]:
        budget = self.max_tokens - (len(self.decoding) if self.policy == "chunked" else 0)
        chunks: list[tuple[int, int]] = []
        place = 0
        while budget > 0 and (place < len(self.prompts) or self._admit(now)):
            job = self.prompts[place]
            new = min(job.todo, budget)
            chunks.append((new, job.seen_tokens + job.held))
            job.todo, job.held, budget, place = job.todo - new, job.held + new, budget - new, place + 1
        return chunks

    def _admit(self, now: float) -> bool:
        resident = len(self.prompts) + len(self.decoding)
        if resident >= self.max_seqs or (self.policy == "static" and self.decoding):
            return False
        while not self.evicted and self.waiting:
            job = self.waiting[0]
            if job.todo + job.left + HALF_BLOCK <= self.capacity:
                break
            self.waiting.pop(0)  # can never fit
        queue = self.evicted or self.waiting
        if not queue:
            return False
        place = -1 if queue is self.evicted else 0
        if self._used() + queue[place].todo + HALF_BLOCK * (resident + 1) > self.capacity and resident > 0:
            return False
        job = queue.pop(place)
        job.start_s = now if job.start_s is None else job.start_s
        self.prompts.append(job)
        return True

    def _used(self) -> int:
        return sum(job.todo + job.held for job in self.prompts + self.decoding)

    def _evict(self) -> None:
        while len(self.decoding) > 1 and self._used() + (1 + HALF_BLOCK) * len(self.decoding) > self.capacity:
            job = self.decoding.pop()
            job.todo, job.held = job.held, 0
            self.evicted.append(job)

    def _end_prompts(self, now: float) -> None:
        self.decoding = [job for job in self.decoding if job.finish_s is None]
        for job in [job for job in self.prompts if job.todo == 0]:
            job.first_s = now if job.first_s is None else job.first_s
            if job.left == 0:
                job.finish_s = now
            else:
                self.decoding.append(job)
        self.prompts = [job for job in self.prompts if job.todo > 0]
