"""A decoded photo, with everything that is needed to write it back in kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

MIN_SIDE_PX = 32


# For each EXIF orientation: the transposition that makes the stored picture upright.
_UPRIGHT: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: p.swapaxes(0, 1)[::-1],
}
_INVERSE = {6: 8, 8: 6}  # the others undo themselves


def upright(plane: np.ndarray, orientation: int) -> np.ndarray:
    """Return a stored plane (H, W) or (H, W, C) as it is displayed."""
    turn = _UPRIGHT.get(orientation)
    return plane if turn is None else np.ascontiguousarray(turn(plane))


def as_stored(plane: np.ndarray, orientation: int) -> np.ndarray:
    """Return a displayed plane as a file of that orientation stores it: undoes `upright`."""
    return upright(plane, _INVERSE.get(orientation, orientation))


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as it is displayed, and what its file held besides the pixels.

    pixels: (H, W, 3) uint8, or uint16 over its whole range if the file holds more than 8 bits a
        channel; upright, in the source's own RGB space (sRGB if the source is CMYK).
    format: "JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "AVIF" or "HEIF": of the source and of
        what is delivered.
    mode: how the file stores it, in Pillow's names: "L", "LA", "P", "RGB", "RGBA", "CMYK".
    bits: significant bits per channel: 8, 10, 12 or 16.
    alpha: (H, W), dtype of the pixels, upright, or None.
    spare: (H, W, n), likewise: further channels of a TIFF (saved selections), or None.
    cmyk: (H, W, 4) uint8, upright: the inks of a CMYK source, or None.
    exif: the EXIF block, from its TIFF header on.
    orientation: how the file stores the picture, as EXIF's tag says, 1 to 8; it is delivered so.
    icc_profile: the file's. implied_profile: that of a space the file names in another way.
    dpi: horizontal and vertical.
    coding: how the file was compressed, as keyword arguments of what encodes its format.
    extras: what else the container held, to be written back as it was: JPEG segments or PNG
        chunks as (name, payload); for TIFF, its tags.
    dropped: what the file held that the delivered one will not, in words.
    """

    pixels: np.ndarray
    format: str
    mode: str
    bits: int = 8
    alpha: np.ndarray | None = None
    spare: np.ndarray | None = None
    cmyk: np.ndarray | None = None
    exif: bytes | None = None
    orientation: int = 1
    icc_profile: bytes | None = None
    implied_profile: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    coding: Mapping[str, Any] = field(default_factory=dict)
    extras: tuple[Any, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def width_px(self) -> int:
        """Width as displayed."""
        return self.pixels.shape[1]

    @property
    def height_px(self) -> int:
        """Height as displayed."""
        return self.pixels.shape[0]

    @cached_property
    def grey(self) -> bool:
        """Whether R = G = B everywhere, in a greyscale file or in an RGB one."""
        if self.mode in ("L", "LA"):
            return True
        red, green, blue = (self.pixels[:, :, i] for i in range(3))
        # A few rows tell nearly every colour photo apart before the whole frame is read.
        probe = slice(None, None, max(1, self.height_px // 16))
        if not np.array_equal(red[probe], green[probe]):
            return False
        return np.array_equal(red, green) and np.array_equal(green, blue)
