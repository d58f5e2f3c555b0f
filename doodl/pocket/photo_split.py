"""Which photo serves what: python -m doodl.pocket.photo_split --shared DIR writes the list anew.

Every photo at hand belongs to one of SPLITS, by the hash of its file's bytes, before anything is
trained. A photo's place depends on its hash alone, so photos that come later move no other; near
duplicates (`is_near`) keep together. Photos that the shipped networks may have been trained on are
never test photos; a share of the scenes among them is for validation, which else were flowers.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from doodl.pocket.training.photos import PhotoSet

__all__ = [
    "SPLITS",
    "PhotoFile",
    "is_near",
    "load_split",
    "near_pairs",
    "photo_hash",
    "photos_at_hand",
    "read_split",
    "split_of_photos",
]

SPLITS = ("train-guide", "train-judge", "train-referee", "validation", "test")
logger = logging.getLogger("doodl.pocket.photo_split")

LIST_PATH = Path(__file__).with_name("photo_split.json")

# Upper ends of the shares of the unit interval that a photo's hash falls into.
_TRAINING = (("train-guide", 0.40), ("train-judge", 0.75), ("train-referee", 1.0))
_TRAINING_SCENES = (
    ("train-guide", 0.38),
    ("train-judge", 0.71),
    ("train-referee", 0.95),
    ("validation", 1.0),
)
_UNSEEN = (("test", 0.55), ("validation", 1.0))

# Of 64 bits, how many may differ between near duplicates. By the dHash alone flowers before a plain
# ground look alike; by both, what is left is one picture twice or two frames of a series.
_DHASH_BITS, _PHASH_BITS = 10, 16
_PHASH_BITS_ALONE = 8

_SKIMAGE_PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "rocket.jpg",
)  # fmt: skip


@dataclass(frozen=True)
class PhotoFile:
    """One photo as it lies on disk.

    Attributes:
        group: flowers | scenes | single, what shares it is split by.
        seen: the shipped networks may have been trained on it.
    """

    name: str
    group: str
    seen: bool
    data: bytes
    label: str = ""


def photo_hash(data: bytes) -> str:
    """Return the 16 hexadecimal digits that a photo's file is known by."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def photos_at_hand(shared: Path) -> Iterator[PhotoFile]:
    """Yield the photos below `shared`/photos, those of the samples and of scikit-image.

    Raises: RuntimeError if pandas is missing, FileNotFoundError if `shared` holds no photos.
    """
    try:
        import pandas  # type: ignore[import-untyped]
    except ImportError as error:
        raise RuntimeError(
            "Parquet is read through pandas, which is not installed; "
            "run: pip install 'doodl-batch[dev]'"
        ) from error
    tables = sorted((shared / "photos").glob("*.parquet"))
    if not tables:
        raise FileNotFoundError(f"{shared / 'photos'} holds no Parquet file; give its folder")
    for path in tables:
        group, _, part = path.stem.partition("-")
        table = pandas.read_parquet(path, columns=["image", "label"])
        for image, label in zip(table["image"], table["label"], strict=True):
            name = f"{path.stem}/{image['path']}"
            yield PhotoFile(name, group, part != "val", bytes(image["bytes"]), str(label or ""))
    singles = sorted((shared / "photos" / "full").glob("*.jpg"))
    singles += sorted((Path(__file__).parent.parent / "samples").glob("*.jpg"))
    package = importlib.util.find_spec("skimage")
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "data"
        singles += [folder / name for name in _SKIMAGE_PHOTOS if (folder / name).is_file()]
    for path in singles:
        yield PhotoFile(f"{path.parent.name}/{path.name}", "single", False, path.read_bytes())


def perceptual_hashes(data: bytes) -> np.ndarray:
    """Return the hashes (8, 2, 64) of a photo, turned and mirrored in every way.

    Of each, 64 bits of its slopes along the rows (dHash) and 64 of its low waves (pHash).
    """
    with Image.open(io.BytesIO(data)) as image:
        grey = ImageOps.exif_transpose(image).convert("L")
    small = np.asarray(grey.resize((72, 72), Image.Resampling.BOX), np.float64)
    turned = [np.rot90(side, k) for side in (small, small.T) for k in range(4)]
    return np.stack([[_dhash(pixels), _phash(pixels)] for pixels in turned])


def _dhash(pixels: np.ndarray) -> np.ndarray:
    cells = pixels.reshape(8, 9, 9, 8).mean((1, 3))
    return (cells[:, 1:] > cells[:, :-1]).ravel()


