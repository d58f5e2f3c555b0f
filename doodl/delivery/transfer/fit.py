"""Carry a change made at the model's resolution to the full-resolution photo.

The model sees a small copy of the photo and redraws it twice: `before` (the decoded inversion)
and `after` (the decoded optimisation). Neither is fit to deliver, but their difference is the
edit. In a window around every node of a coarse grid we fit

    after - before  ≈  D · g(before) + b + C · (place - node),   g(x) = (red, green, blue, L², L³)

with L the luminance, D 3×5, b 3 and C 3×2, and apply x + D · g(x) + b to the photo itself, D and
b interpolated between the nodes. C only keeps a change that grows across the window (a vignette
lifted) from being taken for one of colour: 2 to 3 dB on such changes. The fit is a function of
the pixel's own colour, so an edge in the photo stays where it is, without a halo, and detail
passes through: a guided filter (He, Sun, Tang 2010; at low resolution, He and Sun 2015) whose
guide is the colour; the two powers let it follow a tone curve. D is drawn by a ridge toward the
fit over the whole frame, and that one toward zero, so a flat sky takes the gain of its
surroundings and not of its noise. `after == before` gives D = b = 0 exactly, so autoencoder loss
never touches the photo.

The numbers fitted are the photo's own, gamma-coded ones. In linear light the same fit is 6 dB
farther from the wanted photo (`tests/benchmarks/transfer.py`): curves of tone, which is what
edits mostly are, are no low powers of light, and the decoder's errors in the shadows, where
linear light is finest, count too much.

All images here are (B, 3, h, w) in [-1, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl.delivery.transfer.guide import CHANNELS, guide_of, luminance

_NODES_PER_RADIUS = 2  # a Gaussian of standard deviation σ is well sampled at σ/2
_FRAME_RIDGE = 1 / 8  # of eps: the whole frame holds many colours
_PLACES = 2  # along a row, along a column


@dataclass(frozen=True)
class LocalAffine:
    """A change of colour per place, affine in the guide g, for each photo of a batch.

    coefficients: (B, 18, rows, columns): D row by row, then b, at the nodes of a grid whose
        outer nodes lie on the frame's borders; it serves any resolution of the same frame.
    grey: for each photo, whether the change is one of luminance only.
    """

    coefficients: Tensor
    grey: tuple[bool, ...]

    def __getitem__(self, index: int) -> "LocalAffine":
        """Return the transfer of one photo, as a batch of one."""
        return LocalAffine(self.coefficients[index][None], (self.grey[index],))

    def detach(self) -> "LocalAffine":
        """Return the same transfer without its graph, on the CPU in float32."""
        return LocalAffine(self.coefficients.detach().float().cpu(), self.grey)


class TransferFit:
    """Everything about a fit that depends on `before` alone, so that `fit` is cheap in a loop."""

    def __init__(
        self,
        before: Tensor,
        *,
        radius: float = 1 / 16,
        eps: float = 1e-3,
        grey: bool | Sequence[bool] = False,
        locality: float = 1.0,
    ) -> None:
        """Prepare to fit changes of `before`.

        Args:
            before: (B, 3, h, w) in [-1, 1]; it is a constant of the fit.
            radius: standard deviation of the window as a fraction of the shorter side.
            eps: strength of the ridge, a variance in [-1, 1] units: where the photo varies by
                less than sqrt(eps), D follows the fit over the whole frame.
            grey: for all photos or for each, fit luminance only; a greyscale photo stays grey.
            locality: share of what the places differ in; 0 is one change for the whole frame.
        Raises: ValueError for a wrong shape, radius, eps or locality.
        """
        if before.ndim != 4 or before.shape[1] != 3:
            raise ValueError(f"before has shape {tuple(before.shape)}; it must be (B, 3, h, w)")
        if not 0 < radius <= 1:
            raise ValueError(f"radius (={radius}) must be in (0, 1], a fraction of the short side")
        if eps <= 0:
            raise ValueError(f"eps (={eps}) must be positive")
        if not 0 <= locality <= 1:
            raise ValueError(f"locality (={locality}) must be in [0, 1]")
        batch, _, height, width = before.shape
        flags = (bool(grey),) * batch if isinstance(grey, bool) else tuple(map(bool, grey))
        if len(flags) != batch:
            raise ValueError(f"grey has {len(flags)} entries for a batch of {batch}")
        self.grey = flags
        self._before = self._as_grey(before.detach().float())
        radius_px = max(radius * min(height, width), 1.0)
        self._windows = (
            _gaussian_windows(height, radius_px, before.device),
            _gaussian_windows(width, radius_px, before.device),
        )
        # Neighbouring windows give neighbouring fits; averaging them (the guided filter's second
        # filter) is what keeps the slope of the change smooth across the grid.
        self._smooth = tuple(
            _smoothing(len(window), _NODES_PER_RADIUS / 2, before.device)
            for window in self._windows
        )
        # Second moments are differences of nearly equal numbers on flat photos: float64 once,
        # float32 in the loop.
        guide = guide_of(self._before.double())
        places, nodes = _places(height, width, radius_px, [len(w) for w in self._windows])
        places, nodes = places.to(guide).expand(batch, -1, -1, -1), nodes.to(guide)
        known = torch.cat([guide, places], dim=1)
        middle = known.mean((2, 3), keepdim=True)
        known = known - middle  # small numbers leave small rounding errors in their products
        mean = self._window_means(known)
        covariance = self._window_means(_outer(known, known)) - _outer(mean, mean)
        frame_covariance = _outer(known, known).mean((2, 3), keepdim=True)
        frame_covariance = frame_covariance.unflatten(1, (known.shape[1], -1))
        frame_covariance = frame_covariance[:, :CHANNELS, :CHANNELS].flatten(1, 2)
        self._known, self._mean = known.float(), mean.float()
        self._frame_mean = middle[:, :CHANNELS].float()
        # Of the colours the mean, of the places how far it lies from the node (at the borders).
        mean = mean + middle
        self._from_node = torch.cat([mean[:, :CHANNELS], mean[:, CHANNELS:] - nodes], 1).float()
        self._solve = _ridge_inverse(covariance, eps)
        self._frame_solve = _ridge_inverse(frame_covariance, eps * _FRAME_RIDGE)
        self._eps, self._locality = eps, locality

    def fit(self, after: Tensor) -> LocalAffine:
        """Return the local change that turns `before` into `after`.

        Args:
            after: same shape as before; the result is differentiable with respect to it.
        """
        change = self._as_grey(after.float()) - self._before
        middle = change.mean((2, 3), keepdim=True)
        change = change - middle
        products = _outer(change, self._known)
        mean, local = self._window_means(change), self._window_means(products)
        frame = products.unflatten(1, (3, -1))[:, :, :CHANNELS].mean((3, 4), keepdim=True)
        frame_slope = _matmul(frame.flatten(1, 2), self._frame_solve)
        # Ridge toward the frame's slope D_f (and no slope in place), k = (g, place):
        # (D C) = (cov(d, k) + eps (D_f 0)) (cov(k, k) + eps I)^-1
        target = F.pad(frame_slope.unflatten(1, (3, -1)), (0, 0, 0, 0, 0, _PLACES)).flatten(1, 2)
        pulled = local - _outer(mean, self._mean) + self._eps * target
        slope = _matmul(pulled, self._solve).unflatten(1, (3, -1))
        offset = middle + mean - (slope * self._from_node[:, None]).sum(2)
        rows, columns = self._smooth
        kept = slope[:, :, :CHANNELS].flatten(1, 2)
        if self._locality < 1:
            of_frame = frame_slope.unflatten(1, (3, -1)) * self._frame_mean[:, None]
            kept = torch.lerp(frame_slope.expand_as(kept), kept, self._locality)
            offset = torch.lerp(
                (middle - of_frame.sum(2)).expand_as(offset), offset, self._locality
            )
        coefficients = rows @ torch.cat([kept, offset], dim=1) @ columns.T
        return LocalAffine(coefficients, self.grey)

    def _as_grey(self, image: Tensor) -> Tensor:
        """Replace the colours of the grey photos by their luminance, three times.

        On such an image the fit below can only find three equal rows, so R = G = B stays equal.
        """
        if not any(self.grey):
            return image
        lightness = luminance(image).expand_as(image)
        if all(self.grey):
            return lightness
        mask = torch.tensor(self.grey, device=image.device).view(-1, 1, 1, 1)
        return torch.where(mask, lightness, image)

    def _window_means(self, image: Tensor) -> Tensor:
        rows, columns = (window.to(image.dtype) for window in self._windows)
        return rows @ (image @ columns.T)


def fit_transfer(
    before: Tensor,
    after: Tensor,
    *,
    radius: float = 1 / 16,
    eps: float = 1e-3,
    grey: bool | Sequence[bool] = False,
) -> LocalAffine:
    """Return the local change that turns `before` into `after`; see `TransferFit`."""
    return TransferFit(before, radius=radius, eps=eps, grey=grey).fit(after)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Return a bᵀ per pixel, its two axes flattened row by row."""
    return (a[:, :, None] * b[:, None]).flatten(1, 2)


