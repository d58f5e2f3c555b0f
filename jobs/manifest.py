"""`manifest build|show|check`."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs import console, exits
from manifests.originals import output_around
from manifests.records import to_records
from manifests.scan import unlisted
from manifests.schemas import MANIFEST_SCHEMA
from pipeline.inputs import load_input, unlisted_lines


def build(photos: Path, manifest: Path, *, overwrite: bool) -> int:
    """Write a manifest with one row per photo of a folder; return 3 if some cannot be listed."""
    _check_target(photos, manifest, overwrite=overwrite)
    table = load_input(str(photos))
    if unlisted(table) and os.path.lexists(manifest):
        console.say(f"{manifest} is left as it is: a part of {photos} is missing")
        return _say_unlisted(table)
    columns = [table[name].cast(MANIFEST_SCHEMA.field(name).type) for name in MANIFEST_SCHEMA.names]
    _write(pa.table(columns, schema=MANIFEST_SCHEMA), manifest)
    console.say(f"{table.num_rows:,} rows written to {manifest}")
    return _say_unlisted(table)


def _check_target(photos: Path, manifest: Path, *, overwrite: bool) -> None:
    if manifest.suffix != ".parquet":
        raise exits.UsageError(f"{manifest} must end in .parquet.")
    if not manifest.parent.is_dir():
        raise exits.UsageError(f"{manifest.parent} is no folder; make it first.")
    if (around := output_around(manifest)) is not None:
        raise exits.UsageError(f"{manifest} lies in the output folder {around}; give another.")
    if not os.path.lexists(manifest):
        return
    if not overwrite:
        raise exits.UsageError(f"{manifest} exists; write it anew with --overwrite.")
    if manifest.exists() and photos.exists() and manifest.samefile(photos):
        raise exits.UsageError(f"{manifest} is what is read; give another name.")
    if not manifest.is_file() or not _is_table(manifest):
        raise exits.UsageError(f"{manifest} is no Parquet file; give another name.")


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _write(table: pa.Table, path: Path) -> None:
    """Write the table in one move: killed, it leaves the file there was, or none."""
    temporary = path.with_name(f".manifest-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _say_unlisted(table: pa.Table) -> int:
    """Name what could not be listed; return 3 if there is such a place, else 0."""
    lines = unlisted_lines(table)
    for line in lines:
        console.say(line)
    return exits.ROWS_FAILED if lines else exits.OK


def show(manifest: Path, rows: int, *, as_json: bool) -> int:
    """Print the first rows, with only the columns that hold something."""
    table = load_input(str(manifest))
    head = table.slice(0, rows)
    names = [n for n in head.column_names if head[n].null_count < head.num_rows]
    records = to_records(head.select(names))
    if as_json:
        console.print_json(records)
    else:
        console.print_table(
            f"{manifest}: {table.num_rows:,} rows",
            names,
            [[record[name] for name in names] for record in records],
        )
    return _say_unlisted(table)


def check(manifest: Path, *, as_json: bool) -> int:
    """Print every row that could not run, and return 3 if there is one."""
    table = load_input(str(manifest))
    marked = table.select(["row_id", "row_error"]).rename_columns(["row_id", "error"])
    bad = marked.filter(pc.is_valid(marked["error"])).to_pylist()
    if as_json:
        console.print_json({"rows": table.num_rows, "invalid": bad})
    else:
        for row in bad:
            console.result(f"{row['row_id']}: {row['error']}")
        console.say(f"{table.num_rows:,} rows, {len(bad):,} that could not run")
    code = _say_unlisted(table)
    return exits.ROWS_FAILED if bad else code
