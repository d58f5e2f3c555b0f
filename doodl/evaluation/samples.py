"""Samples from captions, from noise to tables and sheets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from doodl.backbones import Backbone, load_backbone
from doodl.engine.software import SOFTWARE
from doodl.errors import DoodlError, PhotoError
from doodl.evaluation.cases import Source
from doodl.evaluation.generated import (
    SampleSpec,
    class_table,
    decoded,
    distance_table,
    draw_samples,
    features_of,
    round_trip,
)
from doodl.evaluation.sheets import Cell, write_sheets
from doodl.evaluation.store import write_whole
from doodl.evaluation.tables import Table, markdown, markdown_text
from doodl.images import decode_photo
from doodl.models.hub import find_model
from doodl.models.revisions import folder_revision
from doodl.pocket import weights_dir
from doodl.pocket.training.photos import PhotoSet, center_crops
from doodl.scores import AestheticScorer, load_scorer

BATCH = 16


@dataclass
class SampleReport:
    """What was drawn and found: tables, samples (N, 3, H, W) in [0, 1] with their captions."""

    spec: SampleSpec
    tables: list[Table]
    images: Tensor
    captions: list[str]
    revisions: dict[str, str]
    unreadable: list[tuple[str, str]]


def run_samples(
    sources: Sequence[Source], spec: SampleSpec, message: Callable[[str], None]
) -> SampleReport:
    """Draw samples, and compare them with held-out photos and with what their captions say.

    Raises: ModelError, DoodlError if too few photos can be read.
    """
    begun = begin_samples(spec)
    backbone, tower, captions, noise = begun.backbone, begun.tower, begun.captions, begun.noise
    message(f"drawing {len(captions)} samples of {spec.num_inference_steps} steps")
    images = torch.cat(
        [
            draw_samples(backbone, captions[i : i + BATCH], noise[i : i + BATCH], spec)
            for i in range(0, len(captions), BATCH)
        ]
    )
    message(f"comparing with {len(sources)} photos")
    photos, unreadable = read_photos(sources)
    real = center_crops(photos, (spec.size_px, spec.size_px))
    table = distance_table(
        features_of(tower, real),
        features_of(tower, round_trip(backbone, real)),
        {
            "generated samples": features_of(tower, images),
            "decoded noise": features_of(tower, decoded(backbone, noise)),
        },
        seed=spec.seed,
    )
    tables = [table, *class_table(images, captions, real, photos.labels, spec.seed)]
    return SampleReport(spec, tables, images, captions, begun.revisions, unreadable)


@dataclass(frozen=True, eq=False)
class Begun:
    """What samples are drawn with: a caption for each, and the noise (N, C, h, w) they begin at."""

    backbone: Backbone
    tower: torch.nn.Module
    captions: list[str]
    noise: Tensor
    revisions: dict[str, str]


def begin_samples(spec: SampleSpec) -> Begun:
    """Load what samples need, and draw their noise, the same for every sampler and step count.

    Raises: ModelError, DoodlError for what the model cannot do.
    """
    torch.set_num_threads(1)
    folder = find_model(spec.model)
    backbone = load_backbone(folder, name=spec.model)
    check_fits(backbone, spec)
    scorer = load_scorer("pocket")
    assert isinstance(scorer, AestheticScorer)  # one of the shipped ones, which are no ensembles
    captions = [caption for caption in spec.captions for _ in range(spec.number)]
    side = spec.size_px // backbone.latent_factor
    shape = (len(captions), backbone.latent_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(spec.seed))
    revisions = {
        "model": folder_revision(folder),
        "guide": folder_revision(weights_dir() / "tower"),
        "judge": folder_revision(weights_dir() / "judge"),
    }
    return Begun(backbone, scorer.tower, captions, noise, revisions)


def check_fits(backbone: Backbone, spec: SampleSpec) -> None:
    """Raise DoodlError, before anything is drawn, for what the model cannot do."""
    multiple = backbone.size_multiple
    if spec.size_px < multiple or spec.size_px % multiple:
        raise DoodlError(f"size_px (={spec.size_px}) must be a multiple of {multiple}.")
    try:
        backbone.schedule(spec.num_inference_steps)
    except ValueError as error:
        raise DoodlError(str(error)) from error


def write_samples(report: SampleReport, out: Path, command: str) -> list[Path]:
    """Write samples.md, samples.json, OUT/samples/NN-NNN.png and the sheets; return the sheets."""
    footer = sample_provenance(report, command)
    parts = ["# Samples from captions\n", *(markdown(table, footer) for table in report.tables)]
    write_whole(out / "samples.md", "\n".join(parts).encode())
    record = {
        "command": command,
        "spec": vars(report.spec),
        "revisions": report.revisions,
        "tables": [{"title": t.title, "values": t.values} for t in report.tables],
        "unreadable": report.unreadable,
    }
    write_whole(out / "samples.json", (json.dumps(record, indent=1) + "\n").encode())
    folder = out / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    number = report.spec.number
    columns: list[list[Cell]] = []
    for i, image in enumerate(report.images):
        path = folder / f"{i // number:02d}-{i % number:03d}.png"
        write_whole(path, png_of(image))
        if i % number == 0:
            columns.append([])
        columns[-1].append(Cell(path))
    rows = [list(row) for row in zip(*columns, strict=True)]
    spec = report.spec
    title = (
        f"samples: {spec.sampler}, {spec.num_inference_steps} steps, "
        f"guidance {spec.guidance_scale:g}, seed {spec.seed}"
    )
    return write_sheets(out / "sheets", "samples", title, spec.captions, rows)


def png_of(image: Tensor) -> bytes:
    """Return a PNG of an image (3, H, W) in [0, 1]."""
    pixels = image.permute(1, 2, 0).mul(255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sample_provenance(report: SampleReport, command: str) -> str:
    """Return one line of Markdown: models with their revisions, version, seed and command."""
    models = ", ".join(f"{name} {revision}" for name, revision in report.revisions.items())
    spec = report.spec
    return (
        f"{markdown_text(spec.model)}: {models}, {SOFTWARE}, {spec.sampler}, "
        f"{spec.num_inference_steps} steps, guidance {spec.guidance_scale:g}, seed {spec.seed}. "
        f"`{command.replace('`', '')}`"
    )


def read_photos(sources: Sequence[Source]) -> tuple[PhotoSet, list[tuple[str, str]]]:
    photos, kept, unreadable = [], [], []
    for source in sources:
        try:
            pixels = decode_photo(source.read()).pixels
        except (PhotoError, OSError) as error:
            unreadable.append((source.name, str(error)))
            continue
        photos.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        kept.append(source)
    labels, names = tuple(s.label for s in kept), tuple(s.name for s in kept)
    return PhotoSet(tuple(photos), labels, names), unreadable
