"""`logs`: what the job says that was last submitted for an output folder."""

from __future__ import annotations

from pathlib import Path

from jobs import console, exits
from jobs.submitted import JobLines, job_server, last_submission
from pipeline.preflight import ClusterError


def show_logs(out: Path, address: str | None, *, follow: bool) -> int:
    """Print the job's log; with `follow` until it ends, and return its exit code then.

    Raises: UsageError if no job was submitted; ClusterError if its cluster is gone.
    """
    submission = last_submission(out)
    if submission is None:
        raise exits.UsageError(f"no job was submitted to a cluster for {out}; there are no logs.")
    server = job_server(submission, address)
    lines = JobLines(console.result)
    if follow:
        try:
            state = server.follow(submission.submission_id, lines, console.say)
        except KeyboardInterrupt:
            console.say(f"{submission.submission_id} goes on without this terminal")
            return exits.SIGINT
        lines.end()
        console.say(f"{state.submission_id} {state.status.lower()}")
        return state.outcome
    if server.state(submission.submission_id) is None:
        raise unknown_job(submission.submission_id, server.cluster.url)
    lines(server.logs(submission.submission_id))
    lines.end()
    return exits.OK


def unknown_job(submission_id: str, url: str) -> ClusterError:
    """Return the error of a cluster that has been started anew since the job was submitted."""
    return ClusterError(
        "address",
        f"the cluster at {url} knows no job {submission_id}; it was started anew since, and a "
        "cluster keeps its jobs' logs no longer than itself.",
    )
