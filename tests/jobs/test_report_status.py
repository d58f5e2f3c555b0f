"""The report and the counts of an output folder, on a cheap edit."""

import json
import shutil
import socket

import pyarrow.parquet as pq
import pytest

from jobs import enhance, exits
from jobs.console import plain
from jobs.report import build
from jobs.report.pages import page_json
from jobs.report.rows import curve, photo_links, showable, usable
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


def page_data(page):
    """Return what the page's script reads."""
    text = page.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def pictures(page):
    shown = [row["pics"] for row in page_data(page)["rows"]]
    assert all((page.parent / address).is_file() for pair in shown for address in pair if address)
    return sum(before is not None for before, _ in shown), sum(bool(after) for _, after in shown)


@pytest.mark.parametrize("images", ["files", "parquet", "both"])
def test_every_delivered_photo_is_shown_wherever_it_is_kept(tmp_path, images):
    _, out = finished(tmp_path, images=images)
    page = build.build_report(out)
    assert pictures(page) == (7, 7)
    assert plain(UGLY) in [row["id"] for row in page_data(page)["rows"]]
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
    assert "3 of 7 ok, 2 of 5 failed" in text
    assert "failed <b>5</b>" in text
    assert [row["error"] for row in page_data(page)["rows"] if "error" in row] == [
        "UnreadablePhotoError"
    ] * 2
    assert "mean guide change, all <b>+1.00</b>" in text


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


def test_pictures_that_are_shown_no_more_are_removed_and_others_are_kept(tmp_path):
    _, out = finished(tmp_path, count=2)
    page = build.build_report(out)
    folder = page.parent / "thumbnails"
    (folder / "notes.txt").write_text("mine")
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jpg")}
    assert pictures(build.build_report(out, max_pictures=1)) == (1, 1)
    assert (folder / "notes.txt").is_file()
    assert len(list(folder.glob("*.jpg"))) == 2
    assert all(made[p.name] == p.stat().st_mtime_ns for p in folder.glob("*.jpg"))


def test_a_page_holds_no_infinity_and_curves_of_bounded_length():
    long = [float(i) for i in range(500)]
    short = curve(long)
    assert len(short) <= 61
    assert (short[0], short[-1]) == (0.0, 499.0)
    assert curve([1.0, float("nan"), 0.5]) == [1.0, 0.5]
    assert not usable(float("inf"))


def test_links_to_photos_cannot_be_anything_else(tmp_path):
    row = {"unguided_uri": None, "image_uri": str(tmp_path / "javascript:a b#c?.jpg"),
           "status": "ok", "edited_uri": "../../etc/passwd"}  # fmt: skip
    links = photo_links(row, tmp_path / "out", tmp_path / "out" / "report")
    assert links == ["../../javascript%3Aa%20b%23c%3F.jpg", None]
    inline = {**row, "image_uri": "/p/m.parquet#row=3", "edited_uri": "edited/a.tif"}
    links = photo_links(inline, tmp_path / "out", tmp_path / "out" / "report")
    assert links == [None, "../edited/a.tif"]
    assert not showable(links[1])


def test_data_in_a_page_ends_no_element():
    text = page_json({"name": "</script><!--&\u2028\ud800"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["name"] == "</script><!--&\u2028\ud800"


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

    def counted(self, group, columns, **options):
        read.append(columns)
        return whole(self, group, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    view = OutputView(out)
    assert list(view.delivered([{"row_id": "none.jpg", "edited_uri": None}])) == []
    assert ["edited_image"] not in read
    ((row_id, data),) = view.delivered([{"row_id": "p000.jpg", "edited_uri": None}])
    assert (row_id, data[:2]) == ("p000.jpg", b"\xff\xd8")
