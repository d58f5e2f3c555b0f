"""Scores of photos as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from manifests.rows import manifest_rows
from manifests.scan import unlisted
from pipeline.inputs import load_input
from pipeline.outcomes import WorkItem
from pipeline.spec import make_spec
from pipeline.stages import DecodePhotos, EditPhotos, describe


@dataclass(frozen=True)
class ScoredPhoto:
    """One photo's scores, or why it has none."""

    row_id: str
    guide_score: float | None = None
    judge_score: float | None = None
    error: str | None = None


def score_photos(photos: str, model: str) -> Iterator[ScoredPhoto]:
    """Yield the scores of a folder's or manifest's photos, one by one, in this process.

    Raises: ManifestError, ModelError if there is nothing to score, or nothing to score it with.
    """
    spec = make_spec(photos, model=model)
    decode, edit = DecodePhotos(spec), EditPhotos(spec)
    table = load_input(photos)
    edit.setup()
    assert edit.editor is not None
    invalid = dict(zip(table["row_id"].to_pylist(), table["row_error"].to_pylist(), strict=True))
    for row in manifest_rows(table):
        if invalid[row.row_id] is not None:
            yield ScoredPhoto(row.row_id, error=invalid[row.row_id])
            continue
        try:
            photo = decode(WorkItem(row, "", ""))
            guide_score, judge_score = edit.editor.scores(photo)
        except Exception as error:  # the row boundary
            yield ScoredPhoto(row.row_id, error=describe(error)[1])
        else:
            yield ScoredPhoto(row.row_id, guide_score, judge_score)
    for path, reason in unlisted(table):
        yield ScoredPhoto(path, error=f"left out, it cannot be listed ({reason})")
