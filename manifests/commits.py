"""The output folder: where a job's rows are committed, each exactly once.

A worker commits a row in two writes (`write_edited`, then `stage`, the commit point). The driver,
one at a time under `lock`, puts right what a dead one left (`recover`) and turns staged rows into
parts (`compact`). Whether a row is done is decided by parts and staged rows alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import compaction
from manifests import job as jobs
from manifests.checkpoints import Checkpoints
from manifests.committed import committed_rows, read_photo
from manifests.compaction import PART_BYTES, RecoveryReport
from manifests.errors import CommitError
from manifests.job import MANIFEST_FILE
from manifests.ledger import Ledger, read_ledger
from manifests.locks import Heartbeat, IfRunning, driver_lock, locked_error, overdue, read_holder
from manifests.originals import input_folders, refuse_links, refuse_original, refuse_overlap
from manifests.overwrites import keep_overwritten, restore_overwritten
from manifests.parts import read_part
from manifests.paths import FILE_FOLDERS, is_safe_relpath
from manifests.rows import ResultRow, result_rows
from manifests.schemas import RESULT_SCHEMA, with_extras
from manifests.secret_columns import without_secrets
from manifests.staging import STAGING, encode_staged, staged_files, staged_name
from manifests.storage import ArrowStorage, LocalStorage, Storage, open_storage

if TYPE_CHECKING:
    from manifests.lease import Lease

_LOCK = "_state/driver.lock"
_NOTES = ("_state/driver.json", "_state/driver.json.new")
EDITED = "edited"
UNGUIDED = "unguided"
LATENTS = "latents"

DONE_COLUMNS = (
    "row_id",
    "input_key",
    "work_key",
    "status",
    "error_type",
    "params_fingerprint",
    "edited_uri",
)
"""What `OutputFolder.done` tells of each row."""


class OutputFolder:
    """One job's output, by path or URI. Light to make: workers make their own from its `uri`.

    Attributes:
        uri: where it lies; give it to a worker.
        checkpoints: work half done, by work_key.
    """

    def __init__(self, location: str | os.PathLike[str] | Storage):
        if isinstance(location, (str, os.PathLike)):
            location = open_storage(location)
        self.storage: Storage = location
        self.uri = self.storage.uri
        self.checkpoints = Checkpoints(self.storage)
        self._job: dict[str, Any] | None = None
        self._extras: pa.Schema | None = None
        self._held = False
        self._heartbeat: Heartbeat | Lease | None = None

    # The job

    def read_job(self) -> dict[str, Any] | None:
        """Return the folder's `_job.json`, None if no job has been opened here."""
        return jobs.read_job(self.storage)

    def read_params(self, fingerprint: str) -> dict[str, Any]:
        """Return {"task", "params"} of a fingerprint found in a result row, for a replay."""
        return json.loads(self.storage.read(f"{jobs.PARAMS_FOLDER}/{fingerprint}.json"))

    def open_job(
        self,
        job: Mapping[str, Any],
        *,
        redo: bool = False,
        moved: bool = False,
        extras: pa.Schema | None = None,
    ) -> dict[str, Any]:
        """Make this folder `job`'s, or check that it is; call it once a run, under `lock`.

        Args:
            job: {"task", "params"} and, best, {"params_fingerprint", "doodl_version"}; other keys
                are recorded as they are. `params` holds all that changes the result.
            redo: accept other params, and take no row committed before as done. Interrupted, it
                goes on where it was, with or without `redo`, until `close_redo`.
            moved: the photos are those of before, in another place.
            extras: the manifest's extra columns (`schemas.extra_schema` of the input table).
        Returns: the job as recorded, with this run's `epoch`.
        Raises: JobConflictError if the folder belongs to another job or to other photos,
            ManifestError if an extra column has changed its type beyond a widening.
        """
        self._job = jobs.open_job(self.storage, job, redo=redo, moved=moved, extras=extras)
        self._extras = jobs.read_extras(self.storage)
        return self._job

    def join(self, job: Mapping[str, Any]) -> None:
        """Take part in a run that a driver has opened: `job` is what its `open_job` returned.

        A worker's rows then carry that run's epoch, however late it commits them.
        """
        self._job = dict(job)

    def refuse_foreign(self, inputs: Iterable[str] = ()) -> None:
        """Refuse a folder that is not this job's alone, before anything is put in.

        Args:
            inputs: folders and files that the job reads.
        Raises: JobConflictError if it holds another's files, OriginalError if a link leads out of
            it or inputs lie in it.
        """
        refuse_links(self.uri)
        refuse_overlap(self.uri, inputs)
        if self.read_job() is None:
            jobs.refuse_foreign_folder(self.storage)

    def close_redo(self) -> None:
        """End a redo whose rows are all done; without one, nothing happens."""
        jobs.close_redo(self.storage)

    @property
    def extras(self) -> pa.Schema:
        """The extra columns of the job's results."""
        if self._extras is None:
            self._extras = jobs.read_extras(self.storage)
        return self._extras

    def _epochs(self) -> tuple[int, int]:
        """Return this run's epoch and the epoch since which rows count as done."""
        if self._job is None:
            self._job = self.read_job()
        if self._job is None:
            return 0, 0
        return self._job["epoch"], self._job["redo"]["epoch"]

    @contextmanager
    def lock(
        self,
        *,
        if_running: IfRunning = "fail",
        timeout_seconds: float | None = None,
        heartbeat_timeout_seconds: float | None = None,
    ) -> Iterator[None]:
        """Be the folder's one driver for the body: by a lock (`locks`), elsewhere by a `lease`.

        Args: as `locks.driver_lock`; the body calls `beat`.
        Raises: OutputLockedError if another driver is.
        """
        if isinstance(self.storage, LocalStorage):
            for note in _NOTES:
                self.storage.target(note, in_place=True)
            held: AbstractContextManager[Heartbeat | Lease] = driver_lock(
                self.storage.target(_LOCK, in_place=True),
                if_running=if_running,
                timeout_seconds=timeout_seconds,
                heartbeat_timeout_seconds=heartbeat_timeout_seconds,
            )
        else:
            held = self._leased(if_running, timeout_seconds, heartbeat_timeout_seconds)
        with held as self._heartbeat:
            self._held = True
            try:
                yield
            finally:
                self._held, self._heartbeat = False, None

    def beat(self) -> None:
        """Give a sign of life to those the lock keeps out; cheap, so call it often."""
        if self._heartbeat is not None:
            self._heartbeat.beat()

    def refuse_hanging(self, if_running: IfRunning) -> None:
        """Raise OutputLockedError if the folder's driver has given no sign of life for too long."""
        if isinstance(self.storage, LocalStorage):
            holder = read_holder(self.storage.local(_LOCK).with_suffix(".json"))
        else:
            from manifests.lease import lease_holder

            holder = lease_holder(self.storage) or {}
        if overdue(holder):
            raise locked_error(self.storage.uri, holder, if_running)

    @contextmanager
    def _leased(
        self,
        if_running: IfRunning,
        timeout_seconds: float | None,
        heartbeat_timeout_seconds: float | None,
    ) -> Iterator[Lease]:
        from manifests.lease import driver_lease

        storage: Any = self.storage
        with driver_lease(
            storage,
            if_running=if_running,
            timeout_seconds=timeout_seconds,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        ) as lease:
            unguarded, storage.guard = storage.guard, lease.check
            try:
                yield lease
            finally:
                storage.guard = unguarded

    def _must_be_driver(self, what: str) -> None:
        if not self._held:
            raise CommitError(f"{what} is the driver's: call it inside `with out.lock():`.")
        if isinstance(self.storage, ArrowStorage):
            self.storage.guard()  # also when there is nothing to write yet: a lost lease ends a run

    # The worker's side

    def write_edited(self, relpath: str, data: bytes, source: str | None = None) -> str:
        """Put a delivered photo in place, and return its URI relative to the folder.

        Args:
            relpath: from `paths.edited_relpath`. source: address of the photo it is made of.
        Raises: CommitError if relpath leaves `edited/`; OriginalError if the source is what would
            be written; OSError as the storage does.
        """
        return self.write_file(EDITED, relpath, data, source)

    def write_file(self, folder: str, relpath: str, data: bytes, source: str | None = None) -> str:
        """Put a file of a row in place, as `write_edited`, in one of FILE_FOLDERS."""
        if not is_safe_relpath(relpath) or f"{folder}/" not in FILE_FOLDERS:
            raise CommitError(
                f"relpath (={relpath!r}) leaves {folder}/; take it from edited_relpath()."
            )
        uri = f"{folder}/{relpath}"
        refuse_original(self.edited_path(uri), source)
        keep_overwritten(self.storage, uri, self._epochs()[0])
        self.storage.write(uri, data)
        return uri

    def edited_path(self, edited_uri: str) -> str:
        """Return the full path or URI of a result's `edited_uri`."""
        return f"{self.uri}/{edited_uri}"

    def stage(self, result: ResultRow, image: bytes | None = None) -> None:
        """Commit a row: from this call's return it survives anything.

        Args:
            image: the delivered file's bytes, if they are to go to `images/`.
        Raises: ManifestError for a value the result schema has no room for; OSError as the
            storage does, nothing being committed then.
        """
        epoch = self._epochs()[0]
        data = encode_staged(result, image, self.extras, epoch)
        self.storage.write(f"{STAGING}/{staged_name(result, epoch)}", data)

    # The driver's side

    def recover(self) -> RecoveryReport:
        """Put right what a dead driver left; call it after `open_job`, before anything else.

        Raises: CommitError without the lock; OutputCorruptError for a foreign or damaged part.
        """
        self._must_be_driver("recover")
        report = RecoveryReport()
        report.temporaries_removed = self.storage.clear_temporary()
        report.intents_redone = compaction.redo_intents(self.storage, self.extras)
        _, _, report.late_dropped = compaction.settle(
            self.storage, self._epochs()[1], report.quarantined
        )
        report.photos_restored = restore_overwritten(self.storage)
        return report

    def compact(
        self,
        *,
        min_rows: int = 1000,
        min_bytes: int = PART_BYTES,
        force: bool = False,
        part_bytes: int = PART_BYTES,
    ) -> int:
        """Publish the staged rows once there are enough of them; return how many were.

        Args:
            min_rows, min_bytes: enough is either; `force` publishes whatever there is.
            part_bytes: about the size of a part.
        Raises: CommitError without the lock.
        """
        self._must_be_driver("compact")
        staged = staged_files(self.storage)
        enough = len(staged) >= min_rows or sum(e.size_bytes for e in staged) >= min_bytes
        if not (enough or (force and staged)):
            return 0
        return compaction.compact_all(
            self.storage, self.extras, redo_epoch=self._epochs()[1], part_bytes=part_bytes
        )

    def staged_count(self) -> int:
        """Return how many committed rows wait for compaction."""
        return len(staged_files(self.storage))

    def ledger(self, run_id: str, **constants: str) -> Ledger:
        """Return the ledger of a run, to append to; `constants` are Ledger's."""
        return Ledger(self.storage, run_id, **constants)

    def read_ledger(self, run_id: str | None = None) -> pa.Table:
        """Return the attempts of one run, or of all."""
        return read_ledger(self.storage, run_id)

    def write_manifest(self, table: pa.Table) -> None:
        """Record the input table as `_manifest.parquet`, its URIs without what signs them."""
        table = without_secrets(table)
        self.storage.write_stream(
            MANIFEST_FILE, lambda sink: pq.write_table(table, sink, compression="zstd")
        )

    def read_manifest(self) -> pa.Table | None:
        """Return the input table last recorded, None if there is none."""
        if not self.storage.exists(MANIFEST_FILE):
            return None
        return read_part(self.storage, MANIFEST_FILE)

    def input_places(self) -> list[str]:
        """Return the folders of what the job last read: its photos, subjects and manifest."""
        photos = (self.read_job() or {}).get("photos")
        table = self.read_manifest()
        return [*([photos] if photos else []), *(input_folders(table) if table is not None else [])]

    # What is done

    def done(self) -> pa.Table:
        """Return DONE_COLUMNS of every row committed (and, in a redo, committed since it began).

        From parts and staged rows, one row to a row_id; rows of every status, failed ones too.
        """
        return self._committed(list(DONE_COLUMNS), since=self._epochs()[1])

    def results(self) -> pa.Table:
        """Return every committed row, all result columns: parts and staged rows."""
        return self._committed(with_extras(RESULT_SCHEMA, self.extras).names, since=0)

    def committed(self, columns: list[str]) -> pa.Table:
        """Return these columns of every committed row, whatever a redo has still to do."""
        return self._committed(columns, since=0)

    def rows(self, row_ids: Iterable[str]) -> dict[str, ResultRow]:
        """Return the committed rows of these row_ids, by row_id."""
        wanted = pa.array(row_ids, pa.string())
        names = with_extras(RESULT_SCHEMA, self.extras).names
        table = self._committed(names, since=0, only=wanted)
        return {row.row_id: row for row in result_rows(table)}

    def _committed(
        self, columns: list[str], *, since: int, only: pa.Array | None = None
    ) -> pa.Table:
        schema = with_extras(RESULT_SCHEMA, self.extras)
        schema = pa.schema([schema.field(name) for name in columns])
        redo_epoch = self._epochs()[1]
        return committed_rows(self.storage, schema, redo_epoch=redo_epoch, since=since, only=only)

    def read_photo(self, result: ResultRow) -> bytes | None:
        """Return the delivered file of a result: from `edited/`, else from the images parts."""
        return read_photo(self.storage, result)
