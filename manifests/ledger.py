"""The ledger: every attempt of every run, append-only. It informs; it never decides."""

from __future__ import annotations

import logging
import re
import uuid
from datetime import datetime
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.reading import DamagedFileError, parsed, read_table
from manifests.schemas import LEDGER_SCHEMA
from manifests.secrets import scrub
from manifests.storage import Storage, own_files

logger = logging.getLogger(__name__)

LEDGER = "_state/ledger"
FLUSH_ROWS = 500
_FILE_NAME = re.compile(r"part-[0-9a-f]{32}\.parquet")
_RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class Ledger:
    """The attempts of one run, written in files of `_state/ledger/run=<run_id>/`.

    `model` and `params_fingerprint` are recorded with each of them.

    Use it as a context manager, or call `flush` at the end: what is appended is kept in memory
    until a flush or until FLUSH_ROWS of it.
    """

    def __init__(
        self,
        storage: Storage,
        run_id: str,
        *,
        model: str | None = None,
        params_fingerprint: str | None = None,
    ):
        if not _RUN_ID.match(run_id):
            raise ValueError(f"run_id (={run_id!r}) must be letters, digits, '.', '_' or '-'.")
        self.run_id = run_id
        self._model, self._fingerprint = model, params_fingerprint
        self._storage = storage
        self._rows: list[dict[str, Any]] = []

    def append(
        self,
        *,
        row_id: str,
        work_key: str,
        attempt: int,
        state: str,
        error_type: str | None = None,
        error_tail: str | None = None,
        node: str | None = None,
        device: str | None = None,
        started_at: datetime | None = None,
        finished_at: datetime | None = None,
        worker_seconds: float | None = None,
        peak_memory_bytes: int | None = None,
    ) -> None:
        """Record one attempt, or one more state of it; the columns are LEDGER_SCHEMA's."""
        self._rows.append(
            {
                "run_id": self.run_id,
                "row_id": row_id,
                "work_key": work_key,
                "attempt": attempt,
                "state": state,
                "error_type": error_type,
                "error_tail": None if error_tail is None else scrub(error_tail),
                "node": node,
                "device": device,
                "model": self._model,
                "params_fingerprint": self._fingerprint,
                "started_at": started_at,
                "finished_at": finished_at,
                "worker_seconds": worker_seconds,
                "peak_memory_bytes": peak_memory_bytes,
            }
        )
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what has been appended since the last flush as one more file."""
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=LEDGER_SCHEMA)
        # Never a name used before, not even by a run_id used twice: append-only.
        path = f"{LEDGER}/run={self.run_id}/part-{uuid.uuid4().hex}.parquet"
        self._storage.write_stream(path, lambda sink: pq.write_table(table, sink))
        self._rows = []

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()


def ledger_runs(storage: Storage) -> list[str]:
    """Return the ids of the runs that have attempts, oldest first (ids begin with their time)."""
    names = (name.removeprefix("run=") for name in storage.folders(LEDGER) if name[:4] == "run=")
    return sorted(name for name in names if _RUN_ID.match(name))


def read_ledger(storage: Storage, run_id: str | None = None) -> pa.Table:
    """Return the attempts of one run, or of all runs, oldest start first; less damaged files."""
    runs = [run_id] if run_id is not None else ledger_runs(storage)
    tables = [LEDGER_SCHEMA.empty_table()]
    for run in runs:
        folder = f"{LEDGER}/run={run}"
        for entry in own_files(storage, folder, _FILE_NAME):
            try:
                tables.append(parsed(storage, f"{folder}/{entry.name}", read_table))
            except DamagedFileError as error:
                logger.warning("%s/%s is passed over (%s)", folder, entry.name, error)
    table = pa.concat_tables(tables, promote_options="default")
    return table.take(pc.sort_indices(table["started_at"]))  # Table.sort_by starts threads
