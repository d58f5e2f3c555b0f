"""Ray: one long-lived actor per worker, replaced by us when it dies. No other module knows Ray."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline.errors import UnusableEnvironmentError
from pipeline.outcomes import WorkItem
from pipeline.pools import Completion
from pipeline.spec import JobSpec
from pipeline.stages import RowProcessor

_log = logging.getLogger(__name__)


class _Worker:
    """What runs in the actor's process."""

    def __init__(self, spec_json: str, fingerprint: str) -> None:
        # No path of this process may depend on where the driver was started.
        self._process = RowProcessor(JobSpec.from_json(spec_json), fingerprint)
        self._process.setup()

    def ready(self) -> bool:
        return True

    def process(self, items: tuple[WorkItem, ...]) -> list[Any]:
        return self._process(items)


@dataclass
class _Slot:
    actor: Any
    reference: Any = None
    items: tuple[WorkItem, ...] = ()
    submitted_at: float = field(default_factory=time.monotonic)


def default_workers(device: str) -> int:
    """Return how many workers this machine takes: one per accelerator, or one per core."""
    if device != "cpu":
        import torch

        return max(1, torch.cuda.device_count())
    return len(os.sched_getaffinity(0))


def start_local(num_cpus: int) -> None:
    """Start a private Ray on this machine: no dashboard, no usage statistics, no log to the driver.

    Raises: UnusableEnvironmentError if Ray cannot start (no room in shared memory, read-only HOME).
    """
    # Workers get the driver's folder first on sys.path: a user's `jobs/` there would shadow ours.
    neutral = tempfile.mkdtemp(prefix="doodl-batch-")
    os.chdir(neutral)
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
            # Only URIs and small rows pass through it; the default would claim 30 % of the memory.
            object_store_memory=128 * 2**20,
            configure_logging=False,
        )
    except (OSError, RuntimeError, ValueError, ConnectionError) as error:
        raise UnusableEnvironmentError(
            f"Ray cannot start here: {error}; try --runner inline."
        ) from error


def stop() -> None:
    """Leave Ray; a private one ends with us."""
    if ray.is_initialized():
        ray.shutdown()


class RayPool:
    """Actors fed one batch each, watched with `ray.wait`.

    An actor that dies is replaced here and not by Ray (max_restarts=0, max_task_retries=0): only
    the driver knows whose fault it was and whether the row may try again.
    """

    def __init__(self, spec: JobSpec, fingerprint: str, num_workers: int) -> None:
        self._spec, self._fingerprint = spec, fingerprint
        num_gpus = 0 if spec.device == "cpu" else 1
        self._actor_class = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0)(_Worker)
        self._spec_json = spec.to_json()
        self._slots = [_Slot(self._start_actor()) for _ in range(num_workers)]

    def _start_actor(self) -> Any:
        return self._actor_class.remote(self._spec_json, self._fingerprint)

    def has_room(self) -> bool:
        return any(slot.reference is None for slot in self._slots)

    @property
    def in_flight(self) -> int:
        return sum(slot.reference is not None for slot in self._slots)

    def submit(self, items: Sequence[WorkItem]) -> None:
        slot = next(slot for slot in self._slots if slot.reference is None)
        slot.items = tuple(items)
        slot.submitted_at = time.monotonic()
        slot.reference = slot.actor.process.remote(slot.items)

    def wait(self, timeout_seconds: float) -> list[Completion]:
        busy = [slot for slot in self._slots if slot.reference is not None]
        if not busy:
            return []
        ready, _ = ray.wait([slot.reference for slot in busy], timeout=timeout_seconds)
        completions = [self._collect(slot) for slot in busy if slot.reference in ready]
        return completions + self._expired()

    def _collect(self, slot: _Slot) -> Completion:
        items, reference = slot.items, slot.reference
        slot.reference, slot.items = None, ()
        try:
            return Completion(items, tuple(ray.get(reference)))
        except ray.exceptions.RayActorError as error:
            reason = self._reason(error)
            if error.actor_init_failed:
                # No row is at fault, and the next worker would fail alike.
                raise UnusableEnvironmentError(f"a worker cannot start: {reason}") from error
        except ray.exceptions.RayTaskError as error:
            # The row boundary lets nothing through, so this worker is not to be trusted any more.
            reason = f"worker error: {error.cause!r}"
        ray.kill(slot.actor)
        slot.actor = self._start_actor()
        return Completion(items, worker_died=reason)

    def _reason(self, error: Exception) -> str:
        cause = getattr(error, "cause", None) or error
        text = str(cause).strip().splitlines() or [type(error).__name__]
        creation = [line for line in text if "Error" in line and "RayActorError" not in line]
        return (creation or text)[-1].strip()[:300]

    def _expired(self) -> list[Completion]:
        limit = self._spec.row_timeout_seconds
        expired = []
        for slot in self._slots:
            if limit and slot.reference is not None:
                waited = time.monotonic() - slot.submitted_at
                if waited > limit * len(slot.items):
                    items, slot.reference, slot.items = slot.items, None, ()
                    ray.kill(slot.actor)
                    slot.actor = self._start_actor()
                    expired.append(
                        Completion(items, worker_died=f"row timeout of {limit:g} s exceeded")
                    )
        return expired

    def close(self) -> None:
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots.clear()
