"""The structured log of a run: `OUT/_state/logs/run=<id>.jsonl`, one JSON object per event.

Every event has `at` (ISO 8601, UTC), `event` and `run_id`. The events and their further facts:
    started      version, task, model, model_revision, params_fingerprint, device, device_name,
                 runner, workers, batch_size, node, pid, choice
    unlisted     path, error: a folder or name of PHOTOS that could not be looked at
    planned      counts (rows by state), compute, orphans
    loading      rows: workers are being started for so many
    row          row_id, status, attempt, seconds, worker_seconds, node; failed ones also
                 error_type, error; those that could not be read have no attempt
    worker_died  reason, rows
    message      text: what a person was told
    stopped      reason, exit_code: a breaker, a full disk, a bound, a signal
    finished     exit_code, seconds, computed, copied, rows (this run's, by status), counts (the
                 collection's, by status), stopped_by
    crashed      error_type, error: the run ended by an error that is no row's
    truncated    the log is full: rows and messages are no longer logged (the ledger has the rows)
No token and no signed query is written: see `scrub`.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO

from manifests.errors import LinkedOutputError
from manifests.secrets import scrub
from manifests.storage import Storage

_log = logging.getLogger(__name__)

LOGS = "_state/logs"
MAX_BYTES = 16 * 2**20
KEPT_RUNS = 200
_MAX_TEXT = 500
_NAME = re.compile(r"run=([A-Za-z0-9][A-Za-z0-9._-]*)\.jsonl")
_ENDS = ("finished", "crashed")


class RunLog:
    """The log of one run, appended to as it goes. What cannot be written is let go: no run fails
    for its log's sake.

    Args:
        max_bytes: past it no row is logged; what happens to the run as a whole always is.
    """

    def __init__(self, storage: Storage, run_id: str, *, max_bytes: int = MAX_BYTES) -> None:
        self._storage, self._run_id = storage, run_id
        self._path = f"{LOGS}/run={run_id}.jsonl"
        self._left = max_bytes
        self._full = False
        self._lines: list[bytes] = []  # on an object store: written when the run ends
        self._file: BinaryIO | None = None
        target = getattr(storage, "target", None)
        self._buffered = target is None
        with suppress(OSError, LinkedOutputError):
            self._prune()
            if target is not None:
                path = target(self._path, in_place=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab", buffering=0)

    def event(self, name: str, **facts: Any) -> None:
        if self._full and name in ("row", "message", "unlisted"):
            return
        self._write(name, facts)
        if self._left <= 0 and not self._full:
            self._full = True
            self._write("truncated", {})

    def load(self, in_flight: int) -> None:
        """Not an event: the meters' business."""

    def close(self) -> None:
        """End the log."""
        try:
            if self._file is not None:
                self._file.close()
            elif self._lines:
                self._storage.write(self._path, b"".join(self._lines))
        except OSError as error:
            _log.warning("the run's log is incomplete: %s", error)
        self._file, self._lines = None, []

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"at": now, "event": name, "run_id": self._run_id}
        record |= {key: _plain(value) for key, value in facts.items() if value is not None}
        line = json.dumps(record, default=str).encode() + b"\n"
        self._left -= len(line)
        if self._file is not None:
            # A full disk, most likely, which the rows themselves will say better.
            with suppress(OSError):
                self._file.write(line)
        elif self._buffered:
            self._lines.append(line)

    def _prune(self) -> None:
        logs = sorted(e.name for e in self._storage.files(LOGS) if _NAME.fullmatch(e.name))
        for name in logs[: max(0, len(logs) - KEPT_RUNS + 1)]:
            self._storage.delete(f"{LOGS}/{name}")


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        text = scrub(value)
        return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    return value


def logged_runs(storage: Storage) -> list[str]:
    """Return the ids of the runs that have a log, oldest first."""
    matches = (_NAME.fullmatch(entry.name) for entry in storage.files(LOGS))
    return sorted(match[1] for match in matches if match is not None)


def read_run(storage: Storage, run_id: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the event a run began with and the one it ended with; None for one that is not there.

    A run that was killed has no end. A line that is no JSON is passed over.
    """
    text = storage.read(f"{LOGS}/run={run_id}.jsonl")
    head, tail = text.split(b"\n", 5)[:5], text.rsplit(b"\n", 5)[-5:]
    first = next((e for e in map(_parsed, head) if e and e["event"] == "started"), None)
    last = next((e for e in map(_parsed, reversed(tail)) if e and e["event"] in _ENDS), None)
    return first, last


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
