"""Samplers beside each other: the same noise and captions, by every sampler at every step count.

How far are the pictures from held-out photos, how far from EDICT's of many steps, at what cost?
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from doodl.engine.software import SOFTWARE
from doodl.evaluation.cases import Source
from doodl.evaluation.generated import (
    SampleSpec,
    decoded,
    distance_table,
    draw_samples,
    features_of,
    round_trip,
)
from doodl.evaluation.plots import write_plots
from doodl.evaluation.rows import Row
from doodl.evaluation.samples import (
    BATCH,
    Begun,
    begin_samples,
    check_fits,
    png_of,
    read_photos,
)
from doodl.evaluation.sheets import Cell, write_sheets
from doodl.evaluation.store import write_whole
from doodl.evaluation.tables import Table, markdown, markdown_text
from doodl.evaluation.unets import CountedUNet
from doodl.measures.bootstrap import Interval, bootstrap_interval
from doodl.measures.figures import Figure
from doodl.pocket.training.photos import center_crops

REFERENCE = "edict"
_SHEET_ROWS = 20
_DISTANCE = Figure("distance", "distance to photos", lambda _: None, ".3f")
_COSINE = Figure("cosine", "1 − cosine to the reference", lambda row: row["cosine_distance"], ".4f")
_RMS = Figure("rms", "RMS % to the reference", lambda row: 100 * row["rms"], ".1f")
_COSTS = (
    Figure("cpu_seconds", "CPU s", lambda row: row["cpu_seconds"], ".2f"),
    Figure("unet_calls", "UNet calls", lambda row: row["unet_calls"], ".0f"),
)


@dataclass(frozen=True)
class SamplersSpec:
    """What is compared.

    Attributes:
        base: captions, size, guidance, seed and number, the same for all.
        samplers, steps: every pair of them is drawn.
    """

    base: SampleSpec
    samplers: tuple[str, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.samplers or not self.steps:
            raise ValueError("at least one sampler and one number of steps are needed.")
        for spec in self.runs:
            if spec.num_inference_steps < 1:
                raise ValueError(f"steps (={spec.num_inference_steps}) must be at least 1.")

    @property
    def runs(self) -> tuple[SampleSpec, ...]:
        """Every sampler at every step count; the reference, EDICT's most steps, is among them."""
        pairs = [(sampler, steps) for sampler in self.samplers for steps in self.steps]
        if self.reference not in pairs:
            pairs.append(self.reference)
        return tuple(
            replace(self.base, sampler=sampler, num_inference_steps=steps)
            for sampler, steps in pairs
        )

    @property
    def reference(self) -> tuple[str, int]:
        return REFERENCE, max(self.steps)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A sampler's pictures (N, 3, H, W) in [0, 1], their features (N, D), and what each cost."""

    spec: SampleSpec
    images: Tensor
    features: np.ndarray
    cpu_seconds: float
    unet_calls: float

    @property
    def name(self) -> str:
        return f"{self.spec.sampler}, {self.spec.num_inference_steps} steps"


@dataclass
class SamplersReport:
    """What was drawn and found: a row a picture and sampler."""

    spec: SamplersSpec
    drawn: list[Drawn]
    rows: list[Row]
    tables: list[Table]
    revisions: dict[str, str]
    unreadable: list[tuple[str, str]]


def run_samplers(
    sources: Sequence[Source], spec: SamplersSpec, message: Callable[[str], None]
) -> SamplersReport:
    """Draw the same pictures by every sampler, and compare them with photos and each other.

    Raises: ModelError, DoodlError if too few photos can be read or a number of steps does not fit.
    """
    begun = begin_samples(spec.base)
    for run in spec.runs:
        check_fits(begun.backbone, run)
    counter = CountedUNet(begun.backbone.unet)
    begun = replace(begun, backbone=replace(begun.backbone, unet=counter))
    drawn = []
    for run in spec.runs:
        message(f"drawing {len(begun.captions)} samples by {run.sampler}, "
                f"{run.num_inference_steps} steps")  # fmt: skip
        drawn.append(_draw(begun, run, counter))
    message(f"comparing with {len(sources)} photos")
    photos, unreadable = read_photos(sources)
    real = center_crops(photos, (spec.base.size_px,) * 2)
    distances = distance_table(
        features_of(begun.tower, real),
        features_of(begun.tower, round_trip(begun.backbone, real)),
        {
            **{one.name: one.features for one in drawn},
            "decoded noise": features_of(begun.tower, decoded(begun.backbone, begun.noise)),
        },
        seed=spec.base.seed,
    )
    reference = next(
        one for one in drawn if (one.spec.sampler, one.spec.num_inference_steps) == spec.reference
    )
    rows = [row for one in drawn for row in _rows(one, reference, begun.captions)]
    table = _table(drawn, rows, reference, distances, spec.base.seed)
    return SamplersReport(spec, drawn, rows, [table], begun.revisions, unreadable)


def _draw(begun: Begun, run: SampleSpec, counter: CountedUNet) -> Drawn:
    before, started = counter.photos, time.process_time()
    images = torch.cat(
        [draw_samples(begun.backbone, captions, noise, run) for captions, noise in _batches(begun)]
    )
    seconds, count = time.process_time() - started, len(begun.captions)
    calls = (counter.photos - before) / count
    return Drawn(run, images, features_of(begun.tower, images), seconds / count, calls)


