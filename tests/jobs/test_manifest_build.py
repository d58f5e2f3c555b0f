"""`manifest build`: one file, whole or not at all, and never over another."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from tests.photos import collection


@pytest.fixture
def photos(tmp_path):
    return collection(tmp_path / "photos", 3)


@pytest.fixture
def build(monkeypatch, capsys):
    """Return a function that runs the command and returns (exit code, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["doodl-batch", "manifest", "build", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr().err

    return run


def test_a_file_that_is_there_is_written_over_on_request_alone(photos, tmp_path, build):
    path = tmp_path / "m.parquet"
    assert build(photos, path)[0] == 0
    table = pq.read_table(path)
    mine = table.set_column(table.column_names.index("prompt"), "prompt", pa.array(["a", "b", "c"]))
    pq.write_table(mine, path)
    code, err = build(photos, path)
    assert code == 2
    assert "m.parquet exists; write it anew with --overwrite" in err
    assert pq.read_table(path).equals(mine)
    assert build(photos, path, "--overwrite")[0] == 0
    assert pq.read_table(path)["prompt"].null_count == 3
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.parquet"]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff a photo by another name", b"text"])
def test_what_is_no_table_is_not_written_over_even_on_request(photos, tmp_path, build, data):
    path = tmp_path / "m.parquet"
    path.write_bytes(data)
    code, err = build(photos, path, "--overwrite")
    assert code == 2
    assert "is no Parquet file" in err
    assert path.read_bytes() == data


@pytest.mark.parametrize("name", ["photos/p000.jpg", "m.csv", "m"])
def test_a_photo_is_never_written_over(photos, tmp_path, build, name):
    path = tmp_path / name
    before = path.read_bytes() if path.exists() else None
    assert build(photos, path, "--overwrite")[0] == 2
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_link_to_a_photo_leaves_the_photo(photos, tmp_path, build):
    link, photo = tmp_path / "m.parquet", photos / "p000.jpg"
    link.symlink_to(photo)
    before = photo.read_bytes()
    for words in ((), ("--overwrite",)):
        assert build(photos, link, *words)[0] == 2
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("target", "said"),
    [("nowhere/m.parquet", "nowhere is no folder"), ("photos.parquet", "is no Parquet file")],
)
def test_into_nothing_or_over_a_folder_is_one_line(photos, tmp_path, build, target, said):
    (tmp_path / "photos.parquet").mkdir()
    code, err = build(photos, tmp_path / target, "--overwrite")
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_a_manifest_is_not_written_over_itself(photos, tmp_path, build):
    path = tmp_path / "m.parquet"
    build(photos, path)
    before = path.read_bytes()
    code, err = build(path, path, "--overwrite")
    assert (code, path.read_bytes()) == (2, before)
    assert "is what is read" in err


def test_a_photos_folder_that_is_not_there_leaves_the_file(photos, tmp_path, build):
    path = tmp_path / "m.parquet"
    build(photos, path)
    before = path.read_bytes()
    assert build(tmp_path / "nowhere", path, "--overwrite")[0] == 2
    assert path.read_bytes() == before


KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
def write_table(table, sink, **options):
    (sink if hasattr(sink, "write") else open(sink, "wb")).write(b"PAR1 and no more")
    os.kill(os.getpid(), signal.SIGKILL)
pq.write_table = write_table
from jobs.cli import main
main()
"""


@pytest.mark.parametrize("there", [True, False])
def test_killed_in_the_middle_it_leaves_what_there_was(photos, tmp_path, build, there):
    path = tmp_path / "m.parquet"
    if there:
        build(photos, path)
    before = path.read_bytes() if there else None
    words = ["manifest", "build", photos, path, "--overwrite"]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())}, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == before
    assert build(photos, path, "--overwrite")[0] == 0
    assert pq.read_table(path).num_rows == 3


def test_a_disk_that_fills_leaves_what_there_was_and_no_rest(photos, tmp_path, build, monkeypatch):
    path = tmp_path / "m.parquet"
    build(photos, path)
    before = path.read_bytes()

    def full(table, sink, **options):
        sink.write(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.manifest.pq.write_table", full)
    assert build(photos, path, "--overwrite")[0] == 7
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["m.parquet"]
