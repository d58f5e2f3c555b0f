"""Photos drawn from captions: how near real ones, and whether they show what was said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from doodl import moves
from doodl.backbones import Backbone
from doodl.engine import sampling
from doodl.errors import DoodlError
from doodl.evaluation.tables import Table
from doodl.measures.bootstrap import Interval, bootstrap_interval
from doodl.measures.figures import SHARE, Figure
from doodl.measures.frechet import frechet_distance
from doodl.pocket import weights_dir
from doodl.pocket.scorer import load_scorer, tokenize
from doodl.pocket.training.captions import FLOWERS, load_tokenizer
from doodl.recipes.config import SamplerConfig

CAPTIONS = (
    "a photo of a daisy",
    "a photo of a dandelion",
    "a photo of roses",
    "a photo of a sunflower",
    "a photo of tulips",
)
SAMPLERS = ("ddim", "edict", "belm")
_SPLITS = 50
_FLOOR, _RECONSTRUCTED = "other held-out photos", "others, through the autoencoder"
_BATCH = 16
_DISTANCE = Figure("distance", "distance", lambda _: None, ".3f")
_SHARE = Figure("share", "share", lambda _: None, SHARE)


@dataclass(frozen=True)
class SampleSpec:
    """How samples are drawn.

    Attributes:
        captions: each gets `number` samples of size_px a side.
        sampler: ddim (a single chain), edict or belm (the exact ones, as edits use them).
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
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler (={self.sampler!r}) must be of {', '.join(SAMPLERS)}.")
        if not self.captions or self.number < 1:
            raise ValueError("at least one caption and one sample of each are needed.")


@torch.no_grad()
def draw_samples(
    backbone: Backbone, captions: Sequence[str], noise: Tensor, spec: SampleSpec
) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1], one per caption and noise x_T (B, C, h, w)."""
    predictor = backbone.predictor(list(captions), guidance_scale=spec.guidance_scale)
    schedule = backbone.schedule(spec.num_inference_steps)
    if spec.sampler == "ddim":
        steps = moves.ddim(schedule.on(noise.device))
        (latents,) = moves.generate(predictor, steps, (noise,))
    else:
        sampler = SamplerConfig(spec.num_inference_steps, kind=spec.sampler)
        x, y = sampling.denoise_to(predictor, noise, schedule, 0, sampler)
        latents, _ = sampling.generate(predictor, x, y, schedule, sampler)
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
    found: dict[str, list[float]] = {n: [] for n in (_FLOOR, _RECONSTRUCTED, *sets)}
    for _ in range(_SPLITS):
        order = rng.permutation(len(real))
        half, others = real[order[:size]], order[size : 2 * size]
        found[_FLOOR].append(frechet_distance(half, real[others]))
        found[_RECONSTRUCTED].append(frechet_distance(half, reconstructed[others]))
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


@torch.no_grad()
def round_trip(backbone: Backbone, images: Tensor) -> Tensor:
    """Return images in [0, 1] through the autoencoder and back."""
    return torch.cat([decoded(backbone, backbone.encode(b * 2 - 1)) for b in images.split(_BATCH)])


@torch.no_grad()
def decoded(backbone: Backbone, latents: Tensor) -> Tensor:
    """Return the images in [0, 1] of latents."""
    parts = [(backbone.decode(z) / 2 + 0.5).clamp(0, 1) for z in latents.split(_BATCH)]
    return torch.cat(parts)


@torch.no_grad()
def features_of(tower: torch.nn.Module, images: Tensor) -> np.ndarray:
    """Return the tower's embeddings (N, D) of images in [0, 1]."""
    return torch.cat([tower(batch * 2 - 1) for batch in images.split(_BATCH)]).numpy()


@torch.no_grad()
def class_table(
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
