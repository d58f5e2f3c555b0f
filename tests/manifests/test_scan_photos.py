"""A folder as an input table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from manifests.errors import ManifestError
from manifests.scan import scan_photos
from manifests.schemas import INPUT_SCHEMA


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def row_ids(folder: Path, **options: bool) -> list[str]:
    return scan_photos(folder, **options)["row_id"].to_pylist()


def test_photos_are_found_in_every_folder_and_sorted(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.jpeg", "sub/deep/c.tif", "sub/d.HeIc", "notes.txt", "noext", "e.webp"):
        touch(tmp_path / name, name.encode())
    table = scan_photos(tmp_path)
    assert table.schema == INPUT_SCHEMA
    assert table["row_id"].to_pylist() == [
        "a.jpeg",
        "b.JPG",
        "e.webp",
        "sub/d.HeIc",
        "sub/deep/c.tif",
    ]
    row = table.to_pylist()[3]
    path = tmp_path / "sub/d.HeIc"
    assert row["image_uri"] == str(path)
    assert (row["size_bytes"], row["mtime_ns"]) == (10, path.stat().st_mtime_ns)
    assert row_ids(tmp_path, recursive=False) == ["a.jpeg", "b.JPG", "e.webp"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.jpg", ".b.jpg", ".trash/c.jpg", "sub/.d.png"):
        touch(tmp_path / name)
    assert row_ids(tmp_path) == ["a.jpg"]


def test_output_folder_is_passed_over_whole(tmp_path: Path) -> None:
    for name in ("a.jpg", "done/_job.json", "done/edited/a.jpg", "done/deep/er/b.jpg"):
        touch(tmp_path / name)
    assert row_ids(tmp_path) == ["a.jpg"]


def test_output_folder_is_refused_as_the_collection(tmp_path: Path) -> None:
    touch(tmp_path / "_job.json")
    with pytest.raises(ManifestError, match="is a job's output"):
        scan_photos(tmp_path)


def test_link_that_loops_adds_no_row(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    touch(photos / "sub/a.jpg")
    (photos / "sub/up").symlink_to(photos)
    (photos / "sub/self.jpg").symlink_to(photos / "sub/self.jpg")
    (photos / "above").symlink_to(tmp_path)
    (photos / "beside").symlink_to(photos / "sub")
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert row_ids(photos) == ["sub/a.jpg"]


def test_linked_folder_outside_is_entered_once(tmp_path: Path) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    touch(photos / "a.jpg")
    touch(other / "b.jpg")
    (other / "loop").symlink_to(other)
    (photos / "linked").symlink_to(other)
    assert row_ids(photos) == ["a.jpg", "linked/b.jpg"]


def test_linked_photo_is_a_photo(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    assert row_ids(tmp_path / "photos") == ["a.jpg"]


def test_odd_names_are_rows_like_any_other(tmp_path: Path) -> None:
    names = ["new\nline.jpg", "quote'\".jpg", "<b>html.jpg", "emoji 🐦.jpg", "#row=3.jpg"]
    for name in names:
        touch(tmp_path / name)
    table = scan_photos(tmp_path)
    assert sorted(table["row_id"].to_pylist()) == sorted(names)
    assert all(Path(uri).exists() for uri in table["image_uri"].to_pylist())
    assert table["row_error"].null_count == len(names)


def test_name_that_is_not_text_is_a_row_too(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    (row,) = scan_photos(tmp_path).to_pylist()
    assert row["row_id"] == "%FF.jpg"
    assert row["row_error"] is None
    assert row["image_uri"].endswith("/%FF.jpg")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a folder"):
        scan_photos(tmp_path / "nowhere")


def test_empty_folder_gives_an_empty_table(tmp_path: Path) -> None:
    assert scan_photos(tmp_path).num_rows == 0
