"""Duplicates and renames: a known work_key under another row_id costs a copy, no computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

import pyarrow as pa

from manifests.commits import OutputFolder
from manifests.paths import edited_relpath
from pipeline.plan import work_items
from pipeline.spec import JobSpec

_BATCH_ROWS = 256


def copy_rows(folder: OutputFolder, copies: pa.Table, spec: JobSpec) -> int:
    """Commit the rows of a plan's copies from their sources' rows and photos; return how many.

    A copy whose source has no result with the same input (the run was stopped before it) stays
    pending.
    """
    made = 0
    for start in range(0, copies.num_rows, _BATCH_ROWS):
        part = copies.slice(start, _BATCH_ROWS)
        source_ids = part["source_row_id"].to_pylist()
        sources = folder.rows(source_ids)
        for item, source_id in zip(work_items(part), source_ids, strict=True):
            source = sources.get(source_id)
            if source is None or source.input_key != item.input_key:
                continue
            data = folder.read_photo(source) if source.status == "ok" else None
            if source.status == "ok" and data is None:
                continue  # the source's photo is gone: `verify` names it, a later run redoes it
            uri = None
            if data is not None and source.edited_uri is not None:
                suffix = PurePosixPath(source.edited_uri).suffix
                uri = folder.write_edited(edited_relpath(item.row_id, suffix), data)
            row = replace(
                source,
                row_id=item.row_id,
                image_uri=item.row.image_uri,
                work_key=item.work_key,
                edited_uri=uri,
                extra=item.row.extra,
            )
            folder.stage(row, data if spec.keep_parquet else None)
            made += 1
    return made
