"""Carry a change made at the model's resolution to the full-resolution photo.

The model sees a small copy of the photo and redraws it twice: `before` (the decoded inversion)
and `after` (the decoded optimisation). Neither is fit to deliver, but their difference is the
edit. In a window around every node of a coarse grid we fit

    after - before  ≈  D · g(before) + b,      g(x) = (red, green, blue, L², L³)

with L the luminance, D 3×5 and b 3, and apply x + D · g(x) + b to the photo itself, D and b
interpolated between the nodes. The fit is a function of the pixel's own colour, so an edge in the
photo stays where it is, without a halo, and detail passes through: a guided filter (He, Sun, Tang
2010; at low resolution, He and Sun 2015) whose guide is the colour; the two powers let it follow
a tone curve. D is drawn by a ridge toward the fit over the whole frame, and that one toward zero,
so a flat sky takes the gain of its surroundings and not of its noise. `after == before` gives
D = b = 0 exactly, so autoencoder loss never touches the photo.

All images here are (B, 3, h, w) in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709
_CHANNELS = 5  # of the guide g
_NODES_PER_RADIUS = 2  # a Gaussian of standard deviation σ is well sampled at σ/2
_FRAME_RIDGE = 1 / 8  # of eps: the whole frame holds many colours
_TILE_WIDTH_PX = 512  # with 64 rows a tile and its coefficients take 3 MB: about a core's cache


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
        eps: float = 1e-2,
        grey: bool | Sequence[bool] = False,
    ) -> None:
        """Prepare to fit changes of `before`.

        Args:
            before: (B, 3, h, w) in [-1, 1]; it is a constant of the fit.
            radius: standard deviation of the window as a fraction of the shorter side.
            eps: strength of the ridge, a variance in [-1, 1] units: where the photo varies by
                less than sqrt(eps), D follows the fit over the whole frame.
            grey: for all photos or for each, fit luminance only; a greyscale photo stays grey.
        Raises: ValueError for a wrong shape, radius or eps.
        """
        if before.ndim != 4 or before.shape[1] != 3:
            raise ValueError(f"before has shape {tuple(before.shape)}; it must be (B, 3, h, w)")
        if not 0 < radius <= 1:
            raise ValueError(f"radius (={radius}) must be in (0, 1], a fraction of the short side")
        if eps <= 0:
            raise ValueError(f"eps (={eps}) must be positive")
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
        guide = _guide(self._before.double())
        products = _outer(guide, guide)
        mean, frame_mean = self._window_means(guide), guide.mean((2, 3), keepdim=True)
        covariance = self._window_means(products) - _outer(mean, mean)
        frame_covariance = products.mean((2, 3), keepdim=True) - _outer(frame_mean, frame_mean)
        self._guide = guide.float()
        self._mean, self._frame_mean = mean.float(), frame_mean.float()
        self._solve = _ridge_inverse(covariance, eps)
        self._frame_solve = _ridge_inverse(frame_covariance, eps * _FRAME_RIDGE)
        self._eps = eps

    def fit(self, after: Tensor) -> LocalAffine:
        """Return the local change that turns `before` into `after`.

        Args:
            after: same shape as before; the result is differentiable with respect to it.
        """
        change = self._as_grey(after.float()) - self._before
        moments = torch.cat([change, _outer(change, self._guide)], dim=1)
        local, frame = self._window_means(moments), moments.mean((2, 3), keepdim=True)
        frame_slope = _matmul(
            frame[:, 3:] - _outer(frame[:, :3], self._frame_mean), self._frame_solve
        )
        # Ridge toward the frame's slope D_f: D = (cov(d, g) + eps D_f) (cov(g, g) + eps I)^-1
        pulled = local[:, 3:] - _outer(local[:, :3], self._mean) + self._eps * frame_slope
        slope = _matmul(pulled, self._solve)
        offset = local[:, :3] - (slope.unflatten(1, (3, -1)) * self._mean[:, None]).sum(2)
        rows, columns = self._smooth
        coefficients = rows @ torch.cat([slope, offset], dim=1) @ columns.T
        return LocalAffine(coefficients, self.grey)

    def _as_grey(self, image: Tensor) -> Tensor:
        """Replace the colours of the grey photos by their luminance, three times.

        On such an image the fit below can only find three equal rows, so R = G = B stays equal.
        """
        if not any(self.grey):
            return image
        luminance = _luminance(image).expand_as(image)
        if all(self.grey):
            return luminance
        mask = torch.tensor(self.grey, device=image.device).view(-1, 1, 1, 1)
        return torch.where(mask, luminance, image)

    def _window_means(self, image: Tensor) -> Tensor:
        rows, columns = (window.to(image.dtype) for window in self._windows)
        return rows @ (image @ columns.T)


def fit_transfer(
    before: Tensor,
    after: Tensor,
    *,
    radius: float = 1 / 16,
    eps: float = 1e-2,
    grey: bool | Sequence[bool] = False,
) -> LocalAffine:
    """Return the local change that turns `before` into `after`; see `TransferFit`."""
    return TransferFit(before, radius=radius, eps=eps, grey=grey).fit(after)


def apply_transfer(transfer: LocalAffine, image: Tensor, *, strength: float = 1.0) -> Tensor:
    """Return `image` with the change made, not clamped; differentiable in both arguments.

    Args:
        image: (B, 3, h, w) in [-1, 1], at any resolution of the frames the fit was made on.
        strength: 0 leaves the image as it is, 1 makes the whole change.
    """
    batch, _, height, width = image.shape
    grid = transfer.coefficients
    rows = _spline_weights(height, grid.shape[2], image.device)
    columns = _spline_weights(width, grid.shape[3], image.device)
    if grid.shape[0] != batch:
        raise ValueError(f"a transfer of {grid.shape[0]} photos got {batch} images")
    slope, offset = (rows @ (grid @ columns.T)).split((3 * _CHANNELS, 3), dim=1)
    change = (slope.unflatten(1, (3, -1)) * _guide(image.float())[:, None]).sum(2) + offset
    return image + strength * change.to(image.dtype)


@torch.no_grad()
def apply_transfer_to_pixels(
    transfer: LocalAffine,
    pixels: np.ndarray,
    *,
    strength: float = 1.0,
    tile_rows: int = 64,
) -> np.ndarray:
    """Return the full-resolution pixels with the change made, rounded and clipped to uint8.

    Works in tiles: beyond input and output it holds a few MB, whatever the photo's size. Runs on
    torch's intra-op threads.

    Args:
        transfer: of one photo (a batch of one).
        pixels: (H, W, 3) uint8. With a grey transfer they have R = G = B, and keep it exactly.
        strength: 0 returns a copy of the input, 1 makes the whole change.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}; they must be (H, W, 3) uint8")
    if len(transfer.grey) != 1:
        raise ValueError(f"a transfer of {len(transfer.grey)} photos got one; take transfer[i]")
    if strength == 0:
        return pixels.copy()
    grid = 127.5 * strength * transfer.detach().coefficients[0]
    slope, offset = grid[: 3 * _CHANNELS].unflatten(0, (3, -1)), grid[3 * _CHANNELS :]
    grey = transfer.grey[0]
    if grey:  # the three colours are one: add up what it contributes, and compute it once
        slope = torch.cat([slope[:1, :3].sum(1, keepdim=True), slope[:1, 3:]], dim=1)
        offset, pixels = offset[:1], pixels[:, :, :1]

    height, width, colours = pixels.shape
    rows = _spline_weights(height, grid.shape[1], grid.device)
    columns = _spline_weights(width, grid.shape[2], grid.device)
    grid = torch.cat([slope.flatten(0, 1), offset])
    source = torch.from_numpy(np.ascontiguousarray(pixels))
    result = torch.empty_like(source)
    for top in range(0, height, tile_rows):
        strip = slice(top, min(top + tile_rows, height))
        across = rows[strip] @ grid  # (coefficients, rows of the tile, columns of the grid)
        for left in range(0, width, _TILE_WIDTH_PX):
            part = slice(left, min(left + _TILE_WIDTH_PX, width))
            weights = columns[part]
            used = weights.any(0).nonzero()
            near = slice(int(used[0]), int(used[-1]) + 1)
            sliced = across[:, :, near] @ weights[:, near].T
            tile = source[strip, part].permute(2, 0, 1).float()
            guide = _guide((tile / 127.5 - 1)[None])[0]
            for i in range(colours):
                changed = sliced[colours * len(guide) + i].add_(tile[i])
                for j in range(len(guide)):
                    changed.addcmul_(sliced[len(guide) * i + j], guide[j])
                result[strip, part, i] = changed.round_().clamp_(0, 255).byte()
    return np.repeat(result.numpy(), 3, axis=2) if grey else result.numpy()


