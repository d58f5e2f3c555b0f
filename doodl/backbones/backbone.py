"""A latent diffusion model, loaded: images to latents and back, prompts to a noise predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from doodl.backbones.denoiser import NetworkCall, NoisePredictor
from doodl.backbones.half import with_scaled_gradient
from doodl.backbones.networks import CallFlux, CallUNet, call_sd3
from doodl.backbones.process import Diffusion, Flow
from doodl.backbones.text import TextEncoders
from doodl.schedule import Schedule

_FLUX_NATIVE_LATENTS = 128  # its transformer's config names no size; it was trained at 1024 px


@dataclass
class Backbone:
    """A loaded latent diffusion model, frozen, on one device.

    Latents are float32 whatever the networks run in; images are (B, 3, H, W) in [-1, 1].

    Attributes:
        kind: sd | sdxl | sd3 | flux.
        unet: the network that predicts: a UNet or, for sd3 and flux, a transformer.
        vae_dtype: what the autoencoder runs in; float32 where half precision overflows in it.
    """

    kind: str
    unet: Any
    vae: Any
    text: TextEncoders
    process: Diffusion | Flow
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    name: str
    revision: str

    @property
    def text_encoder(self) -> Any:
        return self.text.encoders[0]

    @property
    def tokenizer(self) -> Any:
        return self.text.tokenizers[0]

    @property
    def alphas_cumprod(self) -> Tensor | None:
        """(num_train_timesteps,) float64; None for a flow."""
        return self.process.alphas_cumprod

    @property
    def prediction_type(self) -> str:
        """epsilon, v_prediction or flow."""
        return self.process.prediction_type

    @property
    def few_steps(self) -> bool:
        """Whether the model is distilled to a handful of steps (turbo, LCM): 1, 2, 4 or 8."""
        return self.process.few_steps

    @property
    def guidance_embedded(self) -> bool:
        """Whether the guidance scale is an input of the network, which then needs no 2nd branch."""
        config = self.unet.config
        if self.kind == "flux":
            return bool(config.guidance_embeds)
        return getattr(config, "time_cond_proj_dim", None) is not None

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Image pixels to a latent pixel, along one side."""
        factor = getattr(self.vae.config, "downsampling_factor", None)
        if factor is not None:
            return int(factor)
        channels = getattr(self.vae.config, "block_out_channels", None)
        if channels is None:
            channels = self.vae.config.encoder_block_out_channels
        return int(2 ** (len(channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Image sides must be a multiple of this: the autoencoder's factor times the network's."""
        if self.kind == "flux":
            return 2 * self.latent_factor
        if self.kind == "sd3":
            return int(self.unet.config.patch_size) * self.latent_factor
        levels = len(self.unet.config.block_out_channels)
        return self.latent_factor * 2 ** (levels - 1)

    @property
    def native_px(self) -> int:
        """The side of the square images the model was trained on."""
        latents = getattr(self.unet.config, "sample_size", None) or _FLUX_NATIVE_LATENTS
        return self.latent_factor * int(latents if isinstance(latents, int) else min(latents))

    def latent_shape(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """Return (C, h, w) of the latents of an image.

        Raises: ValueError if a side is no multiple of `size_multiple`, or too long for the model.
        """
        for name, side in (("height_px", height_px), ("width_px", width_px)):
            multiple = self.size_multiple
            if side < multiple or side % multiple:
                raise ValueError(
                    f"{name} (={side}) must be a multiple of {multiple}; "
                    f"try {max(1, round(side / multiple)) * multiple}."
                )
            if self.kind == "sd3":
                longest = int(self.unet.config.pos_embed_max_size) * self.size_multiple
                if side > longest:
                    raise ValueError(f"{name} (={side}) must be at most {longest} for {self.name}.")
        factor = self.latent_factor
        return self.latent_channels, height_px // factor, width_px // factor

    def init_noise(
        self, generators: Sequence[torch.Generator], height_px: int, width_px: int
    ) -> Tensor:
        """Return x_T (B, C, h, w) float32, standard normal: one image per generator (on the CPU).

        Each image's noise is its own generator's alone, whatever batch and device it runs on.
        """
        shape = self.latent_shape(height_px, width_px)
        noise = [torch.randn(shape, generator=generator) for generator in generators]
        return torch.stack(noise).to(self.device)

    def schedule(
        self,
        num_inference_steps: int,
        depth: float = 1.0,
        *,
        size_px: tuple[int, int] | None = None,
    ) -> Schedule:
        """Return the schedule of T steps of the model's own noise, cut to its `depth`.

        Diffusion models take DDIM's with a steps offset of 0, as in DOODL.

        Args:
            size_px: (height, width) of the images, where the steps depend on it (FLUX); None: the
                model's native size.
        """
        height, width = size_px or (self.native_px, self.native_px)
        num_patches = (height // self.latent_factor) * (width // self.latent_factor) // 4
        return self.process.schedule(num_inference_steps, num_patches).part(depth)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) float32 of images: the mode of the posterior."""
        output = self.vae.encode(image.to(self.device, self.vae_dtype))
        latents = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
        return ((latents.float() - self._shift) * self._scale).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about [-1, 1], not clamped; differentiable in the latents."""
        latents = latents / self._scale + self._shift
        if self.vae_dtype == torch.float16 and latents.requires_grad:
            return with_scaled_gradient(self._decode, latents)
        return self._decode(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae_dtype)).sample.float()

    @property
    def _scale(self) -> float:
        return float(getattr(self.vae.config, "scaling_factor", 1.0) or 1.0)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", 0.0) or 0.0)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return the text encoders' hidden states (B, L, D) for the prompts."""
        return self.text(prompts).embeds

    def predictor(
        self,
        prompts: Sequence[str],
        *,
        negative_prompts: str | Sequence[str] = "",
        guidance_scale: float = 1.0,
    ) -> NoisePredictor:
        """Return epsilon(latents, t) under the prompts, with guidance only where it acts.

        Args:
            prompts: one per photo. negative_prompts: one for all, or one per photo.
            guidance_scale: 1 guides nowhere. A model distilled with its guidance takes the scale
                as an input, for FLUX.1 [dev] 3.5 as a rule.
        Raises: ValueError if the counts differ, or a negative prompt cannot act on this model.
        """
        negatives = _per_photo(negative_prompts, len(prompts))
        if self.guidance_embedded and any(negatives):
            raise ValueError(
                f"negative_prompts cannot act on {self.name}: its guidance is an input of the "
                "network. Leave them empty."
            )
        guided = (
            guidance_scale != 1.0
            and not self.guidance_embedded
            and any(p != n for p, n in zip(prompts, negatives, strict=True))
        )
        return NoisePredictor(
            self.unet,
            self.text(_unique(prompts)),
            alphas_cumprod=self.alphas_cumprod,
            prediction_type=self.prediction_type,
            negative_embeds=self.text(_unique(negatives)) if guided else None,
            guidance_scale=guidance_scale if guided else 1.0,
            call=self._call(guidance_scale),
        )

    def _call(self, guidance_scale: float) -> NetworkCall:
        if self.kind == "flux":
            return CallFlux(guidance_scale)
        if self.kind == "sd3":
            return call_sd3
        return CallUNet(self.latent_factor, guidance_scale)


def _unique(prompts: Sequence[str]) -> Sequence[str]:
    """Return the prompts, or the one that they all are."""
    return prompts[:1] if all(prompt == prompts[0] for prompt in prompts) else prompts


def _per_photo(negative_prompts: str | Sequence[str], count: int) -> Sequence[str]:
    if isinstance(negative_prompts, str):
        return [negative_prompts] * count
    if len(negative_prompts) != count:
        raise ValueError(
            f"negative_prompts (={len(negative_prompts)} of them) must be one, or one for each of "
            f"the {count} prompts."
        )
    return negative_prompts
