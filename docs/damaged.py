"""Damage the sample photos, and draw docs/damaged.jpg once they are edited.

python docs/damaged.py make FOLDER
doodl-batch enhance FOLDER --out OUT
python docs/damaged.py draw OUT
"""

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from before_after import GAP_PX, HEIGHT_PX, WIDTH_PX, cell
from PIL import Image

from doodl.pocket.training.degrade import degrade

DAMAGE = {
    "astronaut": ("dull", 0.6),
    "chelsea": ("under_exposed", 0.6),
    "coffee": ("hazy", 0.6),
    "rocket": ("faded", 0.7),
}
"""Of each photo: a damage of doodl.pocket.training.degrade, and its severity."""


def sample(name: str) -> Path:
    return Path(str(files("doodl.pocket.samples").joinpath(f"{name}.jpg")))


def make(folder: Path) -> None:
    """Write the damaged photos, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (damage, severity) in DAMAGE.items():
        pixels = np.asarray(Image.open(sample(name)).convert("RGB"), dtype=np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        generator = torch.Generator().manual_seed(0)
        damaged = degrade(damage, image, torch.tensor([severity]), generator)[0]
        array = (damaged.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(array).save(folder / f"{name}.png")


def draw(out: Path) -> None:
    """Write the picture: damaged, edited, and the photo before the damage, two photos a row."""
    rows = pd.read_parquet(out / "results").sort_values("row_id")
    lines = -(-len(rows) // 2)
    sheet = Image.new("RGB", (6 * WIDTH_PX + 7 * GAP_PX, lines * (HEIGHT_PX + GAP_PX)), "white")
    for i, row in enumerate(rows.itertuples()):
        name = Path(row.row_id).stem
        edited = out / row.edited_uri if row.status == "ok" else Path(row.image_uri)
        shown = (
            (Path(row.image_uri), DAMAGE[name][0].replace("_", "-")),
            (edited, "edited" if row.status == "ok" else row.status),
            (sample(name), "original"),
        )
        for j, (path, label) in enumerate(shown):
            place = (i % 2) * 3 + j
            left = place * WIDTH_PX + (place + 1) * GAP_PX
            sheet.paste(cell(path, label), (left, (i // 2) * (HEIGHT_PX + GAP_PX)))
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS).save(
        Path(__file__).parent / "damaged.jpg", quality=88
    )


if __name__ == "__main__":
    {"make": make, "draw": draw}[sys.argv[1]](Path(sys.argv[2]))
