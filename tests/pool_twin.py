"""Plain twin of the two-pool event loop: every step an event, every list scanned, in the documented order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from estimator.instance import BLOCK_TOKENS
from estimator.length_predictor import predicted_tokens
from estimator.requests import Requests
from estimator.seeds import stream
from estimator.system import Disaggregated

SAME_S = 1e-9


def blocks(tokens: float) -> int:
    """KV blocks of so many tokens."""
    return math.ceil(tokens / BLOCK_TOKENS)


@dataclass(kw_only=True, eq=False)
class Job:
    """One request; times are NaN until the event has happened."""

    number: int
    arrival_s: float
    visible_s: float
    prompt: int
    seen: int
    total: int
    steps: int
    predicted: float
    todo: int = 0
    left: int = 0
    held: float = 0.0
    generated: float = 0.0
    prefill_lane: int = -1
    decode_lane: int = -1
    known_s: float = 0.0
    start_s: float = math.nan
    first_s: float = math.nan
    reserved_s: float = math.nan
    kv_s: float = math.nan
    join_s: float = math.nan
    finish_s: float = math.nan
    is_rejected: bool = False


@dataclass(kw_only=True)
class PrefillLane:
    """Queue, scheduling batch, prompts of the step, everything whose KV tokens are here."""

    waiting: list[Job] = field(default_factory=list)
    batch: list[Job] = field(default_factory=list)
    prompts: list[Job] = field(default_factory=list)
    holding: list[Job] = field(default_factory=list)
    outstanding: int = 0


@dataclass(kw_only=True)
class DecodeLane:
    """Sequences in order of joining, evicted ones, what is coming, what stands in line."""

    seqs: list[Job] = field(default_factory=list)
    redo: list[Job] = field(default_factory=list)
    evicted: list[Job] = field(default_factory=list)
    coming: list[Job] = field(default_factory=list)
    arrived: list[Job] = field(default_factory=list)
    ready: list[Job] = field(default_factory=list)
    outstanding: int = 0


@dataclass(kw_only=True)
class Step:
    """A step under way."""

    end_s: float
    prompts: list[Job] = field(default_factory=list)
    seconds: float = 0.0


class PoolTwin:
    """Runs one system on one set of requests: call `run` once, then read `jobs`."""

    def __init__(self, system: Disaggregated, requests: Requests, concurrency: int | None, seed: int) -> None:
        self.system, self.policy, self.now = system, system.policy, 0.0
        self.prefill, self.decode = system.prefill, system.decode
        self.gain = system.decode.cost.accepted_tokens_per_step
        self.pp = system.decode.parallelism.pp
        self.num_units = system.num_prefill, system.num_decode * self.pp
        self.ranks = system.prefill.parallelism.dp, system.decode.parallelism.dp
        self.sources = [PrefillLane() for _ in range(self.num_units[0] * self.ranks[0])]
        self.targets = [DecodeLane() for _ in range(self.num_units[1] * self.ranks[1])]
        self.free_s = [[0.0] * system.prefill.parallelism.pp for _ in range(self.num_units[0])]
        self.leaving: list[list[Step]] = [[] for _ in range(self.num_units[0])]
        self.steps: list[Step | None] = [None] * self.num_units[1]
        self.flying: list[list[Job]] = [[] for _ in range(system.num_decode)]
        self.sender_s, self.receiver_s = [0.0] * system.num_prefill, [0.0] * system.num_decode
        self.pending: list[Job] = []
        self.tried: set[int] = set()
        self.num_routed = self.num_placed = self.num_evicted = 0
        num = len(requests)
        self.draws, self.placement_draws = (
            stream(seed, "router").random((num, 2)),
            stream(seed, "placement").random((num, 2)),
        )
        self.concurrency, self.front_free_s, self.last_visible_s = concurrency, 0.0, 0.0
        self.jobs = self._jobs(requests, seed)
        self.num_sent = 0
        for job in self.jobs[:concurrency]:
            self._let_in(job, job.arrival_s)
        if concurrency is not None:  # a cold server keeps the first burst waiting, not what comes after
            for job in self.jobs[:concurrency]:
                job.visible_s += self.prefill.cold_start_s
            self.front_free_s += self.prefill.cold_start_s
            self.last_visible_s += self.prefill.cold_start_s
        self.num_come = 0
        self.kv_block_s = [0.0, 0.0]
        self.capacity = (
            self.prefill.capacity_tokens // BLOCK_TOKENS,
            self.decode.capacity_tokens // BLOCK_TOKENS // self.pp,
        )

    def _jobs(self, requests: Requests, seed: int) -> list[Job]:
        predicted = predicted_tokens(
            requests.output_tokens, self.policy.bucket_tokens, self.policy.prediction_accuracy, seed
        )
        jobs = []
        for i in range(len(requests)):
            arrival = float(requests.arrival_s[i]) if self.concurrency is None else 0.0
            total, seen = int(requests.input_tokens[i]), int(requests.cached_tokens[i])
            steps = math.ceil((int(requests.output_tokens[i]) - 1) / self.gain)
            jobs.append(
                Job(
                    number=i,
                    arrival_s=arrival,
                    visible_s=math.inf,
                    prompt=total - seen,
                    seen=seen,
                    total=total,
                    steps=steps,
                    left=steps,
                    predicted=float(predicted[i]),
                    todo=total - seen,
                )
            )
        return jobs

    def run(self) -> None:
        """Fills the times of every job."""
        while True:
            times = [step.end_s for step in self.steps if step] + [steps[0].end_s for steps in self.leaving if steps]
            times += [free[0] for free in self.free_s if free[0] > self.now + SAME_S]
            times += [jobs[0].kv_s for jobs in self.flying if jobs]
            if self.num_come < self.num_sent:
                times.append(self.jobs[self.num_come].visible_s)
            if not times:
                return
            before, self.now = self.now, max(min(times), self.now)
            self._integrate(self.now - before)
            self._round(self.now + SAME_S)
            self._check_room()

    def _check_room(self) -> None:
        """No lane holds more KV blocks than it has, but for a lone request."""
        for source in self.sources:
            held = sum(blocks(job.prompt) for job in source.holding)
            assert len(source.holding) <= 1 or held <= self.capacity[0]
        for unit, lanes in self._decode_units():
            for lane in lanes:
                seated = len(lane.seqs) + len(lane.redo) + len(lane.coming) + len(lane.arrived)
                assert seated <= 1 or self._used(lane, unit) <= self.capacity[1]

    def _integrate(self, seconds: float) -> None:
        self.kv_block_s[0] += seconds * sum(blocks(job.prompt) for lane in self.sources for job in lane.holding)
        for unit, lanes in self._decode_units():
            self.kv_block_s[1] += seconds * sum(self._used(lane, unit) for lane in lanes)

    def _decode_units(self) -> list[tuple[int, list[DecodeLane]]]:
        ranks = self.ranks[1]
        return [(unit, self.targets[unit * ranks : (unit + 1) * ranks]) for unit in range(self.num_units[1])]

    def _round(self, limit: float) -> None:
        for unit in range(self.num_units[0]):
            while self.leaving[unit] and self.leaving[unit][0].end_s <= limit:
                step = self.leaving[unit].pop(0)
                for job in step.prompts:
                    self._end_prompt(job, step.end_s)
        for jobs in self.flying:
            while jobs and jobs[0].kv_s <= limit:
                job = jobs.pop(0)
                self._leave_prefill(job)
                lane = self.targets[job.decode_lane]
                lane.coming.remove(job)
                lane.arrived.append(job)
        for unit in range(self.num_units[1]):
            under_way = self.steps[unit]
            if under_way and under_way.end_s <= limit:
                self._end_decode(unit, under_way.end_s)
        while self.num_come < self.num_sent and self.jobs[self.num_come].visible_s <= limit:
            self.num_come += 1
            self._route(self.jobs[self.num_come - 1])
        for unit in range(self.num_units[1]):
            if self.steps[unit] is None:
                self._start_decode(unit)
        self._hand_over()
        for unit in range(self.num_units[0]):
            self._start_prefill(unit)

    def _choose(self, router: str, turn: int, outstanding: list[int], draws: NDArray[np.float64]) -> int:
        num = len(outstanding)
        if num == 1 or router == "round_robin":
            return turn % num
        if router == "least_outstanding":
            return outstanding.index(min(outstanding))
        first = int(draws[turn, 0] * num)
        if router == "random":
            return first
        others = [k for k in range(num) if k != first]
        second = others[int(draws[turn, 1] * (num - 1))]
        return second if outstanding[second] < outstanding[first] else first

    def _in_turn(self, pool: int) -> list[int]:
        """Lanes in the order in which routers count them: the first rank of every instance, then the second."""
        return [
            unit * self.ranks[pool] + rank for rank in range(self.ranks[pool]) for unit in range(self.num_units[pool])
        ]

    def _let_in(self, job: Job, t: float) -> None:
        """The front end takes the job, sent at t, when it has done the one before."""
        self.front_free_s = max(self.front_free_s, t) + self.prefill.frontend_s
        delay_s = self.prefill.request_overhead_s + self.prefill.overhead_s_per_token * job.total
        job.arrival_s, job.visible_s = t, max(self.front_free_s + delay_s, self.last_visible_s)
        self.last_visible_s = job.visible_s
        self.num_sent += 1

    def _close(self, job: Job, t: float) -> None:
        if self.concurrency is not None and self.num_sent < len(self.jobs):
            self._let_in(self.jobs[self.num_sent], t)

    def _route(self, job: Job) -> None:
        too_long = job.steps > 0 and blocks(job.total + job.steps * self.gain) > self.capacity[1]
        if too_long or blocks(job.prompt) > self.capacity[0]:
            job.is_rejected = True
            self._close(job, self.now)
            return
        order = self._in_turn(0)
        held = [self.sources[lane].outstanding for lane in order]
        job.prefill_lane = order[self._choose(self.system.router, self.num_routed, held, self.draws)]
        self.num_routed += 1
        self.sources[job.prefill_lane].outstanding += 1
        self.sources[job.prefill_lane].waiting.append(job)
        busy_until_s = self.free_s[job.prefill_lane // self.ranks[0]][0]
        if self.prefill.looks_ahead and busy_until_s > self.now + SAME_S:
            job.known_s = busy_until_s + 2 * SAME_S

    def _leave_prefill(self, job: Job) -> None:
        lane = self.sources[job.prefill_lane]
        lane.holding.remove(job)
        lane.outstanding -= 1

    def _end_prompt(self, job: Job, t: float) -> None:
        job.first_s = t
        if job.steps == 0:
            job.finish_s = t
            self._leave_prefill(job)
            self._close(job, t)
        elif self.policy.decode_placement == "heavy_light":
            if not self.pending:
                self.tried.add(0)
            self.pending.append(job)
        else:
            order = self._in_turn(1)
            held = [self.targets[lane].outstanding for lane in order]
            job.decode_lane = order[
                self._choose(self.policy.decode_placement, self.num_placed, held, self.placement_draws)
            ]
            self.num_placed += 1
            lane = self.targets[job.decode_lane]
            lane.outstanding += 1
            if not lane.ready:
                self.tried.add(job.decode_lane)
            lane.ready.append(job)

    def _hand_over(self) -> None:
        tried, self.tried = sorted(self.tried), set()
        if self.policy.decode_placement == "heavy_light":
            while tried and self.pending:
                job = self.pending[0]
                rooms = [lane for lane in range(len(self.targets)) if self._has_room(lane, job)]
                if not rooms:
                    return
                self.pending.pop(0)
                self._send(job, self._lighter(rooms))
            return
        for number in tried:
            ready = self.targets[number].ready
            while ready and self._has_room(number, ready[0]):
                self._send(ready.pop(0), number)

    def _lighter(self, rooms: list[int]) -> int:
        draw = self.placement_draws[self.num_placed]
        self.num_placed += 1
        first = rooms.pop(int(draw[0] * len(rooms)))
        if not rooms:
            return first
        second = rooms[int(draw[1] * len(rooms))]
        ratios = []
        for number in (first, second):
            lane = self.targets[number]
            mine = lane.seqs + lane.redo + lane.evicted + lane.coming + lane.arrived
            heavy = sum(job.predicted > self.policy.heavy_decode_tokens for job in mine)
            ratios.append((heavy, len(mine) - heavy + 1))
        return second if ratios[1][0] * ratios[0][1] < ratios[0][0] * ratios[1][1] else first

    def _has_room(self, number: int, job: Job) -> bool:
        lane, unit = self.targets[number], number // self.ranks[1]
        coming = lane.coming + lane.arrived
        seated = len(lane.seqs) + len(lane.redo) + len(coming)
        if lane.evicted or seated >= max(1, self.decode.limits.max_num_seqs // self.pp):
            return False
        if seated == 0:
            return True
        used = self._used(lane, unit) + blocks(job.total)
        if used > self.capacity[1]:
            return False
        if self.policy.admission == "reserve_static":
            all_of = [*lane.seqs, *lane.redo, *coming, job]
            return sum(blocks(other.total + other.predicted) for other in all_of) <= self.capacity[1]
        if self.policy.admission == "reserve_dynamic" and lane.seqs:
            to_go = [max(seq.predicted - seq.generated, 0.0) for seq in lane.seqs]
            soonest = lane.seqs[to_go.index(min(to_go))]
            leaving = blocks(soonest.total + soonest.generated)
            return used - leaving + seated * blocks(min(to_go)) <= self.capacity[1]
        return True

    def _send(self, job: Job, number: int) -> None:
        job.decode_lane, job.reserved_s = number, self.now
        self.targets[number].coming.append(job)
        sender = job.prefill_lane // self.ranks[0]
        receiver = number // self.ranks[1] % self.system.num_decode
        link = self.system.link
        wire_s = job.total * self.prefill.kv_bytes_per_token / min(link.egress_bytes_per_s, link.ingress_bytes_per_s)
        ends_s = max(self.now, self.sender_s[sender], self.receiver_s[receiver]) + wire_s
        self.sender_s[sender] = self.receiver_s[receiver] = ends_s
        under_way = self.steps[number // self.ranks[1]]
        steps_s = link.latency_steps * under_way.seconds if under_way else 0.0
        before_s = self.flying[receiver][-1].kv_s if self.flying[receiver] else 0.0
        job.kv_s = max(ends_s + link.latency_s + steps_s, before_s)
        self.flying[receiver].append(job)

    def _start_prefill(self, unit: int) -> None:
        free, instance = self.free_s[unit], self.prefill
        if free[0] > self.now + SAME_S:
            return
        seconds, tokens, ended = 0.0, 0, []
        pooled_s = instance.cost.pooled_s
        lanes = self.sources[unit * self.ranks[0] : (unit + 1) * self.ranks[0]]
        filled = [self._chunks(lane, self.now) for lane in lanes]
        if not any(filled) and self.prefill.looks_ahead:
            filled = [self._chunks(lane, math.inf) for lane in lanes]
        for lane, chunks in zip(lanes, filled, strict=True):
            if chunks:
                ending = sum(job.todo == 0 for job in lane.prompts)
                mine = sum(new for new, _ in chunks)
                own_s = instance.cost.mixed_step_s(0, 0.0, chunks, ending) - pooled_s[min(mine, len(pooled_s) - 1)]
                seconds, tokens = max(seconds, float(own_s)), tokens + mine
            ended += [job for job in lane.prompts if job.todo == 0]
            lane.prompts = [job for job in lane.prompts if job.todo > 0]
        if tokens == 0:
            return
        seconds += float(pooled_s[min(math.ceil(tokens / self.ranks[0]), len(pooled_s) - 1)])
        end_s = self.now - instance.stage_transfer_s
        for stage in range(len(free)):
            end_s = free[stage] = max(end_s + instance.stage_transfer_s, free[stage]) + seconds
        self.leaving[unit].append(Step(end_s=end_s, prompts=ended))

    @property
    def _budget(self) -> int:
        most = self.prefill.limits.max_num_batched_tokens
        return min(self.policy.chunk_tokens or most, most)

    def _chunks(self, lane: PrefillLane, known_s: float) -> list[tuple[int, int]]:
        room, place = self._budget, 0
        chunks: list[tuple[int, int]] = []
        while room > 0:
            if place == len(lane.prompts) and not self._start_prompt(lane, room, known_s):
                break
            job = lane.prompts[place]
            new = min(job.todo, room)
            chunks.append((new, job.seen + int(job.held)))
            job.todo, job.held, room, place = job.todo - new, job.held + new, room - new, place + 1
        return chunks

    def _start_prompt(self, lane: PrefillLane, room: int, known_s: float) -> bool:
        if not lane.batch:
            size = 1 if self.policy.prefill_order == "fcfs" else self.policy.scheduling_batch
            lane.batch, lane.waiting = lane.waiting[:size], lane.waiting[size:]
            if self.policy.prefill_order != "fcfs":
                lane.batch.sort(key=lambda job: job.prompt if self.policy.prefill_order == "sjf" else -job.prompt)
        if not lane.batch or len(lane.prompts) >= self.prefill.limits.max_num_seqs:
            return False
        job = lane.batch[0]
        if job.known_s > known_s:
            return False
        budget = self._budget
        if self.policy.chunk_tokens == 0 and room < budget and job.todo > room:
            return False
        used = sum(blocks(other.prompt) for other in lane.holding)
        if lane.holding and used + blocks(job.todo) > self.capacity[0]:
            return False
        job.start_s = self.now
        lane.prompts.append(lane.batch.pop(0))
        lane.holding.append(job)
        return True

    def _used(self, lane: DecodeLane, unit: int | None = None) -> int:
        """Blocks held and set aside, in a step (of `unit`, if one runs there) with those that it opens."""
        ahead = self.gain if unit is None or self.steps[unit] else 0.0
        used = sum(blocks(job.total + job.generated + ahead) for job in lane.seqs)
        used += sum(blocks(job.total + job.generated) for job in lane.redo)
        return used + sum(blocks(job.total) for job in lane.coming + lane.arrived)

    def _start_decode(self, unit: int) -> None:
        cost = self.decode.cost
        hop_s = (self.pp - 1) * self.decode.stage_transfer_s
        seconds, is_busy = 0.0, False
        for rank in range(self.ranks[1]):
            number = unit * self.ranks[1] + rank
            lane = self.targets[number]
            for job in lane.arrived:
                job.join_s = self.now
            lane.seqs, lane.arrived = lane.seqs + lane.arrived, []
            may_start = not self._evict(lane) or not lane.seqs
            chunks = self._redo_chunks(number, may_start)
            if not (lane.seqs or chunks):
                continue
            is_busy = True
            cached = float(sum(job.total + job.generated for job in lane.seqs))
            if chunks:
                ending = sum(job.todo == 0 for job in lane.redo)
                head_s = float(cost.head_s[len(lane.seqs) + ending])
                lane_s = self.pp * (cost.mixed_step_s(len(lane.seqs), cached, chunks, ending) - head_s) + head_s
            else:
                lane_s = self.pp * cost.decode_step_s(len(lane.seqs), cached)
            seconds = max(seconds, lane_s + hop_s)
        if is_busy:
            self.steps[unit] = Step(end_s=self.now + seconds, seconds=seconds)

    def _evict(self, lane: DecodeLane) -> bool:
        has_evicted = False
        while lane.seqs:
            seated = len(lane.seqs) + len(lane.redo) + len(lane.coming)
            if seated <= 1 or self._used(lane) <= self.capacity[1]:
                break
            job = lane.seqs.pop()
            job.generated = float(math.floor(job.generated))  # whole tokens are recomputed
            job.todo, job.held = int(job.total + job.generated), 0.0
            lane.evicted.append(job)
            has_evicted = True
            self.num_evicted += 1
        return has_evicted

    def _redo_chunks(self, number: int, may_start: bool) -> list[tuple[int, int]]:
        lane, cost = self.targets[number], self.decode.cost
        room = self.decode.limits.max_num_batched_tokens - cost.decode_tokens_per_seq * len(lane.seqs)
        chunks: list[tuple[int, int]] = []
        place, had_evicted = 0, bool(lane.evicted)
        while room > 0:
            if place == len(lane.redo):
                seated = len(lane.seqs) + len(lane.redo) + len(lane.coming)
                if not lane.evicted or not may_start or seated >= max(1, self.decode.limits.max_num_seqs // self.pp):
                    break
                if seated > 0 and self._used(lane) + blocks(lane.evicted[-1].todo + self.gain) > self.capacity[1]:
                    break
                lane.redo.append(lane.evicted.pop())
            job = lane.redo[place]
            new = min(job.todo, room)
            chunks.append((new, int(job.held)))
            job.todo, job.held, room, place = job.todo - new, job.held + new, room - new, place + 1
        if had_evicted and not lane.evicted:
            self.tried.add(number)
        return chunks

    def _end_decode(self, unit: int, t: float) -> None:
        self.steps[unit] = None
        for rank in range(self.ranks[1]):
            number = unit * self.ranks[1] + rank
            lane = self.targets[number]
            for job in lane.seqs:
                job.generated, job.left = job.generated + self.gain, job.left - 1
            ended = [job for job in lane.seqs if job.left == 0]
            lane.seqs = [job for job in lane.seqs if job not in ended]
            for job in ended:
                job.finish_s = t
                lane.outstanding -= 1
                self.tried.add(number)
                self._close(job, t)
            lane.seqs += [job for job in lane.redo if job.todo == 0]
            lane.redo = [job for job in lane.redo if job.todo > 0]
