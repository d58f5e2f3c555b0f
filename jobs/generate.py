"""`generate`: pictures of prompts, from options to a run. `personalize` differs in its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import exits
from jobs.enhance import build_choice, build_spec, run_spec
from jobs.plan import print_plan
from jobs.submit import Where, find_place


def run_generate(
    task: str,
    manifest: Path | None,
    out: Path | None,
    options: dict[str, Any],
    choice: dict[str, Any],
    *,
    dry_run: bool,
    report: bool,
    as_json: bool,
) -> int:
    """Run the job (or say what it would do), print its summary and return its exit code."""
    if (manifest is None) == (not options["prompts"]):
        raise exits.UsageError(
            "give either --prompt (repeatable) or a manifest of prompts (.csv, .jsonl, .parquet)."
        )
    width_px, height_px = parse_size(options.pop("size"))
    options = {**options, "task": task, "width_px": width_px, "height_px": height_px}
    where = Where(options.pop("runner"))
    place = find_place(where)
    spec, why = build_spec(manifest, out, options, place)
    chosen = build_choice(choice)
    if dry_run:
        return print_plan(spec, chosen, why, as_json=as_json)
    lines = [why, place.why]
    return run_spec(spec, chosen, lines, place, where, report=report, as_json=as_json)


def parse_size(text: str | None) -> tuple[int, int]:
    """Return (width, height) px of `512` or `768x512`; (0, 0), the recipe's own, of None.

    Raises: UsageError on anything else.
    """
    if text is None:
        return 0, 0
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise exits.UsageError(f"--size {text!r} must be one side or WIDTHxHEIGHT, as in 768x512.")
    if not all(0 < len(side) < 7 and int(side) for side in sides):
        raise exits.UsageError(f"--size {text!r} is no size; try 512 or 768x512.")
    return int(sides[0]), int(sides[-1])
