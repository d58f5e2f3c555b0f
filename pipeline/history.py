"""A collection's nights: what each run did, from the logs and, for runs without one, the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from manifests.commits import OutputFolder
from manifests.errors import ManifestError
from manifests.ledger import ledger_runs, read_ledger
from manifests.schemas import STATUSES
from pipeline.collection import OutputView
from pipeline.runlog import logged_runs, read_run


@dataclass(frozen=True)
class PastRun:
    """One run.

    Attributes:
        state: finished | running | killed (it has no end, and nobody is at work) | crashed |
            unlogged (an older version's: only its attempts are known).
        computed, copied: photos done in this run. rows: the computed and the unreadable, by status.
        counts: how the collection stood after it.
        seconds: on the clock; None if the run has no end. worker_seconds: spent by its workers.
    """

    run_id: str
    state: str
    started_at: str | None = None
    seconds: float | None = None
    worker_seconds: float | None = None
    exit_code: int | None = None
    computed: int = 0
    copied: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    version: str | None = None
    model: str | None = None
    device: str | None = None
    stopped_by: str | None = None


def past_runs(out: str, limit: int | None = None) -> list[PastRun]:
    """Return a job's runs, newest first, at most so many.

    Raises: ManifestError if the folder holds no job.
    """
    view = OutputView(out)
    folder, running = view.folder, view.running()
    logged, attempted = set(logged_runs(folder.storage)), set(ledger_runs(folder.storage))
    ids = sorted(logged | attempted, reverse=True)[:limit]
    at_work = running is not None and running["alive"] is not False
    runs = []
    for number, run_id in enumerate(ids):
        rows, seconds = _attempts(folder, run_id) if run_id in attempted else ({}, None)
        first, last = _logged(folder, run_id) if run_id in logged else (None, None)
        # One run at a time has the folder, and it is the newest.
        alive = number == 0 and at_work
        runs.append(_past_run(run_id, first, last, rows, seconds, alive=alive))
    return runs


def _past_run(
    run_id: str,
    first: dict[str, Any] | None,
    last: dict[str, Any] | None,
    rows: dict[str, int],
    worker_seconds: float | None,
    *,
    alive: bool,
) -> PastRun:
    begun = first or {}
    facts: dict[str, Any] = {
        "started_at": begun.get("at"),
        "version": begun.get("version"),
        "model": begun.get("model"),
        "device": begun.get("device_name"),
        "worker_seconds": worker_seconds,
    }
    if last is None:
        state = "running" if alive else "killed" if first is not None else "unlogged"
        return PastRun(run_id, state, computed=sum(rows.values()), rows=rows, **facts)
    facts |= {
        "seconds": last.get("seconds"),
        "exit_code": last.get("exit_code"),
        "stopped_by": last.get("stopped_by") or last.get("error"),
    }
    if last["event"] == "crashed":
        return PastRun(run_id, "crashed", computed=sum(rows.values()), rows=rows, **facts)
    return PastRun(
        run_id,
        "finished",
        computed=last.get("computed") or 0,
        copied=last.get("copied") or 0,
        rows=last.get("rows") or {},
        counts=last.get("counts") or {},
        **facts,
    )


def _logged(
    folder: OutputFolder, run_id: str
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    try:
        return read_run(folder.storage, run_id)
    except OSError:  # taken away meanwhile
        return None, None


def _attempts(folder: OutputFolder, run_id: str) -> tuple[dict[str, int], float | None]:
    """Return (rows finished by status, worker seconds) of a run's attempts."""
    try:
        attempts = read_ledger(folder.storage, run_id)
    except (OSError, ManifestError):
        return {}, None
    counted = Counter(attempts["state"].to_pylist())
    seconds = pc.sum(attempts["worker_seconds"]).as_py()
    return {status: counted[status] for status in STATUSES if counted[status]}, seconds


def started(run: PastRun) -> datetime | None:
    """Return when a run began, in this machine's time."""
    try:
        return (
            None if run.started_at is None else datetime.fromisoformat(run.started_at).astimezone()
        )
    except ValueError:
        return None
