"""What the fit and its application share: the guide g(x), and weights along a side of a frame."""

import torch
from torch import Tensor

_LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709
CHANNELS = 5  # of the guide g


def luminance(image: Tensor) -> Tensor:
    """Return (B, 1, h, w) luminance of (B, 3, h, w) colours."""
    red, green, blue = image.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def guide_of(image: Tensor) -> Tensor:
    """Return g(x): the colours (three, or one of a grey photo), L² and L³."""
    lightness = luminance(image) if image.shape[1] == 3 else image
    square = lightness * lightness
    return torch.cat([image, square, square * lightness], dim=1)


def spline_weights(size_px: int, nodes: int, device: torch.device) -> Tensor:
    """Return (size_px, nodes) uniform cubic B-spline weights: smooth to the second derivative.

    Bilinear weights would put a kink at every grid line, which shows as bands in a clear sky.
    """
    places = (torch.arange(size_px, dtype=torch.float64) + 0.5) / size_px * (nodes - 1)
    index = torch.arange(-1, nodes + 1, dtype=torch.float64)
    distance = (places[:, None] - index).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    # The nodes just outside the frame repeat the border's.
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1].contiguous().float().to(device)


def cubic_weights(size_px: int, samples: int, device: torch.device) -> Tensor:
    """Return (size_px, samples) weights that interpolate samples at pixel centres.

    Keys' cubic convolution (a = -1/2): sharper than the spline, and exact at the samples.
    """
    places = (torch.arange(size_px, dtype=torch.float64) + 0.5) / size_px * samples - 0.5
    weights = torch.zeros(size_px, samples, dtype=torch.float64)
    first = places.floor().long() - 1
    for i in range(4):
        distance = (places - (first + i)).abs()
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        value = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
        index = (first + i).clamp(0, samples - 1)  # beyond the frame its border is repeated
        weights.scatter_add_(1, index[:, None], value[:, None])
    return weights.float().to(device)
