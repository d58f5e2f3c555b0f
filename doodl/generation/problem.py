"""The generation objective: guides on the decoded picture, per picture of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from doodl.backbones import Backbone
from doodl.backbones.denoiser import NoisePredictor
from doodl.engine.sampling import generate
from doodl.guidance.guidance import BoundGuidance
from doodl.optimise import Judgement
from doodl.recipes.config import CropConfig, SamplerConfig
from doodl.schedule import Schedule


@dataclass(frozen=True, eq=False)
class GenerateProblem:
    """Optimise the guides of the decoded picture; there is no source to stay close to.

    Attributes:
        schedule: the steps from the latents that are optimised to the end.
        guides: bound to the pictures of this batch.
    """

    backbone: Backbone
    predictor: NoisePredictor
    schedule: Schedule
    guides: BoundGuidance
    sampler: SamplerConfig
    crops: CropConfig

    def generate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return generate(self.predictor, x, y, self.schedule, self.sampler)

    def decode(self, latents: Tensor) -> Tensor:
        return self.backbone.decode(latents)

    def judge(self, images: Tensor, generators: Sequence[torch.Generator]) -> Judgement:
        loss = self.guides.loss(images, generators, crops=self.crops)
        with torch.no_grad():
            value = self.guides.value(images)
        return Judgement(loss, value, torch.zeros_like(value, dtype=torch.bool))

    def keep(self, indices: Sequence[int]) -> GenerateProblem:
        index = list(indices)
        return replace(self, predictor=self.predictor.keep(index), guides=self.guides.keep(index))
