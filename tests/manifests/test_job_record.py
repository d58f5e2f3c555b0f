"""One job to an output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.commits import OutputFolder
from manifests.errors import JobConflictError, ManifestError, OutputCorruptError
from manifests.identity import params_fingerprint
from manifests.rows import ResultRow


def job(version: str = "1.0", **params: Any) -> dict[str, Any]:
    return {"task": "enhance", "doodl_version": version, "params": {"steps": 50, **params}}


def test_same_command_continues(tmp_path: Path) -> None:
    first = OutputFolder(tmp_path).open_job(job())
    second = OutputFolder(tmp_path).open_job(job())
    assert second["epoch"] == first["epoch"] + 1
    assert {**second, "epoch": 1} == first
    assert first["params_fingerprint"] == params_fingerprint({"steps": 50})


def test_other_options_are_refused_and_named(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path)
    out.open_job(job(delivery={"format": "jpg", "quality": 90}, sizes=(1, 2)))
    with pytest.raises(JobConflictError) as error:
        out.open_job({**job(delivery={"format": "png", "quality": 90}, sizes=[1, 2]), "task": "x"})
    assert error.value.differences == {
        "task": ("enhance", "x"),
        "delivery.format": ("jpg", "png"),
    }
    assert "delivery.format: 'jpg' → 'png'" in str(error.value)
    assert "--redo" in str(error.value)
    assert out.read_job()["params"]["delivery"]["format"] == "jpg"


def test_option_given_up_or_added_is_a_difference(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path)
    out.open_job(job(preset="fine"))
    with pytest.raises(JobConflictError, match=r"preset: 'fine' → None"):
        out.open_job(job())
    with pytest.raises(JobConflictError, match=r"depth: None → 0.5"):
        out.open_job(job(preset="fine", depth=0.5))


def test_newer_software_continues_with_its_own_fingerprint(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path)
    old = out.open_job(job("1.0", algorithm_version=1))
    new = out.open_job(job("1.1", algorithm_version=2, new_option="default"))
    assert new["params_fingerprint"] != old["params_fingerprint"]
    for record in (old, new):
        params = out.read_params(record["params_fingerprint"])
        assert params == {"task": "enhance", "params": record["params"]}
    with pytest.raises(JobConflictError, match="steps: 50 → 10"):
        out.open_job({**job("1.2"), "params": {"steps": 10}})


def test_redo_takes_other_options_and_no_row_as_done(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path)
    with out.lock():
        out.open_job(job())
        out.stage(ResultRow("a.jpg", "k", "aa", "ok"))
        out.stage(ResultRow("b.jpg", "l", "bb", "ok"))
        out.compact(force=True)
        out.open_job(job(depth=0.5), redo=True)
        assert out.done().num_rows == 0
        assert out.results().num_rows == 2
        out.stage(ResultRow("a.jpg", "k", "ab", "ok"))
        # Killed here: the same command, with --redo or without, goes on.
        for redo in (True, False):
            out.open_job(job(depth=0.5), redo=redo)
            assert out.done()["work_key"].to_pylist() == ["ab"]
        out.compact(force=True)
        assert out.done()["work_key"].to_pylist() == ["ab"]
        assert sorted(out.results()["work_key"].to_pylist()) == ["ab", "bb"]
        out.close_redo()
        assert out.open_job(job(depth=0.5))["redo"]["open"] is False
        assert out.done().num_rows == 1
        out.open_job(job(depth=0.5), redo=True)
        assert out.done().num_rows == 0


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(JobConflictError, match=r"holds other files \('holiday.jpg'\)"):
        OutputFolder(tmp_path).open_job(job())
    assert not (tmp_path / "_job.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"params": 3}'])
def test_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "_job.json").write_text(text)
    with pytest.raises(OutputCorruptError, match=r"_job.json is damaged"):
        OutputFolder(tmp_path).open_job(job())


def test_folder_of_newer_software_is_refused(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path)
    out.open_job({**job(), "schema_version": 99})
    with pytest.raises(JobConflictError, match="written by a newer doodl-batch"):
        out.open_job(job())


def commit_night(out: OutputFolder, row_id: str, extras: pa.Schema, **extra: Any) -> None:
    with out.lock():
        out.open_job(job(), extras=extras)
        out.stage(ResultRow(row_id, row_id, row_id[:1] * 2, "ok", extra=extra))
        out.compact(force=True)


def test_every_part_has_the_same_columns_when_the_manifest_gains_or_loses_some(
    tmp_path: Path,
) -> None:
    out = OutputFolder(tmp_path)
    commit_night(out, "a", pa.schema([("rating", pa.int8())]), rating=1)
    commit_night(out, "b", pa.schema([("rating", pa.int64()), ("who", pa.string())]), rating=2**40)
    commit_night(out, "c", pa.schema([("who", pa.string())]), who="me")
    schemas = {pq.read_schema(path).remove_metadata() for path in (tmp_path / "results").iterdir()}
    assert len(schemas) == 1
    rows = pq.read_table(tmp_path / "results").sort_by("row_id")
    assert rows["rating"].to_pylist() == [1, 2**40, None]
    assert rows["who"].to_pylist() == [None, None, "me"]


def test_extra_column_that_changes_its_type_is_named(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path)
    commit_night(out, "a", pa.schema([("rating", pa.int64())]), rating=1)
    with pytest.raises(ManifestError, match=r"'rating': got list<.*earlier results have int64"):
        out.open_job(job(), extras=pa.schema([("rating", pa.list_(pa.int64()))]))
    assert out.results()["rating"].to_pylist() == [1]
