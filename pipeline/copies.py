"""Duplicates and renames: a known work_key under another row_id costs a copy, no computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from manifests.commits import OutputFolder
from manifests.identity import hash_bytes
from manifests.rows import ResultRow
from manifests.schemas import FILE_COLUMNS
from manifests.secrets import scrub_uri
from pipeline.outcomes import WorkItem
from pipeline.plan import work_items
from pipeline.spec import JobSpec
from pipeline.stages import writing_output
from pipeline.tasks import relpath_of

# Sources are looked up so many at a time: each look-up reads the parts' columns once.
_LOOKUP_ROWS = 20_000
_COMPACT_ROWS = 256


def copy_rows(
    folder: OutputFolder,
    copies: pa.Table,
    spec: JobSpec,
    *,
    pending_sources: bool,
    go_on: Callable[[], bool] = lambda: True,
) -> tuple[int, list[WorkItem]]:
    """Commit the rows of a plan's copies from their sources' rows and photos.

    Args:
        pending_sources: the sources were to be computed in this run: only a result of this very
            work counts then, since one from before a redo is not what is asked for.
        go_on: asked before each row; False ends the copying, the rest stays pending.
    Returns: how many were made, and the items whose source has no photo any more.
    Raises: DiskFullError, OutputUnwritableError if OUT does not take them.
    """
    made = 0
    orphaned: list[WorkItem] = []
    for start in range(0, copies.num_rows, _LOOKUP_ROWS):
        part = copies.slice(start, _LOOKUP_ROWS)
        source_ids = part["source_row_id"].to_pylist()
        sources = folder.rows(source_ids)
        for item, source_id in zip(work_items(part), source_ids, strict=True):
            if not go_on():
                return made, orphaned
            source = sources.get(source_id)
            if source is None or source.input_key != item.input_key:
                continue
            if pending_sources and source.work_key != item.work_key:
                continue
            if _copy(folder, source, item, spec):
                made += 1
                if made % _COMPACT_ROWS == 0:
                    with writing_output():
                        folder.compact()
            else:
                orphaned.append(item)
    return made, orphaned


def _is_whole(source: ResultRow, data: bytes) -> bool:
    """Return whether a delivered file is what its row says; older rows do not say."""
    return source.edited_hash is None or hash_bytes(data) == source.edited_hash


def _copy(folder: OutputFolder, source: ResultRow, item: WorkItem, spec: JobSpec) -> bool:
    data = folder.read_photo(source) if source.status == "ok" else None
    if source.status == "ok" and (data is None or not _is_whole(source, data)):
        return False
    others = {}
    for column in FILE_COLUMNS:
        if column != "edited_uri" and (uri := getattr(source, column)) is not None:
            try:
                others[column] = folder.storage.read(uri)
            except FileNotFoundError:  # moved away: it is made anew
                return False
    with writing_output():
        uri = None
        if data is not None and source.edited_uri is not None and spec.keep_files:
            suffix = PurePosixPath(source.edited_uri).suffix
            uri = folder.write_edited(
                relpath_of(item.row_id, suffix, spec), data, item.row.image_uri
            )
        uris: dict[str, Any] = {
            column: folder.write_file(
                column.removesuffix("_uri"),
                relpath_of(item.row_id, PurePosixPath(str(getattr(source, column))).suffix, spec),
                other,
                item.row.image_uri,
            )
            for column, other in others.items()
        }
        # The work is the source's: its work_key, fingerprint and seed stay, for a replay.
        row = replace(
            source,
            row_id=item.row_id,
            image_uri=None if item.row.image_uri is None else scrub_uri(item.row.image_uri),
            edited_uri=uri,
            extra=item.row.extra,
            **uris,
        )
        folder.stage(row, data if spec.keep_parquet else None)
    return True
