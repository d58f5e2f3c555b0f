"""The driver on one process with a cheap edit: what is computed, copied, failed and left alone."""

import hashlib
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from manifests.errors import JobConflictError, ManifestError, OutputLockedError
from manifests.schemas import RESULT_SCHEMA
from pipeline import run
from pipeline.plan import RunChoice
from pipeline.run import run_job
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 6)


def checksums(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_every_photo_is_delivered_once_and_the_originals_are_untouched(photos, edits):
    before = checksums(photos)
    spec = spec_of(photos)
    summary = run_job(spec)
    table = results(spec)
    assert summary.exit_code == 0
    assert summary.counts == {"ok": 6, "rejected": 0, "skipped": 0, "failed": 0, "pending": 0}
    assert sorted(table.index) == sorted(before)
    assert spec.out == f"{photos}-doodl"
    for row_id, row in table.iterrows():
        assert row["edited_uri"] == f"edited/{row_id}"
        assert (photos.parent / "photos-doodl" / "edited" / row_id).is_file()
    assert checksums(photos) == before
    assert edits() == 6


def test_results_read_alike_in_pandas_polars_and_arrow(photos):
    spec = spec_of(photos)
    run_job(spec)
    folder = f"{spec.out}/results"
    assert list(pd.read_parquet(folder).columns) == RESULT_SCHEMA.names
    assert pl.read_parquet(f"{folder}/*.parquet").columns == RESULT_SCHEMA.names
    assert ds.dataset(folder).to_table().column_names == RESULT_SCHEMA.names
    assert {len(pd.read_parquet(folder)), pl.scan_parquet(folder).collect().height} == {6}
    images = ds.dataset(f"{spec.out}/images").to_table().to_pylist()
    assert len(images) == 6
    assert all(image["edited_image"]["bytes"][:2] == b"\xff\xd8" for image in images)


def test_second_run_does_nothing(photos, edits):
    spec = spec_of(photos)
    run_job(spec)
    parts = checksums(photos.parent / "photos-doodl" / "results")
    summary = run_job(spec)
    assert (summary.computed, summary.copied, edits()) == (0, 0, 6)
    assert checksums(photos.parent / "photos-doodl" / "results") == parts


def test_bad_files_fail_their_own_rows_with_a_reason(photos):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.jpg").write_bytes(jpeg(50)[:600])
    (photos / "text.jpg").write_text("this is not a photo")
    spec = spec_of(photos)
    summary = run_job(spec)
    assert summary.exit_code == 3
    assert summary.counts["ok"] == 6
    failed = results(spec).query("status == 'failed'")
    assert sorted(failed.index) == ["cut.jpg", "empty.jpg", "text.jpg"]
    assert failed["error_type"].notna().all()
    assert failed["error_message"].str.len().gt(10).all()
    assert not failed["error_message"].str.contains("\n").any()
    assert run_job(spec).computed == 0  # hopeless rows are not tried again every night


def test_new_changed_renamed_duplicated_and_deleted_photos(photos, edits):
    spec = spec_of(photos)
    run_job(spec)
    (photos / "new.jpg").write_bytes(jpeg(60))
    (photos / "p000.jpg").write_bytes(jpeg(61))
    shutil.copy(photos / "p002.jpg", photos / "duplicate.jpg")
    (photos / "p004.jpg").rename(photos / "renamed.jpg")
    (photos / "sub/p001.jpg").unlink()
    summary = run_job(spec)
    assert (summary.computed, summary.copied, edits()) == (2, 2, 8)
    table = results(spec)
    assert table.index.is_unique
    present = {"new.jpg", "duplicate.jpg", "renamed.jpg", "p004.jpg", "sub/p001.jpg"}
    assert present <= set(table.index)
    out = photos.parent / "photos-doodl"
    assert (out / "edited/duplicate.jpg").read_bytes() == (out / "edited/p002.jpg").read_bytes()
    assert run_job(spec).computed == 0


def test_duplicates_met_in_one_run_are_computed_once(photos, edits):
    shutil.copy(photos / "p000.jpg", photos / "again.jpg")
    summary = run_job(spec_of(photos))
    assert (summary.computed, summary.copied, edits()) == (6, 1, 6)
    assert summary.counts["ok"] == 7


def test_other_options_are_refused_by_name_and_done_under_redo(photos, edits):
    run_job(spec_of(photos))
    down = spec_of(photos, direction="down")
    with pytest.raises(JobConflictError, match="direction: 'up' → 'down'"):
        run_job(down)
    assert edits() == 6
    assert run_job(down, RunChoice(redo=True)).computed == 6
    assert (results(down)["direction"] == "down").all()
    assert run_job(down).computed == 0


def test_newer_software_recomputes_nothing(photos, edits, monkeypatch):
    run_job(spec_of(photos))
    monkeypatch.setattr("doodl.__version__", "99.0.0")
    monkeypatch.setattr("pipeline.spec.ALGORITHM_VERSION", 99)
    spec = spec_of(photos)
    (photos / "new.jpg").write_bytes(jpeg(60))
    assert run_job(spec).computed == 1
    assert edits() == 7
    versions = results(spec)["doodl_version"]
    assert versions["new.jpg"] == "99.0.0"
    assert (versions.drop("new.jpg") != "99.0.0").all()


def test_limit_leaves_the_rest_for_later(photos):
    spec = spec_of(photos)
    summary = run_job(spec, RunChoice(limit=2))
    assert (summary.computed, summary.counts["pending"]) == (2, 4)
    assert run_job(spec).computed == 4


def test_force_does_done_rows_again_without_doubling_them(photos, edits):
    spec = spec_of(photos)
    run_job(spec)
    assert run_job(spec, RunChoice(force=True)).computed == 6
    assert edits() == 12
    assert len(results(spec)) == 6


def manifest(photos, tmp_path, **columns):
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    uris = [str(photos / name) for name in names]
    table = pa.table({"image_uri": uris, "row_id": names, **columns})
    path = tmp_path / "manifest.parquet"
    pq.write_table(table, path)
    return path


def test_a_rows_own_options_and_extra_columns_reach_its_result(photos, tmp_path):
    path = manifest(
        photos, tmp_path,
        direction=["down", None, None, None, None, None],
        prompt=["a cat"] + [None] * 5,
        shelf=[f"shelf {i}" for i in range(6)],
    )  # fmt: skip
    spec = spec_of(path)
    assert run_job(spec).exit_code == 0
    table = results(spec)
    assert list(table["direction"]) == ["down"] + ["up"] * 5
    assert list(table["prompt"]) == ["a cat"] + [""] * 5
    assert sorted(table["shelf"]) == [f"shelf {i}" for i in range(6)]


def test_a_changed_row_is_recomputed_alone(photos, tmp_path, edits):
    run_job(spec_of(manifest(photos, tmp_path, seed=[1, 2, 3, 4, 5, 6])))
    summary = run_job(spec_of(manifest(photos, tmp_path, seed=[1, 2, 3, 4, 5, 7])))
    assert (summary.computed, edits()) == (1, 7)


def test_a_failing_edit_fails_its_row_and_only_failed_retries_it(photos, tmp_path, edits):
    spec = spec_of(manifest(photos, tmp_path, prompt=["fail"] + [""] * 5))
    summary = run_job(spec)
    assert summary.exit_code == 3
    assert summary.counts["failed"] == 1
    assert "asked to fail" in results(spec)["error_message"].dropna().iloc[0]
    assert run_job(spec).computed == 0
    assert run_job(spec, RunChoice(only_failed=True)).computed == 1
    assert len(results(spec)) == 6


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_bad_photo_does_not_fail_its_batch(photos, tmp_path, batch_size):
    path = manifest(photos, tmp_path, prompt=["", "fail"] + [""] * 4)
    spec = spec_of(path, batch_size=batch_size)
    assert run_job(spec).counts == {"ok": 5, "rejected": 0, "skipped": 0, "failed": 1, "pending": 0}


def test_breaker_stops_a_run_in_which_everything_fails(photos, tmp_path):
    spec = spec_of(manifest(photos, tmp_path, prompt=["fail"] * 6), breaker=3)
    summary = run_job(spec)
    assert summary.exit_code == 4
    assert summary.counts["failed"] == 3
    assert summary.counts["pending"] == 3


def test_a_photo_that_changes_while_the_job_runs_is_not_taken_for_the_old_one(photos, monkeypatch):
    def plan_then_change(*args, **kwargs):
        plan = real(*args, **kwargs)
        (photos / "p000.jpg").write_bytes(jpeg(99))
        return plan

    real = run.make_plan
    monkeypatch.setattr(run, "make_plan", plan_then_change)
    spec = spec_of(photos)
    assert run_job(spec).counts["failed"] == 1
    assert results(spec).loc["p000.jpg", "error_type"] == "PhotoChangedError"
    monkeypatch.setattr(run, "make_plan", real)
    assert run_job(spec).counts["ok"] == 6


def test_two_drivers_cannot_share_a_folder(photos):
    spec = spec_of(photos)
    run_job(spec)
    from manifests.commits import OutputFolder

    with OutputFolder(spec.out).lock(), pytest.raises(OutputLockedError, match="another driver"):
        run_job(spec)


@pytest.mark.parametrize(
    ("silent", "policy", "code"),
    [(25, "skip", 5), (25, "wait", 5), (25, "fail", 5), (23, "skip", 0), (23, "fail", 5)],
)
def test_a_run_that_is_kept_out_by_one_that_hangs_tells_its_scheduler(
    photos, monkeypatch, silent, policy, code
):
    from jobs.exits import exit_code_of
    from manifests.commits import OutputFolder

    spec, caught = spec_of(photos), []

    def second(*_):
        """What the next night meets: the first at work, its note some hours old."""
        note = Path(spec.out, "_state/driver.json")
        beat = datetime.now(UTC) - timedelta(hours=silent)
        note.write_text(
            json.dumps(json.loads(note.read_text()) | {"heartbeat_at": beat.isoformat()})
        )
        with pytest.raises(OutputLockedError) as error:
            run_job(spec, RunChoice(if_running=policy))
        caught.append(exit_code_of(error.value))

    monkeypatch.setattr(OutputFolder, "recover", second)
    with pytest.raises(AttributeError):  # the first ends there: nothing was recovered
        run_job(spec)
    assert caught == [code]


def test_a_run_gives_signs_of_life_while_it_reads_computes_and_copies(photos, monkeypatch):
    from manifests.commits import OutputFolder

    beats, seen = [], []
    monkeypatch.setattr(OutputFolder, "beat", lambda self: beats.append(1))

    def noting(name):
        real = getattr(run._Run, name)

        def wrapped(self, *arguments, **options):
            before = len(beats)
            result = real(self, *arguments, **options)
            seen.append((name, len(beats) - before))
            return result

        monkeypatch.setattr(run._Run, name, wrapped)

    for name in ("_open", "_compute", "_copy"):
        noting(name)
    spec = spec_of(photos)
    run_job(spec)
    assert ("_open", 0) not in seen
    assert dict(seen)["_compute"] >= 6
    seen.clear()
    for path in list(photos.glob("*.jpg"))[:2]:
        path.with_stem(f"copy of {path.stem}").write_bytes(path.read_bytes())
    assert run_job(spec).copied == 2
    assert ("_copy", 2) in seen


@pytest.mark.parametrize(("images", "files", "parquet"), [("files", 6, 0), ("parquet", 0, 6)])
def test_images_go_where_they_are_asked_to(photos, images, files, parquet):
    spec = spec_of(photos, images=images)
    run_job(spec)
    out = photos.parent / "photos-doodl"
    assert len(list((out / "edited").rglob("*.jpg"))) == files
    rows = pq.read_table(out / "images").num_rows if (out / "images").exists() else 0
    assert rows == parquet


def test_output_inside_the_collection_is_not_scanned(photos):
    spec = spec_of(photos, photos / "out")
    assert run_job(spec).computed == 6
    assert run_job(spec).computed == 0


def test_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ManifestError, match="does not exist"):
        run_job(spec_of(tmp_path / "nowhere"))


def test_spec_survives_its_json(photos):
    spec = spec_of(photos, target=7.0, direction="target")
    assert type(spec).from_json(spec.to_json()) == spec
    assert replace(spec, device="cuda", num_workers=7).params() == spec.params()


@pytest.mark.parametrize(
    "options",
    [{"direction": "sideways"}, {"direction": "target"}, {"strength": 2}, {"batch_size": -1}],
)
def test_options_that_make_no_sense_are_refused(photos, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        spec_of(photos, **options)
