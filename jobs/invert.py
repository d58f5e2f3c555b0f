"""`invert`: photos to latents files, and latents files to photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.enhance import build_choice, build_spec, run_spec
from jobs.plan import print_plan
from jobs.submit import Where, find_place


def run_invert(
    photos: Path,
    out: Path | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    *,
    back: bool,
    dry_run: bool,
    report: bool,
    as_json: bool,
) -> int:
    """Run the job (or say what it would do), print its summary and return its exit code."""
    where = Where(options.pop("runner"))
    place = find_place(where)
    spec, why = build_spec(photos, out, {**options, "task": "invert", "back": back}, place)
    chosen = build_choice(choice)
    if dry_run:
        return print_plan(spec, chosen, why, as_json=as_json)
    lines = [why, place.why]
    return run_spec(spec, chosen, lines, place, where, report=report, as_json=as_json)
