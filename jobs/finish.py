"""`--on-finish`: tell a command or a web address how a run ended. It never changes how it ended."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from jobs.exits import UsageError
from jobs.submitted import counts as counts_of
from pipeline.history import past_runs
from pipeline.run import RunSummary

COMMAND_SECONDS = 600.0
URL_SECONDS = 10.0
_RETRY_AFTER_SECONDS = 2.0

_ENDS = {
    0: "done", 3: "rows failed", 4: "breaker", 5: "already running", 6: "environment",
    7: "disk full", 8: "gpu-hours bound", 130: "signal", 143: "signal",
}  # fmt: skip


def check_target(target: str | None) -> None:
    """Raise UsageError for what can be neither called nor run."""
    if target is None:
        return
    try:
        words = shlex.split(target)
        if words and not _is_url(target):
            return
        url = urlsplit(target)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        good, words = False, []
    if not good or len(words) != 1:
        raise UsageError(
            "--on-finish takes a command line, or one http:// or https:// address; "
            "what it was given is neither."
        )


def counts_only(summary: RunSummary) -> dict[str, Any]:
    """Return what may leave the machine: numbers, the run's id, the version; no path, no name."""
    from pipeline.spec import version

    return {
        "event": "finished",
        "run_id": summary.run_id,
        "version": version(),
        "exit_code": summary.exit_code,
        "end": _ENDS.get(summary.exit_code, "error"),
        "seconds": round(summary.seconds, 3),
        "computed": summary.computed,
        "copied": summary.copied,
        "rows": dict(summary.statuses),
        "counts": dict(summary.counts),
    }


def summary_of(out: str, exit_code: int) -> RunSummary:
    """Return the summary of a folder's last run, from what it left there: one that ran elsewhere.

    A run that ended before it made the folder, as in an environment that cannot be had, has none.
    """
    counts = counts_of(out)
    runs = [] if counts is None else past_runs(out, 1)
    if not runs:
        return RunSummary(out, "", counts or {}, exit_code=exit_code)
    run = runs[0]
    return RunSummary(
        out, run.run_id, counts or {}, computed=run.computed, copied=run.copied, statuses=run.rows,
        seconds=run.seconds or 0.0, exit_code=exit_code, stopped_by=run.stopped_by,
    )  # fmt: skip


def tell(target: str, summary: RunSummary, report: str | None = None) -> str | None:
    """Call the address or run the command; return None, or one line on why that did not work.

    An address gets `counts_only` as a POST, twice if need be. A command gets the same and the
    paths (`out`, `report`, `stopped_by`) on its standard input, once.
    """
    facts = counts_only(summary)
    if _is_url(target):
        return _post(target, facts)
    facts |= {"out": summary.out, "report": report, "stopped_by": summary.stopped_by}
    return _run(target, facts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The address given is called and no other: it may be trusted where another is not."""

    def redirect_request(self, *arguments: Any, **options: Any) -> None:  # noqa: ARG002
        return None


def _post(target: str, facts: Mapping[str, Any]) -> str | None:
    problem = ""
    for attempt in range(2):
        if attempt:
            time.sleep(_RETRY_AFTER_SECONDS)
        try:
            request = urllib.request.Request(
                target,
                data=json.dumps(facts).encode(),
                headers={"Content-Type": "application/json", "User-Agent": "doodl-batch"},
                method="POST",
            )
            opener = urllib.request.build_opener(_NoRedirect)
            with opener.open(request, timeout=URL_SECONDS):
                return None
        except urllib.error.HTTPError as error:
            problem = f"it answered {error.code}"
            error.close()
        except (OSError, ValueError, HTTPException) as error:  # the network, the name, TLS
            reason = getattr(error, "reason", error)
            problem = type(reason).__name__ if target in str(reason) else str(reason)
    # Of the address only the host: the rest may hold a token.
    return f"--on-finish {urlsplit(target).hostname}: {problem}, twice; the run itself stands"


def _run(target: str, facts: Mapping[str, Any]) -> str | None:
    words = shlex.split(target)
    try:
        done = subprocess.run(
            words,
            input=json.dumps(facts, ensure_ascii=True).encode() + b"\n",
            # The run's own output may be JSON for a program: the command's goes beside it.
            stdout=2,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"--on-finish {words[0]}: no end after {COMMAND_SECONDS:g} s, so it was killed"
    except (OSError, ValueError) as error:
        return f"--on-finish {words[0]}: {error}; the run itself stands"
    if done.returncode != 0:
        return f"--on-finish {words[0]}: exit {done.returncode}; the run itself stands"
    return None


def _is_url(target: str) -> bool:
    return "://" in (target.split(maxsplit=1) or [""])[0]
