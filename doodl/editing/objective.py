"""The enhance objective: the guides' say on what will be delivered, per photo of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from doodl.backbones import Backbone
from doodl.backbones.denoiser import NoisePredictor
from doodl.delivery.deliver import Delivery
from doodl.delivery.mask import keep_protected_view
from doodl.delivery.transfer import TransferFit, apply_transfer
from doodl.engine.sampling import generate
from doodl.guidance.aesthetic import check_direction
from doodl.guidance.guidance import BoundGuidance, Guidance, GuideRow
from doodl.optimise import Judgement
from doodl.recipes.config import EditConfig
from doodl.schedule import Schedule
from doodl.scores import AestheticScorer, ScorerEnsemble


@dataclass(frozen=True)
class Aim:
    """Where one photo's score shall go: up, down, or to a target score.

    Raises: ValueError as `check_direction`.
    """

    direction: str
    target: float | None = None

    def __post_init__(self) -> None:
        check_direction(self.direction, self.target)

    def gain(self, before: float, after: float) -> float:
        """Return by how many points a score of `after` is nearer the aim than `before`."""
        if self.direction == "target" and self.target is not None:
            return abs(before - self.target) - abs(after - self.target)
        return after - before if self.direction == "up" else before - after

    def improved(self, before: float, after: float) -> bool:
        """Return whether a score of `after` is nearer the aim than `before`."""
        return self.gain(before, after) > 0


_MIN_POINTS = 0.6
"""A photo this near its aim, or nearer, pays the most for its change."""

_LOWEST_SCORE = 1.0


def points_to_go(value: float, aim: Aim, good_score: float) -> float:
    """Return how far a photo is from its aim in points of the score, at least 0.6.

    Args:
        value: of an aesthetic guide, which is the score, its negative under direction down, or
            minus the distance to a target.
    Up: below good_score; down: above 1, the nominal end of the scale.
    """
    points = {
        "up": good_score - value, "down": -value - _LOWEST_SCORE, "target": -value,
    }[aim.direction]  # fmt: skip
    return max(points, _MIN_POINTS)


BUDGET_MARGIN = 0.95
"""Share of the budget that the model's frame may spend: at full size a file's own rounding and the
finer detail, which the change follows there, take a little more."""

_NEUTRAL_CHROMA = 0.12
"""Chroma, in [-1, 1] units, at which a pixel stops being taken for white, grey or black."""


def chroma(images: Tensor) -> Tensor:
    """Return the colour without its lightness, (B, 2, H, W): R - G and B - (R + G) / 2."""
    red, green, blue = images.unbind(1)
    return torch.stack([red - green, blue - (red + green) / 2], 1)


@dataclass(frozen=True, eq=False)
class EnhanceProblem:
    """Optimise what the guides say of the decoded image and of the photo as it will be delivered.

    Attributes:
        guidance: the guides, bound to these photos with the views as their sources.
        views: (B, 3, H, W) in [-1, 1], the photos at the model's size.
        bases: (B, 3, H, W), their decoded inversions, which the change is measured from.
        aims, grey, deliveries: one per photo.
        protect: (B, 1, H, W) in [0, 1]: the share of the source that stays; None: nothing must.
        fidelity_weights: (B,), what each photo pays for its mean squared change.
        starts: (B, 3, H, W) in [-1, 1], the views as the noise started, which that change is
            measured from (`doodl.editing.start`).
    """

    backbone: Backbone
    predictor: NoisePredictor
    schedule: Schedule
    guidance: BoundGuidance
    config: EditConfig
    views: Tensor
    bases: Tensor
    aims: tuple[Aim, ...]
    grey: tuple[bool, ...]
    fit: TransferFit
    fidelity_weights: Tensor
    deliveries: tuple[Delivery, ...]
    starts: Tensor
    protect: Tensor | None = None

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        predictor: NoisePredictor,
        guidance: Guidance | AestheticScorer | ScorerEnsemble,
        config: EditConfig,
        *,
        views: Tensor,
        bases: Tensor,
        aims: Sequence[Aim],
        grey: Sequence[bool],
        rows: Sequence[GuideRow] | None = None,
        deliveries: Sequence[Delivery] | None = None,
        starts: Tensor | None = None,
        protect: Tensor | None = None,
    ) -> EnhanceProblem:
        """Return the problem with its schedule cut to the config's depth and the fit prepared.

        Args:
            guidance: loaded guides, or a scorer that is the only one.
            rows: what the guides need to know of each photo; by default its aim alone.
            deliveries: what goes into each file; by default the whole change, carried over.
            starts: by default the views.
        Raises: ValueError if a row lacks what a guide needs.
        """
        if not isinstance(guidance, Guidance):
            guidance = Guidance.of_scorer(guidance)
        if deliveries is None:
            deliveries = [Delivery()] * len(aims)
        if rows is None:
            rows = [GuideRow(direction=aim.direction, target=aim.target) for aim in aims]
        sampler = config.sampler
        height, width = views.shape[-2:]
        schedule = backbone.schedule(
            sampler.num_inference_steps, sampler.depth, size_px=(height, width)
        )
        fit = TransferFit(bases, grey=tuple(grey), locality=config.transfer_locality)
        bound = guidance.bind(rows, views)
        starts = views if starts is None else starts
        return cls(
            backbone,
            predictor,
            schedule,
            bound,
            config,
            views,
            bases,
            tuple(aims),
            tuple(grey),
            fit,
            _fidelity_weights(config, bound, starts, aims),
            tuple(deliveries),
            starts,
            protect,
        )

    def generate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return generate(self.predictor, x, y, self.schedule, self.config.sampler)

    def decode(self, latents: Tensor) -> Tensor:
        return self.backbone.decode(latents)

    def delivered(self, images: Tensor) -> Tensor:
        """Return the views (B, 3, H, W) with the images' change carried over, as on the photo."""
        return self._kept(apply_transfer(self.fit.fit(images), self.views))

    def _kept(self, edited: Tensor) -> Tensor:
        return keep_protected_view(self.views, edited, self.protect)

    def _affordable(self, images: Tensor, delivered: Tensor) -> Tensor | None:
        """Return (B,) whether each photo's change, as it will be delivered, is in the budget."""
        budget = self.config.max_change
        if budget is None:
            return None
        own = torch.tensor([d.deliver == "model" for d in self.deliveries], device=images.device)
        strength = torch.tensor([d.strength for d in self.deliveries], device=images.device)
        with torch.no_grad():
            shown = torch.where(own[:, None, None, None], self._kept(images), delivered)
            change = shown.clamp(-1, 1) - self.views
            rms = change.square().mean((1, 2, 3)).sqrt() / 2
        return rms * strength <= BUDGET_MARGIN * budget

    def judge(self, images: Tensor, generators: Sequence[torch.Generator]) -> Judgement:
        config = self.config
        delivered = self.delivered(images)
        sources = [images, delivered] if config.transfer_in_loss else [images]
        losses = [self.guidance.loss(each, generators, crops=config.crops) for each in sources]
        with torch.no_grad():
            final, values = self.guidance.assess(delivered)
        penalty = self._penalty(delivered)
        loss = torch.stack(losses).sum(0) + penalty
        return Judgement(
            loss,
            (final + penalty).detach(),
            self._good_enough(final, values),
            self._affordable(images, delivered),
            (self.starts != self.views).flatten(1).any(1),
        )

    def _penalty(self, delivered: Tensor) -> Tensor:
        """Return what each photo's change costs (B,): all of it, and tints on what was neutral."""
        config, change = self.config, delivered - self.starts
        penalty = self.fidelity_weights * change.square().mean((1, 2, 3))
        if config.neutral_weight:
            neutral = torch.exp(-chroma(self.starts).square().sum(1) / _NEUTRAL_CHROMA**2)
            tint = chroma(change).square().sum(1)
            penalty = penalty + config.neutral_weight * (neutral * tint).mean((1, 2))
        return penalty

    def keep(self, indices: Sequence[int]) -> EnhanceProblem:
        index = list(indices)
        grey = tuple(self.grey[i] for i in index)
        predictor = self.predictor.keep(index)
        bases = self.bases[index]
        return replace(
            self,
            predictor=predictor,
            guidance=self.guidance.keep(index),
            views=self.views[index],
            starts=self.starts[index],
            bases=bases,
            aims=tuple(self.aims[i] for i in index),
            grey=grey,
            fit=TransferFit(bases, grey=grey, locality=self.config.transfer_locality),
            fidelity_weights=self.fidelity_weights[index],
            deliveries=tuple(self.deliveries[i] for i in index),
            protect=None if self.protect is None else self.protect[index],
        )

    def with_bases(self, bases: Tensor) -> EnhanceProblem:
        """Return the problem with the change measured from other images (B, 3, H, W)."""
        fit = TransferFit(bases, grey=self.grey, locality=self.config.transfer_locality)
        return replace(self, bases=bases, fit=fit)

    def _good_enough(self, final: Tensor, values: dict[str, Tensor]) -> Tensor:
        stop = self.config.stop_score
        scores = [values[spec.name] for spec in self.guidance.specs if spec.kind == "aesthetic"]
        if stop is None or not scores:
            return torch.zeros_like(final, dtype=torch.bool)
        # With direction up, and only then, an aesthetic guide's value is the score itself.
        upward = torch.tensor([aim.direction == "up" for aim in self.aims], device=final.device)
        return upward & (scores[0] >= stop)


@torch.no_grad()
def _fidelity_weights(
    config: EditConfig, guidance: BoundGuidance, views: Tensor, aims: Sequence[Aim]
) -> Tensor:
    """Return each photo's fidelity weight (B,); without an aesthetic guide all have the same."""
    weights = torch.full((len(views),), config.fidelity_weight, device=views.device)
    names = [spec.name for spec in guidance.specs if spec.kind == "aesthetic"]
    if config.good_score is None or not config.fidelity_weight or not names:
        return weights
    values = guidance.values(views)[names[0]].tolist()
    points = [
        points_to_go(value, aim, config.good_score) for value, aim in zip(values, aims, strict=True)
    ]
    return weights / torch.tensor(points, device=views.device)
