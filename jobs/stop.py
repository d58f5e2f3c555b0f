"""`stop`: the run at work on an output folder ends in order, wherever it is."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from jobs import console, exits
from jobs.submit import STOP_MARGIN_SECONDS
from jobs.submitted import counts, facts, job_server, last_submission
from manifests.errors import ManifestError
from pipeline.collection import OutputView

_POLL_SECONDS = 0.2
# Longer than any grace that was asked for: after it the run is left to its own end.
_TIMEOUT_SECONDS = 600.0


def stop_run(out: Path, address: str | None, *, as_json: bool) -> int:
    """Stop the submitted job if one runs, else the run on this machine; say what is committed.

    Raises: UsageError; ClusterError if the job's cluster does not answer.
    """
    submission = last_submission(out)
    stopped: dict[str, Any] | None = None
    if submission is not None:
        server = job_server(submission, address)
        state = server.state(submission.submission_id)
        if state is not None and not state.ended:
            console.say(f"stopping {state.submission_id}: photos in work may finish")
            state = server.stop(submission.submission_id, _TIMEOUT_SECONDS + STOP_MARGIN_SECONDS)
            stopped = None if state is None else facts(state)
            if state is not None and not state.ended:
                console.error(f"{state.submission_id} has not ended yet", "look again with status")
                return exits.INTERNAL
    if stopped is None:
        stopped = _stop_here(out)
    standing = counts(str(out))
    if as_json:
        console.print_json({"out": str(out), "stopped": stopped, "counts": standing})
        return exits.OK
    console.say("stopped" if stopped else "no run is at work on it")
    if standing is not None:
        committed = sum(n for state, n in standing.items() if state != "pending")
        console.result(f"{committed:,} photos are committed, {standing['pending']:,} are pending")
    return exits.OK


def _stop_here(out: Path) -> dict[str, Any] | None:
    """Ask this machine's run to end, and wait for it; None if there is none."""
    try:
        running = OutputView(str(out)).running()
    except ManifestError:
        return None
    if running is None or not running["alive"]:
        if running is not None:
            raise exits.UsageError(
                f"the run on {running['host']} (pid {running['pid']}) can be stopped there only."
            )
        return None
    pid = int(running["pid"])
    # The number is from a file, and numbers are given again: only a run of ours is signalled.
    if running["host"] != socket.gethostname() or not _is_ours(pid):
        raise exits.UsageError(
            f"pid {pid} is not plainly a run of doodl-batch; if it is, stop it with: kill {pid}"
        )
    console.say(f"stopping the run of pid {pid}: photos in work may finish")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while OutputView(str(out)).running() is not None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return {"pid": pid, "host": running["host"]}


def _is_ours(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    names = {os.path.basename(part) for part in command[:3]}  # noqa: PTH119 (bytes)
    return bool(names & {b"doodl-batch", b"jobs.cli"})
