"""What computes here, told without torch or Ray: their import takes seconds."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_GPUS = Path("/proc/driver/nvidia/gpus")


def device_name(device: str) -> str:
    """Return `cpu` or `cuda` with the model's name, as `cuda: NVIDIA H200`."""
    name = _gpu_name() if device == "cuda" else _cpu_name() if device == "cpu" else ""
    return f"{device}: {name}" if name else device


def count_devices(device: str) -> int:
    """Return how many workers this machine takes: one per accelerator, or per core it may use."""
    if device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible:
            return len([part for part in visible.split(",") if part.strip()])
        return max(1, len(list(_GPUS.glob("*"))) if _GPUS.is_dir() else 1)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_share(device: str, *, workers: int, gpus_per_worker: float) -> float:
    """Return one worker's part of its device's memory, of the machine's where it is the CPU.

    Args:
        workers: as asked; 0 is one per core.
    """
    if device == "cuda":
        return min(1.0, gpus_per_worker)
    return 1 / max(1, workers or count_devices(device))


def memory_in_use_bytes() -> int:
    """Return the memory this process holds now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _gpu_name() -> str:
    names: set[str] = set()
    for path in sorted(_GPUS.glob("*/information")):
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        names.update(line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))
    return " + ".join(sorted(names))


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
