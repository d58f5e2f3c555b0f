"""Nights on which something around the photos goes wrong: nothing done is lost or mistaken."""

import errno
import os
import shutil
import signal
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.commits import OutputFolder
from pipeline import run as driver
from pipeline.errors import UnusableEnvironmentError
from pipeline.plan import RunChoice, preview_plan
from pipeline.run import run_job
from tests.fakes import SECONDS
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 4)


class StopAfter:
    """An observer that sends SIGINT once so many rows are finished."""

    def __init__(self, rows):
        self.left = rows

    def message(self, text): ...

    def start(self, total):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    def row(self, row_id, status, detail):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def manifest(photos, tmp_path, **columns):
    uris = sorted(str(p) for p in photos.rglob("*.jpg"))
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image_uri": uris, **columns}), path)
    return path


def test_photos_out_of_reach_for_a_night_keep_their_results(photos, tmp_path, edits):
    spec = spec_of(manifest(photos, tmp_path))
    run_job(spec)
    before = results(spec)
    photos.rename(tmp_path / "unplugged")
    summary = run_job(spec)
    assert summary.exit_code == 3
    assert summary.counts == {"ok": 0, "rejected": 0, "skipped": 0, "failed": 0, "pending": 4}
    pd.testing.assert_frame_equal(results(spec), before)
    (tmp_path / "unplugged").rename(photos)
    assert run_job(spec).exit_code == 0
    assert edits() == 4


def test_photos_that_were_never_reachable_fail(photos, tmp_path):
    path = manifest(photos, tmp_path)
    shutil.rmtree(photos)
    spec = spec_of(path)
    assert run_job(spec).counts["failed"] == 4
    assert set(results(spec)["error_type"]) == {"FileNotFoundError"}


@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_redo_takes_no_old_result_for_a_new_one(photos, edits, after):
    shutil.copy(photos / "p000.jpg", photos / "zdup.jpg")
    run_job(spec_of(photos))
    down = spec_of(photos, direction="down")
    summary = run_job(down, RunChoice(redo=True), StopAfter(after))
    assert summary.exit_code == 130
    assert summary.stopped_by == "stopped by SIGINT"
    assert preview_plan(down, RunChoice()).num_pending > 0
    assert run_job(down).exit_code == 0
    table = results(down)
    assert (table["direction"] == "down").all()
    assert (table["score_after"] < table["score_before"]).all()
    assert len(table) == 5
    assert edits() == 4 + 4


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EIO, 6, "cannot be written"),
        (errno.EROFS, 6, "cannot be written"),
        (errno.ENOSPC, 7, "disk full"),
    ],
)
@pytest.mark.parametrize("method", ["stage", "write_file"])
def test_an_output_that_takes_nothing_stops_the_run_and_charges_nobody(
    photos, edits, monkeypatch, method, number, code, words
):
    def broken(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    spec = spec_of(photos)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, method, broken)
        summary = run_job(spec)
    assert summary.exit_code == code
    assert words in summary.stopped_by
    assert summary.counts["pending"] == 4
    assert edits() == 1  # and no more GPU time is spent
    assert run_job(spec).counts["ok"] == 4


def test_a_newer_version_with_other_weights_and_recipe_continues(photos, edits, monkeypatch):
    run_job(spec_of(photos))
    monkeypatch.setattr("doodl.__version__", "99.0.0")
    monkeypatch.setattr("pipeline.spec.folder_revision", lambda folder: "blake2b:other")
    spec = spec_of(photos)
    recipe = {**spec.config, "num_crops": 99}
    spec = replace(spec, config=recipe)
    (photos / "new.jpg").write_bytes(jpeg(70))
    assert run_job(spec).computed == 1
    assert results(spec)["model_revision"].value_counts()["blake2b:other"] == 1


def test_a_spec_for_other_weights_than_those_here_is_refused(photos):
    spec = replace(spec_of(photos), model_revision="blake2b:older")
    with pytest.raises(UnusableEnvironmentError, match="blake2b:older in the job's spec"):
        run_job(spec)


