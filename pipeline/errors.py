"""Errors of a run as a whole; a row's error is a row."""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PipelineError(Exception):
    """Base of what stops a run. `exit_code` is what a scheduler sees."""

    exit_code = 1


class UnusableEnvironmentError(PipelineError):
    """The machine or the cluster lacks what the job needs: dead address, missing model."""

    exit_code = 6


class OutputUnwritableError(PipelineError):
    """The output folder does not take or give what is asked of it: no photo is at fault."""

    exit_code = 6


class DiskFullError(PipelineError):
    """The output's file system is full; what is committed stays, a rerun completes the rest."""

    exit_code = 7


class BreakerTrippedError(PipelineError):
    """Row after row failed and none succeeded, so the fault is the job's and not the photos'."""

    exit_code = 4


class PhotoChangedError(PipelineError):
    """A photo is not the one the plan hashed: its result would carry the wrong input_key."""


def output_error(error: OSError) -> PipelineError:
    """Return what a failed write or read of the output folder means for the run."""
    if error.errno in _FULL:
        return DiskFullError(f"disk full: {error}; free some space and run again.")
    return OutputUnwritableError(f"the output folder cannot be written or read: {error}.")
