"""What decides an edit's result: sampler, optimiser and recipe, as frozen values."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doodl.guidance.spec import parse_guides

MIX_WEIGHT = 0.93
"""EDICT's p at its own T = 50."""


def default_mix_weight(num_inference_steps: int) -> float:
    """Return p = 0.93^(50/T): un-mixing then multiplies the pair's gap as much as at T = 50."""
    return MIX_WEIGHT ** (50 / num_inference_steps)


SAMPLERS = ("edict", "belm")
METHODS = ("doodl", "one-step", "hybrid", "pixel", "autoencoder")
"""How a photo is edited; see `doodl.editing.methods`."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}


def parse_memory(memory: str) -> tuple[str, int]:
    """Return (mode, bytes) of `checkpoint`, `invert`, `full` or `budget:SIZE` (`budget:8GiB`).

    Raises: ValueError on any other word or an unreadable size.
    """
    if memory in ("checkpoint", "invert", "full"):
        return memory, 0
    match = re.fullmatch(r"budget:(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", memory)
    if match is None:
        raise ValueError(
            f"memory (={memory!r}) must be checkpoint, invert, full or budget:SIZE; "
            "try budget:8GiB."
        )
    return "budget", int(float(match[1]) * _UNITS[match[2]])


def _check_fields(config: Any, prefix: str, positive: tuple[str, ...] = ()) -> None:
    """Raise ValueError for a field whose value is not of its type, not finite, or below zero.

    Values come from a command line or a file, so a dataclass's annotations alone protect nothing.
    """
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        kind = str(field.type)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value) or (value is None and "None" in kind):
            continue
        if kind.startswith("tuple"):
            continue  # its own __post_init__ looks at it
        if kind == "bool":
            if not isinstance(value, bool):
                raise ValueError(f"{name} (={value!r}) must be true or false.")
            continue
        kind = kind.removesuffix(" | None")
        if isinstance(value, bool) or type(value) not in _KINDS[kind]:
            raise ValueError(f"{name} (={value!r}) must be of type {kind}.")
        if kind != "str" and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} (={value!r}) must be finite and not negative.")
        if field.name in positive and value == 0:
            raise ValueError(f"{name} (={value!r}) must be above zero.")


@dataclass(frozen=True)
class SamplerConfig:
    """How photos are inverted and generated (ALGORITHM: DDIM as a linear step; EDICT).

    Attributes:
        num_inference_steps: T, a divisor of the training steps.
        depth: share of the trajectory inverted, in (0, 1].
        mix_weight: EDICT's p; None means 0.93^(50/T). O-BELM has none.
        memory: the adjoint's mode: checkpoint | invert | full | budget:SIZE.
        guidance_scale: classifier-free guidance; 1 makes no second branch.
        optimise_at: generation: steps left when the optimisation begins, those before are denoised
            plainly; None begins at pure noise. The released code's opt_t.
        kind: edict (two calls of the network a step) | belm (O-BELM: one).
    """

    num_inference_steps: int = 50
    depth: float = 1.0
    mix_weight: float | None = None
    memory: str = "checkpoint"
    guidance_scale: float = 1.0
    optimise_at: int | None = None
    kind: str = "edict"

    def __post_init__(self) -> None:
        _check_fields(
            self, "sampler.", ("num_inference_steps", "depth", "mix_weight", "optimise_at")
        )
        if self.kind not in SAMPLERS:
            raise ValueError(f"sampler.kind (={self.kind!r}) must be {' or '.join(SAMPLERS)}.")
        parse_memory(self.memory)
        if self.optimise_at is not None and self.optimise_at > self.num_inference_steps:
            raise ValueError(
                f"sampler.optimise_at (={self.optimise_at}) must be at most "
                f"num_inference_steps (={self.num_inference_steps})."
            )
        for name in ("depth", "mix_weight"):
            value = getattr(self, name)
            if value is not None and value > 1:
                raise ValueError(f"sampler.{name} (={value}) must be in (0, 1].")

    @property
    def p(self) -> float:
        if self.mix_weight is not None:
            return self.mix_weight
        return default_mix_weight(self.num_inference_steps)


@dataclass(frozen=True)
class OptimiserConfig:
    """Algorithm 1 of DOODL, with its two ties, and the additions as options (off by default).

    Attributes:
        num_optim_steps: updates of the noise.
        learning_rate, momentum, loss_scale: as in Algorithm 1.
        grad_clip_value: elementwise clip before momentum; None leaves gradients unclipped.
        noise_scale: standard deviation of the noise added after each update.
        tie_gradients: both halves of the pair move by the pair's mean gradient.
        tie_latents: the pair itself is averaged (generation only: breaks a photo's round trip).
        renormalise: each half keeps the norm it started with (generation only).
        decode_pair: the loss looks at both decodes (the released code), or at x_0's alone.
        grad_mean_abs: rescale each photo's gradient to this mean |g|; None leaves it as it is.
        grad_blur_sigma: Gaussian blur of the latent gradient, in latent pixels; 0 is none.
        patience: stop after this many iterations without a better iterate; 0 never stops so.
        min_optim_steps: updates that even a photo gets that is good enough before them.
    """

    num_optim_steps: int = 25
    learning_rate: float = 1.0
    momentum: float = 0.9
    grad_clip_value: float | None = 1e-3
    noise_scale: float = 0.0
    loss_scale: float = 1.0
    tie_gradients: bool = False
    tie_latents: bool = False
    renormalise: bool = False
    decode_pair: bool = True
    grad_mean_abs: float | None = None
    grad_blur_sigma: float = 0.0
    patience: int = 0
    min_optim_steps: int = 0

    def __post_init__(self) -> None:
        _check_fields(self, "optimiser.", ("grad_clip_value", "grad_mean_abs"))


@dataclass(frozen=True)
class CropConfig:
    """What the guides' networks see of an image.

    Attributes:
        num_crops, cut_power: random crops per image and loss (`guidance.crops`); with no crop
            the whole view is all.
        whole_view: the whole frame too, as one more crop.
    """

    num_crops: int = 16
    cut_power: float = 0.3
    whole_view: bool = False


@dataclass(frozen=True)
class EditConfig:
    """One preset: sampler, optimiser, and what the loss looks at.

    Attributes:
        guides: the weighted sum that is optimised, in the form of `guidance.spec`; empty: the
            aesthetic guide of the pocket model.
        working_px: the shorter side of the frame the model works on.
        num_crops, cut_power: random crops per image and loss (`guidance.crops`).
        whole_view: the loss also sees the whole frame.
        transfer_in_loss: the loss also sees the change as it will be delivered.
        transfer_locality: share of what the places of a photo differ in that its change keeps
            (`transfer.TransferFit`); 0 is one change of colour for the whole photo.
        fidelity_weight: weight of the mean squared change of the transferred frame.
        good_score: the score of a good photo. With it a photo's fidelity_weight is divided by the
            points it has to go (`objective.points_to_go`): a bad photo may change much, a good one
            hardly. None leaves the weight the same for all.
        neutral_weight: weight of the mean squared chroma that near-neutral pixels take on.
        warm_start: with direction up and an aesthetic guide, the noise starts at the photo with its
            levels stretched, where the guide prefers it (`doodl.editing.start`).
        stop_score: with direction up, a photo whose delivered frame scores this is good enough.
        judge_tolerance: points that the judge may fall where no aesthetic guide asks it to rise.
        judge_slack: points that the judge may fall where an aesthetic guide rose by more.
        max_change: fidelity budget: the delivered file's largest RMS change, as a share of the
            full range (0.1 is a PSNR of 20 dB); None is no budget.
        method: doodl | one-step | hybrid | pixel | autoencoder (`doodl.editing.methods`).
        step_guidance: one-step and hybrid: weight of the gradient in each step's noise prediction.
    """

    sampler: SamplerConfig = SamplerConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    guides: tuple[str, ...] = ()
    working_px: int = 512
    num_crops: int = 16
    cut_power: float = 0.3
    whole_view: bool = False
    transfer_in_loss: bool = False
    transfer_locality: float = 1.0
    fidelity_weight: float = 0.0
    good_score: float | None = None
    neutral_weight: float = 0.0
    warm_start: bool = False
    stop_score: float | None = None
    judge_tolerance: float = 0.5
    judge_slack: float = 0.0
    max_change: float | None = None
    method: str = "doodl"
    step_guidance: float = 32.0

    def __post_init__(self) -> None:
        _check_fields(self, "", ("working_px", "max_change"))
        if not 0 <= self.transfer_locality <= 1:
            raise ValueError(f"transfer_locality (={self.transfer_locality}) must be in [0, 1].")
        if not self.num_crops and not self.whole_view:
            raise ValueError(
                "num_crops (=0) must be above zero, unless whole_view lets the loss see the frame."
            )
        if not isinstance(self.guides, tuple) or any(type(g) is not str for g in self.guides):
            raise ValueError(f"guides (={self.guides!r}) must be a list of guides, as text.")
        parse_guides(self.guides)
        if self.method not in METHODS:
            raise ValueError(f"method (={self.method!r}) must be one of {', '.join(METHODS)}.")
        if self.sampler.kind != "edict" and self.method != "doodl":
            raise ValueError(
                f"sampler.kind {self.sampler.kind} is for method doodl; {self.method} has a way "
                "of its own. Leave one of them out."
            )
        if self.sampler.kind == "belm":
            self._check_pair_of_times()

    def _check_pair_of_times(self) -> None:
        """Refuse what takes the pair for two latents of one time, as only EDICT's are."""
        for name, why in (
            ("tie_latents", "averages EDICT's pair; O-BELM's two latents are of different times"),
            ("decode_pair", "decodes both; O-BELM's second latent still holds a step's noise"),
        ):
            if getattr(self.optimiser, name):
                raise ValueError(f"optimiser.{name} {why}. Set it to false with sampler.kind belm.")

    @property
    def crops(self) -> CropConfig:
        return CropConfig(self.num_crops, self.cut_power, self.whole_view)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, the form that is fingerprinted and stored as JSON."""
        return {**dataclasses.asdict(self), "guides": list(self.guides)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EditConfig:
        """Return the config of `to_dict`'s values. Raises: TypeError on an unknown name."""
        values = dict(values)
        sampler = SamplerConfig(**values.pop("sampler", {}))
        optimiser = OptimiserConfig(**values.pop("optimiser", {}))
        guides = values.pop("guides", ())
        guides = tuple(guides) if isinstance(guides, (list, tuple)) else guides
        return cls(sampler=sampler, optimiser=optimiser, guides=guides, **values)


def without_later_values(recipe: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return `to_dict`'s values less those named, dotted, that are at their default.

    A recipe from before a value was there, and one that leaves it alone, then have one fingerprint.
    """
    default = EditConfig().to_dict()
    kept = {k: dict(v) if isinstance(v, dict) else v for k, v in recipe.items()}
    for name in names:
        *path, last = name.split(".")
        node, default_node = kept, default
        for part in path:
            node, default_node = node.get(part, {}), default_node.get(part, {})
        if last in node and node[last] == default_node.get(last):
            del node[last]
    return kept
