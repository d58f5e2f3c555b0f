"""Folders of the first version: their parts lack columns, and are read together with new ones."""

import json

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.commits import OutputFolder
from manifests.parts import with_epoch
from manifests.rows import ResultRow
from manifests.schemas import RESULT_SCHEMA

FIRST_COLUMNS = RESULT_SCHEMA.names[: RESULT_SCHEMA.names.index("finished_at") + 1]
JOB = {"task": "enhance", "params": {"a": 1}, "doodl_version": "0.1"}


def row(name, **options):
    return ResultRow(row_id=name, input_key=name, work_key=f"{len(name):x}", status="ok", **options)


@pytest.fixture
def older(tmp_path):
    """A folder with one part as the first version wrote it, its manifest having a column safety."""
    schema = pa.schema([*(RESULT_SCHEMA.field(n) for n in FIRST_COLUMNS), ("safety", pa.int64())])
    values = {"row_id": "old", "input_key": "old", "work_key": "aa", "status": "ok", "safety": 7}
    table = pa.Table.from_pylist([values], schema=schema)
    table = table.replace_schema_metadata(with_epoch(schema, 1).metadata)
    (tmp_path / "results").mkdir()
    pq.write_table(table, tmp_path / "results" / "part-000001.parquet")
    (tmp_path / "_state").mkdir()
    extras = pa.schema([("safety", pa.int64())])
    (tmp_path / "_state" / "extra_columns.arrow").write_bytes(extras.serialize().to_pybytes())
    record = {**JOB, "schema_version": 1, "epoch": 1, "redo": {"epoch": 0, "open": False}}
    (tmp_path / "_job.json").write_text(json.dumps(record))
    return tmp_path


def test_they_are_read_with_nulls_in_the_new_columns(older):
    table = OutputFolder(str(older)).results()
    assert table.column_names == [*RESULT_SCHEMA.names, "manifest_safety"]
    (found,) = table.to_pylist()
    assert (found["row_id"], found["safety"], found["manifest_safety"]) == ("old", None, 7)


def test_the_next_run_gives_every_reader_the_same_columns(older):
    folder = OutputFolder(str(older))
    with folder.lock():
        extras = pa.schema([("manifest_safety", pa.int64())])
        folder.open_job(JOB, extras=extras)
        folder.recover()
        folder.stage(row("new", safety="passed", extra={"manifest_safety": 8}))
        folder.compact(force=True)
    results = str(older / "results")
    for table in (
        pd.read_parquet(results).set_index("row_id"),
        pl.read_parquet(f"{results}/*.parquet").to_pandas().set_index("row_id"),
    ):
        assert table.loc["new", "safety"] == "passed"
        assert pd.isna(table.loc["old", "safety"])
        assert dict(table["manifest_safety"]) == {"old": 7, "new": 8}
    assert json.loads((older / "_job.json").read_text())["schema_version"] == 3
    done = folder.done().to_pylist()
    assert sorted(entry["row_id"] for entry in done) == ["new", "old"]


def test_a_staged_row_of_theirs_is_published_too(older):
    schema = pa.schema(
        [
            *(RESULT_SCHEMA.field(n) for n in FIRST_COLUMNS),
            pa.field(
                "edited_image",
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                metadata={"description": "the delivered file"},
            ),
            ("safety", pa.int64()),
        ]
    )
    values = {"row_id": "staged", "input_key": "s", "work_key": "bb", "status": "ok", "safety": 9}
    table = pa.Table.from_pylist([values], schema=schema)
    table = table.replace_schema_metadata(with_epoch(schema, 1).metadata)
    (older / "_state" / "staging").mkdir()
    pq.write_table(table, older / "_state" / "staging" / "bb-00-1.parquet")
    folder = OutputFolder(str(older))
    with folder.lock():
        folder.open_job(JOB, extras=pa.schema([("manifest_safety", pa.int64())]))
        folder.recover()
        assert folder.compact(force=True) == 1
    table = pd.read_parquet(older / "results").set_index("row_id")
    assert dict(table["manifest_safety"]) == {"old": 7, "staged": 9}
    assert table["safety"].isna().all()


def test_a_superseded_rows_files_go_with_it(tmp_path):
    folder = OutputFolder(str(tmp_path))
    with folder.lock():
        folder.open_job(JOB)
        folder.recover()
        old = row("a", unguided_uri=folder.write_file("unguided", "a.png", b"1"))
        folder.stage(old)
        folder.compact(force=True)
        new = row("a", unguided_uri=folder.write_file("unguided", "a.webp", b"2"))
        new.input_key, new.work_key = "b", "cc"
        folder.stage(new)
        folder.compact(force=True)
    assert [p.name for p in (tmp_path / "unguided").iterdir()] == ["a.webp"]


def test_a_file_written_over_without_a_commit_is_put_back(tmp_path):
    folder = OutputFolder(str(tmp_path))
    with folder.lock():
        folder.open_job(JOB)
        folder.recover()
        folder.stage(row("a", latents_uri=folder.write_file("latents", "a.safetensors", b"1")))
        folder.compact(force=True)
    again = OutputFolder(str(tmp_path))
    with again.lock():
        again.open_job(JOB)
        again.recover()
        again.write_file("latents", "a.safetensors", b"2")  # and the worker dies
    third = OutputFolder(str(tmp_path))
    with third.lock():
        third.open_job(JOB)
        assert third.recover().photos_restored == 1
    assert (tmp_path / "latents" / "a.safetensors").read_bytes() == b"1"
