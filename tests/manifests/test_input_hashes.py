"""Hashes of inputs: what is read again, and what is not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests import hashes, inline
from manifests.hashes import RACY_NS, hash_inputs
from manifests.identity import hash_bytes
from manifests.reader import read_manifest
from manifests.scan import scan_photos
from manifests.storage import LocalStorage


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    old = time.time_ns() - 10 * RACY_NS
    for name in "abc":
        path = folder / f"{name}.jpg"
        path.write_bytes(name.encode() * 100)
        os.utime(path, ns=(old, old))
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, as they are."""
    names = []
    real = inline.hash_file

    def hash_file(path: str) -> str:
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(inline, "hash_file", hash_file)
    return names


def hashed(photos: Path, storage: LocalStorage) -> dict[str, str]:
    table = hash_inputs(scan_photos(photos), storage)
    return dict(zip(table["row_id"].to_pylist(), table["image_hash"].to_pylist(), strict=True))


def test_unchanged_photos_are_not_read(photos: Path, tmp_path: Path, read: list[str]) -> None:
    storage = LocalStorage(tmp_path / "out")
    first = hashed(photos, storage)
    assert first == {f"{n}.jpg": hash_bytes(n.encode() * 100) for n in "abc"}
    assert sorted(read) == ["a.jpg", "b.jpg", "c.jpg"]
    read.clear()
    assert hashed(photos, storage) == first
    assert read == []


def test_changed_photo_alone_is_read(photos: Path, tmp_path: Path, read: list[str]) -> None:
    storage = LocalStorage(tmp_path / "out")
    hashed(photos, storage)
    old = time.time_ns() - 5 * RACY_NS
    (photos / "b.jpg").write_bytes(b"x" * 100)  # the same size
    os.utime(photos / "b.jpg", ns=(old, old))
    (photos / "d.jpg").write_bytes(b"new")
    os.utime(photos / "d.jpg", ns=(old, old))
    (photos / "a.jpg").unlink()
    read.clear()
    assert hashed(photos, storage)["b.jpg"] == hash_bytes(b"x" * 100)
    assert sorted(read) == ["b.jpg", "d.jpg"]
    read.clear()
    hashed(photos, storage)
    assert read == []


def test_photo_modified_just_now_is_read_again(
    photos: Path, tmp_path: Path, read: list[str]
) -> None:
    storage = LocalStorage(tmp_path / "out")
    (photos / "a.jpg").write_bytes(b"one")
    status = (photos / "a.jpg").stat()
    hashed(photos, storage)
    (photos / "a.jpg").write_bytes(b"two")
    os.utime(photos / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))  # too quick to show
    read.clear()
    assert hashed(photos, storage)["a.jpg"] == hash_bytes(b"two")
    assert read == ["a.jpg"]


def test_photo_from_the_future_is_read_again(photos: Path, tmp_path: Path, read: list[str]) -> None:
    storage = LocalStorage(tmp_path / "out")
    future = time.time_ns() + 10**15
    os.utime(photos / "a.jpg", ns=(future, future))
    for _ in range(2):
        read.clear()
        hashed(photos, storage)
        assert "a.jpg" in read


def test_damaged_memory_only_costs_reading(photos: Path, tmp_path: Path, read: list[str]) -> None:
    storage = LocalStorage(tmp_path / "out")
    first = hashed(photos, storage)
    storage.write(hashes.HASHES_FILE, b"not parquet")
    read.clear()
    assert hashed(photos, storage) == first
    assert len(read) == 3


