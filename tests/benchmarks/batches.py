"""Photos at once: a batch against one by one, continuous batches against fixed ones, and overlap.

    python -m tests.benchmarks.batches FOLDER_OR_PARQUET... --number 4 --room 2 --quality fast
    python -m tests.benchmarks.batches FOLDER_OR_PARQUET... --number 32 --quality fast balanced
    python -m tests.benchmarks.batches FOLDER_OR_PARQUET... --device cuda --dtype bf16

The same photos each way, dulled ones and untouched ones in turn: the latter stop early. Each way
begins at the files' bytes and ends at those of the delivered photos with their scores:

one by one          one photo is read, edited, delivered, then the next
fixed               `room` photos are, and the next `room` begin when the last of them is done
continuous          a photo that is done is delivered, and gives its place to the next
  + delivery        that delivery goes on in a thread while the others do
  + reading         and so does the reading of the next photo

Differences are to one by one, of the photo where they are largest: of the model's frame as it was
rendered and of the delivered pixels on average (both as a share of the full range), and of the
scores by guide and judge of the frame and of the delivered file. Photos are cut to a square, so
that all share one frame; --as-they-are leaves them.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from doodl.editing.editor import PhotoEditor, load_editor
from doodl.editing.methods import Slot
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest, EditResult
from doodl.engine.overlap import read_ahead
from doodl.errors import DoodlError
from doodl.evaluation.cases import Draw, draw_cases, prepare
from doodl.images import decode_photo
from doodl.recipes.presets import QUALITIES, preset
from pipeline.evaluation import read_sources
from tests.benchmarks.harness import finish, isolated, measure, parser
from tests.benchmarks.harness import prepare as prepare_torch
from tests.benchmarks.variants import PRESET, VARIANTS

COLUMNS = [
    "quality", "way", "room", "photos", "frames", "iterations", "seconds", "wall_seconds",
    "photos_per_hour", "x_one_by_one", "peak_mib", "frame_difference", "frame_score_difference",
    "pixel_difference", "file_score_difference", "other_stops",
]  # fmt: skip
ALLOWED = 1e-3
BOUNDED = ("frame_difference", "frame_score_difference", "pixel_difference")
"""What a photo's result may differ by for the company it was in. The scores of the files as they
are delivered are told beside: a value that is rounded to the next of 256 moves them."""


@dataclass(frozen=True)
class File:
    """A photo's file as a job meets it, and the seed of its edit."""

    name: str
    data: bytes
    seed: int


@dataclass(frozen=True)
class Done:
    """What is compared of one photo's result: the rendered frame (1, 3, H, W), the file, the end.

    scores: of guide and judge, of the delivered file.
    """

    frame: np.ndarray
    encoded: bytes
    scores: tuple[float, float]
    stop: tuple[str, int]


class Watched(PhotoEditor):
    """An editor that keeps the frames it has rendered, by place."""

    def finished(self, slot: Slot, image: Tensor) -> EditResult | DoodlError:
        self.frames[slot.place] = image.float().cpu().numpy()  # a process sends it back
        return super().finished(slot, image)

    frames: dict[int, np.ndarray]


def read(file: File) -> EditRequest:
    return EditRequest(decode_photo(file.data), Aim("up"), file.seed)


Stream = Iterator[tuple[int, Any]]


def one_by_one(editor: PhotoEditor, files: Sequence[File], room: int) -> Stream:
    return fixed(editor, files, 1)


def fixed(editor: PhotoEditor, files: Sequence[File], room: int) -> Stream:
    for start in range(0, len(files), room):
        requests = [read(file) for file in files[start : start + room]]
        for place, result in editor.stream(requests, room, overlap=False):
            yield start + place, result


def continuous(
    editor: PhotoEditor, files: Sequence[File], room: int, *, ahead: int, overlap: bool
) -> Stream:
    requests = (get() for _, get in read_ahead(read, files, ahead=ahead))
    return editor.stream(requests, room, overlap=overlap)


WAYS: dict[str, Callable[[PhotoEditor, Sequence[File], int], Stream]] = {
    "one by one": one_by_one,
    "fixed": fixed,
    "continuous": partial(continuous, ahead=0, overlap=False),
    "continuous + delivery": partial(continuous, ahead=0, overlap=True),
    "continuous + delivery + reading": partial(continuous, ahead=1, overlap=True),
}
FIRST = next(iter(WAYS))


def results_of(way: str, editor: Watched, files: Sequence[File], room: int) -> list[Done]:
    """Edit the files in a way and return the results in the files' order.

    Raises: the first error of a photo.
    """
    editor.frames = {}
    frames: dict[int, np.ndarray] = {}
    results: dict[int, EditResult] = {}
    for place, result in WAYS[way](editor, files, room):
        if isinstance(result, Exception):
            raise result
        results[place] = result
        # Each stream counts its places from 0: in fixed batches they come again.
        frames[place] = editor.frames.pop(place % room if way == "fixed" else
                                          0 if way == FIRST else place)  # fmt: skip
    return [
        Done(
            frames[place],
            result.encoded,
            (result.score_after, result.judge_after),
            (result.status, result.num_optim_steps),
        )
        for place, result in sorted(results.items())
    ]


@torch.no_grad()
def _seen(editor: PhotoEditor, done: Done) -> tuple[float, float]:
    frame = torch.from_numpy(done.frame).to(editor.backbone.device)
    return float(editor.guide(frame)), float(editor.judge(frame))


