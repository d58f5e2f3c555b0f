"""Ray: one long-lived actor per worker, replaced by us when it dies. No other module knows Ray."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pipeline.errors import UnusableEnvironmentError
from pipeline.outcomes import ROW_TIMEOUT, WorkItem
from pipeline.pools import Completion
from pipeline.spec import JobSpec
from pipeline.stages import RowProcessor


class _Worker:
    """What runs in the actor's process."""

    def __init__(self, spec_json: str, fingerprint: str, job: Mapping[str, Any]) -> None:
        self._process = RowProcessor(JobSpec.from_json(spec_json), fingerprint, job)
        self._process.setup()

    def ready(self) -> None:
        """Return once the models are loaded."""

    def process(self, items: tuple[WorkItem, ...]) -> list[Any]:
        return self._process(items)


@dataclass(eq=False)
class _Slot:
    """One worker: loading its models until `ready`, then idle or at work on `items`."""

    actor: Any
    reference: Any
    ready: bool = False
    items: tuple[WorkItem, ...] = ()
    submitted_at: float = 0.0

    @property
    def idle(self) -> bool:
        return self.ready and not self.items


class PrivateRay:
    """A Ray on this machine for one run: no dashboard, no usage statistics, gone with the run.

    Raises: UnusableEnvironmentError if Ray cannot start (no shared memory, read-only HOME).
    """

    def __init__(self, num_cpus: int) -> None:
        # Workers get the driver's folder first on sys.path: a user's `jobs/` would shadow ours.
        self._back = Path.cwd()
        self._neutral = tempfile.mkdtemp(prefix="doodl-batch-")
        os.chdir(self._neutral)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # The private cluster is ours alone; an address in the environment is another's.
        os.environ.pop("RAY_ADDRESS", None)
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Only URIs and small rows pass through it; the default is 30 % of the memory.
                object_store_memory=128 * 2**20,
                configure_logging=False,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            self.close()
            raise UnusableEnvironmentError(
                f"Ray cannot start here: {error}; try --runner inline."
            ) from error

    def num_gpus(self) -> int:
        """Return how many accelerators Ray found."""
        return int(ray.cluster_resources().get("GPU", 0))

    def close(self) -> None:
        """End it, and go back to the folder the run was started in."""
        if ray.is_initialized():
            ray.shutdown()
        os.chdir(self._back)
        # Empty, so nothing is lost; a file that something left there stays with its folder.
        if not any(Path(self._neutral).iterdir()):
            Path(self._neutral).rmdir()


def default_workers() -> int:
    """Return how many CPU workers this machine takes: one per core it may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class RayPool:
    """Actors fed one batch each, watched with `ray.wait`.

    An actor that dies is replaced here and not by Ray (max_restarts=0, no task retries): only the
    driver knows whose fault it was and whether the row may try again. A worker is given rows once
    its models are loaded, so that a row's clock counts the row alone.
    Raises: UnusableEnvironmentError if the device is not there, or no worker can start.
    """

    def __init__(
        self, spec: JobSpec, fingerprint: str, job: Mapping[str, Any], max_workers: int
    ) -> None:
        self._spec = spec
        workers = min(max_workers, spec.num_workers or default_workers())
        self._cluster = PrivateRay(workers)
        try:
            if spec.device != "cpu":
                gpus = self._cluster.num_gpus()
                if gpus == 0:
                    raise UnusableEnvironmentError(
                        f"device {spec.device} is asked for and Ray finds no GPU here; "
                        "use --device cpu."
                    )
                workers = min(max_workers, spec.num_workers or gpus, gpus)
            self._actor_class = ray.remote(
                num_cpus=1,
                num_gpus=0 if spec.device == "cpu" else 1,
                max_restarts=0,
                max_task_retries=0,
            )(_Worker)
            self._arguments = (spec.to_json(), fingerprint, dict(job))
            self._slots = [self._started() for _ in range(workers)]
        except BaseException:
            self._cluster.close()
            raise

    def _started(self) -> _Slot:
        actor = self._actor_class.remote(*self._arguments)
        return _Slot(actor, actor.ready.remote())

    def has_room(self) -> bool:
        return any(slot.idle for slot in self._slots)

    @property
    def in_flight(self) -> int:
        return sum(bool(slot.items) for slot in self._slots)

    def submit(self, items: Sequence[WorkItem]) -> None:
        slot = next(slot for slot in self._slots if slot.idle)
        slot.items = tuple(items)
        slot.submitted_at = time.monotonic()
        slot.reference = slot.actor.process.remote(slot.items)

    def wait(self, timeout_seconds: float) -> list[Completion]:
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
            value = ray.get(slot.reference)
        except ray.exceptions.RayTaskError as error:
            # The row boundary lets nothing through, so this worker is not to be trusted any more.
            reason = f"worker error: {error.cause!r}"
        except ray.exceptions.RayError as error:
            reason = _reason(error)
            if getattr(error, "actor_init_failed", False):
                # No row is at fault, and the next worker would fail alike.
                raise UnusableEnvironmentError(f"a worker cannot start: {reason}") from error
        else:
            if slot.ready:
                return Completion(items, tuple(value))
            slot.ready = True
            return None
        self._replace(slot)
        return Completion(items, worker_died=reason)

    def _expired(self) -> list[Completion]:
        limit, expired = self._spec.row_timeout_seconds, []
        for slot in list(self._slots):
            if not (limit and slot.items):
                continue
            if time.monotonic() - slot.submitted_at > limit * len(slot.items):
                items = slot.items
                self._replace(slot)
                message = f"no result after {limit:g} s a row; its worker was killed"
                expired.append(Completion(items, worker_died=message, error_type=ROW_TIMEOUT))
        return expired

    def _replace(self, slot: _Slot) -> None:
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._started()

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots.clear()
        self._cluster.close()


def _reason(error: Exception) -> str:
    """Return the line of a Ray error that names the cause."""
    text = str(error).strip().splitlines() or [type(error).__name__]
    named = [line for line in text if "Error" in line and "RayActorError" not in line]
    return (named or text)[-1].strip()[:300]
