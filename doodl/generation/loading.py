"""Everything that generation needs, loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from doodl.backbones import load_backbone
from doodl.generation.generator import ImageGenerator
from doodl.generation.judge import load_judge
from doodl.generation.safety import load_safety
from doodl.guidance.guidance import Guidance, load_guidance
from doodl.guidance.spec import GuideSpec, parse_guides
from doodl.models.hub import find_model
from doodl.recipes.config import EditConfig


def load_generator(
    model: str,
    config: EditConfig,
    *,
    guides: Sequence[str] = (),
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    safety_checker: str = "auto",
    image_format: str = "PNG",
    software: str = "doodl-batch",
) -> ImageGenerator:
    """Load everything that generation needs.

    Args:
        model: `pocket`, or the path of a diffusers pipeline folder.
        guides: those that most requests have: loaded here, so that a missing one is found at once.
        safety_checker: auto (the one the model ships, if it ships one) or off.
    Raises: ModelError if a model is not there, ValueError on a guide that cannot be read.
    """
    folder = find_model(model)

    def load_guides(specs: tuple[GuideSpec, ...]) -> Guidance:
        return load_guidance(specs, model=model, device=device)

    generator = ImageGenerator(
        load_backbone(folder, name=model, device=device, dtype=dtype),
        config,
        load_guides,
        judge=load_judge(model, device=device),
        safety=load_safety(folder, safety_checker, device=device),
        image_format=image_format,
        software=software,
    )
    if guides:
        generator.guidance(parse_guides(guides))
    return generator