def _phash(pixels: np.ndarray) -> np.ndarray:
    size = len(pixels)
    places = (2 * np.arange(size) + 1) * np.pi / (2 * size)
    waves = np.cos(np.arange(8)[:, None] * places) * np.sqrt(2 / size)
    waves[0] /= np.sqrt(2)
    low = (waves @ pixels @ waves.T).ravel()
    return low > np.median(low[1:])


def near_pairs(files: Sequence[PhotoFile]) -> np.ndarray:
    """Return the pairs (P, 2) of places in `files` that hold near duplicates."""
    signs = 1 - 2 * np.stack([perceptual_hashes(file.data) for file in files]).astype(np.float32)
    near = np.zeros((len(files), len(files)), bool)
    for turned in range(signs.shape[1]):
        apart = [(64 - signs[:, 0, kind] @ signs[:, turned, kind].T) / 2 for kind in (0, 1)]
        near |= is_near(*apart)
    return np.argwhere(np.triu(near | near.T, 1))


def is_near(dhash_bits: np.ndarray, phash_bits: np.ndarray) -> np.ndarray:
    """Return whether photos whose hashes differ by so many bits are near duplicates."""
    by_both = (dhash_bits <= _DHASH_BITS) & (phash_bits <= _PHASH_BITS)
    return by_both | (phash_bits <= _PHASH_BITS_ALONE)


def split_of_photos(files: Sequence[PhotoFile]) -> dict[str, str]:
    """Return the split of each photo by its hash; near duplicates get that of the least hash."""
    family = list(range(len(files)))
    for first, second in near_pairs(files).tolist():
        joined = family[second]
        family = [family[first] if number == joined else number for number in family]
    members: dict[int, list[PhotoFile]] = {}
    for number, file in zip(family, files, strict=True):
        members.setdefault(number, []).append(file)
    return {
        photo_hash(file.data): split for group in members.values()
        for split in [_split_of(group)] for file in group
    }  # fmt: skip


def _split_of(group: Sequence[PhotoFile]) -> str:
    shares: tuple[tuple[str, float], ...] = _UNSEEN
    if any(file.seen for file in group):
        scenes = all(file.group == "scenes" for file in group)
        shares = _TRAINING_SCENES if scenes else _TRAINING
    place = int(min(photo_hash(file.data) for file in group), 16) / 2**64
    return next(name for name, end in shares if place < end)


def read_split(path: Path = LIST_PATH) -> dict[str, str]:
    """Return the list, the committed one if no other is named: the split of each photo's hash."""
    listed: dict[str, list[str]] = json.loads(path.read_text())
    return {number: name for name, hashes in listed.items() for number in hashes}


def load_split(
    shared: Path, name: str, split: Mapping[str, str] | None = None, shorter_px: int = 144
) -> PhotoSet:
    """Decode the photos at hand of one split, scaled down to a shorter side of `shorter_px`.

    A photo that is there twice is read once.

    Args:
        split: the split of each hash; None is the committed list's.
    Raises: ValueError for an unknown split.
    """
    if name not in SPLITS:
        raise ValueError(f"split {name!r} is unknown; known: {', '.join(SPLITS)}")
    split = read_split() if split is None else split
    files = {photo_hash(file.data): file for file in photos_at_hand(shared)}
    kept = [file for number, file in files.items() if split.get(number) == name]
    pixels = tuple(_decoded(file.data, shorter_px) for file in kept)
    return PhotoSet(pixels, tuple(file.label for file in kept), tuple(file.name for file in kept))


def _decoded(data: bytes, shorter_px: int) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (shorter_px, shorter_px))
        photo = ImageOps.exif_transpose(image).convert("RGB")
    scale = shorter_px / min(photo.size)
    if scale < 1:
        size = (round(photo.width * scale), round(photo.height * scale))
        photo = photo.resize(
            size, Image.Resampling.BOX if scale < 0.25 else Image.Resampling.LANCZOS
        )
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the list, one hash a line, and say how many photos each split holds."""
    parser = argparse.ArgumentParser(
        prog="python -m doodl.pocket.photo_split",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shared", type=Path, required=True, help="the folder that holds photos/")
    parser.add_argument("--out", type=Path, default=LIST_PATH)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    split = split_of_photos(list(photos_at_hand(options.shared)))
    listed = {name: sorted(h for h, its in split.items() if its == name) for name in SPLITS}
    options.out.write_text(json.dumps(listed, indent=0) + "\n")
    logger.info("%s: %s", options.out, {name: len(hashes) for name, hashes in listed.items()})


if __name__ == "__main__":
    main()
