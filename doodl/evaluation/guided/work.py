"""What one worker does: draw a batch of pictures by a method, and take their figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from doodl.errors import DoodlError
from doodl.evaluation.guided.measures import Measure
from doodl.evaluation.guided.methods import GUIDED_METHODS, STEPWISE
from doodl.evaluation.guided.one_step import sample_one_step
from doodl.evaluation.guided.spec import Draw, GuidedSpec
from doodl.evaluation.rows import Measured
from doodl.evaluation.strengths import Strength, match_strength
from doodl.evaluation.unets import CountedUNet, without_noise
from doodl.generation import GenerateRequest, GenerateResult, ImageGenerator, load_generator
from doodl.generation.pictures import encode_picture, subject_image, viewed
from doodl.guidance.guidance import GuideRow
from doodl.guidance.spec import parse_guides
from doodl.recipes.config import EditConfig

_MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class DrawTask:
    """Pictures to draw together by one method."""

    draws: tuple[Draw, ...]
    method: str
    strength: float
    recipe: str


@dataclass(frozen=True)
class _Drawn:
    """One picture: its file, the unguided image of the same noise, what became of it."""

    encoded: bytes | None
    unguided: Tensor | None
    status: str
    error: str | None = None
    guide_before: float | None = None
    guide_after: float | None = None
    num_optim_steps: int = 0


@lru_cache(maxsize=1)
def _loaded(model: str, config: EditConfig) -> ImageGenerator:
    """Load the networks, once per process; the config is the preset's."""
    generator = load_generator(model, config, guides=config.guides, safety_checker="off")
    generator.backbone = replace(generator.backbone, unet=CountedUNet(generator.backbone.unet))
    return generator


@lru_cache(maxsize=8)
def _generator(spec: GuidedSpec, method: str, strength: float = 1.0) -> ImageGenerator:
    """Return a method's generator: the networks of all, with a config of its own."""
    base, made = _loaded(spec.model, spec.config), GUIDED_METHODS[method]
    backbone = without_noise(base.backbone) if made.zero_unet else base.backbone
    config = made.config(spec.config, strength)
    return ImageGenerator(backbone, config, base.guidance, judge=base.judge)


@lru_cache(maxsize=8)
def _measure(name: str, labels: tuple[str, ...]) -> Measure:
    return Measure(name, labels)


def run_draws(spec: GuidedSpec, task: DrawTask) -> list[Measured]:
    """Draw the task's pictures and return their rows; a picture that fails says so in its row."""
    unet = _loaded(spec.model, spec.config).backbone.unet
    before, started = unet.photos, time.process_time()
    drawn = _draw(spec, task)
    count = len(task.draws)
    cost = {
        "cpu_seconds": (time.process_time() - started) / count,
        "unet_calls": (unet.photos - before) / count,
    }
    return [_row(spec, task, draw, d, cost) for draw, d in zip(task.draws, drawn, strict=True)]


def tune(spec: GuidedSpec, method: str, target: float) -> Strength:
    """Return the strength at which a method changes pictures as much as DOODL, on average."""

    def change(strength: float) -> float:
        return _mean_change(spec, method, strength)

    start = GUIDED_METHODS[method].start
    return match_strength(change, target, start=start, tolerance=0.05, max_trials=5)


def doodl_change(spec: GuidedSpec) -> float:
    """Return the mean RMS change of DOODL's pictures from the unguided ones, validation seeds."""
    return _mean_change(spec, "doodl", 1.0)


def _mean_change(spec: GuidedSpec, method: str, strength: float) -> float:
    draws = spec.validation_draws()
    changes: list[float] = []
    for start in range(0, len(draws), spec.batch_size):
        task = DrawTask(tuple(draws[start : start + spec.batch_size]), method, strength, "")
        drawn = _draw(spec, task)
        changes += [_change(one) or 0.0 for one in drawn]
    return sum(changes) / len(changes)


def _draw(spec: GuidedSpec, task: DrawTask) -> list[_Drawn]:
    method = GUIDED_METHODS[task.method]
    requests = [_request(spec, task.method, draw) for draw in task.draws]
    if method.way in STEPWISE:
        generator = _generator(spec, task.method)
        try:
            return _step_by_step(generator, requests, task.strength, method.way)
        except (DoodlError, ValueError) as error:
            return [_Drawn(None, None, "failed", " ".join(str(error).split())) for _ in requests]
    try:
        generator = _generator(spec, task.method, task.strength)
    except ValueError as error:  # an ablation that does not fit the model
        return [_Drawn(None, None, "failed", " ".join(str(error).split())) for _ in requests]
    return [_drawn(result) for result in generator.generate(requests)]


