"""The job last submitted for an output folder: its record, its cluster, its words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import exits
from manifests.commits import OutputFolder
from manifests.errors import ManifestError
from manifests.submissions import Submission, attempt_of, read_submissions
from pipeline.collection import OutputView
from pipeline.preflight import find_cluster

if TYPE_CHECKING:
    from pipeline.submission import JobServer, JobState


def last_submission(out: Path | str) -> Submission | None:
    """Return the record of the newest submission, None if a cluster was never given any."""
    submissions = read_submissions(OutputFolder(str(out)).storage)
    return submissions[-1] if submissions else None


def job_server(submission: Submission, address: str | None) -> JobServer:
    """Return the job server that a submission went to, or that of an address given anew.

    Raises: UsageError; ClusterError if it does not answer within three seconds.
    """
    named = address or submission.address
    with exits.usage_errors():
        cluster = find_cluster(
            named,
            check_versions=False,
            with_token=address is not None or named == os.environ.get("RAY_ADDRESS"),
        )
    from pipeline.submission import JobServer

    return JobServer(cluster)


def facts(state: JobState) -> dict[str, Any]:
    """Return what the cluster says of a job, for programs."""
    return {
        "submission_id": state.submission_id,
        "attempt": attempt_of(state.submission_id),
        "ray_status": state.status,
        "exit_code": state.exit_code,
        "message": last_line(state.message),
    }


def counts(out: str) -> dict[str, int] | None:
    """Return how a folder stands, None if no run has begun on it."""
    try:
        return OutputView(out).counts()
    except ManifestError:
        return None


def last_line(text: str) -> str:
    """Return a message's last line, where Ray puts the reason."""
    return (text.strip().splitlines() or [""])[-1][:300]


class JobLines:
    """A job's log as lines, without those that Ray puts before the program's own."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._rest, self._begun = show, "", False

    def __call__(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def end(self) -> None:
        """Show what has no line end."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""

    def _line(self, line: str) -> None:
        if not self._begun and "Runtime env is setting up" in line:
            return
        if not self._begun and line.startswith("Running entrypoint for job "):
            self._begun = True
            return
        self._show(line)
