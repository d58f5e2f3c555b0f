"""What is optimised is where the chain starts, by the gradient through all of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from doodl.backbones import Backbone
from doodl.backbones.denoiser import NoisePredictor
from doodl.editing.methods.identity import IDENTITIES
from doodl.editing.methods.slots import Slot
from doodl.editing.objective import EnhanceProblem
from doodl.engine.sampling import RoundTrip, round_trip
from doodl.optimise import advance
from doodl.recipes.config import EditConfig
from doodl.schedule import Schedule


class EndToEnd:
    """Algorithm 1 of DOODL; with an identity for a chain, plain ascent."""

    joins = True

    def __init__(
        self, backbone: Backbone, config: EditConfig, predictor: NoisePredictor, schedule: Schedule
    ) -> None:
        self.backbone, self.config = backbone, config
        self.predictor, self.schedule = predictor, schedule
        self.inverts = config.method not in IDENTITIES

    def begin(self, latents: Tensor) -> tuple[RoundTrip, None]:
        return round_trip(self.predictor, latents, self.schedule, self.config.sampler), None

    def advance(self, slots: Sequence[Slot], problem: EnhanceProblem) -> None:
        advance([slot.state for slot in slots], problem, self.config.optimiser)

    @torch.no_grad()
    def render(self, slots: Sequence[Slot], problem: EnhanceProblem) -> Tensor:
        x = torch.stack([slot.state.best_x for slot in slots])
        y = torch.stack([slot.state.best_y for slot in slots])
        return problem.decode(problem.generate(x, y)[0])