def differences(
    editor: PhotoEditor, got: Sequence[Done], want: Sequence[Done]
) -> dict[str, float | int]:
    """Return the largest differences of any photo; pixels' is the mean of that photo's."""
    found: dict[str, list[float]] = {}

    def note(name: str, ours: Any, theirs: Any, full_range: float, of: Any = np.max) -> None:
        off = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
        found.setdefault(name, []).append(float(of(off)) / full_range)

    for g, w in zip(got, want, strict=True):
        ours, theirs = (decode_photo(done.encoded).pixels for done in (g, w))
        note("frame_difference", g.frame, w.frame, 2)
        note("frame_score_difference", _seen(editor, g), _seen(editor, w), 1)
        note("pixel_difference", ours, theirs, np.iinfo(ours.dtype).max, np.mean)
        note("pixels_that_differ", ours != theirs, False, 1, np.mean)
        note("file_score_difference", g.scores, w.scores, 1)
    other_stops = sum(g.stop != w.stop for g, w in zip(got, want, strict=True))
    return {**{name: max(values) for name, values in found.items()}, "other_stops": other_stops}


def mixed_files(args: argparse.Namespace) -> list[File]:
    """Return dulled and untouched photos in turn.

    Raises: ValueError if there are too few.
    """
    half = -(-args.number // 2)
    draw = Draw(num_dulled=half, num_untouched=args.number - half, max_px=args.max_px)
    cases = draw_cases(read_sources(args.photos, args.out or Path("runs")), draw).cases
    dulled, untouched = (
        [case for case in cases if case.set == name] for name in ("dulled", "untouched")
    )
    if len(cases) < args.number:
        raise ValueError(f"only {len(cases)} photos there; ask for fewer with --number.")
    mixed = [case for pair in zip(dulled, untouched, strict=False) for case in pair]
    mixed += dulled[len(untouched) :]
    files = []
    for case in mixed:
        data = prepare(case, draw.max_px).data
        files.append(File(case.key, data if args.as_they_are else _square(data), case.seed))
    return files


def _square(data: bytes) -> bytes:
    photo = decode_photo(data)
    height, width = photo.pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    buffer = io.BytesIO()
    square = Image.fromarray(photo.pixels[top : top + side, left : left + side])
    square.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def rows_of(
    quality: str, files: Sequence[File], ways: Sequence[str], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rows of one quality, each way in a process of its own where that can be."""
    device, dtype = prepare_torch(args)
    shipped = load_editor(PRESET, preset(PRESET), device=device, dtype=dtype)
    editor = Watched(shipped.backbone, shipped.guide, shipped.judge, VARIANTS[quality].config)
    frames = len({editor.view(decode_photo(file.data)).shape for file in files})
    list(editor.stream([replace(read(files[0]), strength=0.0)], 1))  # kernels chosen, caches warm
    rows: list[dict[str, Any]] = []
    want: list[Done] = []
    for way in ways:
        work = partial(results_of, way, editor, files, args.room)
        measured = isolated(lambda work=work: measure(work, device, args.repeats), device)
        want = want or measured.value
        seconds, wall = (s / len(files) for s in (measured.cpu_seconds, measured.wall_seconds))
        rows.append(
            {
                "quality": quality,
                "way": way,
                "room": 1 if way == FIRST else args.room,
                "photos": len(files),
                "frames": frames,
                "iterations": float(np.mean([done.stop[1] for done in measured.value])),
                "seconds": seconds,
                "wall_seconds": wall,
                "photos_per_hour": 3600 / wall,
                "x_one_by_one": (rows[0]["wall_seconds"] if rows else wall) / wall,
                "peak_mib": measured.peak_bytes / 2**20,
                **differences(editor, measured.value, want),
            }
        )
        print(f"{quality}, {way}: {wall:.3g} s a photo", file=sys.stderr, flush=True)
    return rows


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Return what company did to the results, and whether it is within what is allowed."""
    worst = {name: max(row[name] for row in rows) for name in rows[0] if "differ" in name}
    held = all(worst[name] <= ALLOWED for name in BOUNDED)
    return (
        f"For the company they were in, frames differ by {worst['frame_difference']:.1e}, their "
        f"scores by {worst['frame_score_difference']:.1e} points, delivered pixels by "
        f"{worst['pixel_difference']:.1e} on average: "
        f"{'within' if held else 'MORE THAN'} {ALLOWED:g}. At most "
        f"{worst['pixels_that_differ']:.2%} of a file's values were rounded another way, which "
        f"moved the scores of a file by {worst['file_score_difference']:.1e} points."
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("photos", type=Path, nargs="+", help="folders, manifests, Parquet files")
    options.add_argument("--number", type=int, default=32, help="photos (default 32)")
    options.add_argument("--room", type=int, default=8, help="photos at work (default 8)")
    options.add_argument("--quality", nargs="+", choices=QUALITIES, default=["balanced"])
    options.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options.add_argument("--max-px", type=int, default=1024, help="longer side (default 1024)")
    options.add_argument("--as-they-are", action="store_true", help="cut no photo to a square")
    args = options.parse_args()
    ways = list(dict.fromkeys([FIRST, *args.ways]))
    try:
        files = mixed_files(args)
    except ValueError as error:
        options.error(str(error))
    rows = [row for quality in args.quality for row in rows_of(quality, files, ways, args)]
    notes = [
        "seconds are processor seconds of all threads a photo; x_one_by_one is of wall seconds.",
        verdict(rows),
    ]
    if args.device == "cpu":
        notes.append("The accelerator's rows are open.")
    finish("batches", rows, COLUMNS, args, notes)


if __name__ == "__main__":
    main()
