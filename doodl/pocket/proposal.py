"""A proposal: from one look at a photo, the change of colour that makes it what it should be."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from doodl.delivery.transfer.apply import apply_transfer
from doodl.delivery.transfer.fit import LocalAffine

__all__ = [
    "Block",
    "Proposal",
    "ProposalConfig",
    "Reading",
    "load_network",
    "moments",
    "perceptron",
    "save_network",
    "seen_colours",
    "squashed",
]

# Gamma-coded red, green, blue to brightness, yellow-blue and red-green, each about unit variance.
_OPPONENT = ((0.299, 0.587, 0.114), (0.25, 0.25, -0.5), (0.5, -0.5, 0.0))
_MIDDLE, _SPREAD = (0.45, 0.0, 0.0), (0.25, 0.1, 0.1)
_HISTOGRAM_RANGE = (2.2, 3.0, 3.0)  # either side of the middle, in spreads
_COEFFICIENTS = 18
# The head's outputs at unit size change colours by about this much.
_COEFFICIENT_SCALE = 0.3


class Reading(NamedTuple):
    """What a proposal reads in photos.

    hidden: (B, W, 8, 8) features by region; context: (B, C) of the whole frame.
    coefficients: (B, 18, 8, 8) as LocalAffine has them.
    """

    hidden: Tensor
    context: Tensor
    coefficients: Tensor


@dataclass(frozen=True)
class ProposalConfig:
    """The network's shape: side of the square it reads, widths, blocks, bins of histograms.

    dropout: share of what is known of the whole frame that a step of the training does without.
    """

    size_px: int = 64
    width: int = 80
    blocks: int = 3
    context: int = 128
    bins: int = 16
    dropout: float = 0.15


class Proposal(nn.Module):
    """A small network that reads a photo, and says how its colours should change.

    The change is one function of colour for the frame, and what each of 8×8 regions differs by.
    Images are (B, 3, H, W) in [0, 1], any size and shape: they are squashed to a square.
    """

    def __init__(self, config: ProposalConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ProposalConfig()
        self.by_frame = perceptron(3 * config.bins + 9, config.context)
        patch = config.size_px // 16
        self.stem = nn.Conv2d(3 * patch * patch, config.width // 2, 1)
        self.down = nn.Conv2d(config.width // 2, config.width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.context) for _ in range(config.blocks)
        )
        last = nn.Linear(config.context, _COEFFICIENTS)
        self.whole = nn.Sequential(
            nn.Linear(config.context + 2 * config.width, config.context), nn.GELU(), last
        )
        self.local = nn.Conv2d(config.width, _COEFFICIENTS, 1)
        for head in (last, self.local):
            for weight in head.parameters():
                nn.init.zeros_(weight)

    def forward(self, image: Tensor) -> Reading:
        """Return what is read in images (B, 3, H, W)."""
        seen = seen_colours(squashed(image, self.config.size_px))
        context = self._dropped(self.by_frame(moments(seen, self.config.bins)))
        hidden = F.gelu(self.stem(F.pixel_unshuffle(seen, self.config.size_px // 16)))
        hidden = self.down(hidden)
        for block in self.blocks:
            hidden = block(hidden, context)
        pooled = torch.cat((context, hidden.mean((2, 3)), hidden.amax((2, 3))), 1)
        coefficients = self.whole(self._dropped(pooled))[..., None, None] + self.local(hidden)
        return Reading(hidden, context, _COEFFICIENT_SCALE * coefficients.float())

    def _dropped(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.config.dropout, self.training)

    def transfer(self, image: Tensor) -> LocalAffine:
        """Return the proposed change of images, to be applied at any resolution."""
        return LocalAffine(self(image).coefficients, (False,) * len(image))

    def propose(self, image: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] as they should be."""
        return changed(image, self(image).coefficients).clamp(0, 1)


def changed(image: Tensor, coefficients: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] with a change of colour made, not clamped."""
    transfer = LocalAffine(coefficients, (False,) * len(image))
    return (apply_transfer(transfer, image * 2 - 1) + 1) / 2


def squashed(image: Tensor, size_px: int) -> Tensor:
    """Return images (B, 3, H, W) squashed to a square of `size_px`."""
    if tuple(image.shape[2:]) == (size_px, size_px):
        return image
    return F.interpolate(
        image.float(), size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False
    )


def seen_colours(image: Tensor) -> Tensor:
    """Return opponent colours of about unit variance of images (B, 3, H, W) in [0, 1]."""
    matrix = torch.tensor(_OPPONENT, dtype=image.dtype, device=image.device)
    spread = torch.tensor(_SPREAD, dtype=image.dtype, device=image.device)
    middle = torch.tensor(_MIDDLE, dtype=image.dtype, device=image.device)
    opponent = torch.einsum("ij,bjhw->bihw", matrix / spread[:, None], image)
    return opponent - (middle / spread)[:, None, None]


def moments(seen: Tensor, bins: int) -> Tensor:
    """Histograms, means, deviations and correlations (B, 3·bins + 9) of images as seen."""
    values = seen[..., ::2, ::2].flatten(2)
    reach = torch.tensor(_HISTOGRAM_RANGE, dtype=seen.dtype, device=seen.device).view(3, 1)
    # Each pixel counts for the two bins it lies between, by how near it is.
    place = (values.clamp(-reach, reach) + reach) * ((bins - 1) / (2 * reach))
    below = place.detach().floor().clamp_max(bins - 2)
    index, share = below.long(), place - below
    counts = torch.zeros(*values.shape[:2], bins, dtype=seen.dtype, device=seen.device)
    counts = counts.scatter_add(2, index, 1 - share).scatter_add(2, index + 1, share)
    # The roots of the shares: a twentieth of the frame says nearly as much as a half.
    histograms = 2 * (counts / values.shape[2] + 1e-4).sqrt().flatten(1)
    mean = values.mean(2, keepdim=True)
    centred = values - mean
    deviation = centred.square().mean(2).clamp_min(1e-6).sqrt()
    chroma = values[:, 1:].square().sum(1).clamp_min(1e-6).sqrt().mean(1, keepdim=True)
    together = [(centred[:, i] * centred[:, j]).mean(1, keepdim=True) for i, j in ((0, 1), (0, 2))]
    return torch.cat((histograms, mean[..., 0], deviation, chroma, *together), 1)


def perceptron(inputs: int, width: int) -> nn.Sequential:
    """Return a perceptron of two layers."""
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU())


class Block(nn.Module):
    """Two convolutions beside a shortcut, scaled and shifted by what the whole frame says."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.by_context = nn.Linear(context, 2 * width)
        nn.init.normal_(self.second.weight, std=0.01)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Return the features (B, W, h, w), changed."""
        scale, shift = self.by_context(context)[..., None, None].chunk(2, 1)
        change = F.gelu(self.first(F.gelu(self.norm(hidden) * (1 + scale) + shift)))
        return hidden + self.second(change)


def save_network(network: nn.Module, config: Any, folder: Path) -> None:
    """Write config.json and model.safetensors, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    halved = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(halved, folder / "model.safetensors")


def load_network(network: nn.Module, folder: Path) -> None:
    """Give a network the weights in `folder`: float32, eval mode, no gradients to them."""
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.float().eval().requires_grad_(False)


def load_proposal(folder: Path) -> Proposal:
    """The proposal saved in `folder`."""
    network = Proposal(ProposalConfig(**json.loads((folder / "config.json").read_text())))
    load_network(network, folder)
    return network
