"""`personalize`: pictures of a subject known from photos; the run is `generate`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import exits
from jobs.generate import run_generate


def run_personalize(
    manifest: Path | None,
    out: Path | None,
    subjects: list[Path],
    options: dict[str, Any],
    choice: dict[str, Any],
    *,
    dry_run: bool,
    report: bool,
    as_json: bool,
) -> int:
    """Run the job (or say what it would do), print its summary and return its exit code.

    A subject photo that is missing or broken is the error of each row that needs it.
    """
    if manifest is None and not subjects:
        raise exits.UsageError("no subject: give --subject PHOTO, once for each photo of it.")
    options = {**options, "subjects": [str(path) for path in subjects]}
    return run_generate(
        "personalize", manifest, out, options, choice,
        dry_run=dry_run, report=report, as_json=as_json,
    )  # fmt: skip
