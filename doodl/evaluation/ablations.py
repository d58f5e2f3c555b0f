"""The ablations: the preset with one part changed, each under a name that states the change.

A table of them says what each part earns. Strengths are not made equal here: a part may act by
changing the picture more, so the change stands beside the gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from doodl.recipes.config import EditConfig
from doodl.recipes.presets import sampler_overrides


@dataclass(frozen=True)
class Ablation:
    """One change of the preset.

    Attributes:
        part, value: what is changed, and to what.
        changes: of the config, by dotted name.
        rate: factor of the learning rate.
        tasks: the kinds of work that have this part: photo | generation.
        zero_unet: the UNet predicts no noise.
    """

    name: str
    part: str
    value: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    tasks: tuple[str, ...] = ("photo", "generation")
    zero_unet: bool = False


_PHOTO, _GENERATION = ("photo",), ("generation",)
_UNTIED = {"optimiser.tie_gradients": False, "optimiser.tie_latents": False}
_CLIPPED = {"optimiser.grad_clip_value": 1e-3, "optimiser.grad_mean_abs": None}
_RESCALED = {"optimiser.grad_clip_value": None, "optimiser.grad_mean_abs": 3e-3}
_RAW = {"optimiser.grad_clip_value": None, "optimiser.grad_mean_abs": None}


def _each(
    stem: str, part: str, key: str, values: Sequence[float], tasks: tuple[str, ...] = _PHOTO
) -> list[Ablation]:
    return [Ablation(f"{stem}-{v:g}", part, f"{v:g}", {key: v}, tasks=tasks) for v in values]


_BOTH = (*_PHOTO, *_GENERATION)

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation("crops-0", "crops", "0, the whole frame alone",
                 {"num_crops": 0, "whole_view": True}),
        *_each("crops", "crops", "num_crops", (1, 4, 8), _BOTH),
        *_each("momentum", "momentum", "optimiser.momentum", (0.0, 0.9), _BOTH),
        Ablation("clip-0.001", "gradient", "clipped at 1e-3, as released", _CLIPPED),
        Ablation("rescaled", "gradient", "rescaled to 3e-3 a photo", _RESCALED, tasks=_PHOTO),
        Ablation("raw", "gradient", "neither clipped nor rescaled", _RAW),
        Ablation("untied", "ties", "none", _UNTIED),
        Ablation("tied-gradients", "ties", "of the gradients alone",
                 {"optimiser.tie_gradients": True, "optimiser.tie_latents": False}),
        Ablation("not-renormalised", "norm", "left as it comes",
                 {"optimiser.renormalise": False}, tasks=_GENERATION),
        *_each("depth", "depth", "sampler.depth", (0.25, 0.5, 1.0)),
        *_each("T", "T", "sampler.num_inference_steps", (5, 10, 20, 50), _BOTH),
        *_each("optimise-at", "steps left at first", "sampler.optimise_at", (15, 10, 5),
               _GENERATION),
        *_each("blur", "smoothing σ", "optimiser.grad_blur_sigma", (0.0, 1.5, 3.0, 5.0), _BOTH),
        *_each("p", "mix weight p", "sampler.mix_weight", (0.93, 0.97, 1.0), _BOTH),
        Ablation("p-rule", "mix weight p", "0.93^(50/T)", {"sampler.mix_weight": None}),
        *(Ablation(f"rate-{f:g}", "learning rate", f"× {f:g}", rate=f) for f in (0.25, 0.5, 2, 4)),
        Ablation("belm", "sampler", "O-BELM", sampler_overrides("belm")),
        Ablation("no-transfer", "loss", "without the delivered change",
                 {"transfer_in_loss": False}, tasks=_PHOTO),
        *_each("locality", "locality of the change", "transfer_locality", (0.0, 0.3, 1.0)),
        Ablation("no-fidelity", "loss", "without fidelity", {"fidelity_weight": 0.0},
                 tasks=_PHOTO),
        Ablation("no-warm-start", "start", "the photo as it is", {"warm_start": False},
                 tasks=_PHOTO),
        Ablation("no-neutral", "loss", "without the whites", {"neutral_weight": 0.0},
                 tasks=_PHOTO),
        Ablation("unet-zero", "UNet", "predicts no noise", zero_unet=True),
    )
}  # fmt: skip
"""Every ablation by name. One that is the preset as it is makes no row: see `acting`."""

RATES = tuple(name for name in ABLATIONS if name.startswith("rate-"))


def changed(ablation: Ablation, config: EditConfig) -> EditConfig:
    """Return the preset with the ablation's change. Raises: ValueError if it does not fit."""
    values = config.to_dict()
    for name, value in ablation.changes.items():
        *path, last = name.split(".")
        node = values
        for part in path:
            node = node[part]
        node[last] = value
    values["optimiser"]["learning_rate"] *= ablation.rate
    return EditConfig.from_dict(values)


@dataclass(frozen=True)
class Acting:
    """The ablations of a preset, by name: those that act, and those that change nothing or do not
    fit it, with why."""

    names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def acting(task: str, config: EditConfig, asked: Sequence[str] = ()) -> Acting:
    """Return which ablations of a task change the preset.

    Args:
        task: photo | generation. asked: names; none means all of the task.
    Raises: ValueError for a name that is none, or not of this task.
    """
    known = [name for name, ablation in ABLATIONS.items() if task in ablation.tasks]
    wrong = [name for name in asked if name not in known]
    if wrong:
        raise ValueError(f"ablations (={', '.join(wrong)}) must be of {', '.join(known)}.")
    names, left_out = [], []
    for name in asked or known:
        ablation = ABLATIONS[name]
        try:
            other = changed(ablation, config)
        except ValueError as error:
            left_out.append((name, str(error)))
            continue
        if not ablation.zero_unet and _resolved(other) == _resolved(config):
            left_out.append((name, "the preset as it is"))
        else:
            names.append(name)
    return Acting(tuple(names), tuple(left_out))


def _resolved(config: EditConfig) -> EditConfig:
    """Return the config with p in numbers: the rule may come to the very value."""
    return replace(config, sampler=replace(config.sampler, mix_weight=config.sampler.p))
