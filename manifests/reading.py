"""Reading a file of ours: whether it is damaged, or only cannot be read now.

What is damaged is set aside and done again, so nothing else may be taken for damage: a mount that
has gone stale, too many open files, a disk or a store that does not answer, memory that is short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from zoneinfo import ZoneInfoNotFoundError

import pyarrow as pa

from manifests.storage import Storage

_Parsed = TypeVar("_Parsed")


class DamagedFileError(Exception):
    """A file's bytes are not what we wrote."""


def parsed(storage: Storage, path: str, parse: Callable[[Any], _Parsed]) -> _Parsed:
    """Return what `parse` makes of a file, given it open for reading.

    Damage is what fails on the file's bytes once they have been read whole: Arrow's own errors
    do not tell a Parquet file that is cut short from a disk that does not answer.

    Raises: DamagedFileError; OSError as the storage does (FileNotFoundError if there is no such
        file); whatever else `parse` raises that says nothing of the file.
    """
    try:
        return parse(storage.open(path))
    except Exception as error:
        if not _may_be_damage(error):
            raise
    data = storage.read(path)
    try:
        return parse(pa.BufferReader(data))
    except Exception as error:
        if not _may_be_damage(error):
            raise
        raise DamagedFileError(str(error).partition("\n")[0] or type(error).__name__) from error


def _may_be_damage(error: Exception) -> bool:
    if isinstance(error, (MemoryError, ZoneInfoNotFoundError)):
        return False
    # Arrow says so in two ways, and by no class of their own.
    if isinstance(error, pa.ArrowInvalid) and (
        "timezone" in str(error) or "zoneinfo" in str(error)
    ):
        return False
    return isinstance(error, (pa.ArrowException, OSError, KeyError, ValueError))
