"""The published tables: `results/part-*.parquet` and `images/part-*.parquet`.

A part is never changed in place and never removed. It is written whole under a number never used
before, or rewritten whole, under its own name, without some of its rows; a part that loses all its
rows stays, empty, so that no reader is left with a listed file that is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import OutputCorruptError
from manifests.reading import DamagedFileError, open_parquet, parsed, read_table
from manifests.schemas import IMAGE_SCHEMA, RESULT_SCHEMA, current_name, with_extras
from manifests.storage import Entry, Storage

_Parsed = TypeVar("_Parsed")

RESULTS = "results"
IMAGES = "images"
EPOCH = b"doodl_epoch"  # in a file's schema metadata: the run that committed its rows

# Large enough for an efficient read, small enough that driver memory stays flat.
ROW_GROUP_BYTES = 32 * 1024 * 1024
ROW_GROUP_ROWS = 65_536

_PART_NAME = re.compile(r"part-([0-9]{6,})\.parquet")
_TABLE_NAME = re.compile(r"[^._].*\.parquet", re.IGNORECASE | re.DOTALL)


def part_path(folder: str, number: int) -> str:
    """Return the path of one part of `results` or `images`."""
    return f"{folder}/part-{number:06d}.parquet"


def list_parts(storage: Storage, folder: str) -> dict[int, Entry]:
    """Return the parts of `results` or `images` by number.

    Raises: OutputCorruptError if another table lies there, which readers would take for results.
    """
    entries = storage.files(folder)
    for entry in filter(_is_foreign, entries):
        raise OutputCorruptError(
            f"{storage.uri}/{folder}/{entry.name} is not a part of this job; "
            f"only its own Parquet parts may lie in {folder}/: move it elsewhere."
        )
    return {int(match[1]): e for e in entries if (match := _PART_NAME.fullmatch(e.name))}


def foreign_tables(storage: Storage, folder: str) -> list[str]:
    """Return the names of Parquet files of `results` or `images` that are no parts of ours.

    Names that begin with `.` or `_` are none: every Parquet reader passes them over.
    """
    return [entry.name for entry in filter(_is_foreign, storage.files(folder))]


def _is_foreign(entry: Entry) -> bool:
    is_table = _TABLE_NAME.fullmatch(entry.name) is not None
    return is_table and _PART_NAME.fullmatch(entry.name) is None


def open_part(storage: Storage, path: str) -> pq.ParquetFile:
    """Return a part open for reading.

    Raises: OutputCorruptError if it is not a whole Parquet file; OSError if it cannot be read now.
    """
    return parse_part(storage, path, open_parquet)


def part_schema(storage: Storage, path: str) -> pa.Schema:
    """Return the schema of a part. Raises: as `open_part`."""
    with open_part(storage, path) as file:
        return file.schema_arrow


def parse_part(storage: Storage, path: str, parse: Callable[[Any], _Parsed]) -> _Parsed:
    """Return what `parse` makes of a part, given it open for reading. Raises: as `open_part`."""
    try:
        return parsed(storage, path, parse)
    except DamagedFileError as error:
        raise OutputCorruptError(
            f"{storage.uri}/{path} is truncated or damaged ({error}); restore it from a copy, or "
            "move it away: its rows will then be done again."
        ) from error


def read_part(storage: Storage, path: str, columns: list[str] | None = None) -> pa.Table:
    """Return a part's rows, all or some of its columns.

    Raises: as `open_part`.
    """
    return parse_part(storage, path, lambda source: read_table(source, columns))


def read_results(storage: Storage, path: str, schema: pa.Schema) -> pa.Table:
    """Return a results part's rows as a table of `schema`; columns it lacks are null.

    Raises: as `open_part`.
    """
    held = {current_name(field): field.name for field in part_schema(storage, path)}
    names = [held[name] for name in schema.names if name in held]
    table = read_part(storage, path, names)
    columns = [
        table[held[f.name]].cast(f.type) if f.name in held else pa.nulls(table.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def epoch_of(schema: pa.Schema) -> int:
    """Return the run that committed the rows of a part or staged file with this schema."""
    return int((schema.metadata or {}).get(EPOCH, b"0"))


def with_epoch(schema: pa.Schema, epoch: int) -> pa.Schema:
    """Return `schema` marked as committed by run `epoch`."""
    return schema.with_metadata({**(schema.metadata or {}), EPOCH: str(epoch).encode()})


class ImagePartWriter:
    """Writes an images part photo by photo, holding at most one row group in memory."""

    def __init__(self, sink: BinaryIO, epoch: int):
        self._schema = with_epoch(IMAGE_SCHEMA, epoch)
        self._writer = pq.ParquetWriter(sink, self._schema, **_IMAGE_OPTIONS)
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of IMAGE_SCHEMA."""
        if batch.num_rows == 0:
            return
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            table = pa.Table.from_batches(
                [b.replace_schema_metadata(self._schema.metadata) for b in self._held]
            ).cast(self._schema)
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._held, self._held_bytes = [], 0

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()