def test_a_model_that_cannot_load_charges_no_photo(photos):
    spec = replace(spec_of(photos), editor="tests.fakes:no_such_editor")
    with pytest.raises(UnusableEnvironmentError, match="no_such_editor"):
        run_job(spec)
    assert run_job(spec_of(photos)).counts["ok"] == 4


def test_a_foreign_folder_is_refused_and_left_as_it_was(photos, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("do not touch")
    from manifests.errors import JobConflictError

    with pytest.raises(JobConflictError, match="thesis"):
        run_job(spec_of(photos, foreign))
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]


def test_a_copy_whose_source_photo_is_gone_is_computed(photos, edits):
    spec = spec_of(photos, images="files")
    run_job(spec)
    shutil.rmtree(f"{spec.out}/edited")
    shutil.copy(photos / "p000.jpg", photos / "copy.jpg")
    summary = run_job(spec)
    assert (summary.computed, summary.copied, summary.exit_code) == (1, 0, 0)


def test_a_late_worker_of_an_earlier_run_commits_nothing_into_a_redo(photos):
    """A worker stopped before its first commit wakes after a --redo with other options."""
    from manifests.identity import params_fingerprint
    from pipeline.plan import make_plan, work_items
    from pipeline.stages import RowProcessor

    spec = spec_of(photos)
    folder = OutputFolder(spec.out)
    with folder.lock():
        job = folder.open_job(driver.job_record(spec))
        plan = make_plan(spec, RunChoice(), folder, driver.load_rows(spec))
    fingerprint = params_fingerprint(spec.params())
    late = RowProcessor(spec, fingerprint, job)
    down = spec_of(photos, direction="down")
    assert run_job(down, RunChoice(redo=True)).counts["ok"] == 4
    late(list(work_items(plan.to_compute())))
    assert run_job(down).computed == 0
    assert (results(down)["direction"] == "down").all()


def test_the_bound_of_gpu_hours_ends_the_run_in_order(photos, edits, monkeypatch):
    monkeypatch.setenv(SECONDS, "0.2")
    spec = spec_of(photos)
    summary = run_job(spec, RunChoice(max_gpu_hours=0.3 / 3600))
    assert summary.exit_code == 8
    assert summary.stopped_by == "--max-gpu-hours 8.33333e-05 is spent"
    assert (summary.counts["ok"], summary.counts["pending"]) == (2, 2)
    assert run_job(spec, RunChoice(max_gpu_hours=1)).exit_code == 0
    assert edits() == 4


def test_a_changed_option_or_subject_file_recomputes_that_row_only(photos, tmp_path, edits):
    subject = tmp_path / "subject.jpg"
    subject.write_bytes(jpeg(80))
    columns = {
        "prompt": ["a", "b", "c", "d"],
        "direction": ["target", None, None, None],
        "target": [5.0, None, None, None],
        "seed": [1, 2, 3, 4],
        "strength": [1.0, 1.0, 1.0, 1.0],
        "subject_uris": [[], [], [], [str(subject)]],
    }
    run_job(spec_of(manifest(photos, tmp_path, **columns)))
    count = edits()
    for name, value in (("prompt", "z"), ("target", 6.0), ("seed", 9), ("strength", 0.5)):
        columns[name] = [value, *columns[name][1:]]
        assert run_job(spec_of(manifest(photos, tmp_path, **columns))).computed == 1, name
    subject.write_bytes(jpeg(81))
    spec = spec_of(manifest(photos, tmp_path, **columns))
    assert run_job(spec).computed == 1
    assert edits() == count + 5
    assert run_job(spec).computed == 0


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_seeds_that_no_column_takes_are_refused(photos, seed):
    with pytest.raises(ValueError, match="64 bits"):
        spec_of(photos, seed=seed)


def test_rows_whose_options_make_no_sense_fail_before_any_model_loads(photos, tmp_path, edits):
    spec = spec_of(
        manifest(
            photos,
            tmp_path,
            direction=["sideways", "target", "up", None],
            target=[None, None, 5.0, None],
            strength=[None, None, None, 3.0],
        )
    )
    assert run_job(spec).counts["failed"] == 4
    assert results(spec)["error_type"].unique().tolist() == ["InvalidRow"]
    assert edits() == 0
