"""Photos for the pocket tests: tiny synthetic Parquet files, and the real ones where present."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

SHARED_PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "photos"


def smooth_photos(count: int, height: int = 128, width: int = 128, seed: int = 0) -> Tensor:
    """Synthetic landscapes (B, 3, H, W) in [0, 1]: a sky, a ground and bright round flowers."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0, 1, height).view(-1, 1)
    columns = torch.linspace(0, width / height, width).view(1, -1)
    photos = []
    for _ in range(count):
        u = torch.rand(12, generator=generator)
        ground = torch.sigmoid((rows - 0.35 - 0.2 * u[0]) * 30)
        sky = torch.stack([0.45 + 0.4 * rows, 0.65 + 0.25 * rows, 0.95 - 0.05 * rows]) + 0 * columns
        grass = torch.tensor([0.2 + 0.1 * u[1], 0.45 + 0.2 * u[2], 0.12]).view(3, 1, 1)
        photo = sky * (1 - ground) + grass * ground * (0.7 + 0.5 * rows)
        for k in range(3):
            distance = ((rows - 0.4 - 0.5 * u[3 + k]) ** 2 + (columns - u[6 + k]) ** 2).sqrt()
            petal = torch.sigmoid((0.12 - distance) * 60)
            photo = photo * (1 - petal) + torch.tensor([0.95, 0.8, 0.1]).view(3, 1, 1) * petal
        photos.append(photo)
    return torch.stack(photos).clamp(0, 1)


@pytest.fixture(scope="session")
def tiny_parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of 16 synthetic photos of different shapes, labels included."""
    pandas = pytest.importorskip("pandas")
    rows = []
    for i in range(16):
        height, width = ((144, 144), (144, 216), (216, 144))[i % 3]
        array = smooth_photos(1, height, width, seed=i)[0].permute(1, 2, 0).numpy()
        stream = io.BytesIO()
        Image.fromarray((array * 255).astype(np.uint8)).save(stream, "JPEG", quality=92)
        label = ("tulips", "daisy", "")[i % 3]
        rows.append({"image": {"bytes": stream.getvalue(), "path": f"{i}.jpg"}, "label": label})
    path = tmp_path_factory.mktemp("photos") / "tiny.parquet"
    pandas.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture(scope="session")
def held_out_photos() -> Tensor:
    """Thirty-two real photos that no training saw, (B, 3, 128, 128) in [0, 1]."""
    path = SHARED_PHOTOS / "flowers-val.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    from doodl.pocket.training.photos import center_crops, load_photos

    photos = load_photos([path])
    return center_crops(photos.subset(range(0, 320, 10)), (128, 128))
