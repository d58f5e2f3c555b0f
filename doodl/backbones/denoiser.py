"""A network's output as epsilon: prediction types, prompts and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from doodl.backbones.half import with_scaled_gradient

PREDICTION_TYPES = ("epsilon", "v_prediction")
FLOW = "flow"
"""The velocity of a rectified flow: `Schedule.flow` steps along it as others do along epsilon."""


def epsilon_from_v(velocity: Tensor, latents: Tensor, alpha: Tensor) -> Tensor:
    """Return epsilon = sqrt(alpha) v + sqrt(1 - alpha) z. Source: arXiv:2202.00512, appendix D."""
    return alpha.sqrt() * velocity + (1 - alpha).sqrt() * latents


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a network is told of the prompts: a row per photo, or one row for all.

    Attributes:
        embeds: (B, L, D), the text encoders' hidden states.
        pooled: (B, P), one vector per prompt; None for networks that take none.
    """

    embeds: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Return the same change of every tensor."""
        return Conditioning(
            change(self.embeds), None if self.pooled is None else change(self.pooled)
        )

    def keep(self, indices: Sequence[int] | Tensor) -> Conditioning:
        """Return the rows of these photos; the one row that stands for all stays."""
        return self.each(lambda rows: rows[indices]) if len(self) > 1 else self

    def expand(self, batch: int) -> Conditioning:
        """Return a row for each photo of the batch."""
        return self.each(lambda rows: rows.expand(batch, *rows.shape[1:]))

    def followed_by(self, other: Conditioning) -> Conditioning:
        """Return these rows, then the other's."""
        pooled = None
        if self.pooled is not None and other.pooled is not None:
            pooled = torch.cat([self.pooled, other.pooled])
        return Conditioning(torch.cat([self.embeds, other.embeds]), pooled)

    def differs_from(self, other: Conditioning) -> list[bool]:
        """Return for each row whether the two say different things to the network."""
        batch = max(len(self), len(other))
        if self.embeds.is_meta:
            return [True] * batch
        one, two = self.expand(batch), other.expand(batch)
        differs = (one.embeds != two.embeds).flatten(1).any(1)
        if one.pooled is not None and two.pooled is not None:
            differs = differs | (one.pooled != two.pooled).any(1)
        return differs.tolist()


NetworkCall = Callable[[Any, Tensor, Tensor, Conditioning], Tensor]
"""`call(network, latents (B, C, h, w), t, conditioning of B rows) -> output (B, C, h, w)`."""


