"""`restrength`: an output folder's edits at another strength, nothing optimised again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jobs import console, exits
from pipeline.restrength import count_edits, default_folder, restrength_edits


def run_restrength(
    out: Path, strength: float, detail: float, to: Path | None, *, as_json: bool
) -> int:
    """Write the photos, print where to, and return 3 if one could not be made."""
    for name, value in (("strength", strength), ("detail", detail)):
        if not 0 <= value <= 1:
            raise exits.UsageError(f"--{name} (={value:g}) must be in [0, 1].")
    folder = str(to) if to is not None else default_folder(str(out), strength, detail)
    results = []
    with console.RunProgress(quiet=as_json) as progress:
        progress.start(count_edits(str(out)))
        for done in restrength_edits(str(out), folder, strength, detail=detail):
            results.append(done)
            progress.row(done.row_id, "failed" if done.error else "ok", done.error)
    failed = sum(done.error is not None for done in results)
    if as_json:
        console.print_json({"out": folder, "photos": [asdict(done) for done in results]})
    else:
        console.say(f"{len(results) - failed:,} photos at strength {strength:g}, {failed:,} failed")
        console.result(f"photos: {folder}")
    return exits.ROWS_FAILED if failed else exits.OK
