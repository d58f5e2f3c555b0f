"""Errors of a run as a whole; a row's error is a row."""

from __future__ import annotations


class PipelineError(Exception):
    """Base of what stops a run. `exit_code` is what a scheduler sees."""

    exit_code = 1


class UnusableEnvironmentError(PipelineError):
    """The machine or the cluster lacks what the job needs: dead address, missing model."""

    exit_code = 6


class DiskFullError(PipelineError):
    """The output's file system is full; what is committed stays, a rerun completes the rest."""

    exit_code = 7


class BreakerTrippedError(PipelineError):
    """Row after row failed and none succeeded, so the fault is the job's and not the photos'."""

    exit_code = 4


class PhotoChangedError(PipelineError):
    """A photo is not the one the plan hashed: its result would carry the wrong input_key."""
