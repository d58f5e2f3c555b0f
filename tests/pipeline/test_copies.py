"""Photos whose work is known under another name: each costs a copy, and none stays pending."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.commits import OutputFolder
from pipeline import copies
from pipeline.plan import RunChoice
from pipeline.run import run_job
from pipeline.verify import verify_output
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of

IMAGES = pytest.mark.parametrize("images", ["parquet", "files", "both"])


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 3)


def duplicate(photos, *names, of="p000.jpg"):
    for name in names:
        shutil.copy(photos / of, photos / name)


def delivered(spec):
    """The delivered bytes by row_id, as a reader of the folder finds them."""
    folder = OutputFolder(spec.out)
    rows = folder.rows(folder.done()["row_id"].to_pylist())
    return {row_id: folder.read_photo(row) for row_id, row in rows.items()}


def check(spec, summary, *, computed, copied, ok):
    """Everything is done, nothing is pending, and what is kept is whole and the row's own."""
    assert (summary.computed, summary.copied) == (computed, copied)
    assert (summary.counts["ok"], summary.counts["pending"], summary.exit_code) == (ok, 0, 0)
    assert verify_output(spec.out).findings == []
    if spec.keep_parquet:
        table = pd.read_parquet(f"{spec.out}/images")
        assert sorted(table["row_id"]) == sorted(results(spec).index)
    again = run_job(spec)
    assert (again.computed, again.copied, again.exit_code) == (0, 0, 0)


@IMAGES
def test_a_duplicate_met_in_one_run_is_copied_wherever_photos_are_kept(photos, edits, images):
    duplicate(photos, "a.jpg", "zdup.jpg", "sub/b.jpg")
    spec = spec_of(photos, images=images)
    check(spec, run_job(spec), computed=3, copied=3, ok=6)
    photo = delivered(spec)
    assert photo["a.jpg"] == photo["zdup.jpg"] == photo["sub/b.jpg"] == photo["p000.jpg"]
    assert edits() == 3


@IMAGES
def test_duplicates_of_duplicates_and_renamed_photos_are_copied(photos, edits, images):
    spec = spec_of(photos, images=images)
    run_job(spec)
    for name, of in (("dup1.jpg", "p000.jpg"), ("dup2.jpg", "dup1.jpg")):
        duplicate(photos, name, of=of)
        check(spec, run_job(spec), computed=0, copied=1, ok=3 + int(name[3]))
    (photos / "p000.jpg").rename(photos / "renamed.jpg")
    summary = run_job(spec)
    assert (summary.computed, summary.copied, summary.counts["pending"]) == (0, 1, 0)
    assert edits() == 3


@IMAGES
def test_a_source_superseded_in_the_same_run_is_copied_as_it_was(photos, edits, images):
    """`p000` is renamed, and another photo stands under its name: read before it is written."""
    spec = spec_of(photos, images=images)
    run_job(spec)
    before = delivered(spec)["p000.jpg"]
    duplicate(photos, "old.jpg", "old2.jpg")
    (photos / "p000.jpg").write_bytes(jpeg(40))
    check(spec, run_job(spec), computed=1, copied=2, ok=5)
    photo = delivered(spec)
    assert photo["old.jpg"] == photo["old2.jpg"] == before != photo["p000.jpg"]


@IMAGES
@pytest.mark.parametrize("choice", [{"redo": True}, {"force": True}])
def test_duplicates_are_copied_when_all_is_done_again(photos, edits, images, choice):
    duplicate(photos, "a.jpg", "b.jpg")
    spec = spec_of(photos, images=images)
    run_job(spec)
    check(spec, run_job(spec, RunChoice(**choice)), computed=3, copied=2, ok=5)
    assert edits() == 6


@IMAGES
def test_a_redo_with_other_options_copies_what_it_has_made(photos, edits, images):
    duplicate(photos, "a.jpg")
    run_job(spec_of(photos, images=images))
    down = spec_of(photos, images=images, direction="down")
    check(down, run_job(down, RunChoice(redo=True)), computed=3, copied=1, ok=4)
    assert set(results(down)["direction"]) == {"down"}


@pytest.mark.parametrize("published", [True, False])
def test_a_source_in_a_part_or_staged_only_is_copied(photos, published, monkeypatch, edits):
    """A run that is killed leaves its rows staged; what it staged is a source like any other."""
    spec = spec_of(photos, images="parquet")
    if published:
        run_job(spec)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(OutputFolder, "compact", lambda self, **options: 0)
            run_job(spec)
        assert OutputFolder(spec.out).staged_count() == 3
    duplicate(photos, "a.jpg")
    check(spec, run_job(spec), computed=0, copied=1, ok=4)
    assert edits() == 3


def test_an_older_photo_of_the_row_is_not_taken_for_the_staged_one(photos, monkeypatch, edits):
    spec = spec_of(photos, images="parquet")
    run_job(spec)
    (photos / "p000.jpg").write_bytes(jpeg(41))
    before = delivered(spec)["p000.jpg"]
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "compact", lambda self, **options: 0)
        run_job(spec)
    assert delivered(spec)["p000.jpg"] != before
    duplicate(photos, "a.jpg")
    check(spec, run_job(spec), computed=0, copied=1, ok=4)


