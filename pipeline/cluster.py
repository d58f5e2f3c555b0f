"""Ray: one long-lived actor per worker, replaced by us when it dies or its node is to go."""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from manifests.deadline import DeadlineError, within
from pipeline.connection import (
    Connection,
    JobRay,
    PrivateRay,
    answered,
    capacity,
    draining_nodes,
    num_gpus,
)
from pipeline.errors import UnusableEnvironmentError
from pipeline.outcomes import ROW_TIMEOUT, Outcome, WorkItem
from pipeline.pools import Completion
from pipeline.shared import check_shared, shared_paths
from pipeline.shipping import code_digest
from pipeline.spec import JobSpec
from pipeline.stages import RowProcessor

_DRAIN_CHECK_SECONDS = 5.0
_FIRST_TOLD_SECONDS = 60.0
# A worker may die while it loads for reasons of its node; so many on end, and none ready, is not.
_MAX_DEAD_STARTS = 5
_MAX_FAILED_STARTS = 2
_MAX_RAY_RESTARTS = 2
_KILL_SECONDS = 10.0
_GOES_ON = "the same command again goes on from here."


class _Worker:
    """What runs in the actor's process."""

    def __init__(
        self, spec_json: str, fingerprint: str, job: Mapping[str, Any], code: str | None
    ) -> None:
        spec = JobSpec.from_json(spec_json)
        if spec.runner == "cluster":
            check_shared(shared_paths(spec))
            _check_code(code)
        self._process = RowProcessor(spec, fingerprint, job)
        self._process.setup()
        self._node_id = ray.get_runtime_context().get_node_id()
        if spec.runner == "cluster":
            # Nodes may share a host's name, and a name may be given again: both are said.
            self._process.node = f"{socket.gethostname()}:{self._node_id[:8]}"

    def ready(self) -> tuple[str, str, int]:
        """Return (node id, node's name in the ledger, process id) once the models are loaded."""
        return self._node_id, self._process.node, os.getpid()

    def process(self, items: tuple[WorkItem, ...]) -> list[Any]:
        return self._process(items)


def _check_code(code: str | None) -> None:
    """Raise UnusableEnvironmentError if this node imports other code than the driver does."""
    if code != code_digest():
        raise UnusableEnvironmentError(
            f"the cluster's node {socket.gethostname()} runs other code of doodl-batch "
            f"({Path(__file__).parent}) than the job's driver; with --code image every node needs "
            "the same image."
        )


@dataclass(eq=False)
class _Slot:
    """One worker: loading its models until `ready`, then idle or at work on `items`.

    One on a draining node finishes what it holds and gets nothing new: it is `leaving`.
    """

    actor: Any
    reference: Any
    ready: bool = False
    leaving: bool = False
    node_id: str = ""
    node: str = ""
    pid: int = 0
    used: bool = False
    items: tuple[WorkItem, ...] = ()
    submitted_at: float = 0.0

    @property
    def idle(self) -> bool:
        return self.ready and not self.items and not self.leaving


