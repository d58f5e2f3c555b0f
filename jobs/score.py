"""`score`: the guide's and the judge's scores of photos, nothing edited."""

from __future__ import annotations

from pathlib import Path

from jobs import console, exits
from pipeline.models import resolve_model
from pipeline.scoring import score_photos


def show_scores(photos: Path, model: str, *, as_json: bool) -> int:
    """Print a line per photo as it is scored; return 3 if one could not be."""
    model, _ = resolve_model(model)
    records = []
    failed = 0
    if not as_json:
        console.result(f"{'guide':>6} {'judge':>6}  photo")
    for scored in score_photos(str(photos), model):
        failed += scored.error is not None
        if as_json:
            records.append(scored.__dict__)
        elif scored.error is not None:
            console.error(f"{scored.row_id}: {scored.error}")
        else:
            console.result(f"{scored.guide_score:6.2f} {scored.judge_score:6.2f}  {scored.row_id}")
    if as_json:
        console.print_json(records)
    return exits.ROWS_FAILED if failed else exits.OK
