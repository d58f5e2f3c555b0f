"""UNets that stand in for the model's: one that counts its calls, one that predicts no noise."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from doodl.backbones import Backbone
from doodl.backbones.process import Diffusion


class CountedUNet(nn.Module):
    """A UNet that counts the photos that pass through it."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.photos = 0

    @property
    def config(self) -> Any:
        return self.unet.config

    def forward(self, latents: Tensor, t: Tensor, **others: Any) -> Any:
        self.photos += len(latents)
        return self.unet(latents, t, **others)


class ZeroUNet(nn.Module):
    """A UNet of the same configuration that predicts no noise."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Tensor, t: Tensor, **others: Any) -> Any:  # noqa: ARG002
        return SimpleNamespace(sample=torch.zeros_like(latents))


def without_noise(backbone: Backbone) -> Backbone:
    """Return the backbone with noise_pred = 0, whatever its UNet was trained to predict."""
    # As epsilon: a zero v would stand for a noise that is not zero.
    process = backbone.process
    if isinstance(process, Diffusion):
        process = replace(process, prediction_type="epsilon")
    return replace(backbone, unet=ZeroUNet(backbone.unet.config), process=process)
