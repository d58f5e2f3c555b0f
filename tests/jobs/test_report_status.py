"""The report and the counts of an output folder, on a cheap edit."""

import html
import json
import shutil
import socket

import pyarrow.parquet as pq
import pytest

from jobs import enhance, exits
from jobs.console import plain
from jobs.report import build
from jobs.status import show_status
from jobs.submit import Where
from pipeline.collection import OutputView
from pipeline.run import run_job
from pipeline.spec import make_spec
from tests.photos import collection, jpeg

UGLY = "a\nb <img src=x onerror=y> & 'q' \x1b[1m :100: 🌸.jpg"


def finished(folder, count=6, bad=0, **options):
    """Run the cheap edit on `count` good photos and `bad` bad ones; return (photos, out)."""
    photos = collection(folder / "photos", count)
    (photos / UGLY).write_bytes(jpeg(99))
    for i in range(bad):
        (photos / f"bad{i}.jpg").write_bytes(b"x")
    spec = make_spec(photos, runner="inline", editor="tests.fakes:load_editor", **options)
    run_job(spec)
    return photos, spec.out


def pictures(page):
    return page.read_text().count("-before.jpg"), page.read_text().count("-after.jpg")


@pytest.mark.parametrize("images", ["files", "parquet", "both"])
def test_every_delivered_photo_is_shown_wherever_it_is_kept(tmp_path, images):
    _, out = finished(tmp_path, images=images)
    page = build.build_report(out)
    assert pictures(page) == (7, 7)
    assert html.escape(plain(UGLY)).replace("&#x27;", "&#39;") in page.read_text()
    assert "<img src=x" not in page.read_text()


def test_a_delivered_photo_moved_away_is_shown_from_the_images_parts(tmp_path):
    _, out = finished(tmp_path)
    shutil.rmtree(f"{out}/edited")
    assert pictures(build.build_report(out)) == (7, 7)


def test_a_large_collection_is_counted_in_full_and_shown_in_part(tmp_path):
    _, out = finished(tmp_path, bad=5)
    page = build.build_report(out, max_pictures=3, max_failures=2)
    text = page.read_text()
    assert pictures(page) == (3, 3)
    assert "Delivered (7, 3 of them shown)" in text
    assert "Failed (5)" in text
    assert "and 3 more" in text
    assert text.count("UnreadablePhotoError") == 2
    assert "mean guide change <b>+1.00</b>" in text


def test_the_report_never_holds_the_whole_table_as_records(tmp_path, monkeypatch):
    _, out = finished(tmp_path)
    monkeypatch.setattr("manifests.commits.OutputFolder.results", None)
    monkeypatch.setattr("manifests.commits.OutputFolder.rows", None)
    assert pictures(build.build_report(out)) == (7, 7)


def test_one_picture_that_cannot_be_made_costs_itself_only(tmp_path, monkeypatch):
    _, out = finished(tmp_path)

    def broken(uri):
        raise RuntimeError(uri)

    monkeypatch.setattr("pipeline.pictures.read_input", broken)
    assert pictures(build.build_report(out)) == (0, 7)


def test_a_report_that_fails_does_not_fail_the_run(tmp_path, monkeypatch, capsys):
    photos = collection(tmp_path / "my photos", 2)

    def broken(out):
        raise RuntimeError("no template")

    monkeypatch.setattr(build, "build_report", broken)
    options = {"model": "pocket", "device": "cpu", "editor": "tests.fakes:load_editor"}
    where = Where("inline")
    code = enhance.run_enhance(photos, None, options, {}, where, report=True, as_json=False)
    captured = capsys.readouterr()
    assert code == exits.OK
    assert "no report: RuntimeError: no template" in captured.err
    assert f"doodl-batch report '{tmp_path}/my photos-doodl'" in captured.err
    assert f"results: {tmp_path}/my photos-doodl" in captured.out


def test_status_counts_the_collection_as_it_stands(tmp_path, capsys):
    photos, out = finished(tmp_path, bad=1)
    good = {"ok": 7, "rejected": 0, "skipped": 0, "failed": 1, "pending": 0}
    assert OutputView(out).counts() == good
    # One changed, one gone, one new: planned, and the run stopped before it computed anything.
    (photos / "p000.jpg").write_bytes(jpeg(50))
    (photos / "p002.jpg").unlink()
    (photos / "p100.jpg").write_bytes(jpeg(51))
    planned_only(photos, out)
    assert OutputView(out).counts() == {**good, "ok": 5, "pending": 2}
    assert show_status(tmp_path / "photos-doodl", as_json=True) == exits.ROWS_FAILED
    assert json.loads(capsys.readouterr().out)["counts"]["pending"] == 2


def planned_only(photos, out):
    """Record the plan of the collection as a run does, and compute nothing."""
    from pipeline.plan import RunChoice, preview_plan

    spec = make_spec(photos, out, runner="inline", editor="tests.fakes:load_editor")
    table = preview_plan(spec, RunChoice()).table
    OutputView(out).folder.write_manifest(table.drop_columns(["source_row_id", "source_pending"]))


def test_status_before_the_first_plan_says_so_and_is_not_done(tmp_path, capsys):
    finished(tmp_path, count=1)
    (tmp_path / "photos-doodl" / "_manifest.parquet").unlink()
    assert show_status(tmp_path / "photos-doodl", as_json=False) == exits.ROWS_FAILED
    assert "nothing is planned yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("host", "pid", "words"),
    [
        (socket.gethostname(), 1, "a run is at work on it (pid 1"),
        (socket.gethostname(), 2**22 + 1, "no run is at work on it"),
        ("elsewhere", 1, "a run may be at work on it (pid 1 on elsewhere, started 2026-11-01"),
    ],
)
def test_status_says_only_what_can_be_known_of_a_run(tmp_path, capsys, host, pid, words):
    finished(tmp_path, count=1)
    note = {"pid": pid, "host": host, "started_at": "2026-11-01T00:00:00+00:00"}
    (tmp_path / "photos-doodl" / "_state" / "driver.json").write_text(json.dumps(note))
    assert show_status(tmp_path / "photos-doodl", as_json=False) == exits.OK
    assert words in capsys.readouterr().out


def test_nothing_but_row_groups_with_a_shown_photo_is_read(tmp_path, monkeypatch):
    _, out = finished(tmp_path, images="parquet")
    read = []
    whole = pq.ParquetFile.read_row_group

    def counted(self, group, columns):
        read.append(columns)
        return whole(self, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    view = OutputView(out)
    assert list(view.delivered([{"row_id": "none.jpg", "edited_uri": None}])) == []
    assert ["edited_image"] not in read
    ((row_id, data),) = view.delivered([{"row_id": "p000.jpg", "edited_uri": None}])
    assert (row_id, data[:2]) == ("p000.jpg", b"\xff\xd8")
