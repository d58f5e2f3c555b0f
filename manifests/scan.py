"""A folder of photos as an input table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa

from manifests.errors import ManifestError
from manifests.job import JOB_FILE
from manifests.paths import OUTPUT_MARKS, PHOTO_SUFFIXES, path_uri, row_id_problem, split_suffix
from manifests.schemas import INPUT_SCHEMA

# In a table's schema metadata: what `unlisted` and `linked_folders` return.
_UNLISTED, _LINKED = b"doodl_unlisted", b"doodl_linked"
_NOT_TEXT = re.compile("[\udc80-\udcff]")  # how Python spells the bytes it cannot decode


def scan_photos(
    folder: str | os.PathLike[str],
    *,
    recursive: bool = True,
    suffixes: Collection[str] = PHOTO_SUFFIXES,
) -> pa.Table:
    """Return the photos of a folder as a table of INPUT_SCHEMA, sorted by row_id.

    row_id is the path below `folder`, image_uri the absolute path; size_bytes and mtime_ns are the
    file's. A photo is a file whose name ends in one of `suffixes`, whatever is in it. Hidden
    files and folders are passed over, and so is, whole, any folder below that holds one of
    OUTPUT_MARKS: a command has filled it. A linked folder is entered once, and not if it lies in
    `folder` or above it.
    What cannot be listed below `folder` is left out, and named by `unlisted`.

    Raises: ManifestError if `folder` is no readable folder.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise ManifestError(f"{root} is not a folder; give a folder of photos or a manifest.")
    if (root / JOB_FILE).exists():
        raise ManifestError(
            f"{root} is a job's output (it holds {JOB_FILE}); give the folder of the originals."
        )
    left_out: list[tuple[str, str]] = []
    linked: set[str] = set()
    photos = _photos(str(root), recursive, suffixes, left_out, linked)
    found = sorted(photos, key=lambda photo: photo[0])
    row_ids = [_text(relpath) for relpath, _, _ in found]
    problems = [row_id_problem(row_id) for row_id in row_ids]
    count = len(found)
    columns = {
        "row_id": pa.array(row_ids, pa.string()),
        "image_uri": pa.array([path_uri(f"{root}/{p}") for p, _, _ in found], pa.string()),
        "size_bytes": pa.array([size for _, size, _ in found], pa.int64()),
        "mtime_ns": pa.array([mtime for _, _, mtime in found], pa.int64()),
        "row_error_type": pa.array(["InvalidRow" if p else None for p in problems], pa.string()),
        "row_error": pa.array(problems, pa.string()),
    }
    told = {_UNLISTED: left_out, _LINKED: sorted(linked)}
    metadata = {key: json.dumps(value).encode() for key, value in told.items() if value}
    schema = INPUT_SCHEMA.with_metadata(metadata) if metadata else INPUT_SCHEMA
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)


def unlisted(table: pa.Table) -> list[tuple[str, str]]:
    """Return (path, reason) of what could not be listed when the input table was scanned.

    Whatever photos are there are not in the table: they could not be had, and are not gone.
    """
    told = (table.schema.metadata or {}).get(_UNLISTED, b"[]")
    return [(path, reason) for path, reason in json.loads(told)]


def linked_folders(table: pa.Table) -> list[str]:
    """Return the folders where the photos really lie that the scan found as links."""
    return json.loads((table.schema.metadata or {}).get(_LINKED, b"[]"))


def _text(relpath: str) -> str:
    """Return the path as text: bytes that are not UTF-8 become %NN."""
    return _NOT_TEXT.sub(lambda m: f"%{ord(m.group()) - 0xDC00:02X}", relpath)


def _photos(
    root: str,
    recursive: bool,
    suffixes: Collection[str],
    left_out: list[tuple[str, str]],
    linked: set[str],
) -> Iterator[tuple[str, int, int]]:
    """Yield (path below root, size, mtime) of every photo, in no order.

    What cannot be looked at is added to `left_out`, with the reason; to `linked` the real folder of
    each photo that is a link. Raises: ManifestError if that
    is the root itself.
    """
    real_root = os.path.realpath(root)
    entered: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        path = f"{root}/{folder}" if folder else root
        try:
            with os.scandir(path) as scan:
                entries = list(scan)
        except OSError as error:
            if not folder:
                raise ManifestError(f"{root} cannot be listed ({_reason(error)}).") from error
            left_out.append((path, _reason(error)))
            continue
        if folder and not OUTPUT_MARKS.isdisjoint(entry.name for entry in entries):
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            below = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    if recursive and _may_enter(entry, real_root, entered):
                        folders.append(below)
                elif split_suffix(entry.name)[1].lower() in suffixes and entry.is_file():
                    status = entry.stat()
                    if entry.is_symlink():
                        linked.add(os.path.dirname(os.path.realpath(entry.path)))  # noqa: PTH120
                    yield below, status.st_size, status.st_mtime_ns
            except OSError as error:  # a link that loops, a name out of reach
                left_out.append((f"{path}/{entry.name}", _reason(error)))


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _may_enter(entry: os.DirEntry[str], real_root: str, entered: set[tuple[int, int]]) -> bool:
    """Return whether to enter a folder: any real one; a linked one if it repeats no photo."""
    if not entry.is_symlink():
        return True
    target = os.path.realpath(entry.path)
    common = os.path.commonpath([target, real_root])
    if common in (target, real_root):  # it lies in the collection, or holds it
        return False
    status = entry.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in entered:
        return False
    entered.add(identity)
    return True