def call_unet(network: Any, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Return the output of a diffusers UNet that takes latents, t and hidden states."""
    return network(latents, t, encoder_hidden_states=conditioning.embeds).sample


class NoisePredictor:
    """`(latents (B, C, h, w), t) -> epsilon (B, C, h, w)` of a frozen network under a prompt.

    For a flow the velocity takes epsilon's place.

    Args:
        unet: the network, a UNet or a transformer, that `call` knows to call.
        prompt_embeds: one row per photo, or one for all; a Tensor (B, L, D) is embeds alone.
        negative_embeds: as prompt_embeds; needed when guidance_scale is not 1.
        guidance_scale: classifier-free guidance w: eps = eps_neg + w (eps_prompt - eps_neg).
        alphas_cumprod: (num_train_timesteps,), for v-prediction; None for a flow.
        prediction_type: epsilon, v_prediction or flow.
    Raises: ValueError on an unknown prediction type, or guidance without negative embeddings.
    Source: classifier-free guidance, arXiv:2207.12598, eq. 6.
    """

    def __init__(
        self,
        unet: Any,
        prompt_embeds: Conditioning | Tensor,
        *,
        alphas_cumprod: Tensor | None,
        prediction_type: str = "epsilon",
        negative_embeds: Conditioning | Tensor | None = None,
        guidance_scale: float = 1.0,
        call: NetworkCall = call_unet,
    ) -> None:
        known = (*PREDICTION_TYPES, FLOW)
        if prediction_type not in known:
            raise ValueError(
                f"prediction_type (={prediction_type!r}) must be one of {', '.join(known)}."
            )
        if guidance_scale != 1.0 and negative_embeds is None:
            raise ValueError(f"guidance_scale (={guidance_scale}) needs negative_embeds.")
        if alphas_cumprod is None and prediction_type == "v_prediction":
            raise ValueError("prediction_type v_prediction needs alphas_cumprod.")
        self.unet, self.call = unet, call
        self.prompt_embeds = _conditioning(prompt_embeds)
        self.negative_embeds: Conditioning | None = None
        # An empty negative prompt against an empty prompt guides nowhere and doubles the cost.
        self.guided: list[bool] = []
        if guidance_scale != 1.0 and negative_embeds is not None:
            negative = _conditioning(negative_embeds)
            self.guided = self.prompt_embeds.differs_from(negative)
            self.negative_embeds = negative if any(self.guided) else None
        self.guidance_scale = guidance_scale
        self.prediction_type = prediction_type
        self.dtype = self.prompt_embeds.embeds.dtype
        device = self.prompt_embeds.embeds.device
        self.alphas_cumprod = None if alphas_cumprod is None else alphas_cumprod.to(device)
        self._guided_rows = self._rows_of(self.guided)

    def _rows_of(self, guided: Sequence[bool]) -> Tensor | None:
        """Return the indices of the guided rows; None if that is all of them, or none.

        Made once a batch: a copy to the accelerator in every call would wait for it.
        """
        if all(guided) or not any(guided):
            return None
        rows = [i for i, acts in enumerate(guided) if acts]
        return torch.tensor(rows, device=self.prompt_embeds.embeds.device)

    def keep(self, indices: list[int]) -> NoisePredictor:
        """Return the predictor of only these photos of the batch."""
        kept = copy(self)
        kept.prompt_embeds = self.prompt_embeds.keep(indices)
        if self.negative_embeds is not None:
            if len(self.guided) > 1:
                kept.guided = [self.guided[i] for i in indices]
            kept.negative_embeds = self.negative_embeds.keep(indices) if any(kept.guided) else None
            kept._guided_rows = kept._rows_of(kept.guided)
        return kept

    def __call__(self, latents: Tensor, t: Tensor) -> Tensor:
        if self.dtype == torch.float16 and latents.requires_grad:
            output = with_scaled_gradient(lambda z: self._guided_output(z, t), latents)
        else:
            output = self._guided_output(latents, t)
        if self.prediction_type == "v_prediction" and self.alphas_cumprod is not None:
            # Not `[t]`, which would wait for the accelerator to say what t is.
            alpha = self.alphas_cumprod.index_select(0, t.reshape(1)).to(latents.dtype)
            return epsilon_from_v(output, latents, alpha)
        return output

    def _guided_output(self, latents: Tensor, t: Tensor) -> Tensor:
        """Return the network's output in the latents' dtype, guided in the rows where that acts."""
        batch = len(latents)
        prompt, inputs = self.prompt_embeds.expand(batch), latents.to(self.dtype)
        if self.negative_embeds is None:
            return self.call(self.unet, inputs, t, prompt).to(latents.dtype)
        rows = self._guided_rows
        if rows is None:
            rows = torch.arange(batch, device=latents.device)
        # Both branches in one batch: one call of twice the size is cheaper than two calls.
        output = self.call(
            self.unet,
            torch.cat([inputs[rows], inputs]),
            t,
            self.negative_embeds.expand(batch).keep(rows).followed_by(prompt),
        ).to(latents.dtype)
        negative, positive = output[: len(rows)], output[len(rows) :]
        guide = (self.guidance_scale - 1) * (positive[rows] - negative)
        return positive.index_add(0, rows, guide)


def _conditioning(embeds: Conditioning | Tensor) -> Conditioning:
    return embeds if isinstance(embeds, Conditioning) else Conditioning(embeds)
