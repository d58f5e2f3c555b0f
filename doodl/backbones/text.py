"""Prompts to what a network is told: each prompt is encoded once, the encoders leave the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from doodl.backbones.denoiser import Conditioning

_T5_TOKENS = {"sd3": 256, "flux": 512}
_FEW_STEP_FLUX_TOKENS = 256
_CACHED_PROMPTS = 128


@dataclass
class TextEncoders:
    """The text side of one backbone.

    Attributes:
        kind: sd | sdxl | sd3 | flux, which decides what of the encoders' outputs is used.
        encoders, tokenizers: in the order of their numbers; a missing third encoder of SD3 (T5,
            the largest) is None and its tokens are zeros, as the model was trained to bear.
        device, dtype: of what comes back. The encoders lie in main memory between prompts.
        zero_empty: an empty prompt is zeros (SDXL's `force_zeros_for_empty_prompt`).
        t5_width, t5_tokens: of the T5 encoder's states.
    """

    kind: str
    encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    device: torch.device
    dtype: torch.dtype
    zero_empty: bool = False
    t5_width: int = 0
    t5_tokens: int = 0
    _cache: OrderedDict[str, Conditioning] = field(default_factory=OrderedDict)

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Return a row per prompt, on the device."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if new:
            rows = self._encode(new)
            for i, prompt in enumerate(new):
                self._cache[prompt] = rows.each(itemgetter(slice(i, i + 1)))
        chosen = [self._cache[prompt] for prompt in prompts]
        for prompt in dict.fromkeys(prompts):
            self._cache.move_to_end(prompt)
        while len(self._cache) > _CACHED_PROMPTS:
            self._cache.popitem(last=False)
        pooled = [row.pooled for row in chosen if row.pooled is not None]
        return Conditioning(
            torch.cat([row.embeds for row in chosen]), torch.cat(pooled) if pooled else None
        )

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Conditioning:
        try:
            for encoder in self._present():
                encoder.to(self.device)
            rows = getattr(self, f"_{self.kind}")(prompts)
        finally:
            if self.device.type != "meta":
                for encoder in self._present():
                    encoder.to("cpu")
        rows = rows.each(lambda states: states.to(self.device, self.dtype))
        if self.zero_empty:
            empty = torch.tensor([not prompt for prompt in prompts], device=self.device)
            rows = rows.each(
                lambda states: states.masked_fill(empty.view(-1, *[1] * (states.ndim - 1)), 0)
            )
        return rows

    def _present(self) -> list[Any]:
        return [encoder for encoder in self.encoders if encoder is not None]

    def _sd(self, prompts: list[str]) -> Conditioning:
        return Conditioning(self._run(0, prompts).last_hidden_state)

    def _sdxl(self, prompts: list[str]) -> Conditioning:
        one, two = self._run(0, prompts), self._run(1, prompts)
        embeds = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        return Conditioning(embeds, two.text_embeds)

    def _sd3(self, prompts: list[str]) -> Conditioning:
        one, two = self._run(0, prompts), self._run(1, prompts)
        clip = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        if self.encoders[2] is None:
            t5 = clip.new_zeros(len(prompts), self.t5_tokens, self.t5_width)
        else:
            t5 = self._run(2, prompts).last_hidden_state
        clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        pooled = torch.cat([one.text_embeds, two.text_embeds], dim=-1)
        return Conditioning(torch.cat([clip, t5.to(clip)], dim=1), pooled)

    def _flux(self, prompts: list[str]) -> Conditioning:
        pooled = self._run(0, prompts).pooler_output
        return Conditioning(self._run(1, prompts).last_hidden_state, pooled)

    def _run(self, index: int, prompts: list[str]) -> Any:
        """Return one encoder's outputs; the prompts are padded and cut to its length."""
        encoder, tokenizer = self.encoders[index], self.tokenizers[index]
        is_t5 = encoder.config.model_type == "t5"
        tokens: Tensor = tokenizer(
            prompts,
            padding="max_length",
            max_length=self.t5_tokens if is_t5 else tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return encoder(tokens.to(self.device), output_hidden_states=not is_t5)


def t5_tokens(kind: str, *, few_step_flux: bool = False) -> int:
    """Return how many tokens T5 is given: what the model was trained with.

    Source: the reference samplers: 512 for FLUX.1 [dev], 256 for [schnell] and SD3.
    """
    return _FEW_STEP_FLUX_TOKENS if few_step_flux else _T5_TOKENS.get(kind, 0)
