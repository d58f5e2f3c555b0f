"""`manifest build|show|check`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs import console, exits
from manifests.records import to_records
from manifests.schemas import MANIFEST_SCHEMA
from pipeline.inputs import load_input


def build(photos: Path, manifest: Path) -> int:
    """Write a manifest with one row per photo of a folder."""
    if manifest.suffix != ".parquet":
        raise exits.UsageError(f"{manifest} must end in .parquet.")
    table = load_input(str(photos))
    columns = [table[name].cast(MANIFEST_SCHEMA.field(name).type) for name in MANIFEST_SCHEMA.names]
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), manifest)
    console.say(f"{table.num_rows:,} rows written to {manifest}")
    return exits.OK


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
    return exits.OK


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
    return exits.ROWS_FAILED if bad else exits.OK
