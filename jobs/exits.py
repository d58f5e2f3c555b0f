"""Exit codes that a scheduler can use, and how errors become them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from socket import gaierror
from zoneinfo import ZoneInfoNotFoundError

OK = 0
INTERNAL = 1
USAGE = 2
ROWS_FAILED = 3
BREAKER = 4
ALREADY_RUNNING = 5
ENVIRONMENT = 6
DISK_FULL = 7
GPU_HOURS_BOUND = 8
SIGINT = 130
SIGTERM = 143

_STORE = re.compile("AWS Error|google::cloud::Status|Couldn't resolve host|HTTP response")
_NO_THREADS = re.compile("can't start new thread|Failed to launch worker thread")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNFIT = (
    errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ESTALE,
)  # fmt: skip


class UsageError(Exception):
    """What was typed makes no sense: an option's value, a path that is not there."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn the errors of building a job from options into UsageError.

    Any other ValueError is a fault of ours (or of a library's), not of the person who typed.
    """
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OverflowError as error:
        raise UsageError(f"an option's value is out of range: {error}.") from error


def exit_code_of(error: BaseException) -> int | None:
    """Return the exit code of an expected error, None if it is none of ours.

    Imported errors are looked up by what is loaded, so that `--help` imports no stage.
    """
    from doodl.errors import DoodlError, ModelError
    from manifests.errors import (
        LeaseLostError,
        ManifestError,
        OutputLockedError,
        UnreadableFileError,
    )
    from pipeline.errors import PipelineError

    if isinstance(error, PipelineError):
        return error.exit_code
    if isinstance(error, OutputLockedError):
        # One that hangs would be skipped every night, and no scheduler would notice.
        return OK if error.if_running == "skip" and not error.hangs else ALREADY_RUNNING
    if isinstance(error, LeaseLostError):
        return ALREADY_RUNNING
    if isinstance(error, (ModelError, UnreadableFileError)):
        return ENVIRONMENT
    if isinstance(error, (UsageError, ManifestError, DoodlError)):
        return USAGE
    # Of the machine, all: no memory left, no time zone database, no thread to be had; Python's and
    # Arrow's errors of the last have no class of their own.
    if isinstance(error, (MemoryError, ZoneInfoNotFoundError)) or _NO_THREADS.search(str(error)):
        return ENVIRONMENT
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return DISK_FULL
        # A store that does not answer; Arrow's errors have no errno, and no class of their own.
        if isinstance(error, (ConnectionError, TimeoutError, gaierror)) or _STORE.search(
            str(error)
        ):
            return ENVIRONMENT
        unfit = (PermissionError, FileNotFoundError, NotADirectoryError)  # errno may be missing
        if error.errno in _UNFIT or isinstance(error, unfit):
            return ENVIRONMENT
    return None
