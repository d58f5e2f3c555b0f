"""CLIP image towers through open_clip: images in [-1, 1] to normalised embeddings."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from doodl.errors import ModelError

_LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""What open_clip raises on a missing, cut-off or foreign config or weights file."""


def clamp_straight_through(image: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return image clamped to [low, high] with the gradient of the identity.

    A hard clamp has no gradient outside the range, so a blown pixel could never come back.
    """
    return image + (image.clamp(low, high) - image).detach()


class ImageTower(nn.Module):
    """A frozen CLIP image encoder with its own input size and normalisation.

    `tower(images (B, 3, H, W) in [-1, 1]) -> (B, D)`, rows of unit L2 norm; differentiable.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: Any,
        size_px: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.clip = clip.eval().requires_grad_(False)
        self.size_px = size_px
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.clip.parameters()).dtype

    def resize(self, images: Tensor) -> Tensor:
        """Return images at the network's input size, as it was trained to see them.

        The whole frame is squeezed to the square: a centre crop would hide the borders.
        """
        if images.shape[-2:] != (self.size_px, self.size_px):
            images = F.interpolate(
                images, (self.size_px, self.size_px), mode=self.interpolation, antialias=True
            )
        return images

    def forward(self, images: Tensor) -> Tensor:
        images = self.resize(clamp_straight_through(images / 2 + 0.5))
        images = (images - self.mean) / self.std
        embeddings = self.clip.encode_image(images.to(self.dtype)).float()
        return F.normalize(embeddings, dim=-1)


def load_tower(
    model: str | Path,
    *,
    pretrained: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ImageTower:
    """Load an open_clip model as an image tower.

    Args:
        model: a folder with open_clip_config.json and weights, or an open_clip model name.
        pretrained: for a model name: open_clip's tag or a local weights file.
    Raises: ModelError if it cannot be loaded, or if the activation does not match the weights
        (open_clip 3.3 only warns, through `warnings.warn`, and the scores come out wrong; use
        the `-quickgelu` name).
    """
    import open_clip

    folder = Path(model)
    name = f"local-dir:{folder}" if folder.is_dir() else str(model)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clip = open_clip.create_model(name, pretrained=pretrained, precision="fp32")
    except _LOAD_ERRORS as error:
        raise ModelError(f"open_clip model {model} cannot be loaded: {error}") from error
    mismatches = [str(w.message) for w in caught if "QuickGELU" in str(w.message)]
    if mismatches:
        raise ModelError(
            f"{model} with pretrained={pretrained!r}: {mismatches[0]} Use {model}-quickgelu."
        )
    visual = clip.visual
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    config = getattr(visual, "preprocess_cfg", {}) or {}
    mean = config.get("mean", getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN)
    std = config.get("std", getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD)
    interpolation = config.get("interpolation", "bicubic")
    return ImageTower(clip.to(dtype), int(size), tuple(mean), tuple(std), interpolation).to(device)
