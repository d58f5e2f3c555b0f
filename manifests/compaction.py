"""Compaction: staged rows become parts, exactly once, whatever dies when.

A run of it goes: rewrite the parts that hold rows about to be superseded, without them; then, part
by part: the intent (part number and staged names), the images part, the results part, the staged
files go, the intent goes. The results part is the instant at which its rows change from staged to
published: an intent whose results part exists has only deleting left, any other is done again from
the start.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from manifests.parts import (
    IMAGES,
    RESULTS,
    ImagePartWriter,
    drop_images,
    drop_results,
    epoch_of,
    list_parts,
    open_part,
    part_path,
    read_part,
    write_results_part,
)
from manifests.schemas import DONE_STATUSES
from manifests.staging import (
    STAGING,
    DamagedStagedError,
    StagedRow,
    read_staged,
    read_staged_whole,
    staged_table,
)
from manifests.storage import Storage

logger = logging.getLogger(__name__)

INTENTS = "_state/intents"
QUARANTINE = "_state/quarantine"
PART_BYTES = 256 * 1024 * 1024


@dataclass
class RecoveryReport:
    """What a start found to put right: counts, and the staged files it could not read."""

    intents_redone: int = 0
    late_dropped: int = 0
    temporaries_removed: int = 0
    quarantined: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PublishedRow:
    """A row of a results part, as far as it decides whether a staged row supersedes it."""

    part: int
    epoch: int
    work_key: str
    status: str
    edited_uri: str | None
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
    for entry in storage.files(STAGING):
        try:
            rows.append(read_staged(storage, entry.name, entry.size_bytes))
        except FileNotFoundError:
            continue  # compacted meanwhile
        except DamagedStagedError as error:
            logger.warning("staged row %s is damaged (%s): to be done again", entry.name, error)
            if quarantined is not None:
                _quarantine(storage, entry.name)
                quarantined.append(entry.name)
    return rows


def _quarantine(storage: Storage, name: str) -> None:
    storage.write(f"{QUARANTINE}/{name}", storage.read(f"{STAGING}/{name}"))
    storage.delete(f"{STAGING}/{name}")


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
    with open_part(storage, path) as file:
        epoch = epoch_of(file.schema_arrow)
    held = pc.is_in(read_part(storage, path, ["row_id"])["row_id"], row_ids)
    if not pc.any(held).as_py():
        return {}
    columns = ["row_id", "work_key", "status", "edited_uri", "finished_at"]
    found = {}
    for record in read_part(storage, path, columns).filter(held).to_pylist():
        row_id = record.pop("row_id")
        found[row_id] = PublishedRow(number, epoch, **record)
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


def compact_all(
    storage: Storage, extras: pa.Schema, *, redo_epoch: int = 0, part_bytes: int = PART_BYTES
) -> int:
    """Publish every staged row; return how many there were."""
    redo_intents(storage, extras)
    rows, superseded, _ = settle(storage, redo_epoch, quarantined=[])
    unpublish(storage, rows, superseded)
    for chunk in _chunks(rows, part_bytes):
        number = _next_number(storage)
        intent = {"part": number, "epoch": chunk[0].epoch, "staged": [r.name for r in chunk]}
        path = _intent_path(number)
        storage.write(path, json.dumps(intent).encode())
        _carry_out(storage, intent, extras)
        storage.delete(path)
    return len(rows)


def unpublish(storage: Storage, rows: list[StagedRow], superseded: dict[str, PublishedRow]) -> None:
    """Take superseded rows out of their parts: until their staged rows follow they are pending."""
    by_part: dict[int, list[str]] = {}
    for row_id, published in superseded.items():
        by_part.setdefault(published.part, []).append(row_id)
    for number, row_ids in sorted(by_part.items()):
        drop_results(storage, number, row_ids)
    # By row, not by part: a crash after the line above leaves photos whose row is gone.
    drop_images(storage, [row.row_id for row in rows])
    for row in rows:
        old = superseded.get(row.row_id)
        if old is None or old.edited_uri in (None, row.record["edited_uri"]):
            continue
        # The old photo lay under another name. A failure says nothing about it, so it stays.
        if row.is_done and str(old.edited_uri).startswith("edited/"):
            storage.delete(str(old.edited_uri))


def _chunks(rows: list[StagedRow], part_bytes: int) -> Iterable[list[StagedRow]]:
    """Yield rows part by part: of one epoch each, and of about `part_bytes` at most."""
    chunk: list[StagedRow] = []
    size = 0
    for row in sorted(rows, key=lambda r: (r.epoch, r.name)):
        if chunk and (row.epoch != chunk[0].epoch or size + row.size_bytes > part_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += row.size_bytes
    if chunk:
        yield chunk


def _intent_path(number: int) -> str:
    return f"{INTENTS}/part-{number:06d}.json"


def _next_number(storage: Storage) -> int:
    """Return a part number never used: numbers only grow, since no part is ever removed."""
    used = [*list_parts(storage, RESULTS), *list_parts(storage, IMAGES), 0]
    used += [int(e.name[len("part-") : -len(".json")]) for e in storage.files(INTENTS)]
    return max(used) + 1


def redo_intents(storage: Storage, extras: pa.Schema) -> int:
    """Carry out the intents a dead driver left, and return how many there were. Idempotent."""
    entries = storage.files(INTENTS)
    for entry in entries:
        path = f"{INTENTS}/{entry.name}"
        _carry_out(storage, json.loads(storage.read(path)), extras)
        storage.delete(path)
    return len(entries)


def _carry_out(storage: Storage, intent: dict[str, Any], extras: pa.Schema) -> None:
    number, names = intent["part"], intent["staged"]
    if not storage.exists(part_path(RESULTS, number)):
        rows = _publish_images(storage, number, names, intent["epoch"])
        write_results_part(storage, number, staged_table(rows, extras), intent["epoch"])
    for name in names:
        storage.delete(f"{STAGING}/{name}")


def _publish_images(storage: Storage, number: int, names: list[str], epoch: int) -> list[StagedRow]:
    """Write the images part, unless no row has a photo for it; return the rows it was made of.

    Each row is read together with its photo, so that a worker that writes the same staged file
    once more cannot pair one attempt's photo with the other attempt's row.
    """
    rows: list[StagedRow] = []

    def fill(sink: BinaryIO) -> None:
        rows.clear()
        writer = ImagePartWriter(sink, epoch)
        for name in names:
            try:
                row, photo = read_staged_whole(storage, name)
            except FileNotFoundError:
                logger.warning("staged row %s is gone: to be done again", name)
                continue
            except DamagedStagedError as error:
                logger.warning("staged row %s is damaged (%s): to be done again", name, error)
                _quarantine(storage, name)
                continue
            rows.append(row)
            if photo is not None:
                writer.add(photo)
        writer.close()

    if any(_has_image(storage, name) for name in names):
        storage.write_stream(part_path(IMAGES, number), fill)
    else:
        fill(io.BytesIO())
    return rows


def _has_image(storage: Storage, name: str) -> bool:
    try:
        return read_staged(storage, name).has_image
    except (FileNotFoundError, DamagedStagedError):
        return False
