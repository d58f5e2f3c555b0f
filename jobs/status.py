"""`status`: what an output folder holds, read from its files alone."""

from __future__ import annotations

from pathlib import Path

from jobs import console, exits
from pipeline.collection import OutputView


def show_status(out: Path, *, as_json: bool) -> int:
    """Print counts by state and return an exit code: 0, or 3 if rows failed or are pending."""
    view = OutputView(str(out.absolute()))
    counts, running = view.counts(), view.running()
    facts = view.job_facts()
    if as_json:
        console.print_json({"out": str(out), "job": facts, "counts": counts, "running": running})
    else:
        console.print_facts(
            str(out),
            {**{k: v for k, v in facts.items() if v is not None}, **counts},
        )
        console.out.print(
            f"  a run is at work on it ({running})" if running else "  no run is at work on it",
            markup=False,
        )
    return exits.ROWS_FAILED if counts["failed"] or counts["pending"] else exits.OK
