"""A row whose work is known under another row_id: a copy of the photo and of the row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from manifests.commits import OutputFolder
from manifests.errors import CommitError
from manifests.paths import edited_relpath, split_suffix
from manifests.rows import ManifestRow, ResultRow

Images = Literal["both", "files", "parquet"]


def commit_copy(
    out: OutputFolder, source: ResultRow, row: ManifestRow, *, images: Images = "both"
) -> ResultRow:
    """Commit `row` as a copy of `source`, and return its result row.

    What was measured and how it was computed are the source's; row_id, image_uri, the extra
    columns and the photo's place are the row's own, and edit_seconds is 0.

    Raises: CommitError if the source's photo is gone: the row is then to be computed.
    """
    now = datetime.now(UTC)
    result = replace(
        source,
        row_id=row.row_id,
        image_uri=row.image_uri,
        extra=dict(row.extra),
        edited_uri=None,
        edit_seconds=0.0,
        started_at=now,
        finished_at=now,
    )
    photo = None
    if source.edited_uri is not None:
        photo = out.read_photo(source)
        if photo is None:
            raise CommitError(f"{source.edited_uri} is gone; {row.row_id!r} cannot be its copy.")
        relpath = edited_relpath(row.row_id, split_suffix(source.edited_uri)[1])
        result.edited_uri = f"edited/{relpath}"
        if images != "parquet":
            out.write_edited(relpath, photo)
    out.stage(result, photo if images != "files" else None)
    return result