@IMAGES
@pytest.mark.parametrize("status", ["rejected", "skipped"])
def test_copies_of_what_delivers_nothing_deliver_nothing(photos, monkeypatch, images, status):
    duplicate(photos, "a.jpg", "b.jpg")
    spec = spec_of(photos, images=images)
    from tests.fakes import FakeEditor

    plain = FakeEditor._edit

    def undelivered(self, request):
        result = plain(self, request)
        result.status, result.encoded = status, None
        return result

    monkeypatch.setattr(FakeEditor, "_edit", undelivered)
    summary = run_job(spec)
    assert (summary.counts[status], summary.counts["pending"], summary.exit_code) == (5, 0, 0)
    assert (summary.computed, summary.copied) == (3, 2)
    assert run_job(spec).exit_code == 0


@IMAGES
def test_copies_of_what_fails_fail_with_it_and_come_back_with_it(photos, images, edits):
    (photos / "bad.jpg").write_bytes(jpeg(42)[:500])
    duplicate(photos, "bad2.jpg", "bad3.jpg", of="bad.jpg")
    spec = spec_of(photos, images=images)
    for choice in (None, RunChoice(), RunChoice(retry_failed=True), RunChoice(force=True)):
        summary = run_job(spec, choice)
        assert (summary.counts["failed"], summary.counts["pending"]) == (3, 0)
        assert summary.exit_code == 3
    assert results(spec)["error_type"].dropna().nunique() == 1
    for name in ("bad.jpg", "bad2.jpg", "bad3.jpg"):
        (photos / name).write_bytes(jpeg(42))
    check(spec, run_job(spec), computed=1, copied=2, ok=6)


@IMAGES
def test_copies_have_sidecars_of_their_own_and_their_photos_dates(photos, images):
    duplicate(photos, "sub/a.jpg")
    os.utime(photos / "sub/a.jpg", (1e9, 1e9))
    spec = spec_of(photos, images=images, sidecar=True)
    check(spec, run_job(spec), computed=3, copied=1, ok=4)
    duplicate(photos, "later.jpg")
    check(spec, run_job(spec), computed=0, copied=1, ok=5)
    edited = Path(spec.out) / "edited"
    told = {p.name for p in edited.rglob("*.json")}
    if images == "parquet":
        assert told == set()
        return
    assert {"a.jpg.json", "later.jpg.json"} <= told
    for name in ("sub/a.jpg", "later.jpg"):
        record = json.loads((edited / f"{name}.json").read_text())
        assert (record["row_id"], record["edited_uri"]) == (name, f"edited/{name}")
    assert (edited / "sub/a.jpg").stat().st_mtime == 1e9


def test_photos_kept_in_tables_become_files_of_their_copies(photos, edits):
    run_job(spec_of(photos, images="parquet"))
    duplicate(photos, "a.jpg")
    spec = spec_of(photos, images="both")
    assert run_job(spec).copied == 1
    assert (Path(spec.out) / "edited/a.jpg").read_bytes() == delivered(spec)["p000.jpg"]
    assert edits() == 3


def rows_manifest(path, photos, names, direction):
    uris = [str(photos / name) for name in names]
    table = pa.table(
        {"image_uri": uris, "row_id": [f"{n}.jpg" for n in "abc"[: len(uris)]],
         "direction": pa.array(direction, pa.string())}
    )  # fmt: skip
    pq.write_table(table, path)
    return path


@IMAGES
def test_a_source_whose_row_cannot_run_any_more_is_copied_before_it_fails(
    photos, tmp_path, edits, images
):
    """Row a is given nonsense tonight, and the photo it had goes on under row b."""
    path = tmp_path / "rows.parquet"
    spec = spec_of(rows_manifest(path, photos, ["p000.jpg"], [None]), images=images)
    run_job(spec)
    rows_manifest(path, photos, ["p000.jpg", "p000.jpg"], ["sideways", None])
    summary = run_job(spec)
    assert (summary.computed, summary.copied) == (0, 1)
    assert (summary.counts["ok"], summary.counts["failed"]) == (1, 1)
    assert (summary.counts["pending"], summary.exit_code) == (0, 3)
    assert edits() == 1


def test_copies_whose_source_is_gone_are_computed_once_for_all_of_them(photos, edits):
    spec = spec_of(photos, images="files")
    run_job(spec)
    shutil.rmtree(f"{spec.out}/edited")
    duplicate(photos, "a.jpg", "b.jpg", "c.jpg")
    summary = run_job(spec)
    assert (summary.computed, summary.copied, summary.counts["pending"]) == (1, 2, 0)
    assert (summary.exit_code, edits()) == (0, 4)


@pytest.mark.parametrize("copied", [1, 3])
def test_a_source_that_vanishes_in_the_same_run_leaves_no_copy_pending(
    photos, edits, monkeypatch, copied
):
    duplicate(photos, *[f"z{i}.jpg" for i in range(copied)])
    spec = spec_of(photos, images="files")
    plain, lost = copies._copy, []

    def taken_away(folder, source, item, commit):
        if not lost:
            lost.append(source.row_id)
            (Path(spec.out) / str(source.edited_uri)).unlink()
        return plain(folder, source, item, commit)

    monkeypatch.setattr(copies, "_copy", taken_away)
    summary = run_job(spec)
    assert lost == ["p000.jpg"]
    assert (summary.computed, summary.copied) == (4, copied - 1)
    assert (summary.counts["ok"], summary.counts["pending"]) == (3 + copied, 0)
    assert summary.exit_code == 0
