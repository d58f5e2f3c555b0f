"""Photos drawn from captions: how near real ones, and whether they show what was said."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import doodl
from doodl.backbones import Backbone, load_backbone
from doodl.config import default_mix_weight
from doodl.edict import generate
from doodl.edit import pipeline_folder
from doodl.errors import DoodlError, PhotoError
from doodl.evaluation.bootstrap import Interval, bootstrap_interval
from doodl.evaluation.cases import Source
from doodl.evaluation.figures import SHARE, Figure
from doodl.evaluation.frechet import frechet_distance
from doodl.evaluation.sheets import Cell, write_sheets
from doodl.evaluation.store import write_whole
from doodl.evaluation.tables import Table, markdown, markdown_text
from doodl.images import decode_photo
from doodl.pocket import weights_dir
from doodl.pocket.captions import FLOWERS, load_tokenizer
from doodl.pocket.photos import PhotoSet, center_crops
from doodl.pocket.scorer import load_scorer, tokenize
from doodl.revisions import folder_revision
from doodl.scores import load_scorer as load_shipped_scorer

CAPTIONS = (
    "a photo of a daisy",
    "a photo of a dandelion",
    "a photo of roses",
    "a photo of a sunflower",
    "a photo of tulips",
)
_SPLITS = 50
_FLOOR, _ROUND_TRIP = "other held-out photos", "others, through the autoencoder"
_BATCH = 16
_DISTANCE = Figure("distance", "distance", lambda _: None, ".3f")
_SHARE = Figure("share", "share", lambda _: None, SHARE)


@dataclass(frozen=True)
class SampleSpec:
    """How samples are drawn.

    Attributes:
        captions: each gets `number` samples of size_px a side.
        sampler: ddim (a single chain) or edict.
        guidance_scale: of classifier-free guidance.
    """

    captions: tuple[str, ...] = CAPTIONS
    number: int = 40
    num_inference_steps: int = 50
    guidance_scale: float = 3.0
    sampler: str = "ddim"
    size_px: int = 128
    model: str = "pocket"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sampler not in ("ddim", "edict"):
            raise ValueError(f"sampler (={self.sampler!r}) must be ddim or edict.")
        if not self.captions or self.number < 1:
            raise ValueError("at least one caption and one sample of each are needed.")


@dataclass
class SampleReport:
    """What was drawn and found: tables, samples (N, 3, H, W) in [0, 1] with their captions."""

    spec: SampleSpec
    tables: list[Table]
    images: Tensor
    captions: list[str]
    revisions: dict[str, str]
    unreadable: list[tuple[str, str]]


@torch.no_grad()
def draw_samples(
    backbone: Backbone, captions: Sequence[str], noise: Tensor, spec: SampleSpec
) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1], one per caption and noise x_T (B, C, h, w)."""
    predictor = backbone.predictor(list(captions), guidance_scale=spec.guidance_scale)
    schedule = backbone.schedule(spec.num_inference_steps)
    if spec.sampler == "edict":
        p = default_mix_weight(spec.num_inference_steps)
        latents, _ = generate(predictor, noise, noise, schedule, mix_weight=p)
    else:
        latents = noise
        steps = zip(
            schedule.timesteps.to(noise.device).unbind(0),
            schedule.a.tolist(),
            schedule.b.tolist(),
            schedule.noise_calls.tolist(),
            strict=True,
        )
        for t, a, b, acts in steps:
            if acts:
                latents = a * latents + b * predictor(latents, t)
    return (backbone.decode(latents) / 2 + 0.5).clamp(0, 1)


def class_of(caption: str) -> str | None:
    """Return the kind of flower that a caption names, None if it names none of the five."""
    words = " ".join(re.findall(r"[a-z]+", caption.lower()))
    for kind, forms in FLOWERS.items():
        if any(re.search(rf"\b{form.split()[-1]}\b", words) for form in forms):
            return kind
    return None


