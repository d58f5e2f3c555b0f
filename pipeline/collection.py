"""An output folder as a reader sees it: facts, records, pictures; needs no cluster and no lock."""

from __future__ import annotations

import json
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import MANIFEST_FILE, OutputFolder
from manifests.committed import committed_rows
from manifests.errors import ManifestError
from manifests.lease import lease_holder
from manifests.locks import alive
from manifests.parts import IMAGES, list_parts, open_part, part_path, read_part
from manifests.schemas import RESULT_SCHEMA
from manifests.storage import LocalStorage

logger = logging.getLogger(__name__)

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
        """Return the job's task, direction, target, guides, model and preset."""
        params = self.job["params"]
        task = self.job.get("task", "enhance")
        guides = params.get("recipe", {}).get("guides") or []
        # A direction is an aesthetic guide's; pictures of prompts may well have none.
        aimed = task == "enhance" or any(guide.startswith("aesthetic") for guide in guides)
        return {
            "task": task,
            "direction": params.get("direction") if aimed else None,
            "target": params.get("target"),
            "guides": "; ".join(guides) or None,
            "model": params.get("model"),
            "preset": self.job.get("preset"),
        }

    def results(self, columns: Iterable[str]) -> pa.Table:
        """Return these columns, row_id the first, of every committed row, in no order."""
        schema = pa.schema([RESULT_SCHEMA.field(name) for name in columns])
        redo_epoch = self.job["redo"]["epoch"]
        return committed_rows(self.folder.storage, schema, redo_epoch=redo_epoch)

    def counts(self) -> dict[str, int] | None:
        """Return the manifest's rows by state, as `standing` does; None before the first plan."""
        if not self.folder.storage.exists(MANIFEST_FILE):
            return None
        manifest = read_part(self.folder.storage, MANIFEST_FILE, ["row_id", "input_key"])
        return standing(manifest, self.folder.done())

    def failures(self) -> dict[str, int]:
        """Return the failed rows by class, the most frequent first."""
        kinds = self.results(("row_id", "status", "error_type"))
        failed = kinds.filter(pc.equal(kinds["status"], "failed"))["error_type"].to_pylist()
        return dict(Counter(kind or "unknown" for kind in failed).most_common())

    def delivered(self, records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
        """Yield (row_id, bytes of the delivered file) of the records that have one, in any order.

        A file that is not in `edited/` is looked for in the images parts, in one pass over them.
        """
        elsewhere = []
        for record in records:
            try:
                if record["edited_uri"] is None:
                    raise FileNotFoundError
                data = self.folder.storage.read(record["edited_uri"])
            except OSError:  # not kept as a file, or moved away
                elsewhere.append(record["row_id"])
            else:
                yield record["row_id"], data
        if elsewhere:
            yield from self._from_parts(pa.array(elsewhere, pa.string()))

    def _from_parts(self, row_ids: pa.Array) -> Iterator[tuple[str, bytes]]:
        storage = self.folder.storage
        for number in list_parts(storage, IMAGES):
            path = part_path(IMAGES, number)
            try:
                with open_part(storage, path) as part:
                    for group in range(part.num_row_groups):
                        yield from _held_photos(part, group, row_ids)
            except (OSError, ManifestError, pa.ArrowException) as error:
                logger.warning("%s is passed over (%s)", path, error)

    def running(self) -> dict[str, Any] | None:
        """Return who runs on the folder: {pid, host, started_at, alive}; None if nobody does.

        From the note the driver leaves beside its lock, so that asking never disturbs the lock.
        `alive` is None when the note is another machine's, whose processes cannot be seen from
        here: a run that was killed there leaves its note until the next one.
        """
        if not isinstance(self.folder.storage, LocalStorage):
            lease = lease_holder(self.folder.storage)
            if lease is None or lease["alive"] is False:
                return None
            return {name: lease.get(name) for name in ("pid", "host", "started_at", "alive")}
        try:
            holder = json.loads(self.folder.storage.read("_state/driver.json"))
            pid, host, started_at = (holder.get(n) for n in ("pid", "host", "started_at"))
        except (FileNotFoundError, ValueError, AttributeError):
            return None
        here = host == socket.gethostname()
        if here and not alive(pid):
            return None
        return {"pid": pid, "host": host, "started_at": started_at, "alive": here or None}


def _held_photos(part: Any, group: int, row_ids: pa.Array) -> Iterator[tuple[str, bytes]]:
    """Yield the photos of these rows in one row group; its images are read if it holds one."""
    held = part.read_row_group(group, ["row_id"], use_threads=False)["row_id"]
    rows = pc.indices_nonzero(pc.is_in(held, row_ids)).to_pylist()
    if not rows:
        return
    images = part.read_row_group(group, ["edited_image"], use_threads=False)["edited_image"]
    for i in rows:
        image = images[i].as_py()
        if image is not None and image["bytes"] is not None:
            yield held[i].as_py(), image["bytes"]
