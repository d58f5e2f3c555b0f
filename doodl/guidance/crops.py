"""Random square crops of each image, each image with its own random generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.guidance.towers import ImageNetwork, clamp_straight_through
from doodl.recipes.config import CropConfig


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


class CropViews:
    """What the guides' networks see of one batch of images: its crops, drawn once a size.

    Attributes:
        images: (B, 3, H, W), within [-1, 1] and with the gradient of the identity: overshoot that
            no file can hold shall earn nothing, and it must go before anything averages pixels.
    """

    def __init__(
        self, images: Tensor, generators: Sequence[torch.Generator], config: CropConfig
    ) -> None:
        self.images = clamp_straight_through(images, -1.0, 1.0)
        self._generators, self._config = generators, config
        self._crops: dict[int, Tensor] = {}

    def of(self, network: ImageNetwork) -> Tensor:
        """Return (B * N, 3, s, s) views for a network, those of one image side by side.

        Networks of one size see the same crops, so that a weighted sum of them is of one thing.
        """
        size, batch = network.size_px, len(self.images)
        if not self._config.num_crops:
            return network.resize(self.images)
        if size not in self._crops:
            self._crops[size] = multicrop(
                self.images,
                self._config.num_crops,
                size,
                cut_power=self._config.cut_power,
                generators=self._generators,
            )
        crops = self._crops[size]
        if self._config.whole_view:
            whole = network.resize(self.images)
            crops = torch.cat([crops.view(batch, -1, 3, size, size), whole[:, None]], 1)
            crops = crops.flatten(0, 1)
        return crops

    def mean(self, values: Tensor) -> Tensor:
        """Return each image's mean (B,) of values (B * N,) of its views."""
        return values.view(len(self.images), -1).mean(1)
