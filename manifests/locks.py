"""One driver at a time on an output folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from manifests.errors import OutputLockedError

IfRunning = Literal["fail", "skip", "wait"]

BEAT_SECONDS = 60.0
HEARTBEAT_TIMEOUT_SECONDS = 3600.0
_WAIT_SECONDS = 10.0


def new_holder(heartbeat_timeout_seconds: float | None) -> dict[str, Any]:
    """Return what a driver says of itself to those it keeps out; a lease says more.

    Args:
        heartbeat_timeout_seconds: for how long it may give no sign of life; None: an hour.
    """
    now = utc_now()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started_at": now,
        "heartbeat_at": now,
        "heartbeat_timeout_seconds": heartbeat_timeout_seconds or HEARTBEAT_TIMEOUT_SECONDS,
    }


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def overdue(holder: Mapping[str, Any]) -> bool:
    """Return whether a holder has given no sign of life for longer than it may.

    False for one of an older version, which gave none.
    """
    silence = _silence_seconds(holder)
    timeout = holder.get("heartbeat_timeout_seconds")
    if silence is None or not isinstance(timeout, int | float):
        return False
    return silence > timeout


def _silence_seconds(holder: Mapping[str, Any]) -> float | None:
    try:
        beat = datetime.fromisoformat(str(holder["heartbeat_at"]))
        return (datetime.now(UTC) - beat).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def locked_error(
    where: str, holder: Mapping[str, Any], if_running: IfRunning, let_go: str = ""
) -> OutputLockedError:
    """Return the error that says who has a folder, and whether it still lives.

    Args:
        let_go: when the folder is free once its holder is killed, where that is not at once.
    """
    told = ("pid", "host", "started_at", "epoch")
    who = ", ".join(f"{key} {holder[key]}" for key in told if key in holder) or "unknown"
    silence = _silence_seconds(holder)
    if silence is not None:
        who += f"; last sign of life {_ago(silence)}"
    hangs = overdue(holder)
    if hangs:
        hours = holder["heartbeat_timeout_seconds"] / 3600
        advice = f"none for over {hours:g} h: it hangs; end its process, then run again."
    else:
        advice = "wait for it (--if-running wait), or stop it first."
    return OutputLockedError(
        f"another driver is running on {where} ({who}); {advice}{let_go}",
        holder,
        if_running,
        hangs=hangs,
    )


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"


class Heartbeat:
    """A driver's note beside its lock, written again as it goes: see `new_holder`."""

    def __init__(self, path: Path, heartbeat_timeout_seconds: float | None) -> None:
        self._path = path
        self._holder = new_holder(heartbeat_timeout_seconds)
        self._beaten = time.time()
        self._write()

    def beat(self) -> None:
        """Give a sign of life, at most once a minute."""
        now = time.time()  # a machine that wakes up has one due, as its other clock does not know
        if abs(now - self._beaten) >= BEAT_SECONDS:
            self._beaten = now
            self._holder["heartbeat_at"] = utc_now()
            self._write()

    def _write(self) -> None:
        # For people, and for those kept out: the lock itself is the kernel's.
        written = self._path.with_suffix(".json.new")
        with suppress(OSError):
            written.write_text(json.dumps(self._holder))
            written.replace(self._path)


@contextmanager
def driver_lock(
    path: Path,
    *,
    if_running: IfRunning = "fail",
    timeout_seconds: float | None = None,
    heartbeat_timeout_seconds: float | None = None,
) -> Iterator[Heartbeat]:
    """Hold the lock at `path` for the body.

    The kernel frees it when its process dies, however it dies, so a rerun after SIGKILL starts at
    once; processes the driver has started do not keep it.

    Args:
        if_running: what to do when another driver holds it: "fail" and "skip" raise at once (the
            error says which, a scheduler's exit code depends on it), "wait" waits for it unless it
            hangs.
        timeout_seconds: with "wait", raise after this long; None waits for ever.
        heartbeat_timeout_seconds: for how long the body may leave `Heartbeat.beat` uncalled before
            it counts as hanging; None: an hour.
    Raises: OutputLockedError if another driver holds it.
    """
    if if_running not in ("fail", "skip", "wait"):
        raise ValueError(f"if_running (={if_running!r}) must be fail, skip or wait.")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    holder_path = path.with_suffix(".json")
    begun = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=_turn_seconds(if_running, timeout_seconds, begun))
            break
        except Timeout:
            holder = read_holder(holder_path)
            waited = time.monotonic() - begun
            over = timeout_seconds is not None and waited >= timeout_seconds
            if if_running != "wait" or over or overdue(holder):
                raise locked_error(str(path.parent.parent), holder, if_running) from None
    try:
        yield Heartbeat(holder_path, heartbeat_timeout_seconds)
    finally:
        with suppress(OSError):
            holder_path.unlink()
        lock.release()


def _turn_seconds(if_running: IfRunning, timeout_seconds: float | None, begun: float) -> float:
    """Return how long to wait for the lock before looking at its holder."""
    if if_running != "wait":
        return 0.0
    if timeout_seconds is None:
        return _WAIT_SECONDS
    return max(0.0, min(_WAIT_SECONDS, begun + timeout_seconds - time.monotonic()))


def read_holder(path: Path) -> dict[str, Any]:
    """Return the note of a lock's holder; {} if it is not to be read, or of a process that ended.

    A driver that was killed leaves its note until the next one has written its own.
    """
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(holder, dict) or (
        holder.get("host") == socket.gethostname() and not alive(holder.get("pid"))
    ):
        return {}
    return holder


def alive(pid: Any) -> bool:
    """Return whether a process of this machine lives; True if that cannot be told."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, TypeError, ValueError):
        return True
    return True
