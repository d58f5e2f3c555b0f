"""Gradients through a half-precision network without underflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _ScaleBack(torch.autograd.Function):
    """Identity; its backward divides by the scale that `_ScaleUp` has chosen."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, chosen: dict[str, Tensor]) -> Tensor:
        ctx.chosen = chosen
        return latents.view_as(latents)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.chosen["scale"], None


class _ScaleUp(torch.autograd.Function):
    """Identity; its backward brings each row's largest gradient to [1, 2)."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, chosen: dict[str, Tensor]) -> Tensor:
        ctx.chosen = chosen
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        peak = grad.abs().amax(tuple(range(1, grad.ndim)), keepdim=True)
        # A power of two changes no digit. Zero and infinity have none: they are left alone.
        scale = torch.exp2(-torch.floor(torch.log2(peak)))
        scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
        ctx.chosen["scale"] = scale
        return grad * scale, None


def with_scaled_gradient(call: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return `call(inputs)`; its gradient passes the call at a magnitude that float16 holds.

    A vector-Jacobian product is linear in the vector, so scaling it on the way in and back on the
    way out changes nothing else. Latent gradients are often below float16's smallest number, 6e-8.

    Args:
        call: float32 (B, ...) -> float32 (B, ...), rows independent, in lower precision inside.
    """
    chosen: dict[str, Tensor] = {}
    return _ScaleUp.apply(call(_ScaleBack.apply(inputs, chosen)), chosen)
