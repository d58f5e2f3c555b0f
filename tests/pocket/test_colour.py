"""CIELAB and CIEDE2000 on tensors, against scikit-image's."""

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor

from doodl.pocket.colour import delta_e, from_linear, lab, to_linear


def _pairs(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(1, 3, 60, 60, generator=generator, dtype=torch.float64)
    if kind == "grey":
        first = first.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    if kind == "dark":
        first = first**4
    noise = torch.randn(first.shape, generator=generator, dtype=torch.float64)
    size = 0.4 if kind == "far" else 0.05
    return first, (first + size * noise).clamp(0, 1)


def _pixels(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["near", "far", "dark", "grey"])
def test_delta_e_is_scikit_images(kind: str) -> None:
    first, second = _pairs(kind)
    expected = deltaE_ciede2000(rgb2lab(_pixels(first)), rgb2lab(_pixels(second)))
    # scikit-image's white is rounded to five digits, which moves b by up to 0.02.
    assert np.abs(delta_e(first, second)[0].numpy() - expected).max() < 0.02


@pytest.mark.parametrize("kind", ["near", "dark", "grey"])
def test_lab_is_scikit_images(kind: str) -> None:
    first, _ = _pairs(kind)
    assert np.abs(_pixels(lab(first)) - rgb2lab(_pixels(first))).max() < 0.03


def test_grey_has_no_colour() -> None:
    grey = torch.linspace(0, 1, 50, dtype=torch.float64).view(1, 1, 50, 1).expand(1, 3, 50, 1)
    assert lab(grey)[:, 1:].abs().max() < 1e-9


def test_light_and_back_is_the_same_image() -> None:
    image = torch.linspace(0, 1, 300, dtype=torch.float64).view(1, 3, 10, 10)
    assert (from_linear(to_linear(image)) - image).abs().max() < 1e-6
