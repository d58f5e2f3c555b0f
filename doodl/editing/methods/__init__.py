"""The ways to edit a photo: DOODL, and those it is compared with, behind one guard.

doodl         the noise is optimised through the whole sampler
one-step      guidance inside each denoising step, by the image that one step promises
hybrid        guidance inside each denoising step, by the final image of all that follow
autoencoder   the autoencoder's latents are optimised, without diffusion
pixel         the pixels of the model's frame are optimised, without any network but the guides'

All have the recipe's loss, transfer, delivery and checkpoints; a method differs in how it moves.
"""

from __future__ import annotations

from doodl.backbones import Backbone
from doodl.backbones.denoiser import NoisePredictor
from doodl.editing.methods.endtoend import EndToEnd
from doodl.editing.methods.identity import adapted
from doodl.editing.methods.slots import Slot, Way
from doodl.editing.methods.stepwise import StepByStep
from doodl.recipes.config import EditConfig
from doodl.schedule import Schedule

__all__ = ["EndToEnd", "Slot", "StepByStep", "Way", "adapted", "check_method", "way_of"]


def check_method(backbone: Backbone, config: EditConfig) -> None:
    """Raise ValueError if the method cannot work on this model."""
    if config.method in ("one-step", "hybrid") and backbone.prediction_type == "flow":
        raise ValueError(
            f"method {config.method} guides diffusion models; {backbone.name} is a flow. "
            "Use doodl, autoencoder or pixel."
        )


def way_of(
    backbone: Backbone, config: EditConfig, predictor: NoisePredictor, schedule: Schedule
) -> Way:
    """Return the config's method at work on photos of one frame size."""
    if config.method in ("one-step", "hybrid"):
        return StepByStep(backbone, config, predictor, schedule)
    return EndToEnd(backbone, config, predictor, schedule)
