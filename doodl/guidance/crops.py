"""Random square crops of each image, each image with its own random generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multicrop(
    images: Tensor,
    num_crops: int,
    size_px: int,
    *,
    cut_power: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Return (B * N, 3, size_px, size_px) crops, those of one image side by side.

    N is num_crops, or 1 where every crop would be the whole image: see `crop_count`.

    Args:
        images: (B, 3, H, W); gradients flow through.
        size_px: the network's input side. Crops run from min(H, W, size_px) to min(H, W).
        cut_power: side = U^cut_power (max - min) + min; below 1 it favours large crops.
        generators: B CPU generators, one per image, so that crops do not depend on the batch.
    Source: the released DOODL code's MakeCutouts; adaptive average pooling as there.
    """
    height, width = images.shape[-2:]
    num_crops = crop_count((height, width), num_crops, size_px)
    largest = min(height, width)
    smallest = min(largest, size_px)
    crops = []
    for image, generator in zip(images, generators, strict=True):
        for u_size, u_top, u_left in torch.rand(num_crops, 3, generator=generator).tolist():
            side = int(u_size**cut_power * (largest - smallest) + smallest)
            top, left = int(u_top * (height - side + 1)), int(u_left * (width - side + 1))
            crop = image[None, :, top : top + side, left : left + side]
            crops.append(F.adaptive_avg_pool2d(crop, (size_px, size_px)))
    return torch.cat(crops)


def crop_count(image_size: tuple[int, int], num_crops: int, size_px: int) -> int:
    """Return num_crops, or 1 where every crop would be the same image."""
    height, width = image_size
    return 1 if height == width and height <= size_px else num_crops