def distance_table(
    real: np.ndarray, reconstructed: np.ndarray, sets: dict[str, np.ndarray], *, seed: int
) -> Table:
    """Return distances to held-out photos, the floor between two halves of them first.

    All are of the same number of pictures, since the distance depends on it: over 50 random
    halvings of the real photos and picks of the others, mean and 95 % range.

    Args:
        real: features (N, D). reconstructed: those of the same photos through the autoencoder;
            the half that is compared with never meets its own.
        sets: features of other pictures, by what they are.
    Raises: DoodlError for too few of them.
    """
    rng = np.random.default_rng(seed)
    size = min(len(real) // 2, *(len(features) for features in sets.values()))
    if size < 2:
        raise DoodlError("at least 4 photos and 2 samples are needed for a distance.")
    found: dict[str, list[float]] = {n: [] for n in (_FLOOR, _ROUND_TRIP, *sets)}
    for _ in range(_SPLITS):
        order = rng.permutation(len(real))
        half, others = real[order[:size]], order[size : 2 * size]
        found[_FLOOR].append(frechet_distance(half, real[others]))
        found[_ROUND_TRIP].append(frechet_distance(half, reconstructed[others]))
        for name, features in sets.items():
            picked = features[rng.permutation(len(features))[:size]]
            found[name].append(frechet_distance(half, picked))
    intervals = {name: _range(distances, size) for name, distances in found.items()}
    rows = tuple((name, str(size), _DISTANCE.cell(i)) for name, i in intervals.items())
    caption = (
        f"Squared Fréchet distance, on embeddings of the guide's tower, between {size} held-out "
        f"photos and as many of each; mean and 95 % range over {_SPLITS} random picks. The "
        "first is the floor, the second what the autoencoder alone costs, the last what it makes "
        "of latents that no UNet has seen."
    )
    values = tuple({"set": name, **vars(i)} for name, i in intervals.items())
    columns = ("held-out photos against", "pictures", "distance")
    return Table("distance to real photos", caption, columns, rows, values=values)


def _range(distances: Sequence[float], count: int) -> Interval:
    low, high = np.quantile(distances, [0.025, 0.975])
    return Interval(float(np.mean(distances)), float(low), float(high), count)


def run_samples(
    sources: Sequence[Source], spec: SampleSpec, message: Callable[[str], None]
) -> SampleReport:
    """Draw samples, and compare them with held-out photos and with what their captions say.

    Raises: ModelError, DoodlError if too few photos can be read.
    """
    torch.set_num_threads(1)
    folder = pipeline_folder(spec.model)
    backbone = load_backbone(folder, name=spec.model)
    _check_fits(backbone, spec)
    tower = load_shipped_scorer("pocket").tower
    captions = [caption for caption in spec.captions for _ in range(spec.number)]
    message(f"drawing {len(captions)} samples of {spec.num_inference_steps} steps")
    side = spec.size_px // backbone.latent_factor
    shape = (len(captions), backbone.latent_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(spec.seed))
    images = torch.cat(
        [
            draw_samples(backbone, captions[i : i + _BATCH], noise[i : i + _BATCH], spec)
            for i in range(0, len(captions), _BATCH)
        ]
    )
    message(f"comparing with {len(sources)} photos")
    photos, unreadable = _read(sources)
    real = center_crops(photos, (spec.size_px, spec.size_px))
    table = distance_table(
        _features(tower, real),
        _features(tower, _round_trip(backbone, real)),
        {
            "generated samples": _features(tower, images),
            "decoded noise": _features(tower, _decoded(backbone, noise)),
        },
        seed=spec.seed,
    )
    tables = [table, *_class_table(images, captions, real, photos.labels, spec.seed)]
    revisions = {
        "model": folder_revision(folder),
        "guide": folder_revision(weights_dir() / "tower"),
        "judge": folder_revision(weights_dir() / "judge"),
    }
    return SampleReport(spec, tables, images, captions, revisions, unreadable)


def _check_fits(backbone: Backbone, spec: SampleSpec) -> None:
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
        pixels = image.permute(1, 2, 0).mul(255).round().byte().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        write_whole(path, buffer.getvalue())
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


def sample_provenance(report: SampleReport, command: str) -> str:
    """Return one line of Markdown: models with their revisions, version, seed and command."""
    models = ", ".join(f"{name} {revision}" for name, revision in report.revisions.items())
    spec = report.spec
    return (
        f"{markdown_text(spec.model)}: {models}, doodl-batch {doodl.__version__}, {spec.sampler}, "
        f"{spec.num_inference_steps} steps, guidance {spec.guidance_scale:g}, seed {spec.seed}. "
        f"`{command.replace('`', '')}`"
    )


def _read(sources: Sequence[Source]) -> tuple[PhotoSet, list[tuple[str, str]]]:
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


@torch.no_grad()
def _round_trip(backbone: Backbone, images: Tensor) -> Tensor:
    return torch.cat([_decoded(backbone, backbone.encode(b * 2 - 1)) for b in images.split(_BATCH)])


@torch.no_grad()
def _decoded(backbone: Backbone, latents: Tensor) -> Tensor:
    parts = [(backbone.decode(z) / 2 + 0.5).clamp(0, 1) for z in latents.split(_BATCH)]
    return torch.cat(parts)


@torch.no_grad()
def _features(tower: torch.nn.Module, images: Tensor) -> np.ndarray:
    return torch.cat([tower(batch * 2 - 1) for batch in images.split(_BATCH)]).numpy()


@torch.no_grad()
def _class_table(
    images: Tensor, captions: Sequence[str], real: Tensor, labels: Sequence[str], seed: int
) -> list[Table]:
    """Return how often the judge's towers find the right flower, in samples and in real photos."""
    folder = weights_dir() / "judge"
    scorer, tokenizer = load_scorer(folder), load_tokenizer(folder)
    kinds = list(FLOWERS)
    texts = [f"a photo of {form}" for kind in kinds for form in FLOWERS[kind]]
    prototypes = scorer.embed_text(tokenize(tokenizer, texts)).view(len(kinds), 2, -1).mean(1)

    def right(pictures: Tensor, named: Sequence[str | None]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for start in range(0, len(pictures), _BATCH):
            batch = pictures[start : start + _BATCH]
            nearest = (scorer.embed(batch) @ prototypes.T).argmax(1).tolist()
            for place, kind in zip(nearest, named[start : start + _BATCH], strict=True):
                if kind in found:
                    found[kind].append(float(kinds[place] == kind))
        return found

    sampled = right(images, [class_of(caption) for caption in captions])
    photos = right(real, list(labels))
    if not any(sampled.values()):
        return []
    rows, values = [], []
    for kind in (*kinds, "all"):
        line: list[str] = [kind]
        value: dict[str, Any] = {"class": kind}
        for name, found in (("samples", sampled), ("photos", photos)):
            marks = [m for k, part in found.items() if kind in (k, "all") for m in part]
            interval = bootstrap_interval(marks, seed=seed)
            line += [str(len(marks)), _SHARE.cell(interval)]
            value[name] = None if interval is None else vars(interval)
        rows.append(tuple(line))
        values.append(value)
    caption = (
        "How often the nearest of the five flower captions is the right one by the judge's towers, "
        "which had no part in drawing the samples; chance is 20 %. [low, high]: 95 % bootstrap "
        "interval. The held-out photos beside are what these towers can do."
    )
    columns = ("class", "samples", "right", "photos", "right in photos")
    table = Table("zero-shot class", caption, columns, tuple(rows), values=tuple(values))
    return [table]
