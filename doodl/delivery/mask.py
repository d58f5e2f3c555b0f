"""Regions of a photo that an edit leaves as they are: masks, and who draws them.

A mask says for each pixel how much of the source stays: white is protected, black is free, grey
is between. It comes from a file beside the photo, from a `Protector`, or from both.

Faces and text are found by nothing in this package: no detector of them is small enough to ship
and good enough to trust. `load_protector("module:function")` is the hook for one of your own.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from doodl.errors import ProtectionError
from doodl.images import Photo

Protector = Callable[[np.ndarray], "np.ndarray | None"]
"""`(pixels (H, W, 3) uint8 or uint16, upright) -> (H, W)` in [0, 1] or bool, 1 is protected; None
where there is nothing to protect. Called in the workers, once a photo; what it raises fails the
photo's row."""

MAX_MASK_PIXELS = 250_000_000
_ASPECT_TOLERANCE = 0.02
_ROWS = 512


def decode_mask(data: bytes, photo: Photo) -> np.ndarray:
    """Return a mask file as (H, W) uint8 at the photo's size; 255 is protected.

    Any picture that Pillow reads serves: its lightness counts. It is upright as the photo is
    displayed, of the same aspect ratio, and is scaled to the photo's size.
    Raises: ProtectionError if it cannot be read, or is of another shape.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_MASK_PIXELS:
            raise ProtectionError(f"a mask of {image.width}x{image.height} pixels is too large.")
        mask = ImageOps.exif_transpose(image).convert("L")
    except ProtectionError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise ProtectionError(f"the mask cannot be read as a picture: {error}") from error
    size = (photo.width_px, photo.height_px)
    ratio = (mask.width * photo.height_px) / (mask.height * photo.width_px)
    if abs(ratio - 1) > _ASPECT_TOLERANCE:
        raise ProtectionError(
            f"the mask is {mask.width}x{mask.height}, the photo {size[0]}x{size[1]}; "
            "give a mask of the photo's own shape, as it is displayed."
        )
    return np.asarray(mask if mask.size == size else mask.resize(size, Image.Resampling.BOX))


def checked_mask(mask: np.ndarray | None, photo: Photo) -> np.ndarray | None:
    """Return what a `Protector` gave as (H, W) uint8; None if it protects nothing.

    Raises: ProtectionError if it is not (H, W) of the photo in [0, 1].
    """
    if mask is None:
        return None
    values = np.asarray(mask)
    shape = photo.pixels.shape[:2]
    if values.shape != shape or values.dtype.kind not in "bfiu":
        raise ProtectionError(
            f"the protector gave {values.shape} {values.dtype}; it must give {shape} in [0, 1]."
        )
    values = values.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ProtectionError("the protector gave values outside [0, 1]; 1 is protected.")
    return np.rint(values * 255).astype(np.uint8)


def joined(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Return a mask that protects what either does; None if neither is there."""
    if first is None or second is None:
        return second if first is None else first
    return np.maximum(first, second)


def keep_protected(source: np.ndarray, edited: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `edited` with the source's pixels where the mask says so, blended where it is grey.

    Args:
        source, edited: (H, W, 3) uint8 or uint16. mask: (H, W) uint8.
    """
    kept = edited.copy()
    # By strips: a float copy of a 50-megapixel photo would take 1.2 GB.
    for top in range(0, len(source), _ROWS):
        rows = slice(top, top + _ROWS)
        share = mask[rows, :, None].astype(np.float32) / 255
        change = edited[rows].astype(np.float32) - source[rows]
        blended = np.rint(source[rows] + (1 - share) * change)
        kept[rows] = blended.astype(source.dtype)
    return kept


def keep_protected_view(view: Tensor, edited: Tensor, protect: Tensor | None) -> Tensor:
    """Return edited views (B, 3, h, w) with protected places as in view; all edited if None.

    Args:
        protect: (B, 1, h, w) in [0, 1], the share of view that stays.
    """
    return edited if protect is None else view + (1 - protect) * (edited - view)


def view_of_mask(mask: np.ndarray, height: int, width: int) -> Tensor:
    """Return the mask at the model's size, (1, 1, height, width) float32 in [0, 1]."""
    small = Image.fromarray(mask).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32) / 255)[None, None]


def mask_to_bytes(mask: np.ndarray) -> bytes:
    """Return the mask as a PNG, which is small for the masks there are."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def load_protector(name: str) -> Protector:
    """Return the function that `module:function` names: your own detector of faces, text, ….

    Raises: ValueError if the name is not of that form; ProtectionError if it cannot be imported.
    """
    module, separator, function = name.partition(":")
    if not (separator and module and function):
        raise ValueError(f"protect_with (={name!r}) must be module:function.")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ProtectionError(f"protector {name} cannot be imported: {error}") from error
    if not callable(found):
        raise ProtectionError(f"protector {name} is not a function.")
    return found