def _drawn(result: GenerateResult | DoodlError) -> _Drawn:
    if isinstance(result, DoodlError):
        return _Drawn(None, None, "failed", " ".join(str(result).split()))
    unguided = None if result.unguided is None else viewed(result.unguided, torch.device("cpu"))
    return _Drawn(
        result.encoded,
        unguided,
        result.status,
        None,
        result.score_before,
        result.score_after,
        result.num_optim_steps,
    )


def _step_by_step(
    generator: ImageGenerator, requests: Sequence[GenerateRequest], weight: float, way: str
) -> list[_Drawn]:
    samples = sample_one_step(generator, requests, guidance=weight, whole_chain=way == "hybrid")
    bound = generator.guidance(requests[0].guides).bind(
        [request.guide_row for request in requests], samples.unguided.clamp(-1, 1)
    )
    with torch.no_grad():
        before, after = (
            next(iter(bound.values(images).values())).tolist()
            for images in (samples.unguided, samples.guided)
        )
    drawn = []
    for i, image in enumerate(samples.guided):
        if not bool(image.isfinite().all()):
            drawn.append(_Drawn(None, None, "failed", "the guided way left the finite numbers."))
            continue
        encoded = encode_picture(image, "PNG", software="doodl-batch", note=f"{way} guidance")
        unguided = samples.unguided[i : i + 1].clamp(-1, 1)
        drawn.append(_Drawn(encoded, unguided, "ok", None, before[i], after[i]))
    return drawn


def _request(spec: GuidedSpec, method: str, draw: Draw) -> GenerateRequest:
    item = draw.item
    guides = () if GUIDED_METHODS[method].way == "original" else parse_guides(spec.config.guides)
    subject = subject_of(spec, draw)
    return GenerateRequest(
        prompt=item.prompt,
        seed=draw.seed,
        height_px=spec.size_px,
        width_px=spec.size_px,
        guides=guides,
        guide_row=GuideRow(
            prompt=item.prompt,
            label=item.label,
            subjects=() if subject is None else (subject,),
        ),
    )


def subject_of(spec: GuidedSpec, draw: Draw) -> Tensor | None:
    """Return the exemplar's image (3, h, w) in [-1, 1]. Raises: PhotoError."""
    source = draw.item.subject
    if source is None:
        return None
    return subject_image(source.read(), side_px=spec.size_px, max_pixels=_MAX_PIXELS)


def _row(
    spec: GuidedSpec, task: DrawTask, draw: Draw, drawn: _Drawn, cost: dict[str, float]
) -> Measured:
    item = draw.item
    row: dict[str, Any] = {
        "task": spec.task,
        "item": item.name,
        "category": item.category,
        "prompt": item.prompt,
        "label": item.label,
        "seed": draw.seed,
        "method": task.method,
        "sampler": GUIDED_METHODS[task.method].sampler(spec.config),
        "strength": task.strength,
        "status": drawn.status,
        "error": drawn.error,
        "guide_before": drawn.guide_before,
        "guide_after": drawn.guide_after,
        "change": _change(drawn),
        "num_optim_steps": drawn.num_optim_steps,
        **cost,
        "recipe": task.recipe,
        "case": draw.case,
    }
    labels = tuple(dict.fromkeys(str(i.label) for i in spec.items if i.label is not None))
    image = None if drawn.encoded is None else viewed(drawn.encoded, torch.device("cpu"))
    for name in spec.measures:
        found: dict[str, float | None] = dict.fromkeys(("aim", "right", "prompt", "score"))
        if image is not None:
            found = _measure(name, labels)(spec.task, item, image, subject_of(spec, draw))
        row |= {f"{what}:{name}": value for what, value in found.items()}
    return Measured(row, drawn.encoded or b"")


def _change(drawn: _Drawn) -> float | None:
    """Return the RMS difference from the unguided picture of the same noise, in [0, 1]."""
    if drawn.encoded is None or drawn.unguided is None:
        return None
    image = viewed(drawn.encoded, torch.device("cpu"))
    return float((image - drawn.unguided).square().mean().sqrt() / 2)
