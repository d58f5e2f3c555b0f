"""Timestep schedules as linear steps z_s = a z_t + b epsilon (ALGORITHM: DDIM as a linear step).

Flow matching has the same form, with a = 1 and the velocity in epsilon's place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

FLOW_TIME_UNITS = 2**24
"""A flow's t is sigma in fixed point: sigma = t / FLOW_TIME_UNITS, exact in float32 as in int64."""


def _divisors_near(value: int, total: int) -> list[int]:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    below = [d for d in divisors if d < value][-1:]
    above = [d for d in divisors if d > value][:1]
    return below + above


class Step(NamedTuple):
    """One step z_s = a z_t + b epsilon(z_t, t) in plain numbers, t a 0-d int64 tensor.

    Attributes:
        acts: whether it changes alpha; if not, it is the identity and its call can be left out.
    """

    t: Tensor
    a: float
    b: float
    acts: bool


@dataclass(frozen=True, eq=False)
class Schedule:
    """T denoising steps, each the affine map z_s = a z_t + b epsilon(z_t, t).

    Attributes:
        timesteps: (T,) int64, descending; the t each step starts from: a training step, or for a
            flow sigma in units of 1 / FLOW_TIME_UNITS.
        a, b: (T,) float64 coefficients of each step.
        alphas: (T,) float64, cumulative alpha at t. alphas_next: (T,) float64, at s. A flow's are
            those of the same signal-to-noise ratio.
        first_index: index of the first kept step in the schedule it was cut from. The leapfrog
            phase of EDICT belongs to this absolute index, so a part-way schedule keeps its phase.
    """

    timesteps: Tensor
    a: Tensor
    b: Tensor
    alphas: Tensor
    alphas_next: Tensor
    first_index: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def ddim(
        cls,
        alphas_cumprod: Tensor,
        num_inference_steps: int,
        *,
        steps_offset: int = 0,
        final_alpha_cumprod: float | Tensor | None = None,
        timestep_spacing: str = "leading",
    ) -> Self:
        """Return the deterministic (eta = 0) DDIM schedule.

        Args:
            alphas_cumprod: (num_train_timesteps,) cumulative alphas, in (0, 1], descending.
            num_inference_steps: T, an int; must divide num_train_timesteps.
            steps_offset: added to every timestep (0 in the DOODL code, 1 in Stable Diffusion's).
            final_alpha_cumprod: alpha after the last step, in (0, 1]; None: alphas_cumprod[0].
            timestep_spacing: leading (980, 960, ... 0 at T = 50), as DOODL; or trailing (999, 979,
                ... 19), which few-step models need: they are trained to start from pure noise.
        Raises: ValueError if an alpha is out of range or order, T does not divide the training
            steps, or a timestep falls outside them.
        Source: DDIM (arXiv:2010.02502), eq. 12, at sigma = 0:
            a = sqrt(alpha_s / alpha_t)
            b = sqrt(1 - alpha_s) - sqrt(alpha_s (1 - alpha_t) / alpha_t)
        """
        alphas_cumprod = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
        if alphas_cumprod.ndim != 1 or not ((alphas_cumprod > 0) & (alphas_cumprod <= 1)).all():
            raise ValueError(
                f"alphas_cumprod (shape {tuple(alphas_cumprod.shape)}) must be 1-D in (0, 1]."
            )
        if (alphas_cumprod.diff() > 0).any():
            raise ValueError("alphas_cumprod must descend: the first timestep has the least noise.")
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("steps_offset", steps_offset),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} (={value!r}) must be an int.")
        num_train = len(alphas_cumprod)
        if num_inference_steps < 1 or num_train % num_inference_steps:
            # The released code's fractional spacing swaps weights and miscounts steps.
            near = " or ".join(str(d) for d in _divisors_near(num_inference_steps, num_train))
            raise ValueError(
                f"num_inference_steps (={num_inference_steps}) must divide num_train_timesteps "
                f"(={num_train}); try {near}."
            )
        stride = num_train // num_inference_steps
        if timestep_spacing not in ("leading", "trailing"):
            raise ValueError(
                f"timestep_spacing (={timestep_spacing!r}) must be leading or trailing."
            )
        timesteps = torch.arange(num_inference_steps - 1, -1, -1) * stride + steps_offset
        if timestep_spacing == "trailing":
            timesteps = timesteps + stride - 1
        if steps_offset < 0 or int(timesteps[0]) >= num_train:
            raise ValueError(
                f"steps_offset (={steps_offset}) moves timesteps outside 0..{num_train - 1}; "
                f"use 0..{stride - 1 if timestep_spacing == 'leading' else 0}."
            )
        final = alphas_cumprod[0] if final_alpha_cumprod is None else final_alpha_cumprod
        final = torch.as_tensor(final, dtype=torch.float64).detach().cpu()
        if final.numel() != 1 or not 0 < float(final) <= 1:
            raise ValueError(
                f"final_alpha_cumprod (={final_alpha_cumprod}) must be one number in (0, 1]."
            )
        alphas = alphas_cumprod[timesteps]
        alphas_next = torch.cat([alphas[1:], final.reshape(1)])
        return cls.from_alphas(timesteps, alphas, alphas_next)

    @classmethod
    def from_alphas(cls, timesteps: Tensor, alphas: Tensor, alphas_next: Tensor) -> Self:
        """Return the schedule of the given cumulative alphas, each (T,) float64."""
        a = (alphas_next / alphas).sqrt()
        b = (1 - alphas_next).sqrt() - (alphas_next * (1 - alphas) / alphas).sqrt()
        # Equal alphas are the identity step exactly; the root's rounding must not leave b = 1e-17.
        same = alphas_next == alphas
        a, b = torch.where(same, 1.0, a), torch.where(same, 0.0, b)
        return cls(timesteps.to(torch.int64), a, b, alphas, alphas_next)

    @classmethod
    def flow(
        cls, num_inference_steps: int, *, shift: float = 1.0, last_sigma: float | None = None
    ) -> Self:
        """Return the schedule of a rectified flow: z_s = z_t + (sigma_s - sigma_t) v.

        Args:
            num_inference_steps: T >= 1; sigma falls linearly from 1, then is shifted.
            shift: s > 0 in sigma <- s sigma / (1 + (s - 1) sigma); more than 1 spends more of the
                steps on noise, as large images need.
            last_sigma: sigma that the last step starts from, before the shift, in (0, 1); None:
                1 / T. After it comes 0.
        Raises: ValueError if a value is out of range.
        Source: SD3 (arXiv:2403.03206), eq. 1 and 23.
        """
        if not isinstance(num_inference_steps, int) or isinstance(num_inference_steps, bool):
            raise ValueError(f"num_inference_steps (={num_inference_steps!r}) must be an int.")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps (={num_inference_steps}) must be at least 1.")
        if not 0 < shift < float("inf"):
            raise ValueError(f"shift (={shift}) must be above zero and finite.")
        last = 1 / num_inference_steps if last_sigma is None else last_sigma
        if not 0 < last < 1 and num_inference_steps > 1:
            raise ValueError(f"last_sigma (={last_sigma}) must be in (0, 1).")
        sigmas = torch.linspace(1, last, num_inference_steps, dtype=torch.float64)
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        # The network and the step must mean the same time, so both take it from t.
        timesteps = (sigmas * FLOW_TIME_UNITS).round().to(torch.int64)
        if (timesteps.diff() >= 0).any() or int(timesteps[-1]) == 0:
            raise ValueError(
                f"num_inference_steps (={num_inference_steps}) with shift (={shift}) leaves steps "
                "of no length; take fewer."
            )
        sigmas = timesteps.double() / FLOW_TIME_UNITS
        sigmas_next = torch.cat([sigmas[1:], sigmas.new_zeros(1)])

        def alphas(sigma: Tensor) -> Tensor:
            return (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)

        return cls(
            timesteps,
            torch.ones_like(sigmas),
            sigmas_next - sigmas,
            alphas(sigmas),
            alphas(sigmas_next),
        )

    def part(self, depth: float) -> Self:
        """Return the last ceil(depth * T) steps, their absolute indices kept.

        Args:
            depth: in (0, 1]; the share of the trajectory that is inverted; 1 is the whole.
        Raises: ValueError if depth is outside (0, 1].
        """
        if not 0 < depth <= 1:
            raise ValueError(f"depth (={depth}) must be in (0, 1]; 1 inverts to pure noise.")
        # The tolerance keeps 0.3 * 10 = 3.0000000000000004 from taking a fourth step.
        num_steps = max(1, int(-(-(depth * len(self) - 1e-9) // 1)))
        return self.from_step(len(self) - num_steps)

    def from_step(self, index: int) -> Self:
        """Return the steps from position `index` to the end, their absolute indices kept."""
        if not 0 <= index < len(self):
            raise ValueError(f"index (={index}) must be in 0..{len(self) - 1}.")
        return self._cut(slice(index, None), self.first_index + index)

    def until_step(self, index: int) -> Self:
        """Return the steps before position `index`."""
        return self._cut(slice(index), self.first_index)

    def _cut(self, part: slice, first_index: int) -> Self:
        return type(self)(
            self.timesteps[part],
            self.a[part],
            self.b[part],
            self.alphas[part],
            self.alphas_next[part],
            first_index,
        )

    def on(self, device: torch.device) -> Self:
        """Return the schedule with its timesteps on a device, where the network wants them.

        Moved once: a copy per step would synchronise the host with the accelerator.
        """
        return replace(self, timesteps=self.timesteps.to(device))

    def steps(self) -> list[Step]:
        """Return the steps from noise to image."""
        columns = self.a.tolist(), self.b.tolist(), self.noise_calls.tolist()
        return list(map(Step, self.timesteps.unbind(0), *columns))

    @property
    def noise_calls(self) -> Tensor:
        """(T,) bool: the steps whose noise prediction acts; none where alpha stays."""
        return self.alphas != self.alphas_next


def stable_diffusion_alphas_cumprod(
    num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """Return Stable Diffusion's cumulative alphas, (num_train_timesteps,) float64.

    Source: the `scaled_linear` betas of the latent diffusion code: linear in sqrt(beta).
    """
    betas = (
        torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64)
        ** 2
    )
    return torch.cumprod(1 - betas, 0)
