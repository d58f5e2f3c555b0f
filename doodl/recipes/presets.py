"""The recipes by name: their values, what each is for, and what each value means. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from doodl.recipes.config import EditConfig, OptimiserConfig, SamplerConfig

_PAPER_SAMPLER = SamplerConfig(num_inference_steps=50, mix_weight=0.93)
# CFG 7.5 for generation; a photo is edited under the empty prompt, without.
_PAPER_PROMPTED = replace(_PAPER_SAMPLER, guidance_scale=7.5)
_PAPER_TIED = OptimiserConfig(
    learning_rate=1.0,
    momentum=0.9,
    tie_gradients=True,
    tie_latents=True,
    renormalise=True,
    decode_pair=True,
)

# A call of the pocket UNet keeps 7 MiB of activations a photo: those of all calls fit.
_POCKET_SAMPLER = SamplerConfig(num_inference_steps=20, memory="budget:512MiB")
_POCKET_GENERATION = EditConfig(
    sampler=replace(_POCKET_SAMPLER, guidance_scale=3.0),
    optimiser=OptimiserConfig(
        num_optim_steps=10,
        grad_clip_value=None,
        tie_gradients=True,
        tie_latents=True,
        renormalise=True,
        decode_pair=False,
        grad_mean_abs=1e-2,
    ),
    working_px=128,
    num_crops=4,
    whole_view=True,
)

PRESETS: dict[str, EditConfig] = {
    "pocket": EditConfig(
        # T = 5 comes to the same scores and distances as T = 10 and 20, in less time.
        sampler=replace(_POCKET_SAMPLER, num_inference_steps=5, depth=0.5),
        optimiser=OptimiserConfig(
            # Most photos stop at a good score before; those far below it are what the rest is for.
            num_optim_steps=20,
            min_optim_steps=4,
            grad_clip_value=None,
            tie_gradients=True,
            decode_pair=False,
            grad_mean_abs=3e-3,
            grad_blur_sigma=3.0,
        ),
        working_px=128,
        num_crops=4,
        whole_view=True,
        transfer_in_loss=True,
        # What the pocket guide says of a place is worth nothing beyond what it says of the frame:
        # without it dulled photos come nearer to what they were, and the referee likes them more.
        transfer_locality=0.0,
        # A photo 4 points below a good one may change by 20 dB PSNR for 0.4 of a point, a good one
        # must earn 2.7 by it; whites pay most for a tint.
        fidelity_weight=40.0,
        good_score=8.3,
        # About what undamaged photos score: there a photo stops, after the small change of 4 steps.
        stop_score=7.8,
        # The standard deviation of the judge's score when 2 % of a photo's side are cut off.
        judge_slack=0.13,
        neutral_weight=20.0,
        # The guide ranks whole photos better than its gradient points: with it, plainly damaged
        # photos come back by 9 dB, without by 3.
        warm_start=True,
    ),
    "pocket-text": replace(_POCKET_GENERATION, guides=("text=1",)),
    "pocket-aesthetic": replace(_POCKET_GENERATION, guides=("aesthetic=1",)),
    "pocket-personalize": replace(_POCKET_GENERATION, guides=("subject=1",)),
    "pocket-classifier": replace(_POCKET_GENERATION, guides=("classifier=1",)),
    # The released code's presets, in its own units (ALGORITHM, section 5).
    "paper-aesthetic": EditConfig(
        sampler=_PAPER_SAMPLER,
        optimiser=OptimiserConfig(num_optim_steps=25, grad_clip_value=1e-3),
        guides=("aesthetic:laion-v1=1",),
        num_crops=16,
        cut_power=0.3,
    ),
    "paper-text": EditConfig(
        sampler=_PAPER_PROMPTED,
        optimiser=replace(_PAPER_TIED, num_optim_steps=50, grad_clip_value=1e-3, noise_scale=1e-4),
        guides=("text=1",),
        num_crops=16,
        cut_power=0.3,
    ),
    "paper-personalize": EditConfig(
        sampler=_PAPER_PROMPTED,
        optimiser=replace(_PAPER_TIED, num_optim_steps=500, grad_clip_value=3e-3, loss_scale=3.0),
        guides=("subject=1",),
        num_crops=16,
        cut_power=0.06,
    ),
    "paper-classifier": EditConfig(
        sampler=_PAPER_PROMPTED,
        optimiser=replace(
            _PAPER_TIED,
            num_optim_steps=50,
            grad_clip_value=1e-2,
            noise_scale=1e-3,
            loss_scale=0.05,
        ),
        guides=("classifier=1",),
        num_crops=16,
        cut_power=0.3,
    ),
}


def preset(name: str) -> EditConfig:
    """Return the named preset. Raises: ValueError naming those there are."""
    if name not in PRESETS:
        raise ValueError(f"preset (={name!r}) must be one of {', '.join(PRESETS)}.")
    return PRESETS[name]


@dataclass(frozen=True)
class PresetNote:
    """What a preset is for.

    Attributes:
        task: the command it belongs to: enhance | generate | personalize.
        about: one line.
        target: the score that the released code aims at; None where it has none.
    """

    task: str
    about: str
    target: float | None = None


PRESET_NOTES: dict[str, PresetNote] = {
    "pocket": PresetNote("enhance", "the shipped model's photo editing; the default with it"),
    "pocket-text": PresetNote("generate", "the shipped model: a prompt reinforced by its own CLIP"),
    "pocket-aesthetic": PresetNote(
        "generate", "the shipped model: images that its aesthetic score likes"
    ),
    "pocket-personalize": PresetNote(
        "personalize", "the shipped model: images with the subject of the exemplar photos"
    ),
    "pocket-classifier": PresetNote(
        "generate", "the shipped model: images of a class of its flower classifier"
    ),
    "paper-aesthetic": PresetNote(
        "enhance",
        "DOODL's photo editing; below its target 10 it does what direction up does",
        target=10.0,
    ),
    "paper-text": PresetNote("generate", "DOODL's CLIP guidance with LAION's ViT-g/14"),
    "paper-personalize": PresetNote(
        "personalize", "DOODL's personalisation: ViT-B/32, L/14 and g/14 with .5, .25 and .25"
    ),
    "paper-classifier": PresetNote(
        "generate",
        "DOODL's vocabulary expansion; name the classifier: --guide classifier:FILE/CLASS",
    ),
}

MEANINGS: dict[str, str] = {
    "sampler.num_inference_steps": "T, the denoising steps; divides the model's training steps",
    "sampler.depth": "photos: share of the steps that is inverted, above 0 to 1",
    "sampler.mix_weight": "EDICT's p; none is 0.93^(50/T)",
    "sampler.memory": "activations: checkpoint, invert, full or budget:SIZE; only rounding differs",
    "sampler.guidance_scale": "classifier-free guidance; 1 is none",
    "sampler.optimise_at": "generation: steps left when optimising begins; none is all of them",
    "sampler.kind": "edict, or belm: O-BELM, one network call a step instead of two",
    "optimiser.num_optim_steps": "updates of the noise",
    "optimiser.learning_rate": "step length",
    "optimiser.momentum": "share of the last update that goes on",
    "optimiser.grad_clip_value": "elementwise clip of the gradient, before momentum; none is off",
    "optimiser.noise_scale": "standard deviation of the noise added after each update",
    "optimiser.loss_scale": "the loss is multiplied by it before the gradient is clipped",
    "optimiser.tie_gradients": "both halves of the pair move by their mean gradient",
    "optimiser.tie_latents": "the pair is averaged after each update; generation only",
    "optimiser.renormalise": "each half keeps the norm it began with; generation only",
    "optimiser.decode_pair": "the loss is of both decodes of the pair, else of the first",
    "optimiser.grad_mean_abs": "the gradient is rescaled to this mean size; none leaves it",
    "optimiser.grad_blur_sigma": "Gaussian blur of the gradient, in latent pixels",
    "optimiser.patience": "stop after so many iterations without a better one; 0 never",
    "optimiser.min_optim_steps": "updates that even a good photo gets before stop_score stops it",
    "guides": "the weighted sum that is optimised; none: the pocket model's aesthetic score",
    "working_px": "shorter side of the frame that the model works on",
    "num_crops": "random crops per image and loss",
    "cut_power": "side of a crop: U^power (largest - smallest) + smallest",
    "whole_view": "the loss also sees the whole frame",
    "transfer_in_loss": "photos: the loss also sees the change as it will be delivered",
    "transfer_locality": "photos: share of a change's differences from place to place; 0 to 1",
    "fidelity_weight": "photos: weight of the mean squared change",
    "good_score": "photos: fidelity_weight is divided by the points a photo is below it; none: not",
    "neutral_weight": "photos: weight of the colour that white, grey and black take on",
    "warm_start": "photos, direction up: start with the levels stretched, if the guide prefers it",
    "stop_score": "photos, direction up: a photo that scores this is good enough; none never",
    "judge_slack": "photos: points the judge may fall where an aesthetic guide rose by more",
    "judge_tolerance": "photos: points the judge may fall where no aesthetic guide acts",
    "max_change": "photos: budget of RMS change, share of the full range; none is no budget",
    "method": "photos: doodl, or a rival: one-step, hybrid, pixel or autoencoder",
    "step_guidance": "one-step and hybrid: weight of the gradient in each step",
}


def preset_values(name: str) -> list[tuple[str, Any, str]]:
    """Return (name, value, meaning) of every value of a preset, as --set names them.

    Raises: ValueError on an unknown preset.
    """
    values = preset(name).to_dict()
    rows = []
    for key in config_names():
        node: Any = values
        for part in key.split("."):
            node = node[part]
        rows.append((key, node, MEANINGS[key]))
    return rows


_UNTIED = {
    "sampler.kind": "belm", "optimiser.tie_latents": False, "optimiser.decode_pair": False,
}  # fmt: skip
"""The recipes of generation tie EDICT's pair, which is of one time; O-BELM's is not."""


def sampler_overrides(kind: str) -> dict[str, Any]:
    """Return what a recipe must change to run on a sampler: nothing for edict, every recipe's own.

    Raises: ValueError on an unknown sampler.
    """
    SamplerConfig(kind=kind)
    return {} if kind == "edict" else dict(_UNTIED)


QUALITIES: dict[str, dict[str, Any]] = {
    "paper": {"sampler.num_inference_steps": 50, "sampler.depth": 1.0, "optimiser.patience": 0},
    "balanced": {},
    "fast": {
        **_UNTIED, "sampler.num_inference_steps": 10, "sampler.depth": 0.5,
        "optimiser.patience": 3, "optimiser.learning_rate": 3.0,
    },
}  # fmt: skip
"""What each quality changes of a recipe for photos. Chosen on the pocket model from the curves of
tests/benchmarks/RESULTS.md (`photos`)."""


def quality_overrides(quality: str) -> dict[str, Any]:
    """Return what a recipe for photos must change for a quality: nothing for balanced.

    Raises: ValueError on an unknown quality.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality (={quality!r}) must be one of {', '.join(QUALITIES)}.")
    return dict(QUALITIES[quality])


def config_names() -> list[str]:
    """Return the names of all values of a config, the sampler's and the optimiser's first."""
    parts = {"sampler": SamplerConfig, "optimiser": OptimiserConfig}
    nested = [
        f"{k}.{field.name}" for k, part in parts.items() for field in dataclasses.fields(part)
    ]
    own = [field.name for field in dataclasses.fields(EditConfig) if field.name not in parts]
    return nested + own
