"""The default edit of one large photo on one core: seconds and peak memory.

    python -m tests.benchmarks.edit_large_photo --megapixels 12

Processor time is given beside the clock: on a busy machine only the first compares. Without --photo
the photo is made up; JPEG files of real cameras decode and encode about as fast.
"""

from __future__ import annotations

import argparse
import io
import resource
import time
from pathlib import Path

import torch
from PIL import Image

from doodl.editing.editor import load_editor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.images import decode_photo
from doodl.recipes.presets import preset
from tests.photos import pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--photo", type=Path, help="a photo to scale to that size")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = jpeg(args.photo, args.megapixels)
    editor = load_editor("pocket", preset("pocket"))
    for seed in range(args.repeats):
        clock, processor = time.perf_counter(), time.process_time()
        photo = decode_photo(data)
        (result,) = editor.edit([EditRequest(photo, Aim("up"), seed=seed)])
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{photo.width_px}x{photo.height_px}: {getattr(result, 'status', result)}, "
            f"{processor:.1f} CPU s, {clock:.1f} s, peak {peak} MiB"
        )


def jpeg(path: Path | None, megapixels: float) -> bytes:
    source = Image.fromarray(pixels(0, (600, 800))) if path is None else Image.open(path)
    scale = (megapixels * 1e6 / (source.width * source.height)) ** 0.5
    size = (round(source.width * scale), round(source.height * scale))
    buffer = io.BytesIO()
    source.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
