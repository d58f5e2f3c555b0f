"""Train the pair judge: candidates of one photo against what the photo should be."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.pocket.pair_judge import PairJudge, PairJudgeConfig, Verdict
from doodl.pocket.proposal import Proposal
from doodl.pocket.training.loop import Average, Budget, Checkpointed, LoopReport, autocast, run_loop
from doodl.pocket.training.pairs import PairBatch, PairDraw, draw_pairs
from doodl.pocket.training.photos import PhotoSet, balanced_indices

__all__ = ["PairLoss", "PairTraining", "pair_loss", "train_pair_judge"]


@dataclass(frozen=True)
class PairLoss:
    """Weights of the loss, and the units its parts are counted in.

    Attributes:
        listwise: of the cross-entropy between the candidates' shares of a softmax over gain.
        temperature: of that softmax, in CIEDE2000.
        region: of the gain by region.
        sign: of whether a candidate is nearer at all.
        delta: gain from which the regression is linear.
    """

    listwise: float = 1.0
    temperature: float = 1.5
    region: float = 0.5
    sign: float = 0.5
    delta: float = 3.0


def pair_loss(verdict: Verdict, batch: PairBatch, loss: PairLoss) -> dict[str, Tensor]:
    """Return the parts of the loss, weighted, by name."""
    gain = verdict.gain
    wanted = (batch.gain / loss.temperature).softmax(1)
    ranked = -(wanted * (gain / loss.temperature).log_softmax(1)).sum(1).mean()
    least = -(wanted * wanted.clamp_min(1e-9).log()).sum(1).mean()
    return {
        "regression": F.huber_loss(gain, batch.gain, delta=loss.delta) / loss.delta,
        "region": loss.region * F.huber_loss(verdict.map, batch.map, delta=loss.delta) / loss.delta,
        "listwise": loss.listwise * (ranked - least),
        "sign": loss.sign
        * F.binary_cross_entropy_with_logits(verdict.nearer, torch.sigmoid(batch.gain / 0.3)),
    }


@dataclass(frozen=True)
class PairTraining:
    """How the pair judge is trained: its shape, what it is shown, the loss, the rate."""

    network: PairJudgeConfig = field(default_factory=PairJudgeConfig)
    draw: PairDraw = field(default_factory=PairDraw)
    loss: PairLoss = field(default_factory=PairLoss)
    learning_rate: float = 2e-3
    seed: int = 0


def train_pair_judge(
    photos: PhotoSet,
    reader: Proposal,
    checkpoint: Path,
    budget: Budget,
    training: PairTraining,
    *,
    propose: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 300.0,
) -> tuple[PairJudge, LoopReport]:
    """A trained pair judge (float32, eval mode) and its report.

    Args:
        photos: its own share of the photos.
        reader: a proposal trained on the same share; it stays as it is.
        checkpoint: the file whose training goes on, if it is there.
        propose: see draw_pairs.
    """
    device = torch.device(device)
    torch.manual_seed(training.seed)
    judge = PairJudge(replace(training.network, reader=reader.config)).to(device)
    judge.reader.load_state_dict(reader.state_dict())
    judge.reader.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [weight for weight in judge.parameters() if weight.requires_grad],
        lr=training.learning_rate,
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    average = Average(judge)

    def step_fn(step: int, progress: float) -> tuple[Tensor, dict[str, float]]:  # noqa: ARG001
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        indices = balanced_indices(photos, training.draw.photos, generator)
        batch = draw_pairs(
            photos, indices, reader.config.size_px, training.draw, generator, propose
        )
        batch = PairBatch(*(part.to(device) for part in vars(batch).values()))
        with autocast(device):
            verdict = judge(batch.photo, batch.candidates)
        parts = pair_loss(verdict, batch, training.loss)
        best = verdict.gain.detach().argmax(1, keepdim=True)
        picked = batch.gain.gather(1, best).mean()
        numbers = {name: float(part.detach()) for name, part in parts.items()}
        numbers |= {"picked": float(picked), "best": float(batch.gain.amax(1).mean())}
        return torch.stack(tuple(parts.values())).sum(), numbers

    parts = {"network": judge, "optimizer": optimizer, "average": average}
    report = run_loop(
        step_fn,
        optimizer,
        budget,
        Checkpointed(checkpoint, parts),
        averages={"network": (average, judge)},
        checkpoint_seconds=checkpoint_seconds,
        on_cpu=device.type == "cpu",
    )
    average.copy_to(judge)
    return judge.eval().requires_grad_(False), report
