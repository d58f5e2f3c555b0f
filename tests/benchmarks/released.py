"""One iteration as the released DOODL code makes it, written anew to be measured against.

Each step is an invertible layer under memcnn's wrapper with keep_input=True: its input is stored,
and its two halves are computed again on the way back. Classifier-free guidance is always computed,
by two calls of one photo each, also where the prompt is the empty one; the step that changes
nothing is computed; and every weight of the UNet takes part in the gradient, which adds up.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from tests.benchmarks.models import Workload

GUIDANCE_SCALE = 7.5
MIX_WEIGHT = 0.93


class _Stepping(nn.Module):
    """One leapfrog step of the pair (2, C, h, w)."""

    def __init__(
        self, unet: nn.Module, embeds: Tensor, guided: bool, a: float, b: float, t: Tensor, i: int
    ) -> None:
        super().__init__()
        self.unet, self.embeds, self.guided = unet, embeds, guided
        self.a, self.b, self.t, self.first = a, b, t, i % 2

    def predict_noise(self, latents: Tensor) -> Tensor:
        inputs = latents.to(self.embeds.dtype)
        noise_pred = self.unet(inputs, self.t, encoder_hidden_states=self.embeds).sample
        if self.guided:
            prompted = self.unet(inputs, self.t, encoder_hidden_states=self.embeds).sample
            noise_pred = noise_pred + GUIDANCE_SCALE * (prompted - noise_pred)
        return noise_pred.to(latents.dtype)

    def forward(self, pair: Tensor) -> Tensor:
        halves = list(pair.split(1))
        for half in (self.first, 1 - self.first):
            halves[half] = self.a * halves[half] + self.b * self.predict_noise(halves[1 - half])
        return torch.cat(halves)

    def inverse(self, pair: Tensor) -> Tensor:
        halves = list(pair.split(1))
        for half in (1 - self.first, self.first):
            halves[half] = (halves[half] - self.b * self.predict_noise(halves[1 - half])) / self.a
        return torch.cat(halves)


class _Mixing(nn.Module):
    def forward(self, pair: Tensor) -> Tensor:
        x, y = pair.split(1)
        x = MIX_WEIGHT * x + (1 - MIX_WEIGHT) * y
        return torch.cat([x, MIX_WEIGHT * y + (1 - MIX_WEIGHT) * x])

    def inverse(self, pair: Tensor) -> Tensor:
        x, y = pair.split(1)
        y = (y - (1 - MIX_WEIGHT) * x) / MIX_WEIGHT
        return torch.cat([(x - (1 - MIX_WEIGHT) * y) / MIX_WEIGHT, y])


def released_iteration(
    workload: Workload, num_inference_steps: int, *, guided: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss's gradient with respect to x_T and y_T, each (1, C, h, w).

    Args:
        guided: as released; False leaves out the second call of each prediction, and no more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # memcnn still asks for torch.cuda.amp
        from memcnn import InvertibleModuleWrapper
    schedule = workload.schedule(num_inference_steps)
    unet = workload.unet.requires_grad_(True)
    layers: list[nn.Module] = []
    for i, t in enumerate(schedule.timesteps.to(workload.device)):
        a, b = float(schedule.a[i]), float(schedule.b[i])
        layers += [
            InvertibleModuleWrapper(layer, keep_input=True, keep_input_inverse=True)
            for layer in (_Stepping(unet, workload.embeds, guided, a, b, t, i), _Mixing())
        ]
    noise = workload.noise()
    start = torch.cat([noise, noise]).requires_grad_()
    try:
        # Not the leaf itself: memcnn sets its inputs' .grad, and a leaf's would be counted twice.
        pair = start.clone()
        for layer in layers:
            pair = layer(pair)
        # memcnn refuses autograd.grad, so the weights' gradients are stored as in the original.
        workload.loss(pair[:1]).sum().backward()
    finally:
        unet.requires_grad_(False)
        unet.zero_grad(set_to_none=True)
    assert start.grad is not None
    return start.grad[:1], start.grad[1:]
