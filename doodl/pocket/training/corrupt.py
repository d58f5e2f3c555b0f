"""Corruptions of detail: blur, block compression, mosaics, blotches, posterising.

The same interface as doodl.pocket.training.degrade: images (B, 3, H, W) in [0, 1], severities (B,).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["block_compress", "blotch", "gaussian_blur", "mosaic", "posterise"]

# JPEG's luminance table (ITU-T T.81, annex K), row by row.
_QUANTISATION = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def gaussian_blur(image: Tensor, sigma_px: Tensor) -> Tensor:
    """Each image (B, C, H, W) blurred by its own sigma (B,) in pixels; edges are replicated."""
    batch, channels = image.shape[:2]
    radius = max(1, math.ceil(3 * float(sigma_px.max())))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px.clamp_min(0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = image.reshape(1, batch * channels, *image.shape[2:])
    groups = batch * channels
    flat = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=groups)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=groups)
    return flat.reshape(image.shape)


def block_compress(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """JPEG's loss: 8×8 cosine blocks quantised in YCbCr; sides must be multiples of 8."""
    device, dtype = image.device, image.dtype
    to_ycc = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]],
        device=device,
        dtype=dtype,
    )
    n = torch.arange(8, device=device, dtype=dtype)
    dct = torch.cos(math.pi * (2 * n[None, :] + 1) * n[:, None] / 16) / 2
    dct[0] /= math.sqrt(2)
    table = torch.tensor(_QUANTISATION, device=device, dtype=dtype) / 255
    # Severity 0.1 is about quality 60, 1 about quality 3.
    steps = table * (0.1 + 14 * severity.view(-1, 1, 1, 1, 1, 1) ** 1.5)
    batch, channels, height, width = image.shape
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, image - 0.5)
    blocks = ycc.reshape(batch, channels, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    coefficients = dct @ blocks @ dct.T
    coefficients = (coefficients / steps).round() * steps
    blocks = dct.T @ coefficients @ dct
    ycc = blocks.permute(0, 1, 2, 4, 3, 5).reshape(image.shape)
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycc), ycc) + 0.5


def mosaic(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Cells of 8 or 4 px, their mean shown instead of their pixels."""
    cell = 8 if float(torch.rand((), generator=generator)) < 0.6 else 4
    coarse = F.avg_pool2d(image, cell, ceil_mode=True)
    cells = F.interpolate(coarse, scale_factor=cell, mode="nearest")
    return image.lerp(cells[..., : image.shape[2], : image.shape[3]], severity.view(-1, 1, 1, 1))


def blotch(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Coloured stains of 8 to 16 px, as an optimiser leaves them in latents."""
    cell = 8 if float(torch.rand((), generator=generator)) < 0.5 else 16
    size = (max(2, image.shape[2] // cell), max(2, image.shape[3] // cell))
    knots = torch.randn(len(image), 3, *size, generator=generator).to(image.device)
    stains = F.interpolate(knots, size=image.shape[2:], mode="bicubic", align_corners=False)
    return image + 0.15 * severity.view(-1, 1, 1, 1) * stains


def posterise(image: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Few tones: from 64 levels down to 3."""
    levels = (64 * (3 / 64) ** severity).view(-1, 1, 1, 1) - 1
    return torch.where(severity.view(-1, 1, 1, 1) > 0, (image * levels).round() / levels, image)
