"""An output folder as a reader sees it: facts, records, pictures; needs no cluster and no lock."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import OutputFolder
from manifests.errors import ManifestError

STATES = ("ok", "rejected", "skipped", "failed")


def standing(manifest: pa.Table, done: pa.Table) -> dict[str, int]:
    """Return the manifest's rows by status, and `pending`.

    Args:
        manifest: at least row_id and input_key. done: `OutputFolder.done()`.
    A row whose photo or options have changed since it was done is pending.
    """
    at = pc.index_in(manifest["row_id"], value_set=done["row_id"])
    current = pc.fill_null(pc.equal(done["input_key"].take(at), manifest["input_key"]), False)
    statuses = done["status"].take(at.filter(current))
    counted = {entry["values"]: entry["counts"] for entry in pc.value_counts(statuses).to_pylist()}
    counts = {status: counted.get(status, 0) for status in STATES}
    counts["pending"] = manifest.num_rows - len(statuses)
    return counts


class OutputView:
    """Read-only sight of a job's output folder.

    Raises: ManifestError if the folder holds no job.
    """

    def __init__(self, out: str) -> None:
        self.folder = OutputFolder(out)
        job = self.folder.read_job()
        if job is None:
            raise ManifestError(f"{out} is not an output folder: it holds no _job.json.")
        self.job = job

    def job_facts(self) -> dict[str, Any]:
        """Return the job's task, direction, target, model and preset."""
        params = self.job["params"]
        return {
            "task": self.job.get("task", "enhance"),
            "direction": params.get("direction"),
            "target": params.get("target"),
            "model": params.get("model"),
            "preset": self.job.get("preset"),
        }

    def result_records(self) -> list[dict[str, Any]]:
        """Return every committed row as a record, sorted by row_id."""
        return sorted(self.folder.results().to_pylist(), key=lambda record: record["row_id"])

    def counts(self) -> dict[str, int]:
        """Return rows by state: each status, and `pending` as far as the manifest tells."""
        done = self.folder.done()
        counts = Counter(done["status"].to_pylist())
        manifest = self.folder.read_manifest()
        counts["pending"] = 0
        if manifest is not None:
            committed = set(done["row_id"].to_pylist())
            ids = manifest["row_id"].to_pylist()
            counts["pending"] = sum(row_id not in committed for row_id in ids)
        return {
            state: counts[state] for state in ("ok", "rejected", "skipped", "failed", "pending")
        }

    def delivered(self, record: dict[str, Any]) -> bytes | None:
        """Return the delivered file's bytes of a record, None if there is none to be found."""
        if record["edited_uri"] is not None:
            try:
                return self.folder.storage.read(record["edited_uri"])
            except FileNotFoundError:
                pass  # moved away; the images parts may hold it
        row = self.folder.rows([record["row_id"]]).get(record["row_id"])
        return None if row is None else self.folder.read_photo(row)

    def running(self) -> str | None:
        """Return who runs on the folder now (`pid 12 on host`), None if nobody does.

        From the note the driver leaves beside its lock, so that asking never disturbs the lock.
        """
        try:
            holder = json.loads(self.folder.storage.read("_state/driver.json"))
        except (FileNotFoundError, ValueError):
            return None
        pid, host = holder.get("pid"), holder.get("host")
        if host == socket.gethostname() and not _alive(pid):
            return None
        return f"pid {pid} on {host}"


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, TypeError, ValueError):
        return True
    return True
