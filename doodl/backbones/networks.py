"""How each kind of network is called: its time, its extra inputs, its layout of latents."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from doodl.backbones.denoiser import Conditioning
from doodl.schedule import FLOW_TIME_UNITS


def guidance_embedding(guidance_scale: float, dimension: int) -> Tensor:
    """Return sines and cosines of the guidance scale, (dimension,) float32.

    Source: guidance as an input of a distilled network, arXiv:2310.04378, section 4.3; the
    frequencies are those of a transformer's positions.
    """
    half = dimension // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / max(half - 1, 1))
    # The network is told w - 1, so that 0 is no guidance, in thousandths as its timesteps are.
    phase = 1000.0 * (guidance_scale - 1.0) * frequencies
    embedding = torch.cat([phase.sin(), phase.cos()])
    return torch.nn.functional.pad(embedding, (0, dimension - 2 * half))


class CallUNet:
    """A Stable Diffusion UNet of any version: t as it is, and what its config asks for besides.

    Args:
        latent_factor: image pixels to a latent pixel, for SDXL's sizes.
        guidance_scale: what a UNet with `time_cond_proj_dim` is told.
    """

    def __init__(self, latent_factor: int, guidance_scale: float = 1.0) -> None:
        self.latent_factor, self.guidance_scale = latent_factor, guidance_scale

    def __call__(
        self, network: Any, latents: Tensor, t: Tensor, conditioning: Conditioning
    ) -> Tensor:
        options: dict[str, Any] = {}
        if conditioning.pooled is not None:
            height, width = (self.latent_factor * side for side in latents.shape[-2:])
            # Original size, crop's top left corner, target size: nothing cut, nothing scaled.
            sizes = latents.new_tensor([height, width, 0, 0, height, width])
            options["added_cond_kwargs"] = {
                "text_embeds": conditioning.pooled,
                "time_ids": sizes.expand(len(latents), -1),
            }
        dimension = getattr(network.config, "time_cond_proj_dim", None)
        if dimension is not None:
            embedding = guidance_embedding(self.guidance_scale, dimension)
            options["timestep_cond"] = embedding.to(latents).expand(len(latents), -1)
        return network(latents, t, encoder_hidden_states=conditioning.embeds, **options).sample


def call_sd3(network: Any, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Return the velocity of an SD3 transformer, whose time is 1000 sigma."""
    time = 1000 * t.to(torch.float32) / FLOW_TIME_UNITS
    return network(
        latents,
        encoder_hidden_states=conditioning.embeds,
        pooled_projections=conditioning.pooled,
        timestep=time.expand(len(latents)),
    ).sample


def pack(latents: Tensor) -> Tensor:
    """Return (B, C, h, w) as tokens (B, h/2 w/2, 4 C) of 2x2 patches, rows of the image first."""
    return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return latents (B, C, height, width): the inverse of `pack`."""
    patches = tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2))
    return torch.nn.functional.pixel_shuffle(patches, 2)


def patch_places(height: int, width: int) -> Tensor:
    """Return (h/2 w/2, 3) float32: 0, row and column of each patch of `pack`."""
    rows = torch.arange(height // 2, dtype=torch.float32)
    columns = torch.arange(width // 2, dtype=torch.float32)
    return torch.cartesian_prod(torch.zeros(1), rows, columns)


class CallFlux:
    """A FLUX transformer: latents as tokens of 2x2 patches with their places, time is sigma.

    Args:
        guidance_scale: what a network with `guidance_embeds` is told.
    """

    def __init__(self, guidance_scale: float = 1.0) -> None:
        self.guidance_scale = guidance_scale

    def __call__(
        self, network: Any, latents: Tensor, t: Tensor, conditioning: Conditioning
    ) -> Tensor:
        batch, _, height, width = latents.shape
        time = (t.to(torch.float32) / FLOW_TIME_UNITS).expand(batch)
        told = None
        if network.config.guidance_embeds:
            told = torch.full_like(time, self.guidance_scale)
        tokens = network(
            pack(latents),
            encoder_hidden_states=conditioning.embeds,
            pooled_projections=conditioning.pooled,
            timestep=time,
            guidance=told,
            img_ids=patch_places(height, width).to(latents.device),
            # Text has no place in the image.
            txt_ids=torch.zeros(conditioning.embeds.shape[1], 3, device=latents.device),
        ).sample
        return unpack(tokens, height, width)
