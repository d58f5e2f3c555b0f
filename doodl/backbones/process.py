"""What a scheduler's config says of the noise a model was trained on, as a schedule of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from doodl.backbones.denoiser import FLOW, PREDICTION_TYPES
from doodl.errors import ModelError
from doodl.schedule import Schedule, stable_diffusion_alphas_cumprod

# All of these sample one and the same process: what they differ in, we replace.
_DIFFUSION = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "LMSDiscrete", "EulerDiscrete",
        "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete",
        "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep",
        "UniPCMultistep", "SASolver", "LCM", "TCD",
    )
)  # fmt: skip
_FEW_STEPS = ("LCMScheduler", "TCDScheduler")


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Variance-preserving noise by cumulative alphas.

    Attributes:
        alphas_cumprod: (num_train_timesteps,) float64.
        prediction_type: epsilon or v_prediction.
        few_steps: the model is distilled to start from pure noise and to end on the image, in a
            handful of steps; others follow DOODL: leading timesteps, ending on alphas_cumprod[0].
    """

    alphas_cumprod: Tensor
    prediction_type: str
    few_steps: bool = False

    def schedule(self, num_inference_steps: int, num_patches: int) -> Schedule:  # noqa: ARG002
        """Return the DDIM schedule; it is the same for every image size."""
        if not self.few_steps:
            return Schedule.ddim(self.alphas_cumprod, num_inference_steps)
        return Schedule.ddim(
            self.alphas_cumprod,
            num_inference_steps,
            timestep_spacing="trailing",
            final_alpha_cumprod=1.0,
        )


@dataclass(frozen=True)
class Flow:
    """Rectified flow, its steps shifted toward noise by a constant or by the image's size.

    Attributes:
        shift: of the steps, where `dynamic` is None.
        dynamic: (patches, mu) at two sizes; mu is linear between and beyond them.
        exponential: shift = exp(mu), else mu itself.
        ends_at: sigma the last step starts from, before the shift; None: 1 / T.
    """

    shift: float = 1.0
    dynamic: tuple[tuple[float, float], tuple[float, float]] | None = None
    exponential: bool = True
    ends_at: float | None = None

    alphas_cumprod = None
    prediction_type = FLOW
    few_steps = False

    def schedule(self, num_inference_steps: int, num_patches: int) -> Schedule:
        """Return the schedule for an image of so many 2x2 patches of latents."""
        shift = self.shift
        if self.dynamic is not None:
            (small, low), (large, high) = self.dynamic
            mu = low + (high - low) * (num_patches - small) / (large - small)
            shift = math.exp(mu) if self.exponential else mu
        return Schedule.flow(num_inference_steps, shift=shift, last_sigma=self.ends_at)


def noise_process(config: dict[str, Any], kind: str) -> Diffusion | Flow:
    """Return the process of a scheduler's config for a backbone of this kind.

    Raises: ModelError if the model was trained on noise that `Schedule` does not describe.
    """
    name = str(config.get("_class_name"))
    flow = "FlowMatch" in name or bool(config.get("use_flow_sigmas"))
    if kind in ("sd3", "flux"):
        if not flow:
            raise ModelError(f"scheduler {name}: a {kind} transformer needs a flow matching one.")
        return _flow(config, name, kind)
    if flow:
        raise ModelError(f"scheduler {name}: flow matching is not supported for a UNet.")
    return _diffusion(config, name)


def _diffusion(config: dict[str, Any], name: str) -> Diffusion:
    if name not in _DIFFUSION:
        raise ModelError(f"scheduler {name} is not one of {', '.join(sorted(_DIFFUSION))}.")
    _refuse(config, name, "trained_betas", "rescale_betas_zero_snr")
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise ModelError(
            f"scheduler {name}: prediction_type (={prediction_type!r}) must be one of "
            f"{', '.join(PREDICTION_TYPES)}."
        )
    trailing = config.get("timestep_spacing") == "trailing"
    return Diffusion(_alphas_cumprod(config), prediction_type, trailing or name in _FEW_STEPS)


def _alphas_cumprod(config: dict[str, Any]) -> Tensor:
    num_train = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
    kind = config.get("beta_schedule", "scaled_linear")
    if kind == "scaled_linear":
        return stable_diffusion_alphas_cumprod(num_train, start, end)
    if kind == "linear":
        return torch.cumprod(1 - torch.linspace(start, end, num_train, dtype=torch.float64), 0)
    raise ModelError(f"beta_schedule (={kind!r}) must be scaled_linear or linear.")


def _flow(config: dict[str, Any], name: str, kind: str) -> Flow:
    if name != "FlowMatchEulerDiscreteScheduler":
        raise ModelError(f"scheduler {name} must be FlowMatchEulerDiscreteScheduler.")
    _refuse(
        config, name, "invert_sigmas", "shift_terminal", "use_karras_sigmas",
        "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling",
    )  # fmt: skip
    shift = float(config.get("shift", 1.0))
    dynamic = None
    if config.get("use_dynamic_shifting"):
        dynamic = (
            (config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)),
            (config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)),
        )
    # FLUX is sampled from 1 to 1/T. SD3's reference goes to the smallest training sigma, which
    # its scheduler has shifted once already.
    num_train = config.get("num_train_timesteps", 1000)
    once = 1.0 if dynamic else shift
    ends_at = None if kind == "flux" else once / (num_train + once - 1)
    exponential = config.get("time_shift_type", "exponential") == "exponential"
    return Flow(shift, dynamic, exponential, ends_at)


def _refuse(config: dict[str, Any], name: str, *options: str) -> None:
    for option in options:
        if config.get(option):
            raise ModelError(f"scheduler {name}: {option} is set, which is not supported.")
