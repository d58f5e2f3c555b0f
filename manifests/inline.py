"""Reading a row's photo from where its URI points: a file, other storage, a manifest's own bytes.

A manifest may hold photos in an `image` column (bytes, or the Hugging Face struct of bytes and
path). They stay in it: such a row's image_uri is `/path/manifest.parquet#row=17`, and whoever
needs the photo reads it there.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.addresses import address_problem, reaching
from manifests.errors import AddressError
from manifests.identity import hash_bytes, hash_file, new_hash
from manifests.paths import local_path
from manifests.remote import (
    filesystem_of,
    in_time,
    is_web,
    read_pieces,
    read_remote,
    stat_remote,
)

_INLINE = re.compile(r"^(?P<path>.+\.parquet)#row=(?P<row>\d+)$", re.IGNORECASE | re.DOTALL)
IMAGE_COLUMN = "image"


def inline_uri(manifest: str, row: int) -> str:
    """Return the URI of the photo in row `row` (from 0) of a Parquet manifest."""
    return f"{manifest}#row={row}"


def is_inline(uri: str) -> bool:
    """Return whether a URI names a photo inside a Parquet manifest."""
    return "#row=" in uri and _INLINE.match(uri) is not None


def read_input(uri: str) -> bytes:
    """Return the bytes of the photo that a row's image_uri names.

    Raises: OSError if it is not there or cannot be read: AddressError or OutOfReachError, or of a
        local file what the system says.
    """
    with _asking(uri):
        if is_inline(uri):
            return _read_inline(uri)
        path = local_path(uri)
        if path is not None:
            return b"" if _is_empty(_stat_local(path)) else Path(path).read_bytes()
        return read_remote(uri)


def hash_input(uri: str) -> str:
    """Return the hash of the bytes that `read_input` returns, without holding them all.

    Raises: OSError as `read_input` does.
    """
    with _asking(uri):
        if is_inline(uri):
            return hash_bytes(_read_inline(uri))
        path = local_path(uri)
        if path is not None:
            return hash_bytes(b"") if _is_empty(_stat_local(path)) else hash_file(path)
        state = new_hash()
        read_pieces(uri, state.update)
        return str(state.hexdigest())


def stat_input(uri: str) -> tuple[int | None, int | None]:
    """Return (size, modification time in ns) of a photo, None for what its place does not tell.

    Raises: OSError as `read_input` does.
    """
    with _asking(uri):
        if is_inline(uri):
            return None, None
        path = uri if uri.startswith("/") else local_path(uri)
        if path is None:
            return stat_remote(uri)
        status = _stat_local(path)
        return status.st_size, status.st_mtime_ns


@contextmanager
def _asking(uri: str) -> Iterator[None]:
    with reaching(uri):
        if problem := address_problem(uri):
            raise AddressError(problem)
        yield


def _stat_local(path: str) -> os.stat_result:
    """Return what the system tells of a local file; whoever reads one asks it first.

    Raises: OSError if it is not there, and of a pipe or a device, which would be read for ever; a
        folder says so itself as it is opened.
    """
    status = os.stat(path)  # noqa: PTH116 (a million of them)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "not a regular file")
    return status


def _is_empty(status: os.stat_result) -> bool:
    """Return whether a file holds nothing, and is not to be opened.

    The files that a kernel makes up (/proc/kmsg) have no size either, and some are read for ever.
    """
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def open_table(uri: str) -> Any:
    """Return a manifest file open for reading: a local path stays one, for Arrow to map.

    Raises: OSError if its place is wrong or out of reach.
    """
    if local_path(uri) is not None:
        return local_path(uri)
    with reaching(uri):
        if is_web(uri) and not uri.lower().endswith(".parquet"):
            return pa.BufferReader(read_remote(uri))
        filesystem, path = filesystem_of(uri)
        return filesystem.open_input_file(path)


def read_table_bytes(uri: str) -> bytes:
    """Return a manifest file's bytes, wherever it lies. Raises: OSError."""
    source = open_table(uri)
    if isinstance(source, str):
        return Path(source).read_bytes()
    with source:
        return source.read()


def _read_inline(uri: str) -> bytes:
    match = _INLINE.match(uri)
    assert match is not None
    path, row = match["path"], int(match["row"])
    if local_path(path) is None:
        return in_time(lambda: _read_row(path, row))
    return _read_row(path, row)


def _read_row(path: str, row: int) -> bytes:
    group, first = _group_of(path, row)
    with pq.ParquetFile(open_table(path)) as file:
        offset = row - first
        for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[IMAGE_COLUMN]):
            if offset < batch.num_rows:
                data = photo_bytes(batch.column(0)[offset])
                if data is None:
                    break
                return data
            offset -= batch.num_rows
    raise FileNotFoundError(f"row {row} of {path} holds no photo")


def photo_bytes(value: pa.Scalar) -> bytes | None:
    """Return the bytes of one value of an `image` column: plain bytes, or struct<bytes, path>."""
    held: Any = value.as_py()
    return held.get("bytes") if isinstance(held, dict) else held


@lru_cache(maxsize=16)
def _row_groups(path: str, mtime_ns: int) -> tuple[int, ...]:
    del mtime_ns  # part of the cache's key only
    metadata = pq.read_metadata(open_table(path))
    return tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))


def _version(path: str) -> int:
    """Return the time at which a manifest was written, ns since 1970."""
    if (local := local_path(path)) is not None:
        return _stat_local(local).st_mtime_ns
    filesystem, name = filesystem_of(path)
    return filesystem.get_file_info(name).mtime_ns or 0


def _group_of(path: str, row: int) -> tuple[int, int]:
    """Return the row group that holds `row`, and that group's first row."""
    first = 0
    for group, rows in enumerate(_row_groups(path, _version(path))):
        if row < first + rows:
            return group, first
        first += rows
    raise FileNotFoundError(f"{path} has {first} rows; row {row} is asked for")
