"""Small analytic noise predictors, smooth and nonlinear, for the algebra's tests."""

import math

import torch
from torch import Tensor, nn


def analytic(latents: Tensor, t: Tensor) -> Tensor:
    """A bounded, nonlinear, t-dependent field that couples channels and neighbours."""
    phase = 2 * math.pi * t.to(latents.dtype) / 1000
    neighbours = torch.roll(latents, 1, -1) + torch.roll(latents, 1, 1)
    return torch.tanh(0.8 * latents + 0.3 * neighbours + torch.sin(phase)) * (
        0.7 + 0.2 * torch.cos(phase)
    )


class SmallNet(nn.Module):
    """A convolutional predictor with weights, so that activations have a size worth counting."""

    def __init__(self, channels: int = 4, width: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        self.requires_grad_(False)

    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(latents) + t.to(latents.dtype) / 1000))


def pair(batch: int = 2, size: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 4, size, size)
    return (
        torch.randn(shape, generator=generator, dtype=dtype),
        torch.randn(shape, generator=generator, dtype=dtype),
    )
