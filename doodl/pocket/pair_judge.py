"""A judge of pairs: how much nearer a changed photo is to what the photo should be."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from doodl.pocket.proposal import (
    Block,
    Proposal,
    ProposalConfig,
    changed,
    load_network,
    moments,
    perceptron,
    seen_colours,
    squashed,
)

__all__ = ["PairJudge", "PairJudgeConfig", "Verdict", "load_pair_judge"]

_CELLS, _REGIONS = 16, 8  # along either side of the frame
_COLOURS_OF_A_CELL = 18


class Verdict(NamedTuple):
    """What the judge says of K candidates of B photos.

    gain: (B, K) expected gain in CIEDE2000, above 0 where the candidate is nearer; 0 for the
        photo itself.
    nearer: (B, K) logit that it is nearer at all.
    map: (B, K, 8, 8) the gain by region.
    """

    gain: Tensor
    nearer: Tensor
    map: Tensor


@dataclass(frozen=True)
class PairJudgeConfig:
    """The network's shape: of what reads the photo, and of what reads the candidates."""

    reader: ProposalConfig = field(default_factory=ProposalConfig)
    width: int = 48
    blocks: int = 2
    context: int = 128
    dropout: float = 0.15


class PairJudge(nn.Module):
    """A small network that reads a photo once, and each candidate beside it.

    The reader is a proposal of its own, so the judge has a guess at what the photo should be. A
    lighter part reads each candidate's cells beside the photo's and the guess's, with histograms
    and low moments of the whole frames. Candidates are the photo in other colours: cells show
    them. Images are (B, 3, H, W) in [0, 1], any size and shape: they are squashed to a square.
    """

    def __init__(self, config: PairJudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PairJudgeConfig()
        self.reader = Proposal(config.reader)
        statistics = 3 * config.reader.bins + 9
        self.by_frame = perceptron(5 * statistics + config.reader.context, config.context)
        self.from_reader = nn.Conv2d(config.reader.width, config.width, 1)
        self.cells = nn.Conv2d(4 * _COLOURS_OF_A_CELL + 3, config.width, 1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.context) for _ in range(config.blocks)
        )
        self.by_region = nn.Conv2d(config.width, 1, 1)
        self.overall = nn.Sequential(
            nn.Linear(2 * config.width + config.context, config.context),
            nn.GELU(),
            nn.Linear(config.context, 2),
        )

    def forward(self, photo: Tensor, candidates: Tensor) -> Verdict:
        """Return the verdict on candidates (B, K, 3, H, W) of photos (B, 3, H, W)."""
        batch, count = candidates.shape[0], candidates.shape[1] + 1
        size_px = self.config.reader.size_px
        photo = squashed(photo, size_px)
        reading = self.reader(photo)
        # The guess informs the judge; what it should be is learnt by itself (train_proposal).
        goal = seen_colours(changed(photo, reading.coefficients.detach()).clamp(0, 1))
        # The photo as a candidate of itself: what is said of it is what counts as no gain.
        others = squashed(candidates.flatten(0, 1), size_px).unflatten(0, (batch, count - 1))
        seen = seen_colours(torch.cat((photo[:, None], others), 1).flatten(0, 1))

        def each(of_photo: Tensor) -> Tensor:
            return of_photo.repeat_interleave(count, 0)

        own, wanted = (each(self._moments(image)) for image in (seen[::count], goal))
        other = self._moments(seen)
        context = self.by_frame(
            torch.cat(
                (own, other, 4 * (other - own), 4 * (other - wanted), 4 * (own - wanted),
                 each(reading.context)), 1,
            )
        )  # fmt: skip
        context = F.dropout(context, self.config.dropout, self.training)
        cells = _cells(seen)
        detail = _detail(seen)
        shown = (
            F.pixel_unshuffle(_side_by_side(each(cells[::count]), cells, each(_cells(goal))), 2),
            each(detail[::count]),
            detail,
            detail - each(detail[::count]),
        )
        hidden = F.gelu(self.cells(torch.cat(shown, 1)) + each(self.from_reader(reading.hidden)))
        for block in self.blocks:
            hidden = block(hidden, context)
        pooled = torch.cat((hidden.mean((2, 3)), hidden.amax((2, 3)), context), 1)
        overall, nearer = self.overall(pooled).float().unflatten(0, (batch, count)).unbind(2)
        regions = self.by_region(hidden)[:, 0].float().unflatten(0, (batch, count))
        regions = regions + overall[..., None, None]
        regions = regions[:, 1:] - regions[:, :1]
        return Verdict(regions.mean((2, 3)), nearer[:, 1:], regions)

    def _moments(self, seen: Tensor) -> Tensor:
        return moments(seen, self.config.reader.bins)


def _cells(seen: Tensor) -> Tensor:
    """Return the means (B, 3, 16, 16) of the cells of images as seen."""
    return F.avg_pool2d(seen, seen.shape[2] // _CELLS)


def _side_by_side(photo: Tensor, candidate: Tensor, goal: Tensor) -> Tensor:
    """Return all that cells of the three have to say of the candidate, (B, 18, 16, 16)."""
    before, after = photo - goal, candidate - goal
    nearer = before.abs() - after.abs()
    return torch.cat((photo, candidate, 2 * (candidate - photo), before, after, 2 * nearer), 1)


def _detail(seen: Tensor) -> Tensor:
    """How busy (B, 1, 8, 8) the regions are from pixel to pixel, in brightness."""
    light = seen[:, :1, ::2]
    return 2 * F.adaptive_avg_pool2d((light[..., 1::2] - light[..., ::2]).abs(), _REGIONS)


def load_pair_judge(folder: Path) -> PairJudge:
    """The judge saved in `folder`: float32, eval mode, no gradients to its weights."""
    values = json.loads((folder / "config.json").read_text())
    reader = ProposalConfig(**values.pop("reader"))
    judge = PairJudge(PairJudgeConfig(reader=reader, **values))
    load_network(judge, folder)
    return judge
