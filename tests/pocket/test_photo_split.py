"""The list of which photo serves what: disjoint, large enough, near duplicates kept together."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from doodl.pocket.photo_split import (
    LIST_PATH,
    SPLITS,
    PhotoFile,
    load_split,
    main,
    near_pairs,
    photo_hash,
    photos_at_hand,
    read_split,
    split_of_photos,
)
from tests.pocket.conftest import SHARED_PHOTOS, smooth_photos

SHARED = SHARED_PHOTOS.parent


@pytest.fixture(scope="module")
def files() -> list[PhotoFile]:
    if not SHARED_PHOTOS.is_dir():
        pytest.skip(f"{SHARED_PHOTOS} is absent")
    return list(photos_at_hand(SHARED))


def _jpeg(
    seed: int, tmp_path: Path, turn: Image.Transpose | None = None, quality: int = 90
) -> bytes:
    array = (smooth_photos(1, 96, 128, seed)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    image = Image.fromarray(array)
    path = tmp_path / "photo.jpg"
    (image if turn is None else image.transpose(turn)).save(path, quality=quality)
    return path.read_bytes()


def test_no_photo_is_in_two_splits() -> None:
    listed = json.loads(LIST_PATH.read_text())
    assert tuple(listed) == SPLITS
    counts = Counter(number for hashes in listed.values() for number in hashes)
    assert set(counts.values()) == {1}


def test_splits_are_large_enough() -> None:
    counts = Counter(read_split().values())
    assert counts["test"] >= 120
    assert counts["validation"] >= 60
    assert min(counts[f"train-{who}"] for who in ("guide", "judge", "referee")) >= 500


def test_every_photo_at_hand_is_listed_as_the_script_would_now(files: list[PhotoFile]) -> None:
    assert split_of_photos(files).items() <= read_split().items()


def test_near_duplicates_are_in_one_split(files: list[PhotoFile]) -> None:
    split = read_split()
    pairs = near_pairs(files)
    assert len(pairs) > 20
    apart = [
        (files[i].name, files[j].name)
        for i, j in pairs
        if split[photo_hash(files[i].data)] != split[photo_hash(files[j].data)]
    ]
    assert apart == []


def test_no_test_photo_was_seen_by_the_shipped_networks(files: list[PhotoFile]) -> None:
    split = read_split()
    tested = [file for file in files if split[photo_hash(file.data)] == "test"]
    assert len({file.group for file in tested}) == 3
    assert [file.name for file in tested if file.seen] == []


@pytest.mark.parametrize("turn", [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90])
def test_a_copy_is_near_however_it_is_turned(turn: Image.Transpose | None, tmp_path: Path) -> None:
    data = [_jpeg(1, tmp_path), _jpeg(2, tmp_path), _jpeg(1, tmp_path, turn, quality=50)]
    files = [PhotoFile(str(i), "single", False, d) for i, d in enumerate(data)]
    assert near_pairs(files).tolist() == [[0, 2]]


def test_a_photo_keeps_its_place_when_others_come(tmp_path: Path) -> None:
    files = [
        PhotoFile(str(seed), "flowers", seed % 2 == 0, _jpeg(seed, tmp_path)) for seed in range(6)
    ]
    before = split_of_photos(files[:4])
    after = split_of_photos(files)
    assert len(near_pairs(files)) == 0
    assert before.items() <= after.items()


def test_a_copy_of_a_training_photo_is_no_test_photo(tmp_path: Path) -> None:
    seen, copy = _jpeg(3, tmp_path), _jpeg(3, tmp_path, quality=60)
    # Among twenty copies of photos, several would be test photos by their own hash.
    for quality in range(60, 80):
        copy = _jpeg(3, tmp_path, quality=quality)
        split = split_of_photos(
            [PhotoFile("a", "flowers", True, seen), PhotoFile("b", "flowers", False, copy)]
        )
        assert split[photo_hash(copy)] == split[photo_hash(seen)] != "test"


def test_a_split_holds_its_photos_once_upright_and_small(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    array = (smooth_photos(1, 300, 400)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: what is stored lies on its side
    path = tmp_path / "turned.jpg"
    Image.fromarray(array).save(path, exif=exif)
    images = [{"bytes": path.read_bytes(), "path": name} for name in ("a.jpg", "again.jpg")]
    (tmp_path / "photos").mkdir()
    table = pandas.DataFrame({"image": images, "label": ["tulips", "tulips"]})
    table.to_parquet(tmp_path / "photos" / "flowers-train.parquet")
    split = {photo_hash(path.read_bytes()): "train-judge"}
    photos = load_split(tmp_path, "train-judge", split)
    assert [tuple(pixels.shape) for pixels in photos.pixels] == [(3, 192, 144)]
    assert photos.labels == ("tulips",)
    assert len(load_split(tmp_path, "test", split)) == 0


def test_an_unknown_split_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 'train' is unknown; known: train-guide"):
        load_split(tmp_path, "train")


def test_the_script_says_where_photos_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no Parquet file; give its folder"):
        main(["--shared", str(tmp_path), "--out", str(tmp_path / "split.json")])


def test_the_list_is_of_blake2b_hashes() -> None:
    assert photo_hash(b"photo") == hashlib.blake2b(b"photo", digest_size=8).hexdigest()
    assert all(len(number) == 16 for number in read_split())
