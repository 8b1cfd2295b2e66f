"""Who evaluates: threads of this process, or Ray workers. One contract: each strategy given comes back once.

Ray's traps (2.60), each with its remedy here: `uv run` builds a second environment and usage statistics phone home
(environment set before the import); a chunk whose node is partitioned away hangs for minutes (own deadline, sent
again, the late answer ignored); arguments by value cost 8 ms a task (the problem is put once, and each worker unpacks
it once); a task costs 0.8 ms (chunks of about `CHUNK_S` seconds by measured cost).
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

from threadpoolctl import threadpool_limits

from estimator.errors import BestServeError
from search.evaluate import Evaluate, Evaluation, evaluate, evaluate_all, explore, failed
from spaces.problem import Problem
from spaces.strategy import Strategy

LOOPBACK = "127.0.0.1"
CHUNK_S = 0.25  # work per task: task overhead of about 1 ms stays below 1 %, and a generation still spreads
MAX_ATTEMPTS = 3
THREADS_WORTH = 1.3  # cores: what threads make of any number, as half of an evaluation holds Python's lock
WORKER_WORTH = 0.85  # cores: of a Ray worker beside others, two against one (measured on two cores, 2026-11-25)
RAY_START_S = 6.0  # until Ray runs and its workers have imported and loaded what they need
ANSWER_S = 10.0  # for a cluster's head to accept a connection
NUM_FIRST = 16  # evaluations that load kernels and draw requests besides
NUM_MEASURED = 16  # further ones, which tell how long the rest will take
RAY_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "NUMBA_NUM_THREADS": "1",
}


class Executor(Protocol):
    """Evaluates strategies of one problem under one seed."""

    def run(
        self, strategies: Iterable[Strategy], *, in_order: bool = False, exploring: bool = False
    ) -> Iterator[Evaluation]:
        """Each strategy's evaluation once, as they come or in the order given; on few requests where `exploring`."""
        ...

    def close(self) -> None:
        """Give back what the executor holds."""
        ...


class LocalExecutor:
    """Evaluates in this process: in `threads`, as compiled kernels leave Python's lock to others, or one after another.

    Threads take no start and share every cached instance.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        evaluate: Evaluate = evaluate,
        explore: Evaluate = explore,
        threads: int = 1,
    ) -> None:
        self._problem, self._seed, self._judges = problem, seed, (evaluate, explore)
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run(
        self, strategies: Iterable[Strategy], *, in_order: bool = False, exploring: bool = False
    ) -> Iterator[Evaluation]:
        """In the order given, always; a strategy is taken from `strategies` when a thread will soon be free for it."""
        under_way: deque[Future[list[Evaluation]]] = deque()
        for strategy in strategies:
            if self._pool is None:
                yield from self._one(strategy, exploring)
                continue
            under_way.append(self._pool.submit(self._one, strategy, exploring))
            if len(under_way) > 2 * self.threads:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()

    def _one(self, strategy: Strategy, exploring: bool) -> list[Evaluation]:
        return evaluate_all(self._judges[exploring], self._problem, [strategy], self._seed)

    def close(self) -> None:
        """End the threads, once they have done what they are at."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class EagerExecutor:
    """Evaluates here, and on Ray once that has started: at once, or where the work left repays the start.

    `planned`: strategies that the study may evaluate; None: start at once. Where the threads here would be done sooner
    than Ray's workers with their start, it is never started. Linux ends Ray's servers with the thread that started them
    (PR_SET_PDEATHSIG): it stays until all is closed. Starting them forks, and OpenBLAS takes its threads down before a
    fork: a product that another thread has just begun would never end, so products have one thread from before the
    start until all is closed.
    """

    def __init__(self, here: LocalExecutor, start: Callable[[], RayExecutor], *, planned: int | None = None) -> None:
        self._here, self._start, self._planned = here, start, planned
        self._thread: threading.Thread | None = None
        self._there: RayExecutor | None = None
        self._blas: threadpool_limits | None = None
        self._spent_s, self._num_done = 0.0, 0
        self._settled, self._over = threading.Event(), threading.Event()
        self._begin_if_due()

    def run(
        self, strategies: Iterable[Strategy], *, in_order: bool = False, exploring: bool = False
    ) -> Iterator[Evaluation]:
        """In the order given while this process evaluates, then as Ray has it."""
        waiting = deque(strategies)
        before_s = time.monotonic()
        for evaluation in self._here.run(self._while_local(waiting), exploring=exploring):
            now_s = time.monotonic()
            self._num_done += 1
            self._spent_s += now_s - before_s if self._num_done > NUM_FIRST else 0.0
            before_s = now_s
            self._begin_if_due()
            yield evaluation
            before_s = time.monotonic()
        if waiting and self._there is not None:
            yield from self._there.run(waiting, in_order=in_order, exploring=exploring)

    def _while_local(self, waiting: deque[Strategy]) -> Iterator[Strategy]:
        while waiting and self.is_local:
            yield waiting.popleft()

    @property
    def is_local(self) -> bool:
        """Whether all work is still done here."""
        return self._there is None

    def close(self) -> None:
        """Wait for a start under way, and stop what it started."""
        self._here.close()
        if self._thread is None:
            return
        self._settled.wait()
        if self._there is not None:
            self._there.close()
        self._over.set()
        self._thread.join()
        if self._blas is not None:
            self._blas.restore_original_limits()

    def _begin_if_due(self) -> None:
        if self._thread is None and self._is_due:
            self._blas = threadpool_limits(1, user_api="blas")
            self._thread = threading.Thread(target=self._begin, daemon=True)
            self._thread.start()

    @property
    def _is_due(self) -> bool:
        if self._planned is None:
            return True
        num_measured = self._num_done - NUM_FIRST
        if num_measured < NUM_MEASURED:
            return False
        left_s = self._spent_s / num_measured * (self._planned - self._num_done)
        return left_s * (1.0 - THREADS_WORTH / (WORKER_WORTH * self._here.threads)) > RAY_START_S

    def _begin(self) -> None:
        try:
            self._there = self._start()
        except Exception as error:  # Ray raises bare Exception where a node is slow to start; the study can do without
            reason = str(error).split(". ")[0]
            warnings.warn(f"Ray did not start ({reason}); this process evaluates alone", RuntimeWarning, stacklevel=1)
        self._settled.set()
        self._over.wait()


