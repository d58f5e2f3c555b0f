"""`manifest build|show|check`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs import console, exits
from manifests.schemas import MANIFEST_SCHEMA
from pipeline.inputs import load_input


def build(photos: Path, manifest: Path) -> int:
    """Write a manifest with one row per photo of a folder."""
    table = load_input(str(photos.absolute()))
    if manifest.suffix != ".parquet":
        raise ValueError(f"{manifest} must end in .parquet.")
    columns = [table[name].cast(MANIFEST_SCHEMA.field(name).type) for name in MANIFEST_SCHEMA.names]
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), manifest)
    console.say(f"{table.num_rows:,} rows written to {manifest}")
    return exits.OK


def show(manifest: Path, rows: int, *, as_json: bool) -> int:
    """Print the first rows, with only the columns that hold something."""
    table = load_input(str(manifest.absolute()))
    head = table.slice(0, rows)
    names = [n for n in head.column_names if head[n].null_count < head.num_rows]
    records = head.select(names).to_pylist()
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
    table = load_input(str(manifest.absolute()))
    bad = [
        {"row_id": row_id, "error": error}
        for row_id, error in zip(
            table["row_id"].to_pylist(), table["row_error"].to_pylist(), strict=True
        )
        if error is not None
    ]
    if as_json:
        console.print_json({"rows": table.num_rows, "invalid": bad})
    else:
        for row in bad:
            console.out.print(f"{row['row_id']}: {row['error']}", markup=False)
        console.say(f"{table.num_rows:,} rows, {len(bad):,} that could not run")
    return exits.ROWS_FAILED if bad else exits.OK