def default_workers() -> int:
    """Return how many CPU workers this machine takes: one per core it may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class RayPool:
    """Actors fed one batch each, watched with `ray.wait`.

    An actor that dies is replaced here and not by Ray (max_restarts=0, no task retries): only the
    driver knows whose fault it was and whether the row may try again. A worker is given rows once
    its models are loaded, so that a row's clock counts the row alone; and the first that is ready
    begins, so that a cluster may grow by the workers it has no room for yet.

    When Ray's own daemons die, what was in work comes back uncharged; a private Ray is started
    again, a few times, and on a cluster the run ends.

    Args:
        max_workers: batches to compute: more workers than that are of no use.
        tell: where a line for a person goes.
    Raises: UnusableEnvironmentError if the device is not there, or no worker can start.
    """

    def __init__(
        self,
        spec: JobSpec,
        fingerprint: str,
        job: Mapping[str, Any],
        max_workers: int,
        tell: Callable[[str], None],
    ) -> None:
        self._tell = tell
        self._opened_at = self._drains_at = time.monotonic()
        self._tell_after, self._dead_starts = _FIRST_TOLD_SECONDS, 0
        self._failed_starts = self._restarts = 0
        if spec.runner == "cluster":
            self._connection: Connection = JobRay()
        else:
            asked = spec.num_workers or max(1, int(default_workers() / spec.cpus_per_worker))
            count = min(max_workers, asked)
            self._connection = PrivateRay(
                math.ceil(count * spec.cpus_per_worker),
                {name: count * amount for name, amount in spec.resources.items()},
            )
        try:
            if spec.device == "auto":
                spec = replace(spec, device="cuda" if num_gpus() else "cpu")
            self._spec = spec
            need = worker_need(spec)
            code = code_digest() if spec.runner == "cluster" else None
            self._arguments = (spec.to_json(), fingerprint, dict(job), code)
            self._slots: list[_Slot] = []
            self._num_workers = min(max_workers, self._workers(need))
            self._start_workers()
        except BaseException:
            self._connection.close()
            raise

    def _workers(self, need: Mapping[str, float]) -> int:
        """Return how many workers to start; with --max-workers a cluster is left to grow to it."""
        asked = self._spec.num_workers
        if self._connection.grows and asked:
            return asked
        there = capacity(need)
        if there == 0:
            where = "of this cluster " if self._connection.grows else ""
            raise UnusableEnvironmentError(
                f"no node {where}has what one worker asks for, {_named(need)}; "
                + ("ask for less, or let the cluster grow to --max-workers."
                   if self._connection.grows else "ask for less, or use --device cpu.")
            )  # fmt: skip
        return min(asked or there, there)

    def _start_workers(self) -> None:
        """Fill the slots, all of them empty, on the Ray that is connected now."""
        self._own_node = ray.get_runtime_context().get_node_id()
        need = worker_need(self._spec)
        self._actor_class = ray.remote(
            num_cpus=need["CPU"],
            num_gpus=need.get("GPU", 0),
            resources=dict(self._spec.resources),
            max_restarts=0,
            max_task_retries=0,
        )(_Worker)
        self._slots = answered(lambda: [self._started() for _ in range(self._num_workers)])

    def _started(self) -> _Slot:
        actor = self._actor_class.remote(*self._arguments)
        return _Slot(actor, actor.ready.remote())

    def has_room(self) -> bool:
        return any(slot.idle for slot in self._slots)

    @property
    def in_flight(self) -> int:
        return sum(bool(slot.items) for slot in self._slots)

    def has_fresh_room(self) -> bool:
        if any(slot.idle and not slot.used for slot in self._slots):
            return True
        if all(slot.ready for slot in self._slots):  # else one that is loading will do
            self._replace(next(slot for slot in self._slots if slot.idle))
        return False

    @property
    def num_workers(self) -> int:
        return self._num_workers

    def submit(self, items: Sequence[WorkItem]) -> None:
        fresh = any(item.fresh for item in items)
        slot = next(slot for slot in self._slots if slot.idle and not (fresh and slot.used))
        slot.items, slot.used = tuple(items), True
        slot.submitted_at = time.monotonic()
        slot.reference = slot.actor.process.remote(slot.items)

    def wait(self, timeout_seconds: float) -> list[Completion]:
        if (lost := self._connection.watch.lost()) is not None:
            if self._slots:
                return self._given_back(lost)
            self._begin_again(lost)
        self._leave_draining_nodes()
        self._say_if_waiting()
        watched = [slot for slot in self._slots if not slot.idle]
        if not watched:
            return []
        done, _ = ray.wait([slot.reference for slot in watched], timeout=timeout_seconds)
        completions = [self._collected(slot) for slot in watched if slot.reference in done]
        return [c for c in completions if c is not None] + self._expired()

    def _collected(self, slot: _Slot) -> Completion | None:
        """Return what a slot's call gave; None for a worker that has just become ready."""
        items, slot.items = slot.items, ()
        try:
            value = ray.get(slot.reference, timeout=_KILL_SECONDS)
        except ray.exceptions.RayTaskError as error:
            # The row boundary lets nothing through, so this worker is not to be trusted any more.
            reason = f"worker error: {error.cause!r}"
        except ray.exceptions.RayError as error:
            if self._connection.watch.lost(now=True) is not None:
                slot.items = items  # given back with all the others
                return None
            reason = _reason(error)
            if getattr(error, "actor_init_failed", False):
                # No row is at fault, and the next worker will most likely fail alike; but a file
                # that was out of reach for a moment must not end a night's run.
                self._failed_starts += 1
                if self._failed_starts >= _MAX_FAILED_STARTS:
                    raise UnusableEnvironmentError(f"a worker cannot start: {reason}") from error
        else:
            if slot.ready:
                if slot.leaving or any(outcome.unfit for outcome in value):
                    self._replace(slot)
                return Completion(items, tuple(value))
            slot.ready, (slot.node_id, slot.node, slot.pid) = True, value
            self._dead_starts = self._failed_starts = 0
            return None
        if not slot.ready:
            self._dead_starts += 1
            if self._dead_starts >= _MAX_DEAD_STARTS:
                raise UnusableEnvironmentError(
                    f"{self._dead_starts} workers on end died while they loaded: {reason}"
                )
        self._replace(slot)
        return Completion(items, worker_died=reason, node=slot.node)

    def _given_back(self, lost: str) -> list[Completion]:
        """Empty the slots of a Ray that is lost: what is done as it is, all else uncharged."""
        slots, self._slots = self._slots, []
        completions = []
        for slot in slots:
            outcomes = _finished(slot)
            if slot.items and outcomes is not None:
                completions.append(Completion(slot.items, outcomes))
            elif slot.items:
                completions.append(
                    Completion(slot.items, worker_died=lost, node=slot.node, charged=False)
                )
            self._kill_process(slot)  # it may go on for a while without its daemon
        return completions

    def _begin_again(self, lost: str) -> None:
        """Start Ray and the workers anew.

        Raises: UnusableEnvironmentError if it is not ours, or was lost too often, or cannot start.
        """
        self._restarts += 1
        if self._restarts > _MAX_RAY_RESTARTS:
            raise UnusableEnvironmentError(
                f"{lost}, after it was started again {_MAX_RAY_RESTARTS} times; {_GOES_ON}"
            )
        if not self._connection.grows:
            self._tell(f"{lost}: it is started again, with the photos that were in work")
        try:
            self._connection.begin_again()
        except UnusableEnvironmentError as error:
            raise UnusableEnvironmentError(f"{lost}: {error}; {_GOES_ON}") from error
        self._opened_at, self._tell_after = time.monotonic(), _FIRST_TOLD_SECONDS
        self._start_workers()

    def _leave_draining_nodes(self) -> None:
        """Give workers on nodes that are about to go no new rows, and start others elsewhere.

        Ray itself places nothing on a draining node.
        """
        if time.monotonic() - self._drains_at < _DRAIN_CHECK_SECONDS or not self._connection.grows:
            return
        if not self._connection.watch.answering:
            return
        self._drains_at = time.monotonic()
        draining = draining_nodes()
        for slot in [s for s in self._slots if s.node_id in draining and not s.leaving]:
            self._tell(f"node {slot.node} is draining: its worker is replaced elsewhere")
            if slot.items:
                slot.leaving = True
            else:
                self._replace(slot)

    def _say_if_waiting(self) -> None:
        waited = time.monotonic() - self._opened_at
        if waited < self._tell_after or any(slot.ready for slot in self._slots):
            return
        self._tell_after *= 2
        self._tell(
            f"no worker is ready after {waited:.0f} s: it is loading, or the cluster has no room "
            f"yet for {_named(worker_need(self._spec))}"
        )

    def _expired(self) -> list[Completion]:
        limit, expired = self._spec.row_timeout_seconds, []
        for slot in list(self._slots):
            if not (limit and slot.items):
                continue
            if time.monotonic() - slot.submitted_at > limit * len(slot.items):
                items = slot.items
                self._kill_process(slot)
                self._replace(slot)
                message = f"no result after {limit:g} s a row; its worker was killed"
                expired.append(
                    Completion(items, worker_died=message, error_type=ROW_TIMEOUT, node=slot.node)
                )
        return expired

    def _kill_process(self, slot: _Slot) -> None:
        """SIGKILL a worker that is on this machine: one that is stopped or hangs obeys only that.

        Elsewhere it is Ray's: the node's own daemon ends the process.
        """
        if slot.pid and slot.node_id == self._own_node:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(slot.pid, signal.SIGKILL)

    def _replace(self, slot: _Slot) -> None:
        self._end(slot)
        self._slots[self._slots.index(slot)] = self._started()

    def _end(self, slot: _Slot) -> None:
        try:
            within(_KILL_SECONDS, lambda: ray.kill(slot.actor))
        except DeadlineError as error:
            self._connection.watch.give_up(f"Ray does not end a worker ({error})")

    def close(self) -> None:
        for slot in self._slots:
            if self._connection.watch.lost() is None:
                self._end(slot)
            else:
                self._kill_process(slot)
        self._slots.clear()
        self._connection.close()


def _finished(slot: _Slot) -> tuple[Outcome, ...] | None:
    """Return the outcomes that had come back before Ray was lost; None if they had not."""
    if not slot.items or not ray.wait([slot.reference], timeout=0)[0]:
        return None
    try:
        return tuple(ray.get(slot.reference, timeout=_KILL_SECONDS))
    except ray.exceptions.RayError:
        return None


def worker_need(spec: JobSpec) -> dict[str, float]:
    """Return what Ray sets aside for one worker."""
    gpu = {} if spec.device == "cpu" else {"GPU": spec.gpus_per_worker}
    return {"CPU": spec.cpus_per_worker, **gpu, **spec.resources}


def _named(need: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in need.items())


def _reason(error: Exception) -> str:
    """Return the line of a Ray error that names the cause."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    named = [line for line in text if "Error" in line and "RayActorError" not in line]
    return (named or text)[-1].strip()[:300]