@dataclass(slots=True, kw_only=True)
class _Chunk:
    members: tuple[int, ...]  # indices into the strategies of the run
    attempt: int = 1
    running_since_s: float = float("inf")  # when a worker came free for it; the deadline counts from here


class RayExecutor:
    """Evaluates on Ray workers: its own on this machine, or those of the cluster at `address`."""

    def __init__(  # noqa: PLR0913  (what is evaluated, how, and where)
        self,
        problem: Problem,
        *,
        seed: int,
        evaluate: Evaluate = evaluate,
        explore: Evaluate = explore,
        workers: int | None = None,
        address: str | None = None,
        deadline_s: float = 120.0,
    ) -> None:
        self._ray = _start_ray(workers, address)
        self.workers = self._num_workers()
        self._payload = self._ray.put(((evaluate, explore), problem, seed))
        self._task = self._ray.remote(max_retries=2)(_evaluate_chunk)
        self._deadline_s = deadline_s
        self._cost_s: float | None = None

    def run(
        self, strategies: Iterable[Strategy], *, in_order: bool = False, exploring: bool = False
    ) -> Iterator[Evaluation]:
        """Chunks as they finish; in order, an evaluation waits for those before it."""
        self.workers = self._num_workers()
        arrived = self._arrivals(list(strategies), exploring)
        if not in_order:
            yield from (evaluation for _, evaluation in arrived)
            return
        held: dict[int, Evaluation] = {}
        following = 0
        for index, evaluation in arrived:
            held[index] = evaluation
            while following in held:
                yield held.pop(following)
                following += 1

    def close(self) -> None:
        """Stop this process's Ray, or leave the cluster; never anybody else's."""
        self._ray.shutdown()

    def _num_workers(self) -> int:
        """Cores of the cluster as it is now: nodes come and go."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _arrivals(self, strategies: Sequence[Strategy], exploring: bool) -> Iterator[tuple[int, Evaluation]]:
        """(index, evaluation) in the order in which they come, each index once."""
        waiting = sorted(range(len(strategies)), key=lambda index: _shapes(strategies[index]))  # share instances
        retries: list[_Chunk] = []
        in_flight: dict[Any, _Chunk] = {}
        done: set[int] = set()
        while len(done) < len(strategies):
            while (waiting or retries) and len(in_flight) < 2 * self.workers:
                chunk = retries.pop() if retries else _Chunk(members=self._take(waiting))
                members = [strategies[index] for index in chunk.members]
                ref = self._task.remote([self._payload], members, exploring)
                in_flight[ref] = chunk
            for chunk in islice(in_flight.values(), self.workers):
                chunk.running_since_s = min(chunk.running_since_s, time.monotonic())
            ready, _ = self._ray.wait(list(in_flight), timeout=min(1.0, self._deadline_s / 4))
            for ref in ready:
                for index, evaluation in self._collect(ref, in_flight.pop(ref), strategies, retries):
                    if index not in done:
                        done.add(index)
                        yield index, evaluation
            for index in self._resend_late(in_flight, retries, done):
                done.add(index)
                yield index, failed(strategies[index], f"no answer within {self._deadline_s:g} s, {MAX_ATTEMPTS} times")

    def _take(self, waiting: list[int]) -> tuple[int, ...]:
        """The next chunk's members: about `CHUNK_S` of work, and a share for every worker."""
        share = -(-len(waiting) // (2 * self.workers))
        size = 1 if self._cost_s is None else int(CHUNK_S / max(self._cost_s, 1e-6))
        size = max(1, min(share, max(size, 1)))
        taken, waiting[:] = tuple(waiting[:size]), waiting[size:]
        return taken

    def _collect(
        self, ref: Any, chunk: _Chunk, strategies: Sequence[Strategy], retries: list[_Chunk]
    ) -> Iterable[tuple[int, Evaluation]]:
        """Results of a finished task; a task that died is split in singles, a single that died thrice has failed."""
        try:
            evaluations, took_s = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return self._retry(chunk, strategies, retries, f"the worker died: {error}")
        cost_s = took_s / len(chunk.members)
        self._cost_s = cost_s if self._cost_s is None else 0.7 * self._cost_s + 0.3 * cost_s
        return list(zip(chunk.members, evaluations, strict=True))

    def _retry(
        self, chunk: _Chunk, strategies: Sequence[Strategy], retries: list[_Chunk], reason: str
    ) -> list[tuple[int, Evaluation]]:
        if chunk.attempt >= MAX_ATTEMPTS:
            return [(index, failed(strategies[index], reason)) for index in chunk.members]
        retries.extend(_Chunk(members=(index,), attempt=chunk.attempt + 1) for index in chunk.members)
        return []

    def _resend_late(self, in_flight: dict[Any, _Chunk], retries: list[_Chunk], done: set[int]) -> list[int]:
        """Send chunks past their deadline again, one strategy a task; returns the strategies that ran out of attempts.

        A late task is cancelled and its answer, should it come, ignored.
        """
        now_s = time.monotonic()
        given_up: list[int] = []
        for ref, chunk in list(in_flight.items()):
            if now_s - chunk.running_since_s <= self._deadline_s:
                continue
            in_flight.pop(ref)
            self._ray.cancel(ref, force=True)
            missing = [index for index in chunk.members if index not in done]
            if chunk.attempt >= MAX_ATTEMPTS:
                given_up.extend(missing)
            else:
                retries.extend(_Chunk(members=(index,), attempt=chunk.attempt + 1) for index in missing)
        return given_up


def _shapes(strategy: Strategy) -> str:
    """Sorts strategies that share instances next to each other."""
    return "+".join(pool.written().lstrip("0123456789") for pool in strategy.pools)


_unpacked: dict[str, Any] = {}  # in a worker: payload id → payload; keeps the instance cache warm


def _evaluate_chunk(payload: list[Any], strategies: list[Strategy], exploring: bool) -> tuple[list[Evaluation], float]:
    """In a worker: the chunk's evaluations and the seconds they took. The payload comes boxed, to be fetched once."""
    import ray

    started_s = time.perf_counter()
    key = payload[0].hex()
    if key not in _unpacked:
        _unpacked.clear()
        _unpacked[key] = ray.get(payload[0])
    judges, problem, seed = _unpacked[key]
    found = evaluate_all(judges[exploring], problem, strategies, seed)
    return found, time.perf_counter() - started_s


def _require_answer(address: str) -> None:
    """Somebody listens at HOST:PORT; Ray itself would try for many minutes, and then end the process."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or not host or "/" in host:  # auto, ray://…: Ray's own to check
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        rule = f"cannot be joined ({error})"
        raise BestServeError("address", address, rule, "HOST:PORT of a running Ray head") from error


def _start_ray(workers: int | None, address: str | None) -> Any:
    """Ray, connected. A cluster that cannot be joined raises `BestServeError`."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is not None and (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # 2.60 refuses clients without it
    import ray

    if address is not None:
        _require_answer(address)
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"NUMBA_NUM_THREADS": "1"}},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BestServeError(
                "address", address, f"cannot be joined ({error})", "HOST:PORT of a Ray head whose token is known here"
            ) from error
        return ray
    # Ray's servers listen on every interface unless the node is 127.0.0.1, which ray.init would replace by the network
    # address.
    with mock.patch("ray._private.services.resolve_ip_for_localhost", lambda host: host):
        ray.init(
            address="local",  # without it Ray joins whatever cluster it finds on this machine
            num_cpus=workers or os.cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=128 << 20,
            _node_ip_address=LOOPBACK,
        )
    return ray
