"""A decoded photo, with everything that is needed to write it back in kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

MIN_SIDE_PX = 32


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as it is displayed, and what its file held besides the pixels.

    pixels: (H, W, 3) uint8, upright, in the source's own RGB space (sRGB if the source is CMYK).
    format: "JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF" or "AVIF".
    mode: how the file stores it, in Pillow's names: "L", "LA", "P", "RGB", "RGBA", "CMYK".
    alpha: (H, W) uint8, upright, or None.
    cmyk: (H, W, 4) uint8, upright: the inks of a CMYK source, or None.
    exif: the EXIF block, from its TIFF header on. orientation: the tag's value, 1 to 8.
    dpi: horizontal and vertical.
    coding: how the file was compressed, as keyword arguments of `PIL.Image.Image.save`.
    extras: what else the container held, to be written back as it was: JPEG segments or PNG
        chunks as (name, payload); for TIFF, its tags.
    """

    pixels: np.ndarray
    format: str
    mode: str
    alpha: np.ndarray | None = None
    cmyk: np.ndarray | None = None
    exif: bytes | None = None
    orientation: int = 1
    icc_profile: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    coding: Mapping[str, Any] = field(default_factory=dict)
    extras: tuple[Any, ...] = ()

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
