"""Ray's metrics of a run: what a Prometheus that scrapes the cluster sees.

Names (Ray puts `ray_` before them): doodl_rows_done, doodl_rows_failed (counters, the latter by
error_type), doodl_batches_in_flight (gauge), all from the driver; from each worker
doodl_iterations_per_second and doodl_device_memory_bytes (gauges). Without Ray (`--runner inline`)
everything here does nothing, and Ray is not imported for its sake.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from pipeline.hardware import memory_in_use_bytes

_EVERY_SECONDS = 1.0


class RunMetrics:
    """The driver's figures; a recorder of `pipeline.observers`."""

    def __init__(self, job: str) -> None:
        self._tags = {"job": job}
        self._meters: dict[str, Any] = {}

    def event(self, name: str, **facts: Any) -> None:
        if name != "row" or not _ray_runs():
            return
        if facts["status"] == "failed":
            tags = {**self._tags, "error_type": facts.get("error_type") or "unknown"}
            self._counter("doodl_rows_failed", "Rows that failed.", *tags).inc(tags=tags)
        else:
            tags = {**self._tags, "status": facts["status"]}
            self._counter("doodl_rows_done", "Rows finished.", *tags).inc(tags=tags)

    def load(self, in_flight: int) -> None:
        if not _ray_runs():
            return
        if "in flight" not in self._meters:
            self._meters["in flight"] = _gauge(
                "doodl_batches_in_flight", "Batches that workers have.", tuple(self._tags)
            )
        self._meters["in flight"].set(in_flight, tags=self._tags)

    def _counter(self, name: str, description: str, *tags: str) -> Any:
        if name not in self._meters:
            from ray.util.metrics import Counter

            self._meters[name] = Counter(name, description=description, tag_keys=tags)
        return self._meters[name]


class WorkerMeter:
    """A worker's own figures, told about once a second while it works.

    Args:
        job: the output folder's name. device: cpu | cuda.
    """

    def __init__(self, job: str, device: str) -> None:
        self._tags, self._device = {"job": job}, device
        self._count, self._since = 0, time.monotonic()
        self._gauges: tuple[Any, Any] | None = None

    def begin(self) -> None:
        """Start the clock: the time between batches is not the iterations'."""
        self._count, self._since = 0, time.monotonic()

    def iteration(self) -> None:
        """Count one iteration of one photo."""
        self._count += 1
        elapsed = time.monotonic() - self._since
        if elapsed < _EVERY_SECONDS or not _ray_runs():
            return
        if self._gauges is None:
            keys = tuple(self._tags)
            self._gauges = (
                _gauge("doodl_iterations_per_second", "Optimiser iterations of a worker.", keys),
                _gauge("doodl_device_memory_bytes", "Memory a worker holds on its device.", keys),
            )
        self._gauges[0].set(self._count / elapsed, tags=self._tags)
        self._gauges[1].set(device_memory_bytes(self._device), tags=self._tags)
        self.begin()


def device_memory_bytes(device: str, *, peak: bool = False) -> int:
    """Return the memory this process holds on its device, or (on cuda) the most it has held."""
    if device != "cuda":
        return memory_in_use_bytes()
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description=description, tag_keys=tags)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()
