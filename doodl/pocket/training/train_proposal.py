"""Train a proposal: damaged photos in, the change of colour that undoes the damage out."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from doodl.pocket.colour import lab
from doodl.pocket.proposal import Proposal, ProposalConfig, changed
from doodl.pocket.training.clean import make_scenes, random_views, varied
from doodl.pocket.training.damage import draw_damage
from doodl.pocket.training.loop import Average, Budget, Checkpointed, LoopReport, autocast, run_loop
from doodl.pocket.training.photos import PhotoSet, balanced_indices

__all__ = ["ProposalTraining", "colour_loss", "train_proposal"]

# Chroma counts for less than lightness, as in CIEDE2000 where colours are strong.
_CHROMA_WEIGHT = 0.6
_LOCAL_COST = 0.002


@dataclass(frozen=True)
class ProposalTraining:
    """How a proposal is trained: its shape, photos a step, share left undamaged, the rate."""

    network: ProposalConfig = field(default_factory=ProposalConfig)
    photos: int = 48
    untouched: float = 0.4
    learning_rate: float = 2e-3
    seed: int = 0


def colour_loss(image: Tensor, goal: Tensor) -> Tensor:
    """Mean distance of colours (B, 3, h, w) in [0, 1], about that of CIEDE2000.

    The distance, not its square: where a photo may have been many things, the answer that is near
    to most of them.
    """
    apart = lab(image) - lab(goal)
    lightness, chroma = apart[:, 0].square(), apart[:, 1:].square().sum(1)
    return (lightness + _CHROMA_WEIGHT**2 * chroma + 0.5).sqrt().mean()


def train_proposal(
    photos: PhotoSet,
    checkpoint: Path,
    budget: Budget,
    training: ProposalTraining,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 300.0,
) -> tuple[Proposal, LoopReport]:
    """A trained proposal (float32, eval mode) and its report.

    Args:
        checkpoint: the file whose training goes on, if it is there.
    """
    device = torch.device(device)
    torch.manual_seed(training.seed)
    network = Proposal(training.network).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    average = Average(network)

    def step_fn(step: int, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG001
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        indices = balanced_indices(photos, training.photos, generator)
        views = random_views(photos, indices, training.network.size_px, generator)
        clean = varied(make_scenes(views, generator), generator)
        damaged = draw_damage(clean, generator)
        untouched = torch.rand(len(clean), generator=generator) < training.untouched
        photo = torch.where(untouched.view(-1, 1, 1, 1), clean, damaged).to(device)
        goal = clean.to(device)[..., ::2, ::2]
        with autocast(device):
            coefficients = network(photo).coefficients
        shown = photo[..., ::2, ::2]
        result = changed(shown, coefficients)
        # Outside the range there is no gradient of a clamped colour.
        loss = colour_loss(result.clamp(0, 1) + 0.02 * (result - result.clamp(0, 1)), goal)
        local = coefficients - coefficients.mean((2, 3), keepdim=True)
        before = colour_loss(shown, goal)
        numbers = {"colour": float(loss.detach()), "as_it_is": float(before)}
        return loss + _LOCAL_COST * local.square().mean(), numbers

    parts = {"network": network, "optimizer": optimizer, "average": average}
    report = run_loop(
        step_fn,
        optimizer,
        budget,
        Checkpointed(checkpoint, parts),
        averages={"network": (average, network)},
        checkpoint_seconds=checkpoint_seconds,
        on_cpu=device.type == "cpu",
    )
    average.copy_to(network)
    return network.eval().requires_grad_(False), report
