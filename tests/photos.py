"""Small photos made by the tests: smooth, unlike each other, and valid files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, size: tuple[int, int] = (80, 96)) -> np.ndarray:
    """(H, W, 3) uint8: a few soft blobs of colour on a gradient."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    image = 90 + 60 * x * rng.uniform(-1, 1, 3) + 60 * y * rng.uniform(-1, 1, 3)
    for _ in range(4):
        distance = (x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2
        image = image + rng.uniform(-90, 90, 3) * np.exp(-distance / rng.uniform(0.01, 0.1))
    return image.clip(0, 255).astype(np.uint8)


def jpeg(seed: int, size: tuple[int, int] = (80, 96)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def collection(folder: Path, count: int, *, first_seed: int = 0) -> Path:
    """Write `count` different JPEGs, the odd ones in a subfolder."""
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for seed in range(first_seed, first_seed + count):
        name = f"sub/p{seed:03d}.jpg" if seed % 2 else f"p{seed:03d}.jpg"
        (folder / name).write_bytes(jpeg(seed))
    return folder
