"""The safety checker that some models ship: which images show what their publisher filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.backbones.components import load_component
from doodl.errors import ModelError
from doodl.models.configs import read_config

_CARE = 0.01
"""How much nearer a concept counts when the image is near a concept of special care."""


class SafetyChecker:
    """Images (B, 3, H, W) in [-1, 1] -> whether each shows a filtered concept.

    The images are never changed. A checker errs both ways: it is an indication, not a judgement.

    Args:
        model: diffusers' StableDiffusionSafetyChecker: a CLIP image tower and its concepts.
        mean, std, size_px: what the tower was trained on.
    Source: the checker of Stable Diffusion 1.4: cosine to each concept against its own threshold.
    """

    def __init__(
        self, model: Any, mean: list[float], std: list[float], size_px: int, device: torch.device
    ) -> None:
        self.model = model.to(device)
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)
        self.size_px, self.device = size_px, device

    def __call__(self, images: Tensor) -> list[bool]:
        """Return whether each image is to be flagged."""
        return [score > 0 for score in self.scores(images)]

    @torch.no_grad()
    def scores(self, images: Tensor) -> list[float]:
        """Return how far each image is beyond the threshold of its nearest concept; > 0 flags."""
        model = self.model
        pooled = model.vision_model(self._view(images))[1]
        embeds = F.normalize(model.visual_projection(pooled))
        special = embeds @ F.normalize(model.special_care_embeds).T
        concepts = embeds @ F.normalize(model.concept_embeds).T
        care = (special > model.special_care_embeds_weights).any(1, keepdim=True)
        beyond = concepts - model.concept_embeds_weights + _CARE * care
        return beyond.amax(1).tolist()

    def _view(self, images: Tensor) -> Tensor:
        """Return the images as the tower sees them: shorter side to size, centre, normalised."""
        images = images.to(self.device, torch.float32).clamp(-1, 1) / 2 + 0.5
        height, width = images.shape[-2:]
        scale = self.size_px / min(height, width)
        size = [max(self.size_px, round(side * scale)) for side in (height, width)]
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - self.size_px) // 2 for side in size)
        images = images[..., top : top + self.size_px, left : left + self.size_px]
        return (images - self.mean) / self.std


def load_safety_checker(
    folder: str | Path, *, device: str | torch.device = "cpu"
) -> SafetyChecker | None:
    """Return the safety checker of a pipeline folder; None if the model ships none.

    Raises: ModelError if it has one that cannot be loaded: that must not pass for none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    entry = read_config(folder / "model_index.json").get("safety_checker")
    if not isinstance(entry, list) or entry[-1] is None:
        return None
    if entry[-1] != "StableDiffusionSafetyChecker":
        raise ModelError(
            f"{folder.name}: its safety checker is a {entry[-1]}; this version loads "
            "StableDiffusionSafetyChecker. Turn it off to go on without."
        )
    device = torch.device(device)
    model = load_component(folder, "safety_checker", entry[-1], torch.float32, device)
    config = read_config(folder / "feature_extractor" / "preprocessor_config.json")
    mean, std = (config.get(f"image_{name}") for name in ("mean", "std"))
    if not (_three_numbers(mean) and _three_numbers(std)):
        raise ModelError(f"{folder}: its feature_extractor names no mean and std of 3 channels.")
    size_px = int(model.config.vision_config.image_size)
    return SafetyChecker(model, list(mean or ()), list(std or ()), size_px, device)


def _three_numbers(values: object) -> bool:
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(isinstance(value, (int, float)) for value in values)
    )
