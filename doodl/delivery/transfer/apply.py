"""A fitted change made on images and on the photo itself, at any resolution."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from doodl.delivery.transfer.fit import LocalAffine
from doodl.delivery.transfer.guide import CHANNELS, cubic_weights, guide_of, spline_weights

WeightsOf = Callable[[int, int, torch.device], Tensor]
_TILE_ROWS = 64
_TILE_WIDTH_PX = 512  # with 64 rows a tile and its coefficients take 3 MB: about a core's cache


def apply_transfer(transfer: LocalAffine, image: Tensor, *, strength: float = 1.0) -> Tensor:
    """Return `image` with the change made, not clamped; differentiable in both arguments.

    Args:
        image: (B, 3, h, w) in [-1, 1], at any resolution of the frames the fit was made on.
        strength: 0 leaves the image as it is, 1 makes the whole change.
    """
    batch, _, height, width = image.shape
    grid = transfer.coefficients
    rows = spline_weights(height, grid.shape[2], image.device)
    columns = spline_weights(width, grid.shape[3], image.device)
    if grid.shape[0] != batch:
        raise ValueError(f"a transfer of {grid.shape[0]} photos got {batch} images")
    slope, offset = (rows @ (grid @ columns.T)).split((3 * CHANNELS, 3), dim=1)
    change = (slope.unflatten(1, (3, -1)) * guide_of(image.float())[:, None]).sum(2) + offset
    return image + strength * change.to(image.dtype)


@torch.no_grad()
def apply_transfer_to_pixels(
    transfer: LocalAffine,
    pixels: np.ndarray,
    *,
    strength: float = 1.0,
    detail: Tensor | None = None,
    tile_rows: int = _TILE_ROWS,
) -> np.ndarray:
    """Return the full-resolution pixels with the change made, rounded and clipped to their dtype.

    Works in tiles, in float32: beyond input and output it holds a few MB, whatever the photo's
    size. Runs on torch's intra-op threads.

    Args:
        transfer: of one photo (a batch of one).
        pixels: (H, W, 3) uint8 or uint16. With a grey transfer they have R = G = B, and keep it
            exactly.
        strength: 0 returns a copy of the input, 1 makes the whole change.
        detail: (3, h, w) to add at strength 1, in units of [-1, 1], enlarged; None adds none.
    """
    _check_pixels(pixels)
    if len(transfer.grey) != 1:
        raise ValueError(f"a transfer of {len(transfer.grey)} photos got one; take transfer[i]")
    if strength == 0:
        return pixels.copy()
    half_range = np.iinfo(pixels.dtype).max / 2
    grid = half_range * strength * transfer.detach().coefficients[0]
    slope, offset = grid[: 3 * CHANNELS].unflatten(0, (3, -1)), grid[3 * CHANNELS :]
    grey = transfer.grey[0]
    added = None if detail is None else half_range * strength * detail.float().cpu()
    if grey:  # the three colours are one: add up what it contributes, and compute it once
        slope = torch.cat([slope[:1, :3].sum(1, keepdim=True), slope[:1, 3:]], dim=1)
        offset, pixels = offset[:1], pixels[:, :, :1]
        added = None if added is None else added.mean(0, keepdim=True)
    grid = torch.cat([slope.flatten(0, 1), offset])
    height, width, colours = pixels.shape
    result = np.empty_like(pixels)
    enlarged = _tiles(grid, height, width, spline_weights, tile_rows)
    details = None if added is None else _tiles(added, height, width, cubic_weights, tile_rows)
    for strip, part, sliced in enlarged:
        tile = torch.from_numpy(pixels[strip, part].astype(np.float32)).permute(2, 0, 1)
        tile = tile.contiguous()
        guide = guide_of((tile / half_range - 1)[None])[0]
        change = None if details is None else next(details)[2]
        for i in range(colours):
            changed = sliced[colours * len(guide) + i].add_(tile[i])
            for j in range(len(guide)):
                changed.addcmul_(sliced[len(guide) * i + j], guide[j])
            if change is not None:
                changed.add_(change[i])
            result[strip, part, i] = changed.round_().clamp_(0, 2 * half_range).numpy()
    return np.repeat(result, 3, axis=2) if grey else result


@torch.no_grad()
def enlarge_to_pixels(
    image: Tensor, pixels: np.ndarray, *, strength: float = 1.0, tile_rows: int = _TILE_ROWS
) -> np.ndarray:
    """Return an image enlarged to the size and dtype of a photo's pixels.

    Args:
        image: (3, h, w) in [-1, 1].
        pixels: (H, W, 3) uint8 or uint16, of which 1 - strength shows through.
    """
    _check_pixels(pixels)
    half_range = np.iinfo(pixels.dtype).max / 2
    levels = half_range * (image.detach().float().cpu().clamp(-1, 1) + 1)
    result = np.empty_like(pixels)
    height, width, _ = pixels.shape
    for strip, part, tile in _tiles(levels, height, width, cubic_weights, tile_rows):
        source = torch.from_numpy(pixels[strip, part].astype(np.float32))
        mixed = source.lerp_(tile.permute(1, 2, 0), strength)
        result[strip, part] = mixed.round_().clamp_(0, 2 * half_range).numpy()
    return result


def _tiles(
    grid: Tensor, height: int, width: int, weights_of: WeightsOf, tile_rows: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows, columns, values) of `grid` (C, h, w) enlarged to (C, height, width)."""
    rows = weights_of(height, grid.shape[1], grid.device)
    columns = weights_of(width, grid.shape[2], grid.device)
    for top in range(0, height, tile_rows):
        strip = slice(top, min(top + tile_rows, height))
        across = rows[strip] @ grid  # (C, rows of the tile, columns of the grid)
        for left in range(0, width, _TILE_WIDTH_PX):
            part = slice(left, min(left + _TILE_WIDTH_PX, width))
            weights = columns[part]
            used = weights.any(0).nonzero()
            near = slice(int(used[0]), int(used[-1]) + 1)
            yield strip, part, across[:, :, near] @ weights[:, near].T


def _check_pixels(pixels: np.ndarray) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}; they must be (H, W, 3) uint8 or uint16"
        )