def test_photo_that_cannot_be_read_is_its_rows_error(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(photos / "pipe")
    uris = ["photos/a.jpg", "photos/gone.jpg", "photos", "photos/pipe", "gopher://host/a.jpg"]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_uri": uris}), path)
    rows = hash_inputs(read_manifest(path), None).to_pylist()
    assert [row["row_error_type"] for row in rows] == [
        None,
        "FileNotFoundError",
        "IsADirectoryError",
        "OSError",
        "AddressError",
    ]
    assert rows[1]["row_error"] == "photo cannot be read: No such file or directory"
    assert rows[0]["image_hash"] == hash_bytes(b"a" * 100)
    assert rows[0]["size_bytes"] == 100


def test_subject_photos_are_hashed_once_each(photos: Path, tmp_path: Path, read: list[str]) -> None:
    subjects = [["photos/c.jpg"], ["photos/c.jpg", "photos/b.jpg"], None, ["photos/gone.jpg"]]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_uri": ["photos/a.jpg"] * 4, "subject_uris": subjects}), path)
    storage = LocalStorage(tmp_path / "out")
    rows = hash_inputs(read_manifest(path), storage).to_pylist()
    b, c = hash_bytes(b"b" * 100), hash_bytes(b"c" * 100)
    assert [row["subject_hashes"] for row in rows] == [[c], [c, b], None, [None]]
    assert "subject photo" in rows[3]["row_error"]
    assert read.count("c.jpg") == 1


def test_progress_is_told(photos: Path) -> None:
    told: list[tuple[int, int]] = []
    hash_inputs(scan_photos(photos), None, progress=lambda *args: told.append(args))
    assert told[-1] == (3, 3)


def test_collection_without_photos_is_hashed_too(tmp_path: Path) -> None:
    assert hash_inputs(scan_photos(tmp_path), LocalStorage(tmp_path)).num_rows == 0


@pytest.mark.parametrize("started", [0, 1, 3, 4])
def test_too_few_threads_are_said_to_be_that(
    photos: Path, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    plain, starts = Thread.start, []

    def start(self: Thread) -> None:
        if len(starts) == started:
            raise RuntimeError("can't start new thread")
        starts.append(self)
        plain(self)

    monkeypatch.setattr(Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        hash_inputs(scan_photos(photos), None, workers=4)


def must_not_open(*arguments: object) -> None:
    raise AssertionError(arguments)


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg", "pipe.parquet#row=0"])
@pytest.mark.parametrize("ask", [inline.hash_input, inline.read_input])
def test_a_pipe_is_opened_by_nobody(tmp_path, monkeypatch, ask, name) -> None:
    os.mkfifo(tmp_path / name.partition("#")[0])
    for opener in ("hash_file", "open_table"):
        monkeypatch.setattr(inline, opener, must_not_open)
    with pytest.raises(OSError, match="not a regular file"):
        ask(f"{tmp_path}/{name}")


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="no /proc here")
@pytest.mark.parametrize("path", ["/proc/version", "/proc/self/status", "file:///proc/mounts"])
def test_a_file_that_the_kernel_makes_up_is_empty_and_not_opened(monkeypatch, path) -> None:
    """Some of them, as /proc/kmsg, are read for ever."""
    monkeypatch.setattr(inline, "hash_file", must_not_open)
    assert inline.hash_input(path) == hash_bytes(b"")
    assert inline.read_input(path) == b""


def test_an_empty_file_and_an_empty_folder_are_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert inline.hash_input(f"{tmp_path}/empty.jpg") == hash_bytes(b"")
    assert inline.read_input(f"{tmp_path}/empty.jpg") == b""
    for ask in (inline.hash_input, inline.read_input):
        with pytest.raises(IsADirectoryError):
            ask(str(tmp_path))


@pytest.mark.parametrize(
    "uri", ["d/" * 1500 + "a.jpg", "d/" * 2500 + "a.jpg", "a" * 5000, "x" * 300 + "/a.jpg"]
)
def test_a_path_that_is_too_long_or_deep_is_its_rows_error(tmp_path: Path, uri: str) -> None:
    (tmp_path / "good.jpg").write_bytes(b"photo")
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_uri": [uri, f"{uri}.parquet#row=0", "good.jpg"]}), path)
    table = hash_inputs(read_manifest(path), None)
    *kinds, good = table["row_error_type"].to_pylist()
    assert good is None
    assert set(kinds) <= {"OSError", "FileNotFoundError"}
    for full in table["image_uri"].to_pylist()[:2]:
        for ask in (inline.hash_input, inline.read_input):
            with pytest.raises(OSError, match=r"too long|No such file"):
                ask(full)
