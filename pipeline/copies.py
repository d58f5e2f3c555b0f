"""Duplicates and renames: a known work_key under another row_id costs a copy, no computation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa

from manifests.commits import OutputFolder
from manifests.identity import hash_bytes
from manifests.rows import ResultRow
from manifests.schemas import FILE_COLUMNS
from pipeline.outcomes import WorkItem
from pipeline.plan import work_items
from pipeline.stages import CommitRows, writing_output
from pipeline.tasks import SUFFIXES, relpath_of

# Sources are looked up so many at a time: each look-up reads the parts' columns once.
_LOOKUP_ROWS = 20_000
_COMPACT_ROWS = 256

Copy = tuple[WorkItem, str]
"""A row to be copied, and the row_id of its source."""


def planned_copies(copies: pa.Table) -> Iterator[Copy]:
    """Yield the rows of a plan's copies, each with its source."""
    return zip(work_items(copies), copies["source_row_id"].to_pylist(), strict=True)


def copy_rows(
    folder: OutputFolder,
    copies: Iterable[Copy],
    commit: CommitRows,
    *,
    pending_sources: bool,
    go_on: Callable[[], bool] = lambda: True,
) -> tuple[int, list[WorkItem]]:
    """Commit rows from their sources' rows and photos.

    Args:
        pending_sources: the sources were to be computed in this run: only a result of this very
            work counts then, since one from before a redo is not what is asked for.
        go_on: asked before each row; False ends the copying, the rest stays pending.
    Returns: how many were made, and the items that must be computed after all: their source has
        no row of their work, or no photo, any more.
    Raises: DiskFullError, OutputUnwritableError if OUT does not take them.
    """
    made = 0
    orphaned: list[WorkItem] = []
    copies = iter(copies)
    while part := list(islice(copies, _LOOKUP_ROWS)):
        sources = folder.rows(dict.fromkeys(source_id for _, source_id in part))
        for item, source_id in part:
            if not go_on():
                return made, orphaned
            source = sources.get(source_id)
            counts = source is not None and (
                source.work_key == item.work_key
                if pending_sources
                else source.input_key == item.input_key
            )
            if source is not None and counts and _copy(folder, source, item, commit):
                made += 1
                if made % _COMPACT_ROWS == 0:
                    with writing_output():
                        folder.compact()
            else:
                orphaned.append(item)
    return made, orphaned


def one_of_each_work(
    orphaned: Iterable[WorkItem], computed: pa.Table
) -> tuple[list[WorkItem], list[Copy]]:
    """Return the items to compute, one of each work, and the others as copies of those.

    Args:
        computed: the plan's rows that are computed anyway.
    """
    keys, row_ids = computed["work_key"].to_pylist(), computed["row_id"].to_pylist()
    sources = dict(zip(keys, row_ids, strict=True))
    alone: list[WorkItem] = []
    copies: list[Copy] = []
    for item in orphaned:
        if item.work_key in sources:
            copies.append((item, sources[item.work_key]))
        else:
            sources[item.work_key] = item.row_id
            alone.append(item)
    return alone, copies


def _is_whole(source: ResultRow, data: bytes) -> bool:
    """Return whether a delivered file is what its row says; older rows do not say."""
    return source.edited_hash is None or hash_bytes(data) == source.edited_hash


def _copy(folder: OutputFolder, source: ResultRow, item: WorkItem, commit: CommitRows) -> bool:
    """Commit an item as its source is; return False, nothing done, if a file of that is gone."""
    image = folder.read_photo(source) if source.status == "ok" else None
    if source.status == "ok" and (image is None or not _is_whole(source, image)):
        return False
    files: dict[str, tuple[str, bytes]] = {}
    for column in filter(commit.keeps_file, FILE_COLUMNS):
        uri = getattr(source, column)
        try:
            data = image if column == "edited_uri" else uri and folder.storage.read(uri)
        except FileNotFoundError:  # moved away: it is made anew
            return False
        if data is not None:
            suffix = PurePosixPath(uri).suffix if uri else _suffix(data)
            files[column] = (relpath_of(item.row_id, suffix, commit.spec), data)
    commit.copied(item, source, files, image)
    return True


def _suffix(image: bytes) -> str:
    """Return the suffix of a delivered picture that was kept in a table alone."""
    from doodl.images.sniff import sniff

    return SUFFIXES[sniff(image)]
