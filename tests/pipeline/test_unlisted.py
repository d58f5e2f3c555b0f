"""Folders of photos that cannot be listed: named, and the rest is done."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.cli import main
from manifests.commits import OutputFolder
from manifests.errors import ManifestError
from manifests.scan import scan_photos, unlisted
from pipeline.evaluation import read_sources
from pipeline.plan import RunChoice, preview_plan
from pipeline.protecting import with_masks
from pipeline.run import run_job
from tests.photos import collection, jpeg
from tests.pipeline.conftest import results, spec_of


class Entry:
    """A directory entry that cannot be looked at."""

    def __init__(self, entry, error):
        self.name, self.path, self._error = entry.name, entry.path, error

    def is_dir(self):
        raise self._error


class Scan:
    """A listing that breaks off, or that holds entries out of reach."""

    def __init__(self, scan, breaks=None, entries=None):
        self._scan, self._breaks, self._entries = scan, breaks, entries or {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._scan.close()

    def __iter__(self):
        for entry in self._scan:
            error = self._entries.get(entry.name)
            yield entry if error is None else Entry(entry, error)
        if self._breaks is not None:
            raise self._breaks


def _refused(path, scan):
    raise PermissionError(errno.EACCES, "Permission denied", path)


def _bad_disk(path, scan):
    raise OSError(errno.EIO, "Input/output error", path)


def _breaks_off(path, scan):
    return Scan(scan(path), breaks=OSError(errno.EIO, "Input/output error"))


def _stale(path, scan):
    raise OSError(errno.ESTALE, "Stale file handle", path)


def _vanishes(path, scan):
    shutil.move(path, path + "-away")
    return scan(path)


FAULTS = {
    "Permission denied": _refused,
    "Input/output error": _bad_disk,
    "Input/output error ": _breaks_off,
    "Stale file handle": _stale,
    "No such file or directory": _vanishes,
}


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 4)


@pytest.fixture
def break_folder(photos):
    """Return a function that makes `photos/sub` answer with a fault until it is undone."""
    patches = []

    def break_(fault):
        plain, patch = os.scandir, pytest.MonkeyPatch()

        def scandir(path="."):
            if os.fspath(path) == str(photos / "sub"):
                return fault(os.fspath(path), plain)
            return plain(path)

        patch.setattr(os, "scandir", scandir)
        patches.append(patch)
        return patch

    yield break_
    for patch in patches:
        patch.undo()


def call(*words):
    """Run the command here; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["doodl-batch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0


class Told:
    """An observer that keeps what a person is told."""

    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)

    def start(self, total): ...

    def row(self, row_id, status, detail): ...


@pytest.mark.parametrize("reason", FAULTS)
def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_done(
    photos, edits, break_folder, reason
):
    spec, told = spec_of(photos), Told()
    patch = break_folder(FAULTS[reason])
    summary = run_job(spec, observer=told)
    assert (summary.exit_code, summary.counts["ok"], summary.computed) == (3, 2, 2)
    assert summary.unlisted == [str(photos / "sub")]
    line = f"left out, it cannot be listed: {photos}/sub ({reason.strip()})"
    assert told.messages.count(line) == 1
    (log,) = (Path(spec.out) / "_state/logs").iterdir()
    events = [json.loads(text) for text in log.read_text().splitlines()]
    (event,) = [e for e in events if e["event"] == "unlisted"]
    assert (event["path"], event["error"]) == (str(photos / "sub"), reason.strip())
    assert [e["text"] for e in events if e["event"] == "message"].count(line) == 1
    patch.undo()
    if not (photos / "sub").exists():
        shutil.move(f"{photos}/sub-away", photos / "sub")
    summary = run_job(spec)
    assert (summary.exit_code, summary.counts["ok"], summary.computed) == (0, 4, 2)
    assert summary.unlisted == []


@pytest.mark.parametrize("reason", FAULTS)
def test_photos_of_a_folder_out_of_reach_keep_their_results(photos, edits, break_folder, reason):
    spec = spec_of(photos)
    run_job(spec)
    (photos / "new.jpg").write_bytes(jpeg(70))
    before = results(spec)
    patch = break_folder(FAULTS[reason])
    summary = run_job(spec)
    assert (summary.exit_code, summary.computed) == (3, 1)
    assert results(spec).loc[before.index].equals(before)
    patch.undo()
    if not (photos / "sub").exists():
        shutil.move(f"{photos}/sub-away", photos / "sub")
    assert run_job(spec).exit_code == 0
    assert edits() == 5


def test_half_done_photos_and_a_redo_wait_for_a_folder_out_of_reach(photos, edits, break_folder):
    spec = spec_of(photos)
    run_job(spec)
    down = spec_of(photos, direction="down")
    folder = OutputFolder(spec.out)
    keys = preview_plan(down, RunChoice(redo=True)).table.to_pylist()
    half = next(row["work_key"] for row in keys if row["row_id"].startswith("sub/"))
    folder.checkpoints.save(half, b"half done")
    patch = break_folder(_refused)
    assert run_job(down, RunChoice(redo=True)).exit_code == 3
    assert folder.checkpoints.load(half) == b"half done"
    assert folder.read_job()["redo"]["open"]
    patch.undo()
    assert run_job(down).exit_code == 0
    assert not folder.read_job()["redo"]["open"]
    assert edits() == 8


