"""Backbones without diffusion: the autoencoder's latents, or the pixels themselves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from doodl.backbones import Backbone
from doodl.recipes.config import EditConfig, SamplerConfig
from doodl.schedule import Schedule


class LatentBackbone(Backbone):
    """A backbone whose sampler is the identity: the latents are the autoencoder's own."""

    def schedule(
        self,
        num_inference_steps: int,  # noqa: ARG002
        depth: float = 1.0,  # noqa: ARG002
        *,
        size_px: tuple[int, int] | None = None,  # noqa: ARG002
    ) -> Schedule:
        one = torch.ones(1, dtype=torch.float64)
        return Schedule.from_alphas(torch.zeros(1, dtype=torch.int64), one, one)


class PixelBackbone(LatentBackbone):
    """A backbone whose latents are the image itself, (B, 3, H, W) in [-1, 1]."""

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        return image.to(self.device, torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


IDENTITIES: dict[str, type[LatentBackbone]] = {
    "autoencoder": LatentBackbone,
    "pixel": PixelBackbone,
}


def adapted(backbone: Backbone, config: EditConfig) -> tuple[Backbone, EditConfig]:
    """Return the backbone and the config as the config's method works on them."""
    kind = IDENTITIES.get(config.method)
    if kind is None:
        return backbone, config
    # p = 1: the pair's mixing layer is the identity as well.
    sampler = SamplerConfig(num_inference_steps=1, mix_weight=1.0, memory="full")
    return kind(**vars(backbone)), replace(config, sampler=sampler)
