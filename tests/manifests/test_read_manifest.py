"""Manifest files: what a bad file says, what a bad row says, and that the rest is read."""

from __future__ import annotations

import contextlib
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.errors import ManifestError
from manifests.identity import hash_bytes
from manifests.inline import read_input
from manifests.naming import resolve_plain_rows, resolve_rows
from manifests.reader import read_manifest
from manifests.schemas import INPUT_SCHEMA, extra_schema


def manifest(folder: Path, **columns: Any) -> Path:
    path = folder / "manifest.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def read(folder: Path, **columns: Any) -> list[dict[str, Any]]:
    return read_manifest(manifest(folder, **columns)).to_pylist()


def test_paths_are_taken_from_the_manifests_folder(tmp_path: Path) -> None:
    rows = read(tmp_path, image_uri=["a.jpg", "sub/b.jpg", "/data/c.jpg", "s3://bucket/d.jpg"])
    assert [row["image_uri"] for row in rows] == [
        f"{tmp_path}/a.jpg",
        f"{tmp_path}/sub/b.jpg",
        "/data/c.jpg",
        "s3://bucket/d.jpg",
    ]
    assert [row["row_id"] for row in rows] == ["a.jpg", "sub/b.jpg", "data/c.jpg", "bucket/d.jpg"]
    assert all(row["row_error"] is None for row in rows)


def test_every_column_is_read_in_its_own_type(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        image_uri=pa.array(["a.jpg"]).dictionary_encode(),
        row_id=pa.array(["one"], pa.large_string()),
        strength=pa.array([1], pa.int32()),
        seed=pa.array([7.0]),
        target=["7.5"],
        direction=["up"],
        subject_uris=[["s.jpg", "t.jpg"]],
        prompt=["a bird"],
    )
    table = read_manifest(path)
    assert table.schema == INPUT_SCHEMA
    (row,) = table.to_pylist()
    assert (row["row_id"], row["strength"], row["seed"], row["target"]) == ("one", 1.0, 7, 7.5)
    assert row["subject_uris"] == [f"{tmp_path}/s.jpg", f"{tmp_path}/t.jpg"]


def test_extra_columns_are_carried_untouched(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        image_uri=["a.jpg"],
        keywords=[["bird", "sky"]],
        rating=pa.array([5], pa.int8()),
        taken=[date(2020, 1, 2)],
        status=["published"],
    )
    table = read_manifest(path)
    assert extra_schema(table.schema) == pa.schema(
        [
            ("keywords", pa.list_(pa.string())),
            ("rating", pa.int8()),
            ("taken", pa.date32()),
            ("manifest_status", pa.string()),
        ]
    )
    assert table["manifest_status"].to_pylist() == ["published"]


def test_extra_column_whose_other_name_is_taken_too_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, image_uri=["a"], status=["x"], manifest_status=["y"])
    with pytest.raises(ManifestError, match="manifest_status is taken too"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image_uri": ["../a.jpg"]}, "leaves the manifest's folder"),
        ({"image_uri": ["sub/../../a.jpg"]}, "leaves the manifest's folder"),
        ({"image_uri": ["a\x00.jpg"]}, "NUL"),
        ({"image_uri": pa.array([None], pa.string())}, "image_uri is null"),
        ({"image_uri": [""]}, "image_uri is null"),
        ({"image_uri": ["a.jpg"], "row_id": ["../../evil"]}, "climbs out"),
        ({"image_uri": ["a.jpg"], "row_id": ["/etc/passwd"]}, "absolute path"),
        ({"image_uri": ["a.jpg"], "row_id": ["C:\\a.jpg"]}, "absolute path"),
        ({"image_uri": ["a.jpg"], "row_id": ["x" * 2000]}, "longer than"),
        ({"image_uri": ["a.jpg"], "strength": ["much"]}, "strength (='much') must be a number"),
        ({"image_uri": ["a.jpg"], "seed": [1.5]}, "seed (=1.5) must be a whole number"),
        ({"image_uri": ["a.jpg"], "strength": [float("nan")]}, "strength must be a finite number"),
        ({"image_uri": ["a.jpg"], "target": [float("inf")]}, "target must be a finite number"),
    ],
)
def test_bad_row_says_why_and_the_others_are_read(
    tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    good = {"image_uri": "good.jpg", "row_id": "good", "strength": None, "seed": 3, "target": None}
    if "strength" in columns and isinstance(columns["strength"][0], str):
        good["strength"] = "0.5"
    bad = pa.table(columns)
    ok = pa.table({name: pa.array([good[name]], bad[name].type) for name in bad.column_names})
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.concat_tables([bad, ok]), path)
    first, second = read_manifest(path).to_pylist()
    assert said in first["row_error"]
    assert first["row_error_type"] == "InvalidRow"
    assert (second["row_error"], second["image_uri"]) == (None, f"{tmp_path}/good.jpg")