@pytest.mark.parametrize("reason", FAULTS)
def test_plan_score_and_manifest_say_the_same(photos, tmp_path, break_folder, capsys, reason):
    line = f"it cannot be listed: {photos}/sub ({reason.strip()})"
    for words in (
        ("plan", photos, "--device", "cpu", "--probe", "0"),
        ("manifest", "build", photos, tmp_path / "m.parquet"),
        ("manifest", "show", photos),
        ("manifest", "check", photos),
    ):
        patch = break_folder(FAULTS[reason])
        assert call(*words) == 3
        assert capsys.readouterr().err.count(line) == 1
        patch.undo()
        if not (photos / "sub").exists():
            shutil.move(f"{photos}/sub-away", photos / "sub")
        assert call(*words, *(["--overwrite"] if "build" in words else [])) == 0
        assert "cannot be listed" not in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["Permission denied", "Stale file handle"])
def test_score_names_what_it_cannot_score(photos, break_folder, capsys, reason):
    patch = break_folder(FAULTS[reason])
    assert call("score", photos, "--json") == 3
    told = {one["row_id"]: one["error"] for one in json.loads(capsys.readouterr().out)}
    assert told.pop(str(photos / "sub")) == f"left out, it cannot be listed ({reason})"
    assert told == {"p000.jpg": None, "p002.jpg": None}
    patch.undo()


def test_plan_names_them_in_json_too(photos, break_folder, capsys):
    break_folder(_refused)
    assert call("plan", photos, "--device", "cpu", "--probe", "0", "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["unlisted"] == [{"path": str(photos / "sub"), "error": "Permission denied"}]
    assert told["compute"] == 2


def test_links_that_loop_and_names_out_of_reach_are_named(photos, monkeypatch):
    (photos / "self.jpg").symlink_to(photos / "self.jpg")
    (photos / "there").symlink_to(photos / "back")
    (photos / "back").symlink_to(photos / "there")
    (photos / "sub/gone.jpg").symlink_to("nowhere.jpg")  # a broken link alone is no photo
    plain, error = os.scandir, PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(os, "scandir", lambda path: Scan(plain(path), entries={"p002.jpg": error}))
    table = scan_photos(photos)
    assert table["row_id"].to_pylist() == ["p000.jpg", "sub/p001.jpg", "sub/p003.jpg"]
    assert sorted(unlisted(table)) == [
        (f"{photos}/back", "Too many levels of symbolic links"),
        (f"{photos}/p002.jpg", "Permission denied"),
        (f"{photos}/self.jpg", "Too many levels of symbolic links"),
        (f"{photos}/there", "Too many levels of symbolic links"),
    ]


def test_a_name_that_is_not_text_is_named_too(photos, monkeypatch):
    odd = os.fsdecode(os.fsencode(photos) + b"/\xff")
    Path(odd).mkdir()
    plain = os.scandir

    def scandir(path):
        return _refused(path, plain) if path == odd else plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert unlisted(scan_photos(photos)) == [(odd, "Permission denied")]
    assert run_job(spec_of(photos)).exit_code == 3


def test_many_places_are_counted_and_all_of_them_logged(photos):
    for number in range(30):
        (photos / f"loop{number:02d}").symlink_to(photos / f"loop{number:02d}")
    spec, told = spec_of(photos), Told()
    assert len(run_job(spec, observer=told).unlisted) == 30
    assert sum("cannot be listed" in text for text in told.messages) == 21
    assert "and 10 more that cannot be listed" in told.messages
    (log,) = (Path(spec.out) / "_state/logs").iterdir()
    assert log.read_text().count('"event": "unlisted"') == 30


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "I/O")])
def test_a_collection_that_cannot_be_listed_at_all_is_refused(photos, monkeypatch, error):
    def refused(path):
        raise error

    spec = spec_of(photos)
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ManifestError, match=f"photos cannot be listed \\({error.strerror}"):
        run_job(spec)
    assert not Path(spec.out).exists()


def test_figures_are_not_made_of_a_part_of_the_photos(photos, tmp_path, break_folder):
    break_folder(_refused)
    with pytest.raises(ManifestError, match=r"photos/sub cannot be listed \(Permission denied\)"):
        read_sources([photos], tmp_path / "figures")


def test_masks_that_cannot_be_listed_leave_no_photo_unprotected(photos, tmp_path, monkeypatch):
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    (masks / "p000.png").write_bytes(b"a mask")
    plain = os.scandir

    def scandir(path):
        return _refused(path, plain) if str(path) == str(masks / "sub") else plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ManifestError, match=r"masks/sub, of the masks of --protect, cannot"):
        with_masks(scan_photos(photos), str(masks))


def test_what_was_not_listed_is_no_part_of_the_recorded_manifest(photos, break_folder):
    break_folder(_refused)
    spec = spec_of(photos)
    run_job(spec)
    recorded = OutputFolder(spec.out).read_manifest()
    assert isinstance(recorded, pa.Table)
    assert unlisted(recorded) == []
