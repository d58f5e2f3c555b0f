"""What is committed, read from parts and staged rows."""

from __future__ import annotations

from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from manifests.parts import (
    IMAGES,
    RESULTS,
    epoch_of,
    list_parts,
    part_path,
    part_schema,
    read_part,
    read_results,
)
from manifests.reading import DamagedFileError
from manifests.rows import ResultRow
from manifests.schemas import RESULT_SCHEMA
from manifests.settling import choose, find_in_part, load_staged, supersedes
from manifests.staging import (
    StagedRow,
    read_staged_whole,
    staged_of,
    staged_table,
)
from manifests.storage import Storage


def committed_rows(
    storage: Storage,
    schema: pa.Schema,
    *,
    redo_epoch: int = 0,
    since: int = 0,
    only: pa.Array | None = None,
) -> pa.Table:
    """Return the committed rows, one to a row_id, staged or published.

    Args:
        schema: the columns asked for, row_id first: of RESULT_SCHEMA and the job's extras.
        redo_epoch: the run at which the last redo began.
        since: leave out what earlier runs committed.
        only: row_ids; the others are left out.
    """
    # Staged rows first: one that is compacted meanwhile is then seen twice and counted once,
    # never missed.
    staged, _ = choose(load_staged(storage), redo_epoch)
    waiting = {row.row_id: row for row in staged}
    tables = [schema.empty_table()]
    for number in list_parts(storage, RESULTS):
        path = part_path(RESULTS, number)
        epoch = epoch_of(part_schema(storage, path))
        if epoch < since:
            continue
        if only is not None:
            held = pc.is_in(read_part(storage, path, ["row_id"])["row_id"], only)
            if not pc.any(held).as_py():
                continue
        table = read_results(storage, path, schema)
        if only is not None:
            table = table.filter(held)
        tables.append(_without_superseded(storage, table, number, waiting, redo_epoch))
    named = None if only is None else set(only.to_pylist())
    rows = [
        row
        for row in waiting.values()
        if row.epoch >= since and (named is None or row.row_id in named)
    ]
    if rows:
        extras = pa.schema([f for f in schema if f.name not in RESULT_SCHEMA.names])
        tables.append(staged_table(rows, extras).select(schema.names).cast(schema))
    return pa.concat_tables(tables)


def _without_superseded(
    storage: Storage,
    table: pa.Table,
    number: int,
    waiting: dict[str, StagedRow],
    redo_epoch: int,
) -> pa.Table:
    """Return a part's rows less those a staged row supersedes; forget staged rows that do not."""
    if not waiting or table.num_rows == 0:
        return table
    gone = []
    published = find_in_part(storage, number, pa.array(list(waiting), pa.string()))
    for row_id, row in published.items():
        if supersedes(waiting[row_id], row, redo_epoch):
            gone.append(row_id)
        else:
            del waiting[row_id]
    return table.filter(pc.invert(pc.is_in(table["row_id"], pa.array(gone, pa.string()))))


def read_photo(storage: Storage, result: ResultRow) -> bytes | None:
    """Return the delivered file of a result, None if there is none (any more).

    Where it is kept as no file, a staged row holds it until that is compacted into a part.
    """
    if result.edited_uri is not None:
        with suppress(FileNotFoundError):
            return storage.read(result.edited_uri)
    # Staged rows first: a photo that is compacted meanwhile is then found in its part.
    for name in staged_of(storage, result):
        with suppress(FileNotFoundError, DamagedFileError):
            _, photo = read_staged_whole(storage, name)
            if photo is not None:
                return photo["edited_image"][0].as_py()["bytes"]
    for number in list_parts(storage, IMAGES):
        path = part_path(IMAGES, number)
        held = read_part(storage, path, ["row_id", "work_key"])
        # An older photo of the row is other work's.
        wanted = pc.and_(
            pc.equal(held["row_id"], result.row_id), pc.equal(held["work_key"], result.work_key)
        )
        index = pc.index(wanted, True).as_py()
        if index >= 0:
            images = read_part(storage, path, ["edited_image"])["edited_image"]
            return images[index].as_py()["bytes"]
    return None
