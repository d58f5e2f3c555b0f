"""`status`: what an output folder holds, read from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import console, exits
from pipeline.collection import OutputView


def show_status(out: Path, *, as_json: bool) -> int:
    """Print counts by state and return an exit code: 0, or 3 if rows failed or are pending.

    A folder whose first run has made no plan yet counts as pending.
    """
    view = OutputView(str(out))
    counts, running = view.counts(), view.running()
    facts = view.job_facts()
    if as_json:
        console.print_json({"out": str(out), "job": facts, "counts": counts, "running": running})
    else:
        console.print_facts(
            str(out),
            {**{k: v for k, v in facts.items() if v is not None}, **(counts or {})},
        )
        if counts is None:
            console.result("  nothing is planned yet: the first run has not read its photos")
        console.result(f"  {_who(running)}")
    if counts is None or counts["failed"] or counts["pending"]:
        return exits.ROWS_FAILED
    return exits.OK


def _who(running: dict[str, Any] | None) -> str:
    if running is None:
        return "no run is at work on it"
    holder = f"pid {running['pid']} on {running['host']}, started {running['started_at']}"
    if running["alive"]:
        return f"a run is at work on it ({holder})"
    return f"a run may be at work on it ({holder}): whether it still lives is only seen there"
