"""Where a delivered photo goes: inside OUT/edited, and nowhere another row's photo goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manifests.paths import (
    edited_relpath,
    is_safe_relpath,
    local_path,
    path_uri,
    row_id_problem,
)

# Few letters, so that names collide if they can.
NAMES = st.text("aA.~/\\:-0 \n\x00é", max_size=12) | st.lists(
    st.sampled_from(["a", "b.jpg", "a.png", ".jpg", "..", "", "a~0123456789ab", "a.heic", "C:"]),
    min_size=1,
    max_size=4,
).map("/".join)


@pytest.mark.parametrize(
    ("row_id", "suffix", "relpath"),
    [
        ("a.jpg", ".jpg", "a.jpg"),
        ("trip/day 1/a.JPG", ".jpg", "trip/day 1/a.JPG"),
        ("a.jpeg", ".jpg", "a.jpeg"),
        ("a.png", ".jpg", "a.png.jpg"),
        ("IMG_1.HEIC", ".jpg", "IMG_1.HEIC.jpg"),
        ("naïve – 写真 <b>'\"?.jpg", ".jpg", "naïve – 写真 <b>'\"?.jpg"),
    ],
)
def test_ordinary_name_stays(row_id: str, suffix: str, relpath: str) -> None:
    assert edited_relpath(row_id, suffix) == relpath


@pytest.mark.parametrize(
    "row_id",
    [
        "../a.jpg",
        "/etc/a.jpg",
        "a/../../b.jpg",
        "C:\\a.jpg",
        "c:a.jpg",
        "\\\\host\\a.jpg",
        "a\x00.jpg",
        "a\nb.jpg",
        "",
        ".",
        "..",
        "a" * 5000 + ".jpg",
        "/".join("a" * 300),
        "a//b.jpg",
        "./a.jpg",
        "no suffix",
        ".jpg",
        "a~0123456789ab.jpg",
        "\udc80.jpg",
    ],
)
def test_name_that_cannot_be_used_is_made_safe_and_hashed(row_id: str, tmp_path: Path) -> None:
    relpath = edited_relpath(row_id, ".jpg")
    assert is_safe_relpath(relpath)
    assert relpath[:-4].rpartition("~")[2].isalnum()
    path = tmp_path / relpath
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert path.resolve().is_relative_to(tmp_path.resolve())


@given(NAMES, NAMES, st.sampled_from([".jpg", ".png"]), st.sampled_from([".jpg", ".png"]))
@example("a.jpg", "a.png", ".jpg", ".jpg")
@example("a.heic", "a.heic.jpg", ".jpg", ".jpg")
@example("a", "a.jpg", ".jpg", ".jpg")
def test_no_two_rows_share_a_path_nor_hide_one_another(
    one: str, other: str, suffix: str, other_suffix: str
) -> None:
    path, other_path = edited_relpath(one, suffix), edited_relpath(other, other_suffix)
    assert is_safe_relpath(path)
    if one != other:
        assert path != other_path
        assert not other_path.startswith(path + "/")


@given(NAMES)
def test_path_of_a_path_is_safe_too(row_id: str) -> None:
    assert is_safe_relpath(edited_relpath(edited_relpath(row_id, ".jpg"), ".jpg"))


@pytest.mark.parametrize(
    ("row_id", "said"),
    [
        ("../a.jpg", "climbs out"),
        ("/etc/passwd", "absolute"),
        ("C:\\a", "absolute"),
        ("a\x00", "NUL"),
        ("", "empty"),
        ("é" * 600, "longer than 1024 bytes"),
    ],
)
def test_row_id_that_leaves_the_folder_is_named_with_the_way_out(row_id: str, said: str) -> None:
    problem = row_id_problem(row_id)
    assert problem is not None
    assert said in problem
    assert ";" in problem


def test_suffix_that_is_no_photos_is_refused() -> None:
    with pytest.raises(ValueError, match=r"suffix \(='.exe'\)"):
        edited_relpath("a.jpg", ".exe")


def test_path_of_any_bytes_travels_as_text() -> None:
    assert path_uri("/photos/ä b.jpg") == "/photos/ä b.jpg"
    odd = "/photos/\udcff%41.jpg"
    uri = path_uri(odd)
    assert uri == "file:///photos/%FF%2541.jpg"
    assert local_path(uri) == odd
    assert local_path("file://localhost/photos/a.jpg") == "/photos/a.jpg"
    assert local_path("s3://bucket/a.jpg") is None