def _matmul(slope: Tensor, square: Tensor) -> Tensor:
    """Return the product of (B, 3·n, ..) and (B, n, n, ..) matrices, flattened like the first."""
    return torch.einsum("bijyx,bjkyx->bikyx", slope.unflatten(1, (3, -1)), square).flatten(1, 2)


def _ridge_inverse(covariance: Tensor, eps: float) -> Tensor:
    """Return (C + eps I)^-1 of flattened n×n matrices as (B, n, n, rows, columns), float32."""
    n = math.isqrt(covariance.shape[1])
    matrices = covariance.unflatten(1, (n, n)).permute(0, 3, 4, 1, 2)
    ridge = eps * torch.eye(n, dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.inv(matrices + ridge).permute(0, 3, 4, 1, 2).float()


def _places(
    height: int, width: int, radius_px: float, nodes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return places in units of the radius: of pixels (1, 2, h, w), of nodes (1, 2, rows, columns).

    Along a row first; float64.
    """
    down, across = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width))
    rows = torch.linspace(0, height, nodes[0], dtype=torch.float64)
    columns = torch.linspace(0, width, nodes[1], dtype=torch.float64)
    pixels, at = (
        torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])[None] / radius_px
        for y, x in ((down, across), (rows, columns))
    )
    return pixels, at


def _gaussian_windows(size_px: int, radius_px: float, device: torch.device) -> Tensor:
    """Return (nodes, size_px) weights of one Gaussian window per grid node, each summing to 1."""
    nodes = max(2, round(size_px * _NODES_PER_RADIUS / radius_px) + 1)
    centres = torch.linspace(0, size_px, nodes, dtype=torch.float64)
    places = torch.arange(size_px, dtype=torch.float64) + 0.5
    weights = torch.exp(-0.5 * ((centres[:, None] - places) / radius_px) ** 2)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


def _smoothing(nodes: int, spread_nodes: float, device: torch.device) -> Tensor:
    """Return the (nodes, nodes) matrix of a Gaussian blur along one side of the grid."""
    index = torch.arange(nodes, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((index[:, None] - index) / spread_nodes) ** 2)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)
