"""One driver at a time on an output folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from manifests.errors import OutputLockedError

IfRunning = Literal["fail", "skip", "wait"]


@contextmanager
def driver_lock(
    path: Path, *, if_running: IfRunning = "fail", timeout_seconds: float | None = None
) -> Iterator[None]:
    """Hold the lock at `path` for the body.

    The kernel frees it when its process dies, however it dies, so a rerun after SIGKILL starts at
    once; processes the driver has started do not keep it.

    Args:
        if_running: what to do when another driver holds it: "fail" and "skip" raise at once (the
            error says which, a scheduler's exit code depends on it), "wait" waits for it.
        timeout_seconds: with "wait", raise after this long; None waits for ever.
    Raises: OutputLockedError if another driver holds it.
    """
    if if_running not in ("fail", "skip", "wait"):
        raise ValueError(f"if_running (={if_running!r}) must be fail, skip or wait.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if if_running != "wait":
        seconds = 0.0
    else:
        seconds = -1.0 if timeout_seconds is None else timeout_seconds
    lock = FileLock(path, timeout=seconds, thread_local=False)
    holder_path = path.with_suffix(".json")
    try:
        lock.acquire()
    except Timeout:
        holder = _read_holder(holder_path)
        who = ", ".join(f"{key} {value}" for key, value in holder.items()) or "unknown"
        raise OutputLockedError(
            f"another driver is running on {path.parent.parent} ({who}); "
            "wait for it (--if-running wait), or stop it first.",
            holder,
            if_running,
        ) from None
    try:
        # For people only: the lock itself is the kernel's.
        with suppress(OSError):
            _write_holder(holder_path)
        yield
    finally:
        with suppress(OSError):
            holder_path.unlink()
        lock.release()


def _write_holder(path: Path) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path.write_text(json.dumps(holder))


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}
