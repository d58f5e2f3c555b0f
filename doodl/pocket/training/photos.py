"""Training photos in memory: Parquet to uint8 tensors, splits, and random crops."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = [
    "PhotoSet",
    "balanced_indices",
    "center_crops",
    "load_photos",
    "random_crops",
    "split_photos",
]


@dataclass(frozen=True)
class PhotoSet:
    """Decoded photos: pixels[i] is (3, h, w) uint8, labels[i] a class name or ""."""

    pixels: tuple[Tensor, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, indices: Sequence[int]) -> "PhotoSet":
        """The photos at `indices`, in that order."""
        return PhotoSet(
            tuple(self.pixels[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            tuple(self.names[i] for i in indices),
        )


def load_photos(paths: Sequence[Path], limit: int | None = None) -> PhotoSet:
    """Decode the photos of Parquet files (columns image struct<bytes, path>, label).

    Args:
        limit: at most this many photos of each file; None reads them all.
    Raises: RuntimeError if pandas is missing, ValueError if a file has no image column.
    """
    try:
        import pandas  # type: ignore[import-untyped]
    except ImportError as error:
        raise RuntimeError(
            "training reads Parquet through pandas, which is not installed; "
            "run: pip install 'doodl-batch[dev]'"
        ) from error
    pixels: list[Tensor] = []
    labels: list[str] = []
    names: list[str] = []
    for path in paths:
        table = pandas.read_parquet(path)
        if "image" not in table.columns:
            raise ValueError(f"{path} has columns {list(table.columns)}; 'image' is needed")
        if limit is not None:
            table = table.head(limit)
        for image, label in zip(
            table["image"], table.get("label", pandas.Series([""] * len(table))), strict=True
        ):
            with Image.open(io.BytesIO(image["bytes"])) as photo:
                array = np.array(photo.convert("RGB"))
            pixels.append(torch.from_numpy(array).permute(2, 0, 1).contiguous())
            labels.append(str(label or ""))
            names.append(str(image.get("path") or len(names)))
    return PhotoSet(tuple(pixels), tuple(labels), tuple(names))


def split_photos(photos: PhotoSet, low: float, high: float) -> PhotoSet:
    """The photos whose name hashes into [low, high) of the unit interval.

    Disjoint intervals give disjoint photos, whatever the order or number of files.
    """

    def position(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32

    return photos.subset([i for i, name in enumerate(photos.names) if low <= position(name) < high])


def balanced_indices(photos: PhotoSet, count: int, generator: torch.Generator) -> list[int]:
    """Places of `count` photos drawn at random, as many from each source as from any other.

    A photo's source is what its name says before the first "/".
    """
    sources: dict[str, list[int]] = {}
    for i, name in enumerate(photos.names):
        sources.setdefault(name.partition("/")[0], []).append(i)
    groups = list(sources.values())
    chosen = torch.randint(len(groups), (count,), generator=generator).tolist()
    draws = torch.rand(count, generator=generator).tolist()
    return [groups[g][int(u * len(groups[g]))] for g, u in zip(chosen, draws, strict=True)]


def random_crops(
    photos: PhotoSet,
    indices: Sequence[int],
    size_px: tuple[int, int],
    generator: torch.Generator,
    *,
    min_scale: float = 0.7,
) -> Tensor:
    """Random crops, half of them mirrored, resized to `size_px`: (B, 3, H, W) float in [0, 1].

    Args:
        min_scale: side of the smallest crop, as a fraction of the largest that fits.
    """
    crops = []
    for i in indices:
        photo = photos.pixels[i]
        u = torch.rand(4, generator=generator).tolist()
        fit = min(photo.shape[1] / size_px[0], photo.shape[2] / size_px[1])
        scale = fit * (min_scale + (1 - min_scale) * u[0])
        # Enlarging invents blur, so a crop is never smaller than what it becomes, if it can be.
        scale = min(max(scale, 1.0), fit)
        height, width = round(size_px[0] * scale), round(size_px[1] * scale)
        top = int(u[1] * (photo.shape[1] - height + 1))
        left = int(u[2] * (photo.shape[2] - width + 1))
        crop = photo[:, top : top + height, left : left + width].float() / 255
        crops.append(_resized(crop.flip(2) if u[3] < 0.5 else crop, size_px))
    return torch.stack(crops)


def center_crops(photos: PhotoSet, size_px: tuple[int, int]) -> Tensor:
    """The largest centred crop of each photo, resized to `size_px`: (B, 3, H, W) in [0, 1]."""
    crops = []
    for photo in photos.pixels:
        fit = min(photo.shape[1] / size_px[0], photo.shape[2] / size_px[1])
        height, width = round(size_px[0] * fit), round(size_px[1] * fit)
        top, left = (photo.shape[1] - height) // 2, (photo.shape[2] - width) // 2
        crops.append(_resized(photo[:, top : top + height, left : left + width] / 255, size_px))
    return torch.stack(crops)


def _resized(crop: Tensor, size_px: tuple[int, int]) -> Tensor:
    if tuple(crop.shape[1:]) == tuple(size_px):
        return crop
    resized = F.interpolate(
        crop[None], size=size_px, mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].clamp(0, 1)
