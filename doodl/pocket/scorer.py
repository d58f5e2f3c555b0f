"""A pocket scorer in memory and on disk: open_clip towers and a linear aesthetic head."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import CLIP
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

__all__ = ["Scorer", "load_scorer", "save_scorer"]


class Scorer(nn.Module):
    """CLIP-style towers plus a head that is linear in the L2-normalised image embedding."""

    def __init__(self, open_clip_config: dict[str, Any]) -> None:
        super().__init__()
        model_cfg = open_clip_config["model_cfg"]
        self.clip = CLIP(
            model_cfg["embed_dim"],
            {**model_cfg["vision_cfg"]},
            {**model_cfg["text_cfg"]},
        )
        _amplify_colour(self.clip.visual)
        self.head = nn.Linear(model_cfg["embed_dim"], 1)
        # A unit embedding needs a head of this length to reach scores of 1 to 10 from the middle.
        nn.init.normal_(self.head.weight, std=5.0 / model_cfg["embed_dim"] ** 0.5)
        nn.init.constant_(self.head.bias, 6.0)
        preprocess = open_clip_config["preprocess_cfg"]
        self.mean: Tensor
        self.std: Tensor
        self.size_px = int(preprocess["size"])
        self.register_buffer(
            "mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False
        )

    def embed(self, image: Tensor) -> Tensor:
        """L2-normalised embeddings (B, D) of images (B, 3, H, W) in [0, 1], any size."""
        size = (self.size_px, self.size_px)
        if tuple(image.shape[2:]) != size:
            image = F.interpolate(
                image.float(), size=size, mode="bilinear", antialias=True, align_corners=False
            )
        image = ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.clip.encode_image(image).float(), dim=-1)

    def score(self, image: Tensor) -> Tensor:
        """Scores (B,), about 1 to 10, of images (B, 3, H, W) in [0, 1]."""
        return self.head(self.embed(image))[:, 0]

    def embed_text(self, tokens: Tensor) -> Tensor:
        """L2-normalised embeddings (B, D) of token ids (B, context length)."""
        return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)


@torch.no_grad()
def _amplify_colour(visual: nn.Module, gain: float = 4.0) -> None:
    """Make the first convolution of an untrained image tower as sensitive to colour as to light.

    Colour differences of photos vary several times less than their brightness; without this a
    short training learns exposure and hardly notices a cast or a loss of colour.
    """
    first = next(m for m in visual.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    light = first.weight.mean(1, keepdim=True)
    first.weight.copy_(light + gain * (first.weight - light))


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    """Token ids (B, model_max_length) of captions, padded and truncated."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def save_scorer(
    scorer: Scorer,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> None:
    """Write an open_clip local-dir folder and aesthetic_head.safetensors, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(_halved(scorer.clip.state_dict()), folder / "open_clip_model.safetensors")
    head = {"weight": scorer.head.weight, "bias": scorer.head.bias}
    save_file(_halved(head), folder / "aesthetic_head.safetensors")
    tokenizer.save_pretrained(str(folder))


def load_scorer(folder: Path, device: torch.device | str = "cpu") -> Scorer:
    """The scorer saved in `folder`: float32, eval mode, no gradients to its weights."""
    scorer = Scorer(json.loads((folder / "open_clip_config.json").read_text()))
    scorer.clip.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    scorer.head.load_state_dict(load_file(folder / "aesthetic_head.safetensors"))
    return scorer.float().eval().requires_grad_(False).to(device)


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (value.detach().half() if value.dtype.is_floating_point else value.detach())
        .cpu()
        .contiguous()
        for name, value in state.items()
    }
