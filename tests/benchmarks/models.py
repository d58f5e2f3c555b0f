"""The networks that the benchmarks run: the pocket model's, and random ones of known sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from doodl.backbones.denoiser import NoisePredictor
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod


@dataclass
class Workload:
    """A frozen UNet under the empty prompt, the shape of its latents, and a loss of the image's.

    Attributes:
        embeds: (1, L, D), the empty prompt's.
        shape: (C, h, w) of one photo's latents.
        loss: latents z_0 (B, C, h, w) -> (B,). Either of the latents alone, or through a decoder
            and two vision towers.
    """

    name: str
    unet: nn.Module
    embeds: Tensor
    shape: tuple[int, int, int]
    loss: Callable[[Tensor], Tensor]
    device: torch.device

    def predictor(self) -> NoisePredictor:
        return NoisePredictor(
            self.unet, self.embeds, alphas_cumprod=stable_diffusion_alphas_cumprod()
        )

    def schedule(self, num_inference_steps: int) -> Schedule:
        return Schedule.ddim(stable_diffusion_alphas_cumprod(), num_inference_steps)

    def noise(self, batch: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn((batch, *self.shape), generator=generator).to(self.device)

    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.unet.parameters())


def _of_latents(latents: Tensor) -> Tensor:
    """A smooth loss of the latents alone: what is measured is the sampler."""
    return latents.sin().mean((1, 2, 3))


class _DecodedAndSeen(nn.Module):
    """The released code's photo loss in its shape: decode, then two CLIP towers and linear heads.

    One view of the whole frame each; crops multiply the towers' share alike for every method.
    """

    def __init__(self, vae: Any, towers: list[Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.dtype = vae, dtype
        self.towers = nn.ModuleList(towers)
        self.heads = nn.ModuleList(nn.Linear(t.config.projection_dim, 1) for t in towers)

    def forward(self, latents: Tensor) -> Tensor:
        images = self.vae.decode(latents.to(self.dtype) / 0.18215).sample.float()
        losses = []
        for tower, head in zip(self.towers, self.heads, strict=True):
            size = tower.config.image_size
            seen = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
            embeds = F.normalize(tower(seen.to(self.dtype)).image_embeds, dim=-1)
            losses.append(-head(embeds).float()[:, 0])
        return torch.stack(losses).mean(0)


def _unet(channels: tuple[int, ...], layers: int, cross_dim: int, heads: int = 8) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with_text = len(channels) - 1
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=layers,
        cross_attention_dim=cross_dim,
        attention_head_dim=heads,  # diffusers' name for the number of heads
        down_block_types=("CrossAttnDownBlock2D",) * with_text + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * with_text,
    )


def _decoder(channels: tuple[int, ...], layers: int) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    )


def _tower(width: int, layers: int, patch_px: int, size_px: int) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            patch_size=patch_px,
            image_size=size_px,
            projection_dim=width // 4 * 3,
        )
    )


SIZES = ("pocket", "60m", "sd15", "sd15-reduced")


def workload(size: str, device: torch.device, dtype: torch.dtype) -> Workload:
    """Return a workload by its size.

    pocket: the shipped UNet at 128 px. 60m: 58 M random parameters at 32x32 latents. sd15: a UNet,
    decoder and two CLIP towers (L/14, B/32) of Stable Diffusion 1.5's configuration at 512 px,
    random. sd15-reduced: the same code at a size that a CPU can run, at 64 px.
    """
    torch.manual_seed(0)
    loss: Callable[[Tensor], Tensor] = _of_latents
    if size == "pocket":
        from doodl.backbones import load_backbone
        from doodl.models.hub import find_model

        backbone = load_backbone(find_model("pocket"), device=device, dtype=dtype)
        side = 128 // backbone.latent_factor
        shape = (backbone.latent_channels, side, side)
        embeds = backbone.embed_prompts([""])
        return Workload(size, backbone.unet, embeds, shape, loss, device)
    if size == "60m":
        unet, cross_dim, side = _unet((96, 192, 384, 448), 1, 256), 256, 32
    elif size == "sd15":
        unet, cross_dim, side = _unet((320, 640, 1280, 1280), 2, 768), 768, 64
        towers = [_tower(1024, 24, 14, 224), _tower(768, 12, 32, 224)]
        loss = _DecodedAndSeen(_decoder((128, 256, 512, 512), 2), towers, dtype)
    elif size == "sd15-reduced":
        unet, cross_dim, side = _unet((32, 64, 128, 128), 1, 64, heads=4), 64, 16
        towers = [_tower(128, 2, 16, 64), _tower(64, 2, 32, 64)]
        loss = _DecodedAndSeen(_decoder((32, 32, 64, 64), 1), towers, dtype)
    else:
        raise ValueError(f"size (={size!r}) must be one of {', '.join(SIZES)}.")
    for network in (unet, loss):
        if isinstance(network, nn.Module):
            # diffusers warns at each cast, even at one that changes nothing.
            cast = network if dtype == torch.float32 else network.to(dtype)
            cast.to(device).eval().requires_grad_(False)
    embeds = torch.randn(1, 77, cross_dim, generator=torch.Generator().manual_seed(1))
    return Workload(size, unet, embeds.to(device, dtype), (4, side, side), loss, device)
