"""Reading a file of ours: whether it is damaged, or only cannot be read now.

What is damaged is set aside and done again, so nothing else may be taken for damage: a mount that
has gone stale, too many open files, a disk or a store that does not answer, memory or threads that
are short, an Arrow that was built without a codec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from zoneinfo import ZoneInfoNotFoundError

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import UnreadableFileError
from manifests.storage import Storage

_Parsed = TypeVar("_Parsed")


class DamagedFileError(Exception):
    """A file's bytes are not what we wrote."""


def parsed(storage: Storage, path: str, parse: Callable[[Any], _Parsed]) -> _Parsed:
    """Return what `parse` makes of a file, given it open for reading.

    Damage is what fails on the file's bytes once they have been read whole: Arrow's own errors
    do not tell a Parquet file that is cut short from a disk that does not answer.

    Raises: DamagedFileError; OSError as the storage does (FileNotFoundError if there is no such
        file); UnreadableFileError for what Arrow cannot do here, which says nothing of the file;
        whatever else `parse` raises.
    """
    try:
        return _parsed(storage, path, parse)
    except (pa.ArrowException, RuntimeError) as error:
        # No memory, no time zones: told apart by their own classes.
        if isinstance(error, (MemoryError, ValueError)):
            raise
        raise UnreadableFileError(
            f"{storage.uri}/{path} cannot be read here ({_first_line(error)}); it is left as it "
            "is: run again when this machine can"
        ) from error


def _parsed(storage: Storage, path: str, parse: Callable[[Any], _Parsed]) -> _Parsed:
    try:
        return parse(storage.open(path))
    except Exception as error:
        if not (isinstance(error, OSError) or _is_damage(error)):
            raise
    data = storage.read(path)
    try:
        return parse(pa.BufferReader(data))
    except Exception as error:
        if not _is_damage(error):
            raise
        raise DamagedFileError(_first_line(error)) from error


def open_parquet(source: Any) -> pq.ParquetFile:
    """Return a Parquet file that this thread alone reads, where `use_threads` is False too.

    Arrow's pools start threads at the first read, which a machine that is short of them refuses,
    and which, short of memory, Arrow waits for for ever. A store's files are fetched ahead all the
    same: else each column is a request.
    """
    is_near = isinstance(source, (pa.OSFile, pa.BufferReader))
    return pq.ParquetFile(source, pre_buffer=not is_near)


def read_table(source: Any, columns: list[str] | None = None) -> pa.Table:
    """Return a Parquet file's rows, all or some of its columns, read by this thread alone."""
    with open_parquet(source) as file:
        return file.read(columns=columns, use_threads=False)


def _is_damage(error: Exception) -> bool:
    """Return whether an error of parsing bytes is of the bytes."""
    if isinstance(error, (MemoryError, ZoneInfoNotFoundError)):
        return False
    if isinstance(error, OSError):
        return error.errno is None  # Arrow's, of a file that is cut short or corrupt
    # Arrow has no classes of their own for these: what it lacks, and what no Arrow could read.
    if isinstance(error, pa.ArrowNotImplementedError):
        return "not built" not in str(error)
    if isinstance(error, pa.ArrowInvalid) and (
        "timezone" in str(error) or "zoneinfo" in str(error)
    ):
        return False
    return isinstance(error, (pa.ArrowTypeError, KeyError, ValueError, RecursionError))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
