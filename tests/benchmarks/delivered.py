"""What real edits do to a photo besides the edit: sharpness, skin, neutrals, zero change.

    python -m tests.benchmarks.delivered FOLDER [--limit 50] [--steps 12] [--save FOLDER]

Each photo is edited upward with the pocket model and delivered; figures are of every delivered
file, accepted or not.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab

from doodl.editing.editor import load_editor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.images import decode_photo
from doodl.recipes.presets import preset

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
NEUTRAL_CHROMA = 5  # CIELAB, at and below which a pixel counts as near neutral


def high_frequency(pixels: np.ndarray) -> tuple[float, float]:
    """Return the RMS of luminance finer than 1.5 px, and of that from 1.5 to 12 px, in levels."""
    lightness = pixels.astype(np.float32) @ LUMA
    fine = ndimage.gaussian_filter(lightness, 1.5)
    coarse = ndimage.gaussian_filter(lightness, 12)
    return float((lightness - fine).std()), float((fine - coarse).std())


def drift(source: np.ndarray, delivered: np.ndarray) -> dict[str, float]:
    """Return mean shifts in CIELAB of skin-like and of near-neutral pixels; NaN without any.

    Skin-like: Cb 77 to 127 and Cr 133 to 173 (Chai and Ngan 1999), not near neutral.
    """
    labs = [rgb2lab(p[::4, ::4] / 255) for p in (source, delivered)]
    codes = np.asarray(Image.fromarray(source[::4, ::4]).convert("YCbCr"))
    chroma = [np.hypot(lab[..., 1], lab[..., 2]) for lab in labs]
    skin = (codes[..., 1] >= 77) & (codes[..., 1] <= 127) & (codes[..., 2] >= 133)
    skin &= (codes[..., 2] <= 173) & (chroma[0] > 2 * NEUTRAL_CHROMA)
    neutral = chroma[0] <= NEUTRAL_CHROMA
    hue = [np.arctan2(lab[..., 2], lab[..., 1]) for lab in labs]
    turn = np.degrees(np.angle(np.exp(1j * (hue[1] - hue[0]))))

    def mean(values: np.ndarray, mask: np.ndarray) -> float:
        return float(values[mask].mean()) if mask.sum() > 50 else float("nan")

    return {
        "skin hue, °": mean(turn, skin),
        "skin chroma": mean(chroma[1] - chroma[0], skin),
        "skin L": mean(labs[1][..., 0] - labs[0][..., 0], skin),
        "neutral a": mean(labs[1][..., 1] - labs[0][..., 1], neutral),
        "neutral b": mean(labs[1][..., 2] - labs[0][..., 2], neutral),
        "neutral chroma": mean(chroma[1] - chroma[0], neutral),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--steps", type=int, help="optimisation steps; default: the preset's")
    parser.add_argument("--save", type=Path, help="write the delivered photos here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = preset("pocket")
    if args.steps:
        config = replace(
            config, optimiser=replace(config.optimiser, num_optim_steps=args.steps)
        )  # fmt: skip
    editor = load_editor("pocket", config)
    rows: list[dict[str, float]] = []
    for path in sorted(args.photos.glob("*.jpg"))[: args.limit]:
        photo = decode_photo(path.read_bytes())
        start = time.process_time()
        result = editor.edit([EditRequest(photo, Aim("up"), seed=0)])[0]
        if isinstance(result, Exception):
            print(f"{path.name}: {result}")
            continue
        delivered = decode_photo(result.encoded).pixels
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            (args.save / path.name).write_bytes(result.encoded)
        before, after = high_frequency(photo.pixels), high_frequency(delivered)
        row = {
            "fine": after[0] / max(before[0], 1e-3),
            "coarse": after[1] / max(before[1], 1e-3),
            "PSNR": result.psnr_db,
            **drift(photo.pixels, delivered),
        }
        rows.append(row)
        figures = ", ".join(f"{name} {value:.2f}" for name, value in row.items())
        kept = len(result.change or b"") / 1000
        seconds = time.process_time() - start
        print(
            f"{path.name} {result.status} {seconds:.0f} s, kept {kept:.0f} kB: {figures}",
            flush=True,
        )
    print(f"\n{len(rows)} photos | mean | 10 % | median | 90 %")
    for name in rows[0] if rows else ():
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        if len(values):
            figures = [values.mean(), *np.percentile(values, [10, 50, 90])]
            print(" | ".join([f"{name} ({len(values)})", *(f"{f:.3f}" for f in figures)]))


if __name__ == "__main__":
    main()
