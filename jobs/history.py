"""`history`: a collection's runs, night by night."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jobs import console, exits
from jobs.plan import duration
from pipeline.history import PastRun, past_runs, started


def show_history(out: Path, limit: int, *, as_json: bool) -> int:
    """Print an output folder's runs, newest first, and return an exit code."""
    runs = past_runs(str(out), limit)
    if as_json:
        console.print_json([asdict(run) for run in runs])
        return exits.OK
    if not runs:
        console.say("no run has been made yet")
        return exits.OK
    columns = ("started", "took", "computed", "failed", "copied", "exit", "version", "note")
    console.print_table(str(out), columns, [_line(run) for run in runs])
    return exits.OK


def _line(run: PastRun) -> tuple[object, ...]:
    begun = started(run)
    return (
        run.run_id if begun is None else f"{begun:%Y-%m-%d %H:%M}",
        None if run.seconds is None else duration(run.seconds),
        run.computed,
        run.rows.get("failed", 0),
        run.copied,
        run.exit_code,
        run.version,
        run.stopped_by or ("" if run.state == "finished" else run.state),
    )
