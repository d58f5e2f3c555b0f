"""What crosses between driver and worker: small values, never pixels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from manifests.rows import ManifestRow

TRANSIENT_ERRORS = (
    "OutOfMemoryError",
    "MemoryError",
    "OutOfReachError",
    "PhotoChangedError",
    "OSError",
    "ConnectionError",
    "TimeoutError",
    "FileNotFoundError",
    "PermissionError",
)
"""Classes of failure that another night may not meet again."""

POISON = "PoisonRow"
"""The class of a row that has killed as many workers as it may: it is not tried every night."""

ROW_TIMEOUT = "RowTimeout"

AGAIN = "again"
"""Status of a row that is to be tried once more, alone and in a fresh process: not charged yet."""


@dataclass(frozen=True)
class WorkItem:
    """One row to compute; the hashes are those of the photos the keys were made from.

    `fresh`: its last try ran out of memory or met a broken device, so this one is alone, in a
    process that has done nothing before.
    """

    row: ManifestRow
    input_key: str
    work_key: str
    image_hash: str | None = None
    subject_hashes: tuple[str | None, ...] = ()
    attempt: int = 1
    fresh: bool = False

    @property
    def row_id(self) -> str:
        return self.row.row_id


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    `status` is a result row's; or AGAIN; or `disk_full` or `unwritable`: the row could not be
    committed for no fault of its own, stays pending, and the run stops.
    `unfit`: the process is not to be used again (out of memory, a device in error).
    `together`: rows that had their worker's time in common with it, itself among them.
    """

    row_id: str
    work_key: str
    status: str
    error_type: str | None = None
    error_message: str | None = None
    edit_seconds: float = 0.0
    peak_memory_bytes: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    node: str = ""
    device: str = ""
    unfit: bool = False
    together: int = 1
