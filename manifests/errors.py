"""What can go wrong between a manifest and its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ManifestError(Exception):
    """A manifest, a result table or an output folder is not as it must be."""


class AddressError(OSError):
    """What an address names cannot be had, tomorrow as little as today.

    It is wrong as written, or its place answers that there is nothing, or nothing for us.
    """


class OutOfReachError(AddressError):
    """An address's place did not answer, or not to the end: another night may go better."""


class UnreadableFileError(OSError):
    """This machine cannot read a file of ours, which may well be whole: it lacks threads, say."""


class JobConflictError(ManifestError):
    """The output folder belongs to a job with other result-changing options.

    Attributes:
        differences: {option: (value in the folder's job, value asked for now)}; empty when the
            folder is refused because it holds something that is not ours.
    """

    def __init__(self, message: str, differences: Mapping[str, tuple[Any, Any]] | None = None):
        super().__init__(message)
        self.differences = dict(differences or {})


class OriginalError(ManifestError):
    """What would be written could be somebody's original: nothing is, and the place is named."""


class LinkedOutputError(OriginalError):
    """A link leads out of the output folder."""


class OutputLockedError(ManifestError):
    """Another driver runs on this output folder.

    Attributes:
        holder: what the other driver wrote about itself (pid, host, started_at, heartbeat_at), {}
            if unknown.
        if_running: the policy under which we gave up: "fail", "skip" or "wait".
        hangs: it has given no sign of life for longer than it may.
    """

    def __init__(
        self, message: str, holder: Mapping[str, Any], if_running: str, *, hangs: bool = False
    ):
        super().__init__(message)
        self.holder = dict(holder)
        self.if_running = if_running
        self.hangs = hangs


class LeaseLostError(ManifestError):
    """This driver has lost its output's lease to another, or may have: it must write no more."""


class CommitError(ManifestError):
    """A commit was asked for that the protocol does not allow."""


class OutputCorruptError(ManifestError):
    """A file in the output folder cannot be what we wrote: it is named, with the way out."""
