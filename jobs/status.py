"""`status`: what an output folder holds, read from its files alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.submitted import facts, job_server, last_submission
from pipeline.collection import OutputView
from pipeline.preflight import ClusterError


def show_status(out: Path | str, address: str | None = None, *, as_json: bool) -> int:
    """Print counts by state and return an exit code: 0, or 3 if rows failed or are pending.

    A folder whose first run has made no plan yet counts as pending. What its cluster says of a
    submitted job is told too; all else is in the files, and needs no cluster.
    """
    submitted = _submitted(out, address)
    if submitted is not None and not as_json:
        console.result(f"submitted as {submitted['submission_id']}: {_told(submitted)}")
    view = OutputView(str(out))
    counts, running = view.counts(), view.running()
    job = view.job_facts()
    failures = view.failures()
    if as_json:
        console.print_json({"out": str(out), "job": job, "counts": counts, "failures": failures,
             "running": running, "submission": submitted}
        )  # fmt: skip
    else:
        console.print_facts(
            str(out),
            {**{k: v for k, v in job.items() if v is not None}, **(counts or {})},
        )
        if counts is None:
            console.result("  nothing is planned yet: the first run has not read its photos")
        for kind, number in failures.items():
            console.result(f"  failed with {kind}: {number:,}")
        console.result(f"  {_who(running)}")
        if failures:
            quoted = shlex.quote(str(out))
            console.say(f"hint: doodl-batch retry {quoted} --failed (or --class CLASS)")
    if counts is None or counts["failed"] or counts["pending"]:
        return exits.ROWS_FAILED
    return exits.OK


def _submitted(out: Path | str, address: str | None) -> dict[str, Any] | None:
    """Return what is known of the job last submitted; None if none ever was."""
    submission = last_submission(out)
    if submission is None:
        return None
    known = {
        "submission_id": submission.submission_id,
        "attempt": submission.attempt,
        "address": submission.address,
        "submitted_at": submission.submitted_at,
    }
    try:
        server = job_server(submission, address)
        state = server.state(submission.submission_id)
    except ClusterError as error:
        return {**known, "ray_status": None, "problem": str(error)}
    if state is None:
        return {**known, "ray_status": None, "problem": "the cluster was started anew since"}
    return {**known, **facts(state)}


def _told(submitted: dict[str, Any]) -> str:
    if submitted["ray_status"] is None:
        return str(submitted["problem"])
    code = submitted["exit_code"]
    ended = "" if code is None else f", exit code {code}"
    return f"{submitted['ray_status'].lower()} on {submitted['address']}{ended}"


def _who(running: dict[str, Any] | None) -> str:
    if running is None:
        return "no run is at work on it"
    holder = f"pid {running['pid']} on {running['host']}, started {running['started_at']}"
    if running["alive"]:
        return f"a run is at work on it ({holder})"
    return f"a run may be at work on it ({holder}): whether it still lives is only seen there"
