"""What lies in an output folder, for its readers and after mishaps."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from manifests.commits import OutputFolder
from manifests.errors import CommitError, OutputCorruptError, OutputLockedError
from manifests.hashes import hash_inputs
from manifests.identity import input_key, work_key
from manifests.paths import edited_relpath
from manifests.plan import plan_rows
from manifests.rows import ResultRow
from manifests.scan import scan_photos
from manifests.schemas import IMAGE_SCHEMA, RESULT_SCHEMA
from manifests.storage import ArrowStorage, LocalStorage

JOB = {"task": "enhance", "doodl_version": "1", "params": {"steps": 10}}


def result(row_id: str, status: str = "ok", content: str = "", **columns: Any) -> ResultRow:
    key = input_key(f"{row_id}{content}", {})
    return ResultRow(row_id, key, work_key(key, "p"), status, **columns)  # type: ignore[arg-type]


def commit(out: OutputFolder, row: ResultRow, images: str = "both") -> ResultRow:
    """Commit a row with a photo, as `--images` says."""
    photo = None
    if row.status == "ok":
        photo = f"photo of {row.row_id} {row.work_key}".encode()
        relpath = edited_relpath(row.row_id, ".jpg")
        row.edited_uri = f"edited/{relpath}"
        if images != "parquet":
            out.write_edited(relpath, photo)
    out.stage(row, photo if images != "files" else None)
    return row


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    folder = OutputFolder(tmp_path / "out")
    with folder.lock():
        folder.open_job(JOB)
    return folder


def compact(out: OutputFolder, **options: Any) -> int:
    with out.lock():
        return out.compact(force=True, **options)


def test_every_reader_gives_the_rows_and_only_the_rows(out: OutputFolder) -> None:
    for i in range(7):
        commit(out, result(f"{i}.jpg", "ok" if i % 3 else "failed", loss_curve=[0.5, 0.25]))
    compact(out, part_bytes=20_000)
    commit(out, result("0.jpg"))  # a failure retried: supersedes
    with out.lock():
        out.open_job(JOB)
        out.compact(force=True)
    commit(out, result("staged only.jpg"))
    folder = f"{out.uri}/results"
    assert len(list(Path(folder).iterdir())) > 2
    expected = [f"{i}.jpg" for i in range(7)]
    assert sorted(pd.read_parquet(folder)["row_id"]) == expected
    assert sorted(pl.read_parquet(folder)["row_id"]) == expected
    assert sorted(pl.read_parquet(f"{folder}/*.parquet")["row_id"]) == expected
    table = ds.dataset(folder).to_table()
    assert sorted(table["row_id"].to_pylist()) == expected
    assert table.column_names == RESULT_SCHEMA.names
    assert pd.read_parquet(folder).columns.tolist() == RESULT_SCHEMA.names
    images = ds.dataset(f"{out.uri}/images").to_table()
    assert sorted(images["row_id"].to_pylist()) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    for row in images.to_pylist():
        photo = row["edited_image"]
        assert photo["bytes"] == Path(out.edited_path(photo["path"])).read_bytes()


def test_results_hold_the_documented_schema(out: OutputFolder) -> None:
    commit(out, result("a.jpg"))
    compact(out)
    for folder, schema in (("results", RESULT_SCHEMA), ("images", IMAGE_SCHEMA)):
        (path,) = Path(out.uri, folder).iterdir()
        stored = pq.read_schema(path)
        assert stored.equals(schema)
        assert stored.field("row_id").metadata[b"description"]


@pytest.mark.parametrize("images", ["both", "files", "parquet"])
def test_photos_go_where_asked(out: OutputFolder, images: str) -> None:
    row = commit(out, result("trip/a.png"), images)
    compact(out)
    assert Path(out.uri, "edited/trip/a.png.jpg").exists() == (images != "parquet")
    assert Path(out.uri, "images").exists() == (images != "files")
    assert out.read_photo(row) == f"photo of trip/a.png {row.work_key}".encode()


def test_image_column_is_the_one_hugging_face_decodes(out: OutputFolder) -> None:
    commit(out, result("a.jpg"))
    compact(out)
    (path,) = Path(out.uri, "images").iterdir()
    assert b'"edited_image": {"_type": "Image"}' in pq.read_schema(path).metadata[b"huggingface"]


def test_rows_with_the_same_work_do_not_clash(out: OutputFolder) -> None:
    first = commit(out, result("a.jpg", score_before=5.0))
    commit(out, replace(first, row_id="b/copy.png"))
    assert compact(out) == 2
    rows = out.rows(["a.jpg", "b/copy.png", "nowhere"])
    assert sorted(rows) == ["a.jpg", "b/copy.png"]
    assert rows["b/copy.png"].work_key == first.work_key
    assert rows["b/copy.png"].edited_uri == "edited/b/copy.png.jpg"


def test_photo_whose_file_is_gone_is_read_from_the_images(out: OutputFolder) -> None:
    both = commit(out, result("a.jpg"))
    file_only = commit(out, result("b.jpg"), images="files")
    compact(out)
    for row in (both, file_only):
        Path(out.edited_path(str(row.edited_uri))).unlink()
    assert out.read_photo(both) == f"photo of a.jpg {both.work_key}".encode()
    assert out.read_photo(file_only) is None
    assert out.read_photo(result("c.jpg", "failed")) is None


@pytest.mark.parametrize("relpath", ["../x.jpg", "/x.jpg", "a/../../x.jpg", "", "C:/x.jpg", "a\\b"])
def test_photo_is_never_written_outside(out: OutputFolder, relpath: str) -> None:
    before = sorted(Path(out.uri).parent.rglob("*"))
    with pytest.raises(CommitError, match=r"leaves edited/"):
        out.write_edited(relpath, b"x")
    assert sorted(Path(out.uri).parent.rglob("*")) == before


def test_photo_delivered_under_another_name_replaces_the_old_one(out: OutputFolder) -> None:
    commit(out, result("a.heic", "ok"))
    compact(out)
    out.open_job(JOB)
    new = result("a.heic", content="changed")
    new.edited_uri = out.write_edited("a.heic", b"new")
    out.stage(new)
    compact(out)
    assert [p.name for p in Path(out.uri, "edited").iterdir()] == ["a.heic"]


def test_full_disk_leaves_no_part_and_nothing_lost(
    out: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(out, result("a.jpg"))
    real = LocalStorage._write_temporary

    def full(self: LocalStorage, path: Path, fill: Any) -> None:
        def partly(file: Any) -> None:
            fill(file)
            file.truncate(max(1, file.tell() // 2))
            raise OSError(errno.ENOSPC, "No space left on device")

        real(self, path, partly)

    monkeypatch.setattr(LocalStorage, "_write_temporary", full)
    with pytest.raises(OSError, match="No space left"):
        commit(out, result("b.jpg"))
    with pytest.raises(OSError, match="No space left"):
        compact(out)
    for folder in ("results", "images", "edited", "_state/tmp"):
        path = Path(out.uri, folder)
        assert not path.exists() or [p.name for p in path.iterdir()] in ([], ["a.jpg"])
    monkeypatch.undo()
    with out.lock():
        out.recover()
        assert out.compact(force=True) == 1
    assert out.done()["row_id"].to_pylist() == ["a.jpg"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_write_limit_of_the_process_leaves_no_readable_partial_file(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from manifests.commits import OutputFolder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "out = OutputFolder(sys.argv[1])\n"
        "out.write_edited('small.jpg', b'x' * 1000)\n"
        "out.write_edited('large.jpg', b'x' * 1_000_000)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "File too large" in ended.stderr
    files = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert files == ["small.jpg"]


def test_foreign_file_among_the_results_is_named(out: OutputFolder) -> None:
    commit(out, result("a.jpg"))
    compact(out)
    Path(out.uri, "results/notes.parquet").write_text("hello")
    for act in (out.done, out.results):
        with pytest.raises(OutputCorruptError, match=r"notes.parquet is not a part.*move it"):
            act()
    Path(out.uri, "results/notes.parquet").rename(Path(out.uri, "results/.DS_Store"))
    assert out.done().num_rows == 1


@pytest.mark.parametrize("keep", [0, 10, 0.5, -10])
def test_truncated_part_is_named_with_the_way_out(out: OutputFolder, keep: float) -> None:
    commit(out, result("a.jpg"))
    commit(out, result("b.jpg"))
    compact(out, part_bytes=1)
    path = Path(out.uri, "results/part-000001.parquet")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(OutputCorruptError, match=r"part-000001.parquet is truncated.*move it"):
        out.done()
    path.rename(Path(out.uri, "moved"))
    assert out.done().num_rows == 1


def test_damaged_staged_row_is_put_aside_and_the_others_are_kept(out: OutputFolder) -> None:
    for name in ("a.jpg", "b.jpg"):
        commit(out, result(name))
    damaged = sorted(Path(out.uri, "_state/staging").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert out.done().num_rows == 1
    with out.lock():
        out.open_job(JOB)
        report = out.recover()
        assert report.quarantined == [damaged.name]
        assert out.compact(force=True) == 1
    assert Path(out.uri, "_state/quarantine", damaged.name).exists()
    assert out.done().num_rows == 1


def test_compaction_waits_for_enough_rows(out: OutputFolder) -> None:
    for i in range(3):
        commit(out, result(f"{i}.jpg"))
    with out.lock():
        assert out.compact(min_rows=4) == 0
        assert out.staged_count() == 3
        assert out.compact(min_rows=3) == 3
        assert out.compact(force=True) == 0
    commit(out, result("large.jpg"))
    with out.lock():
        assert out.compact(min_bytes=1) == 1


def test_parts_are_bounded_by_bytes(out: OutputFolder) -> None:
    for i in range(10):
        commit(out, result(f"{i}.jpg"))
    size = sum(p.stat().st_size for p in Path(out.uri, "_state/staging").iterdir())
    compact(out, part_bytes=size // 3)
    assert 3 <= len(list(Path(out.uri, "results").iterdir())) <= 4


def _work(uri: str, number: int) -> None:
    commit(OutputFolder(uri), result(f"{number}.jpg"))


def test_workers_in_other_processes_commit(out: OutputFolder) -> None:
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_work, [out.uri] * 8, range(8)))
    assert compact(out) == 8
    assert sorted(out.results()["row_id"].to_pylist()) == [f"{i}.jpg" for i in range(8)]


def test_checkpoint_is_kept_replaced_and_dropped(out: OutputFolder) -> None:
    assert out.checkpoints.load("aa") is None
    for data in (b"first", b"second"):
        out.checkpoints.save("aa", data)
        assert OutputFolder(out.uri).checkpoints.load("aa") == data
    out.checkpoints.save("bb", b"other")
    assert out.checkpoints.prune(["bb"]) == 1
    assert out.checkpoints.work_keys() == ["bb"]
    out.checkpoints.drop("bb")
    assert out.checkpoints.work_keys() == []
    with pytest.raises(ValueError, match=r"must be hex"):
        out.checkpoints.save("../x", b"")


def test_ledger_only_grows(out: OutputFolder) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(2):  # a run_id used twice
        with out.ledger("night-1") as ledger:
            ledger.append(row_id="a", work_key="k", attempt=1, state="started", started_at=now)
            ledger.flush()
            ledger.append(row_id="a", work_key="k", attempt=1, state="ok", peak_memory_bytes=5)
    with out.ledger("night-2") as ledger:
        ledger.append(row_id="b", work_key="l", attempt=1, state="failed", error_type="X")
    assert out.read_ledger("night-1").num_rows == 4
    assert out.read_ledger().num_rows == 5
    assert ds.dataset(f"{out.uri}/_state/ledger", partitioning="hive").count_rows() == 5
    with pytest.raises(ValueError, match="run_id"):
        out.ledger("../x")


def test_manifest_is_recorded_and_read_back(out: OutputFolder) -> None:
    assert out.read_manifest() is None
    table = pa.table({"row_id": ["a.jpg"], "rating": [5]})
    out.write_manifest(table)
    assert out.read_manifest() == table


def test_object_storage_holds_the_same_folder(tmp_path: Path) -> None:
    fs = pytest.importorskip("fsspec")
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    store = PyFileSystem(FSSpecHandler(fs.filesystem("memory")))
    out = OutputFolder(ArrowStorage("bucket/out", store))
    out.open_job(JOB)
    out._held = True
    assert out.recover().intents_redone == 0
    for i in range(3):
        commit(out, result(f"{i}.jpg", "failed" if i == 0 else "ok"))
    assert out.done().num_rows == 3
    assert out.compact(force=True) == 3
    out.open_job(JOB)
    commit(out, result("0.jpg"))
    assert out.compact(force=True) == 1
    assert out.results()["status"].to_pylist() == ["ok"] * 3
    before = out.storage.read("edited/1.jpg")
    out.open_job(JOB)
    OutputFolder(out.storage).write_edited("1.jpg", b"never committed")
    out.open_job(JOB)
    assert out.recover().photos_restored == 1
    assert out.storage.read("edited/1.jpg") == before
    assert out.staged_count() == 0
    (tmp_path / "a.jpg").write_bytes(b"photo")
    inputs = hash_inputs(scan_photos(tmp_path), out.storage)
    assert plan_rows(inputs, out.done(), "p").counts["new"] == 1
    with out.lock(), pytest.raises(OutputLockedError), OutputFolder(out.storage).lock():
        pass
    store.delete_dir("bucket")


def test_photo_is_kept_where_there_are_no_hard_links(
    out: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalStorage, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(LocalStorage, "_link", refuse)
    row = commit(out, result("a.jpg"))
    out.open_job(JOB)
    OutputFolder(out.uri).write_edited("a.jpg", b"never committed")
    with out.lock():
        out.open_job(JOB)
        assert out.recover().photos_restored == 1
    assert out.read_photo(row) == f"photo of a.jpg {row.work_key}".encode()


def test_temporary_files_are_recognised_and_removed(out: OutputFolder) -> None:
    Path(out.uri, "_state/tmp/0123.tmp").write_bytes(b"half")
    with out.lock():
        assert out.recover().temporaries_removed == 1
    assert os.listdir(Path(out.uri, "_state/tmp")) == []  # noqa: PTH208
