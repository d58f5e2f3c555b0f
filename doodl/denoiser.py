"""A network's output as epsilon: prediction types, prompts and classifier-free guidance."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")


def epsilon_from_v(velocity: Tensor, latents: Tensor, alpha: Tensor) -> Tensor:
    """Return epsilon = sqrt(alpha) v + sqrt(1 - alpha) z. Source: arXiv:2202.00512, appendix D."""
    return alpha.sqrt() * velocity + (1 - alpha).sqrt() * latents


class NoisePredictor:
    """`(latents (B, C, h, w), t) -> epsilon (B, C, h, w)` of a frozen UNet under a prompt.

    Args:
        unet: a diffusers UNet: `unet(latents, t, encoder_hidden_states=...).sample`.
        prompt_embeds: (B, L, D), one row per photo, or (1, L, D) for all.
        negative_embeds: as prompt_embeds; needed when guidance_scale is not 1.
        guidance_scale: classifier-free guidance w: eps = eps_neg + w (eps_prompt - eps_neg).
        alphas_cumprod: (num_train_timesteps,), for v-prediction.
    Raises: ValueError on an unknown prediction type, or guidance without negative embeddings.
    Source: classifier-free guidance, arXiv:2207.12598, eq. 6.
    """

    def __init__(
        self,
        unet: Any,
        prompt_embeds: Tensor,
        *,
        alphas_cumprod: Tensor,
        prediction_type: str = "epsilon",
        negative_embeds: Tensor | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type (={prediction_type!r}) must be one of "
                f"{', '.join(PREDICTION_TYPES)}."
            )
        guided = guidance_scale != 1.0
        if guided and negative_embeds is None:
            raise ValueError(f"guidance_scale (={guidance_scale}) needs negative_embeds.")
        # An empty negative prompt against an empty prompt guides nowhere and doubles the cost.
        # One row stands for all photos, so the two are compared as they will be used.
        if guided and negative_embeds is not None:
            guided = not torch.equal(*torch.broadcast_tensors(prompt_embeds, negative_embeds))
        self.unet = unet
        self.prompt_embeds = prompt_embeds
        self.negative_embeds = negative_embeds if guided else None
        self.guidance_scale = guidance_scale
        self.prediction_type = prediction_type
        self.dtype = prompt_embeds.dtype
        self.alphas_cumprod = alphas_cumprod.to(prompt_embeds.device)

    def keep(self, indices: list[int]) -> NoisePredictor:
        """Return the predictor of only these photos of the batch."""
        kept = copy(self)
        if len(self.prompt_embeds) > 1:
            kept.prompt_embeds = self.prompt_embeds[indices]
        if self.negative_embeds is not None and len(self.negative_embeds) > 1:
            kept.negative_embeds = self.negative_embeds[indices]
        return kept

    def __call__(self, latents: Tensor, t: Tensor) -> Tensor:
        batch = len(latents)
        embeds = self.prompt_embeds.expand(batch, -1, -1)
        inputs = latents.to(self.dtype)
        if self.negative_embeds is not None:
            # Both branches in one batch: one call of twice the size is cheaper than two calls.
            embeds = torch.cat([self.negative_embeds.expand(batch, -1, -1), embeds])
            inputs = torch.cat([inputs, inputs])
        output = self.unet(inputs, t, encoder_hidden_states=embeds).sample.to(latents.dtype)
        if self.negative_embeds is not None:
            negative, positive = output.chunk(2)
            output = negative + self.guidance_scale * (positive - negative)
        if self.prediction_type == "v_prediction":
            return epsilon_from_v(output, latents, self.alphas_cumprod[t].to(latents.dtype))
        return output
