"""How guided pictures are made: DOODL, what it is compared with, and its ablations.

original       the same noise, seed and sampler, unguided
one-step       guidance inside each denoising step of DDIM, on the decoded estimate of the end
hybrid         the same by the final image of all steps that follow; only if it is named
doodl          the preset: the noise optimised through the whole sampler
original-belm, doodl-belm   both by O-BELM instead of EDICT; only if they are named
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from doodl.evaluation.ablations import ABLATIONS, Ablation, changed
from doodl.recipes.config import EditConfig

GUIDANCE_START = 8.0
"""Weight of step-by-step guidance that tuning starts from."""


@dataclass(frozen=True)
class GuidedMethod:
    """One row of the comparison.

    Attributes:
        way: original | one-step | hybrid | doodl.
        ablation: what it changes of the preset.
        knob: what its strength is the value of; None if it has the one it has.
        start: the strength that tuning starts from.
    """

    name: str
    way: str
    ablation: Ablation | None = None
    knob: str | None = None
    start: float = 1.0

    def config(self, preset: EditConfig, strength: float = 1.0) -> EditConfig:
        """Return the preset as this method works by it. Raises: ValueError if it does not fit."""
        config = changed(self.ablation, preset) if self.ablation else preset
        if self.way != "doodl" or strength == 1.0:
            return config
        rate = config.optimiser.learning_rate * strength
        return replace(config, optimiser=replace(config.optimiser, learning_rate=rate))

    def sampler(self, preset: EditConfig) -> str:
        """Return which sampler draws: edict, belm or ddim."""
        return "ddim" if self.way in STEPWISE else self.config(preset).sampler.kind

    @property
    def zero_unet(self) -> bool:
        return self.ablation is not None and self.ablation.zero_unet


STEPWISE = ("one-step", "hybrid")

GUIDED_METHODS: dict[str, GuidedMethod] = {
    method.name: method
    for method in (
        GuidedMethod("original", "original"),
        GuidedMethod("original-belm", "original", ABLATIONS["belm"]),
        GuidedMethod("one-step", "one-step", knob="guidance", start=GUIDANCE_START),
        GuidedMethod("hybrid", "hybrid", knob="guidance", start=GUIDANCE_START),
        GuidedMethod("doodl", "doodl"),
        GuidedMethod("doodl-belm", "doodl", ABLATIONS["belm"], "learning rate ×"),
        *(
            GuidedMethod(ablation.name, "doodl", ablation)
            for ablation in ABLATIONS.values()
            if "generation" in ablation.tasks
        ),
    )
}

METHODS = ("original", "one-step", "doodl")
"""What is compared unless methods are named."""