# Photos are compressed already, and a dictionary of them would only cost memory.
_IMAGE_OPTIONS: dict[str, Any] = {
    "compression": {"row_id": "zstd", "work_key": "zstd", "edited_image.path": "zstd"},
    "use_dictionary": False,
    "write_statistics": ["row_id", "work_key"],
}


def write_results_part(storage: Storage, number: int, table: pa.Table, epoch: int) -> None:
    """Publish a results part: the moment its rows are done for every reader."""
    storage.write_stream(part_path(RESULTS, number), lambda sink: _write(sink, table, epoch))


def _write(sink: BinaryIO, table: pa.Table, epoch: int) -> None:
    table = table.replace_schema_metadata(with_epoch(table.schema, epoch).metadata)
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def drop_results(storage: Storage, number: int, row_ids: Iterable[str]) -> None:
    """Rewrite results part `number` without these rows."""
    path = part_path(RESULTS, number)
    table = read_part(storage, path)
    kept = table.filter(pc.invert(pc.is_in(table["row_id"], pa.array(row_ids, pa.string()))))
    if kept.num_rows < table.num_rows:
        epoch = epoch_of(table.schema)
        storage.write_stream(path, lambda sink: _write(sink, kept, epoch))


def drop_images(storage: Storage, row_ids: Iterable[str]) -> None:
    """Rewrite every images part that holds a photo of these rows, without those photos.

    The results come first (`drop_results`): a reader that joins the two finds every row's photo.
    """
    gone = pa.array(row_ids, pa.string())
    for number in list_parts(storage, IMAGES) if len(gone) else ():
        path = part_path(IMAGES, number)
        held = read_part(storage, path, ["row_id"])["row_id"]
        if pc.any(pc.is_in(held, gone)).as_py():
            _rewrite_images(storage, path, gone)


def _rewrite_images(storage: Storage, path: str, gone: pa.Array) -> None:
    def fill(sink: BinaryIO) -> None:
        with open_part(storage, path) as source:
            writer = ImagePartWriter(sink, epoch_of(source.schema_arrow))
            for batch in source.iter_batches(batch_size=16, use_threads=False):
                writer.add(batch.filter(pc.invert(pc.is_in(batch["row_id"], gone))))
            writer.close()

    storage.write_stream(path, fill)


def conform(storage: Storage, extras: pa.Schema) -> int:
    """Rewrite every results part whose columns are not today's and `extras`, nulls in new ones.

    Returns how many parts were rewritten. Idempotent: after a crash, done again from the start.
    """
    target = with_extras(RESULT_SCHEMA, extras)
    rewritten = 0
    for number in list_parts(storage, RESULTS):
        path = part_path(RESULTS, number)
        schema = part_schema(storage, path)
        named = [current_name(field) for field in schema]
        if schema.names == named == target.names and schema.types == target.types:
            continue
        epoch = epoch_of(schema)
        fitted = read_results(storage, path, target)
        storage.write_stream(path, lambda sink, t=fitted, e=epoch: _write(sink, t, e))  # type: ignore[misc]
        rewritten += 1
    return rewritten