def _batches(begun: Begun) -> list[tuple[list[str], Tensor]]:
    places = range(0, len(begun.captions), BATCH)
    return [(begun.captions[i : i + BATCH], begun.noise[i : i + BATCH]) for i in places]


def _rows(one: Drawn, reference: Drawn, captions: Sequence[str]) -> list[Row]:
    # The tower's embeddings are of length one.
    cosines = (one.features * reference.features).sum(1)
    rms = (one.images - reference.images).square().mean((1, 2, 3)).sqrt()
    return [
        {
            "caption": caption,
            "place": i,
            "sampler": one.spec.sampler,
            "num_inference_steps": one.spec.num_inference_steps,
            "cosine_distance": float(1 - cosines[i]),
            "rms": float(rms[i]),
            "cpu_seconds": one.cpu_seconds,
            "unet_calls": one.unet_calls,
        }
        for i, caption in enumerate(captions)
    ]


def _table(
    drawn: Sequence[Drawn], rows: Sequence[Row], reference: Drawn, distances: Table, seed: int
) -> Table:
    """Return a line for each sampler and step count, the floor of the distance above them."""
    known = {one.name: one for one in drawn}
    cells, values = [], []
    for value in distances.values:
        one = known.get(value["set"])
        distance = Interval(value["mean"], value["low"], value["high"], value["count"])
        found: dict[str, Interval | None] = {"distance": distance}
        if one is not None and one is not reference:
            mine = [r for r in rows if (r["sampler"], r["num_inference_steps"])
                    == (one.spec.sampler, one.spec.num_inference_steps)]  # fmt: skip
            for figure in (_COSINE, _RMS):
                taken = [number for row in mine if (number := figure.of(row)) is not None]
                found[figure.name] = bootstrap_interval(taken, seed=seed)
        costs = ("–", "–") if one is None else (f"{one.cpu_seconds:.2f}", f"{one.unet_calls:.0f}")
        cells.append((
            value["set"], _DISTANCE.cell(distance),
            *(figure.cell(found.get(figure.name)) for figure in (_COSINE, _RMS)), *costs,
        ))  # fmt: skip
        plain: dict[str, Any] = {name: i and vars(i) for name, i in found.items()}
        if one is not None:
            plain |= {
                "sampler": one.spec.sampler, "num_inference_steps": one.spec.num_inference_steps,
                "cpu_seconds": one.cpu_seconds, "unet_calls": one.unet_calls,
            }  # fmt: skip
        values.append({"set": value["set"], **plain})
    caption = (
        f"{len(reference.images)} pictures each, of the same noise and captions. "
        f"{distances.caption} To the reference, {reference.name}: picture by picture, by the same "
        "tower's embeddings and in pixels, with a 95 % bootstrap interval. Costs are a picture's; "
        "a UNet call is of one picture, and guidance by the caption doubles them."
    )
    headings = (_DISTANCE.heading, _COSINE.heading, _RMS.heading, *(f.heading for f in _COSTS))
    plotted = tuple((f.name, f.heading) for f in (_DISTANCE, _COSINE, _RMS))
    return Table("samplers", caption, ("pictures", *headings), tuple(cells),
                 values=tuple(values), plotted=plotted)  # fmt: skip


def write_samplers(report: SamplersReport, out: Path, command: str) -> list[Path]:
    """Write samples.md, samples.json, plots, pictures and the sheets; return the sheets."""
    base = report.spec.base
    models = ", ".join(f"{name} {revision}" for name, revision in report.revisions.items())
    footer = (
        f"{markdown_text(base.model)}: {models}, {SOFTWARE}, guidance "
        f"{base.guidance_scale:g}, seed {base.seed}. `{command.replace('`', '')}`"
    )
    plots = write_plots(out / "plots", report.tables)
    parts = ["# Samplers on the same noise and captions\n"]
    parts += [markdown(table, footer, plots.get(table.title)) for table in report.tables]
    write_whole(out / "samples.md", "\n".join(parts).encode())
    record = {
        "command": command,
        "spec": {**vars(base), "samplers": report.spec.samplers, "steps": report.spec.steps},
        "revisions": report.revisions,
        "tables": [{"title": t.title, "values": t.values} for t in report.tables],
        "unreadable": report.unreadable,
    }
    write_whole(out / "samples.json", (json.dumps(record, indent=1) + "\n").encode())
    return _sheets(report, out)


def _sheets(report: SamplersReport, out: Path) -> list[Path]:
    base, folder = report.spec.base, out / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[tuple[str, int], Path] = {}
    for one in report.drawn:
        stem = f"{one.spec.sampler}-{one.spec.num_inference_steps}"
        for i, image in enumerate(one.images):
            path = folder / f"{stem}-{i // base.number:02d}-{i % base.number:03d}.png"
            write_whole(path, png_of(image))
            paths[one.name, i] = path
    # The first of every caption, then the second.
    order = [c * base.number + i for i in range(base.number) for c in range(len(base.captions))]
    rows = [
        [Cell(paths[one.name, i], (base.captions[i // base.number],)) for one in report.drawn]
        for i in order[:_SHEET_ROWS]
    ]
    title = f"samplers on the same noise, guidance {base.guidance_scale:g}, seed {base.seed}"
    return write_sheets(out / "sheets", "samplers", title, [o.name for o in report.drawn], rows)
