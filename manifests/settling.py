"""Which of the rows committed under one row_id stands.

Rows of one name meet when a photo has changed, a failure is retried, or a worker given up for dead
commits after all. What decides is the run (epoch) that committed a row, and whether its work is
done; never who was first to be compacted. Clocks count between two rows of one run only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from manifests.parts import (
    RESULTS,
    epoch_of,
    list_parts,
    part_path,
    part_schema,
    read_part,
    read_results,
)
from manifests.reading import DamagedFileError
from manifests.records import to_records
from manifests.schemas import DONE_STATUSES, FILE_COLUMNS, RESULT_SCHEMA
from manifests.staging import STAGED_NAME, STAGING, StagedRow, read_staged, staged_files
from manifests.storage import Entry, Storage, own_files

logger = logging.getLogger(__name__)

QUARANTINE = "_state/quarantine"
_ASIDE_NAME = re.compile(rf"{STAGED_NAME.pattern}|(results|images|_state)-.+", re.DOTALL)


@dataclass(frozen=True)
class PublishedRow:
    """A row of a results part, as far as it decides whether a staged row supersedes it."""

    part: int
    epoch: int
    work_key: str
    status: str
    files: tuple[str, ...]
    finished_at: datetime | None

    @property
    def order(self) -> tuple[int, str]:
        return self.epoch, str(self.finished_at or "")

    @property
    def is_done(self) -> bool:
        return self.status in DONE_STATUSES


def load_staged(storage: Storage, quarantined: list[str] | None = None) -> list[StagedRow]:
    """Return every staged row; a damaged file is moved to QUARANTINE if a list is given for it.

    Without the list (a reader, not the driver) a damaged file is passed over.
    """
    rows = []
    for entry in staged_files(storage):
        try:
            rows.append(read_staged(storage, entry.name, entry.size_bytes))
        except FileNotFoundError:
            continue  # compacted meanwhile
        except DamagedFileError as error:
            logger.warning("staged row %s is damaged (%s): to be done again", entry.name, error)
            if quarantined is not None:
                set_aside(storage, f"{STAGING}/{entry.name}")
                quarantined.append(entry.name)
    return rows


def set_aside(storage: Storage, path: str) -> None:
    """Move a damaged file out of the way, for a person to look at."""
    name = path.removeprefix(f"{STAGING}/").replace("/", "-")
    storage.move(path, f"{QUARANTINE}/{name}")


def files_set_aside(storage: Storage) -> list[Entry]:
    """Return the files that were set aside."""
    return own_files(storage, QUARANTINE, _ASIDE_NAME)


def choose(rows: Iterable[StagedRow], redo_epoch: int = 0) -> tuple[list[StagedRow], list[str]]:
    """Return one staged row to a row_id, and the names of those it leaves behind.

    The latest run's wins (clocks count within a run only); but a success is never lost to a
    failure of the same work.
    """
    by_row: dict[str, list[StagedRow]] = {}
    for row in rows:
        by_row.setdefault(row.row_id, []).append(row)
    best, late = [], []
    for candidates in by_row.values():
        latest = max(candidates, key=lambda row: (row.order, row.name))
        chosen = max(
            (row for row in candidates if row.work_key == latest.work_key),
            key=lambda row: (_standing(row, redo_epoch), row.name),
        )
        best.append(chosen)
        late += [row.name for row in candidates if row is not chosen]
    return best, late


def _standing(row: StagedRow | PublishedRow, redo_epoch: int) -> tuple[bool, bool, int]:
    """Return what decides between two rows of the same work, the most important first."""
    return row.epoch >= redo_epoch, row.is_done, row.epoch


def supersedes(row: StagedRow, published: PublishedRow, redo_epoch: int = 0) -> bool:
    """Return whether a staged row takes the place of the published row of the same row_id.

    It does not if it comes from an earlier run, or if the work is done already: a worker that was
    given up for dead and commits late changes nothing.
    """
    if row.work_key != published.work_key:
        return row.order >= published.order
    if row.is_done or published.is_done:
        return _standing(row, redo_epoch) > _standing(published, redo_epoch)
    return row.epoch >= published.epoch


def find_published(storage: Storage, row_ids: Iterable[str]) -> dict[str, PublishedRow]:
    """Return those of the rows that a results part holds."""
    wanted = pa.array(sorted(row_ids), pa.string())
    found: dict[str, PublishedRow] = {}
    if len(wanted) == 0:
        return found
    for number in list_parts(storage, RESULTS):
        found.update(find_in_part(storage, number, wanted))
    return found


def find_in_part(storage: Storage, number: int, row_ids: pa.Array) -> dict[str, PublishedRow]:
    """Return those of the rows that one results part holds."""
    path = part_path(RESULTS, number)
    epoch = epoch_of(part_schema(storage, path))
    held = pc.is_in(read_part(storage, path, ["row_id"])["row_id"], row_ids)
    if not pc.any(held).as_py():
        return {}
    columns = ["row_id", "work_key", "status", "finished_at", *FILE_COLUMNS]
    schema = pa.schema([RESULT_SCHEMA.field(name) for name in columns])
    found = {}
    for record in to_records(read_results(storage, path, schema).filter(held)):
        files = tuple(uri for name in FILE_COLUMNS if (uri := record.pop(name)) is not None)
        row_id = record.pop("row_id")
        found[row_id] = PublishedRow(number, epoch, files=files, **record)
    return found


def settle(
    storage: Storage, redo_epoch: int = 0, quarantined: list[str] | None = None
) -> tuple[list[StagedRow], dict[str, PublishedRow], int]:
    """Remove staged files that come too late.

    Returns: the staged rows to publish, the published rows they supersede, how many were late.
    """
    rows, late = choose(load_staged(storage, quarantined), redo_epoch)
    published = find_published(storage, (row.row_id for row in rows))
    to_publish = []
    for row in rows:
        other = published.get(row.row_id)
        if other is None or supersedes(row, other, redo_epoch):
            to_publish.append(row)
        else:
            late.append(row.name)
            del published[row.row_id]
    for name in late:
        storage.delete(f"{STAGING}/{name}")
    return to_publish, published, len(late)
