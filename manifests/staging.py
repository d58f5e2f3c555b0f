"""Staged rows: one small Parquet file to a committed row, until the driver compacts it."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.parts import epoch_of, with_epoch
from manifests.reading import open_parquet, parsed
from manifests.records import to_records
from manifests.rows import ResultRow, results_table
from manifests.schemas import (
    DONE_STATUSES,
    FILE_COLUMNS,
    IMAGE_SCHEMA,
    RESULT_SCHEMA,
    STAGED_SCHEMA,
    STATUSES,
    current_name,
)
from manifests.storage import Entry, Storage, own_files

STAGING = "_state/staging"
STAGED_NAME = re.compile(r"[0-9a-f]+-[0-9a-f]+-[0-9]+(\.failed)?\.parquet")
_HAS_IMAGE = b"doodl_has_image"
_RESULT_NAMES = frozenset(RESULT_SCHEMA.names)
_IMAGE_TYPE = STAGED_SCHEMA.field("edited_image").type


def staged_files(storage: Storage) -> list[Entry]:
    """Return the files of the committed rows that wait for compaction."""
    return own_files(storage, STAGING, STAGED_NAME)


def staged_name(result: ResultRow, epoch: int) -> str:
    """Return the staged file's name: the work, the row it is for, the run, whether it failed.

    So rows that share their work (copies) share no file, and neither a failure nor a worker left
    over from an earlier run writes over a success.
    """
    end = "" if result.status in DONE_STATUSES else ".failed"
    return f"{_stem(result)}{epoch}{end}.parquet"


def _stem(result: ResultRow) -> str:
    """Return what the names of a row's staged files of one work begin with, whatever the run."""
    row = hashlib.blake2b(result.row_id.encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{result.work_key}-{row.hexdigest()}-"


def staged_of(storage: Storage, result: ResultRow) -> list[str]:
    """Return the names of the staged files of a row and its work, the latest run's first."""
    names = [e.name for e in staged_files(storage) if e.name.startswith(_stem(result))]
    return sorted(names, key=lambda name: int(name.split(".")[0].rpartition("-")[2]), reverse=True)


def encode_staged(
    result: ResultRow, image: bytes | None, extras: pa.Schema | None, epoch: int
) -> bytes:
    """Return the staged file's bytes, serialised whole before anything is opened.

    Raises: ManifestError for a value or an extra column the result schema has no room for.
    """
    table = results_table([result], extras)
    photo = None if image is None else {"bytes": image, "path": result.edited_uri}
    table = table.add_column(
        len(RESULT_SCHEMA), STAGED_SCHEMA.field("edited_image"), pa.array([photo], _IMAGE_TYPE)
    )
    metadata = {
        **with_epoch(table.schema, epoch).metadata,
        _HAS_IMAGE: b"0" if image is None else b"1",
    }
    table = table.replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


@dataclass(frozen=True)
class StagedRow:
    """A staged file as it was found: its result and how large it is."""

    name: str
    size_bytes: int
    epoch: int
    has_image: bool
    record: dict[str, Any]

    @property
    def row_id(self) -> str:
        return self.record["row_id"]

    @property
    def work_key(self) -> str:
        return self.record["work_key"]

    @property
    def order(self) -> tuple[int, str]:
        """What decides between two rows of other work: the run, and within it the time."""
        return self.epoch, str(self.record["finished_at"] or "")

    @property
    def files(self) -> list[str]:
        """The files of the output folder that the row names, relative to it."""
        return [uri for name in FILE_COLUMNS if (uri := self.record.get(name)) is not None]

    @property
    def is_done(self) -> bool:
        return self.record["status"] in DONE_STATUSES


def read_staged(storage: Storage, name: str, size_bytes: int = 0) -> StagedRow:
    """Return one staged row, without its photo.

    Raises: FileNotFoundError if it is gone, DamagedFileError if it cannot be read.
    """
    return _read(storage, name, size_bytes, with_image=False)[0]


def read_staged_whole(storage: Storage, name: str) -> tuple[StagedRow, pa.RecordBatch | None]:
    """Return one staged row, and its photo as a batch of IMAGE_SCHEMA if it holds one.

    Raises: as `read_staged`.
    """
    return _read(storage, name, 0, with_image=True)


def _read(
    storage: Storage, name: str, size_bytes: int, *, with_image: bool
) -> tuple[StagedRow, pa.RecordBatch | None]:
    def parse(source: Any) -> tuple[StagedRow, pa.RecordBatch | None]:
        with open_parquet(source) as file:
            schema = file.schema_arrow
            columns = [n for n in schema.names if with_image or n != "edited_image"]
            table = file.read(columns=columns, use_threads=False)
        told = table.select([n for n in columns if n != "edited_image"])
        (record,) = to_records(_typed(told.rename_columns([current_name(f) for f in told.schema])))
        if not (record["row_id"] and record["work_key"] and record["status"] in STATUSES):
            raise ValueError("row_id, work_key or status is null, or none that there is")
        has_image = (schema.metadata or {}).get(_HAS_IMAGE) == b"1"
        row = StagedRow(name, size_bytes, epoch_of(schema), has_image, record)
        if not (with_image and has_image):
            return row, None
        return row, table.select(IMAGE_SCHEMA.names).combine_chunks().to_batches()[0]

    return parsed(storage, f"{STAGING}/{name}", parse)


def _typed(table: pa.Table) -> pa.Table:
    """Return the table with its result columns in today's types. Raises: ArrowException."""
    fields = [
        f.with_type(RESULT_SCHEMA.field(f.name).type) if f.name in _RESULT_NAMES else f
        for f in table.schema
    ]
    schema = pa.schema(fields, metadata=table.schema.metadata)
    return table if table.schema == schema else table.cast(schema)


def staged_table(rows: list[StagedRow], extras: pa.Schema | None) -> pa.Table:
    """Return staged rows as a result table of RESULT_SCHEMA and `extras`."""
    results = []
    known = set(extras.names) if extras is not None else set()
    for row in rows:
        own = {n: v for n, v in row.record.items() if n in _RESULT_NAMES}
        extra = {n: v for n, v in row.record.items() if n in known}
        results.append(ResultRow(**own, extra=extra))
    return results_table(results, extras)
