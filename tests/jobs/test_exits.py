"""Which errors a scheduler tells apart, and by which number."""

import errno
from zoneinfo import ZoneInfoNotFoundError

import pyarrow as pa
import pytest

from doodl.errors import ModelError
from jobs import exits
from manifests.errors import ManifestError, OutputLockedError, UnreadableFileError
from pipeline.errors import BreakerTrippedError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exits.UsageError("x"), exits.USAGE),
        (ManifestError("x"), exits.USAGE),
        (ValueError("ours"), None),
        (pa.ArrowInvalid("a library's"), None),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), None),
        (OSError(errno.ENOSPC, "x"), exits.DISK_FULL),
        (OSError(errno.EDQUOT, "x"), exits.DISK_FULL),
        (OSError(errno.EFBIG, "x"), exits.DISK_FULL),
        (OSError(errno.EIO, "x"), exits.ENVIRONMENT),
        (OSError(errno.EROFS, "x"), exits.ENVIRONMENT),
        (PermissionError(errno.EACCES, "x"), exits.ENVIRONMENT),
        (PermissionError("without a number"), exits.ENVIRONMENT),
        (OSError(errno.EMFILE, "x"), None),
        (OSError(errno.ESTALE, "x"), exits.ENVIRONMENT),
        (MemoryError(), exits.ENVIRONMENT),
        (pa.ArrowMemoryError("x"), exits.ENVIRONMENT),
        (ZoneInfoNotFoundError("x"), exits.ENVIRONMENT),
        (RuntimeError("can't start new thread"), exits.ENVIRONMENT),
        (
            pa.ArrowException("Unknown error: Failed to launch worker thread: x"),
            exits.ENVIRONMENT,
        ),
        (UnreadableFileError("x"), exits.ENVIRONMENT),
        (RuntimeError("ours"), None),
        (pa.ArrowNotImplementedError("a cast of ours"), None),
        (ModelError("x"), exits.ENVIRONMENT),
        (BreakerTrippedError("x"), exits.BREAKER),
        (OutputLockedError("x", {}, "skip"), exits.OK),
        (OutputLockedError("x", {}, "skip", hangs=True), exits.ALREADY_RUNNING),
        (OutputLockedError("x", {}, "fail"), exits.ALREADY_RUNNING),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert exits.exit_code_of(error) == code


@pytest.mark.parametrize("error", [ValueError("strength (=3)"), OverflowError("strength (=3)")])
def test_an_error_of_building_the_job_is_a_usage_error(error):
    with pytest.raises(exits.UsageError, match="strength"), exits.usage_errors():
        raise error