def test_row_id_used_twice_is_the_later_rows_error(tmp_path: Path) -> None:
    rows = read(tmp_path, image_uri=["a.jpg", "b.jpg", "c.jpg"], row_id=["x", "x", "x~2"])
    assert [row["row_id"] for row in rows] == ["x", "x~3", "x~2"]
    assert [row["row_error"] is None for row in rows] == [True, False, True]
    assert "row_id (='x') of row 1 is that of row 0 already" in rows[1]["row_error"]


def test_photo_asked_for_twice_is_two_rows(tmp_path: Path) -> None:
    rows = read(tmp_path, image_uri=["a.jpg", "a.jpg"], direction=["up", "down"])
    assert [row["row_id"] for row in rows] == ["a.jpg", "a.jpg~2"]
    assert [row["row_error"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"path": ["a.jpg"]}, "no column image_uri (or image); it has path"),
        ({"image_uri": [1]}, "column image_uri is int64, want string"),
        ({"image_uri": [["a.jpg"]]}, "column image_uri is list<"),
        ({"image_uri": ["a"], "strength": [{"x": 1}]}, "column strength is struct<"),
        ({"image_uri": ["a"], "subject_uris": [3]}, "column subject_uris is int64, want list<"),
        ({"image": ["a.jpg"]}, "column image is string, want binary or struct<bytes, path>"),
    ],
)
def test_bad_file_names_column_got_and_want(
    tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    with pytest.raises(ManifestError) as error:
        read(tmp_path, **columns)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\0" * 64 + b"PAR1"]
)
def test_file_that_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "manifest.parquet"
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="cannot be read as a manifest"):
        read_manifest(path)
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifest(tmp_path / "nowhere.parquet")


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_file_raises_manifest_error_and_nothing_else(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = manifest(tmp_path, image_uri=["a.jpg", "b.jpg"], rating=[1, 2])
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with contextlib.suppress(ManifestError):
        read_manifest(path)


def test_csv_and_jsonl_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image_uri,strength,subject_uris\na.jpg,0.5,s.jpg\n")
    (tmp_path / "m.jsonl").write_text('{"image_uri": "a.jpg", "subject_uris": ["s.jpg"]}\n')
    for name in ("m.csv", "m.jsonl"):
        (row,) = read_manifest(tmp_path / name).to_pylist()
        assert (row["row_id"], row["subject_uris"]) == ("a.jpg", [f"{tmp_path}/s.jpg"])


@pytest.mark.parametrize("as_struct", [True, False])
def test_photos_inside_the_manifest_are_hashed_and_read_by_row(
    tmp_path: Path, as_struct: bool
) -> None:
    photos = [bytes([i]) * 1000 for i in range(10)]
    held: list[Any] = [*photos, None]
    names: list[str | None] = [f"{i}.jpg" for i in range(11)]
    if as_struct:
        held = [{"bytes": p, "path": None} for p in photos] + [None]
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image": held, "image_uri": names}), path, row_group_size=3)
    table = read_manifest(path)
    assert "image" not in table.column_names
    rows = table.to_pylist()
    assert rows[7]["image_uri"] == f"{path}#row=7"
    assert rows[7]["row_id"] == "7.jpg"
    assert rows[7]["image_hash"] == hash_bytes(photos[7])
    assert [read_input(row["image_uri"]) for row in rows[:10]] == photos
    assert rows[10]["image_uri"] == f"{tmp_path}/10.jpg"
    assert rows[10]["image_hash"] is None


def test_photos_without_names_are_numbered(tmp_path: Path) -> None:
    rows = read(tmp_path, image=[b"x", None])
    assert [row["row_id"] for row in rows] == ["row-0000000", "row-0000001"]
    assert "image_uri is null" in rows[1]["row_error"]


def test_task_without_photos_needs_no_image_uri(tmp_path: Path) -> None:
    table = read_manifest(manifest(tmp_path, prompt=["a bird", "a cat"]), needs_image=False)
    assert table["row_error"].null_count == 2
    assert table["row_id"].to_pylist() == ["a-bird", "a-cat"]


def test_subject_photos_are_taken_from_the_manifests_folder(tmp_path: Path) -> None:
    (row,) = read(tmp_path, image_uri=["a.jpg"], subject_uris=[["s.jpg", "/data/t.jpg"]])
    assert row["subject_uris"] == [f"{tmp_path}/s.jpg", "/data/t.jpg"]


URIS = st.lists(
    st.sampled_from(["a", "b.jpg", "a.jpg", "..", ".", "", "C:", "x\x00", "a\\b", "s3:", "é"]),
    min_size=1,
    max_size=4,
).map("/".join)


@given(
    st.lists(
        st.tuples(
            URIS | URIS.map("/photos/".__add__) | st.just("s3://bucket/a.jpg"),
            st.none() | URIS,
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_rows_read_all_at_once_are_those_read_one_by_one(
    rows: list[tuple[str, str | None]], with_ids: bool
) -> None:
    uris = [uri for uri, _ in rows]
    row_ids = [row_id if with_ids else None for _, row_id in rows]
    plain = resolve_plain_rows(
        "/photos/m.parquet",
        pa.chunked_array([uris]),
        pa.chunked_array([row_ids], pa.string()) if with_ids else None,
    )
    if plain is not None:
        errors: dict[int, str] = {}
        expected = resolve_rows("/photos/m.parquet", uris, row_ids, None, errors, needs_image=True)
        assert ([*plain[0].to_pylist()], [*plain[1].to_pylist()]) == expected
        assert not errors


def test_column_that_is_there_twice_is_refused_by_name(tmp_path):
    path = tmp_path / "photos.csv"
    path.write_text("image_uri,prompt,prompt\na.jpg,one,two\n")
    with pytest.raises(ManifestError, match="column prompt is there 2 times"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is a list"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"prompt": "\\ud800"}', "cannot be read"),
        ('{"prompt": 99999999999999999999999999}', "cannot be read"),
    ],
)
def test_damaged_json_line_is_named(tmp_path, line, words):
    path = tmp_path / "photos.jsonl"
    path.write_text('{"image_uri": "a.jpg"}\n' + line + "\n")
    with pytest.raises(ManifestError, match=words):
        read_manifest(path)


def test_json_lines_may_have_other_names_than_the_first(tmp_path):
    path = tmp_path / "photos.jsonl"
    path.write_text('\ufeff{"image_uri": "a.jpg"}\n\n{"image_uri": "b.jpg", "prompt": "b"}\r\n')
    assert read_manifest(path)["prompt"].to_pylist() == [None, "b"]


def test_columns_that_count_their_rows_differently_are_refused(tmp_path):
    """As a damaged footer has it; the bytes were found by fuzzing, the fault is set by hand."""
    photo = {"bytes": b"x", "path": "a.jpg"}
    table = pa.table({"row_id": ["a", "b", "c"], "image": [photo] * 3})
    path = tmp_path / "manifest.parquet"
    pq.write_table(table, path)
    data = path.read_bytes()
    # Thrift's compact integers: 3 is written 06, as num_values of each column of the group.
    end = data.rindex(b"PAR1") - 4
    begin = end - int.from_bytes(data[end : end + 4], "little")
    refused = 0
    for place in range(begin, end):
        if data[place] != 6:
            continue
        path.write_bytes(data[:place] + b"\x00" + data[place + 1 :])
        try:
            read_manifest(path)
        except ManifestError as error:
            refused += "is damaged: its column image has" in str(error)
    assert refused
