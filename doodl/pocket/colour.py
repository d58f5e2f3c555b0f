"""Colour as people see it, on tensors: CIELAB and the CIEDE2000 difference."""

import math

import torch
from torch import Tensor

__all__ = ["ciede2000", "delta_e", "from_linear", "lab", "to_linear"]

# Linear sRGB to XYZ, each row over its white (D65, 2 degrees): rows add up to 1.
_TO_XYZ = ((0.43395, 0.37626, 0.18979), (0.21267, 0.71516, 0.07217), (0.01776, 0.10947, 0.87277))
_KNEE = (6 / 29) ** 3


def to_linear(image: Tensor) -> Tensor:
    """Return light in [0, 1] of sRGB values in [0, 1]."""
    return torch.where(
        image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055).clamp_min(0) ** 2.4
    )


def from_linear(light: Tensor) -> Tensor:
    """Return sRGB values in [0, 1] of light in [0, 1]; the inverse of `to_linear`."""
    light = light.clamp_min(0)
    return torch.where(
        light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(1e-8) ** (1 / 2.4) - 0.055
    )


def lab(image: Tensor) -> Tensor:
    """Return CIELAB (B, 3, ...) of sRGB images (B, 3, ...) in [0, 1]; L in [0, 100]."""
    matrix = torch.tensor(_TO_XYZ, dtype=image.dtype, device=image.device)
    xyz = torch.einsum("ij,bj...->bi...", matrix, to_linear(image))
    root = torch.where(
        xyz > _KNEE, xyz.clamp_min(_KNEE) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29
    )
    x, y, z = root.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def delta_e(first: Tensor, second: Tensor) -> Tensor:
    """Return the CIEDE2000 difference (B, H, W) of sRGB images (B, 3, H, W) in [0, 1]."""
    return ciede2000(lab(first), lab(second))


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """Return the CIEDE2000 difference (B, ...) of CIELAB colours (B, 3, ...).

    Source: Sharma, Wu, Dalal, "The CIEDE2000 color-difference formula", 2005, in their letters.
    """
    l1, a1, b1 = first.unbind(1)
    l2, a2, b2 = second.unbind(1)
    c_mean = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    g = 1.5 - 0.5 * _saturating(c_mean)
    a1, a2 = g * a1, g * a2
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.atan2(b1, a1), torch.atan2(b2, a2)
    coloured = (c1 * c2 > 0).to(l1)
    turn = torch.remainder(h2 - h1 + math.pi, 2 * math.pi) - math.pi
    d_h = 2 * (c1 * c2).sqrt() * torch.sin(turn / 2) * coloured
    h = h1 + turn / 2
    l_mean, c = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1
        - 0.17 * torch.cos(h - math.radians(30))
        + 0.24 * torch.cos(2 * h)
        + 0.32 * torch.cos(3 * h + math.radians(6))
        - 0.20 * torch.cos(4 * h - math.radians(63))
    )
    t = torch.where(coloured > 0, t, torch.ones_like(t))
    degrees = torch.rad2deg(torch.remainder(h, 2 * math.pi))
    theta = math.radians(30) * torch.exp(-(((degrees - 275) / 25) ** 2)) * coloured
    away = (l_mean - 50).square()
    s_l = 1 + 0.015 * away / (20 + away).sqrt()
    s_c, s_h = 1 + 0.045 * c, 1 + 0.015 * c * t
    r_t = -torch.sin(2 * theta) * 2 * _saturating(c)
    d_l, d_c, d_h = (l2 - l1) / s_l, (c2 - c1) / s_c, d_h / s_h
    return (d_l.square() + d_c.square() + d_h.square() + r_t * d_c * d_h).clamp_min(1e-12).sqrt()


def _saturating(chroma: Tensor) -> Tensor:
    seventh = chroma**7
    return (seventh / (seventh + 25.0**7)).sqrt()