def _luminance(image: Tensor) -> Tensor:
    """Return (B, 1, h, w) luminance of (B, 3, h, w) colours."""
    red, green, blue = image.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _guide(image: Tensor) -> Tensor:
    """Return g(x): the colours (three, or one of a grey photo), L² and L³."""
    luminance = _luminance(image) if image.shape[1] == 3 else image
    square = luminance * luminance
    return torch.cat([image, square, square * luminance], dim=1)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Return a bᵀ per pixel, its two axes flattened row by row."""
    return (a[:, :, None] * b[:, None]).flatten(1, 2)


def _matmul(slope: Tensor, square: Tensor) -> Tensor:
    """Return the product of (B, 3·5, ..) and (B, 5, 5, ..) matrices, flattened like the first."""
    return torch.einsum("bijyx,bjkyx->bikyx", slope.unflatten(1, (3, -1)), square).flatten(1, 2)


def _ridge_inverse(covariance: Tensor, eps: float) -> Tensor:
    """Return (C + eps I)^-1 as (B, 5, 5, rows, columns), float32."""
    matrices = covariance.unflatten(1, (_CHANNELS, _CHANNELS)).permute(0, 3, 4, 1, 2)
    ridge = eps * torch.eye(_CHANNELS, dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.inv(matrices + ridge).permute(0, 3, 4, 1, 2).float()


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


def _spline_weights(size_px: int, nodes: int, device: torch.device) -> Tensor:
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
