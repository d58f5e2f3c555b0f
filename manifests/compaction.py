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
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

from manifests.overwrites import forget_overwritten
from manifests.parts import (
    IMAGES,
    RESULTS,
    ImagePartWriter,
    drop_images,
    drop_results,
    list_parts,
    part_path,
    write_results_part,
)
from manifests.paths import FILE_FOLDERS
from manifests.reading import DamagedFileError, parsed
from manifests.settling import PublishedRow, set_aside, settle
from manifests.staging import (
    STAGED_NAME,
    STAGING,
    StagedRow,
    read_staged,
    read_staged_whole,
    staged_table,
)
from manifests.storage import Entry, Storage, own_files

logger = logging.getLogger(__name__)

INTENTS = "_state/intents"
_INTENT_NAME = re.compile(r"part-[0-9]{6,}\.json")
PART_BYTES = 256 * 1024 * 1024


@dataclass
class RecoveryReport:
    """What a start found to put right: counts, and the staged files it could not read."""

    intents_redone: int = 0
    late_dropped: int = 0
    photos_restored: int = 0
    temporaries_removed: int = 0
    quarantined: list[str] = field(default_factory=list)


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
        forget_overwritten(storage, chunk)
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
        # A failure says nothing about the old files, so they stay.
        for uri in old.files if old is not None and row.is_done else ():
            if uri not in row.files and uri.startswith(FILE_FOLDERS):
                storage.delete(uri)


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
    used += [int(e.name[len("part-") : -len(".json")]) for e in _intents(storage)]
    return max(used) + 1


def redo_intents(storage: Storage, extras: pa.Schema) -> int:
    """Carry out the intents a dead driver left, and return how many that was. Idempotent.

    A damaged one is set aside: its rows are still staged, or published and then found to be late.
    """
    redone = 0
    for entry in _intents(storage):
        path = f"{INTENTS}/{entry.name}"
        try:
            intent = parsed(storage, path, _parse_intent)
        except DamagedFileError as error:
            logger.warning(
                "%s is damaged (%s): set aside, its rows are compacted anew", path, error
            )
            set_aside(storage, path)
            continue
        _carry_out(storage, intent, extras)
        storage.delete(path)
        redone += 1
    return redone


def _intents(storage: Storage) -> list[Entry]:
    return own_files(storage, INTENTS, _INTENT_NAME)


def _parse_intent(source: Any) -> dict[str, Any]:
    """Return an intent. Raises: ValueError, KeyError if it is none."""
    intent = json.loads(source.read())
    try:
        number, epoch, names = int(intent["part"]), int(intent["epoch"]), list(intent["staged"])
        ours = all(map(STAGED_NAME.fullmatch, names))
    except TypeError as error:
        raise ValueError(f"not an intent: {error}") from error
    if not ours:
        raise ValueError("it names what is no staged row")
    return {"part": number, "epoch": epoch, "staged": names}


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
            except DamagedFileError as error:
                logger.warning("staged row %s is damaged (%s): to be done again", name, error)
                set_aside(storage, f"{STAGING}/{name}")
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
    except (FileNotFoundError, DamagedFileError):
        return False
