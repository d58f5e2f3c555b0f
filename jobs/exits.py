"""Exit codes that a scheduler can use, and how errors become them."""

from __future__ import annotations

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


def exit_code_of(error: BaseException) -> int | None:
    """Return the exit code of an expected error, None if it is none of ours.

    Imported errors are looked up by what is loaded, so that `--help` imports no stage.
    """
    from doodl.errors import DoodlError, ModelError
    from manifests.errors import ManifestError, OutputLockedError
    from pipeline.errors import PipelineError

    if isinstance(error, PipelineError):
        return error.exit_code
    if isinstance(error, OutputLockedError):
        return OK if error.if_running == "skip" else ALREADY_RUNNING
    if isinstance(error, ModelError):
        return ENVIRONMENT
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return DISK_FULL
    if isinstance(error, (ManifestError, DoodlError, ValueError)):
        return USAGE
    if isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
        return ENVIRONMENT
    return None
