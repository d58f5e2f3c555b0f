"""Draw docs/before-after.jpg from a finished run: python docs/before_after.py OUT."""

import sys
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw

WIDTH_PX, HEIGHT_PX, GAP_PX = 300, 200, 6


def cell(path: Path, label: str) -> Image.Image:
    """Return the middle of a photo at the cell's size, labelled."""
    image = Image.open(path).convert("RGB")
    scale = max(WIDTH_PX / image.width, HEIGHT_PX / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    left, top = (image.width - WIDTH_PX) // 2, (image.height - HEIGHT_PX) // 3
    image = image.crop((left, top, left + WIDTH_PX, top + HEIGHT_PX))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 12 + int(draw.textlength(label)), 16), fill="black")
    draw.text((5, 2), label, fill="white")
    return image


def main(out: Path) -> None:
    """Write the picture: two pairs a row, every photo that was delivered."""
    rows = pd.read_parquet(out / "results").query("status == 'ok'").sort_values("row_id")
    pairs = [(Path(r.image_uri), out / r.edited_uri) for r in rows.itertuples()]
    lines = -(-len(pairs) // 2)
    sheet = Image.new("RGB", (4 * WIDTH_PX + 5 * GAP_PX, lines * (HEIGHT_PX + GAP_PX)), "white")
    for i, pair in enumerate(pairs):
        for j, (path, label) in enumerate(zip(pair, ("before", "after"), strict=True)):
            left = ((i % 2) * 2 + j) * WIDTH_PX + ((i % 2) * 2 + j + 1) * GAP_PX
            sheet.paste(cell(path, label), (left, (i // 2) * (HEIGHT_PX + GAP_PX)))
    sheet.save(Path(__file__).parent / "before-after.jpg", quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
