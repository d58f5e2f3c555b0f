"""What is refused before it is decoded, and what a decoder's complaint becomes."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageFile

from doodl.errors import (
    PhotoTooLargeError,
    PhotoTooSmallError,
    UnreadablePhotoError,
    UnsupportedPhotoError,
)
from doodl.images.deep import count_tiff_pages, is_raw
from doodl.images.photo import MIN_SIDE_PX

_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,  # imagecodecs, pillow_heif, the AVIF decoder
    struct.error,
    zlib.error,
)
_SUPPORTED_MODES = {"L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


@contextmanager
def one_line_errors(kind: str, data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn what the decoders raise into a PhotoError of one line."""
    try:
        yield
    except Image.DecompressionBombError:
        raise _too_large("its header declares, or it unpacks to,", max_pixels) from None
    except _DECODE_ERRORS as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UnreadablePhotoError(
            f"the {kind} cannot be decoded ({reason}; {len(data):,} bytes); is the copy complete?"
        ) from error


def _too_large(what: str, max_pixels: int) -> PhotoTooLargeError:
    return PhotoTooLargeError(
        f"{what} more pixels than the limit of {max_pixels / 1e6:.0f} megapixels; "
        "raise max_pixels if it is really a photo"
    )


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise PhotoTooLargeError or PhotoTooSmallError for a size that a header declares."""
    size = f"the photo has {width:,}×{height:,} px"
    if width * height > max_pixels:
        megapixels = width * height / 1e6
        raise _too_large(f"{size} ({megapixels:.0f} megapixels),", max_pixels)
    if min(width, height) < MIN_SIDE_PX:
        raise PhotoTooSmallError(
            f"{size}; each side must be {MIN_SIDE_PX} or more: leave it out, it is not a photo"
        )


def check_pages(data: bytes) -> None:
    """Raise UnsupportedPhotoError for a camera's raw file or a TIFF of more than one full page."""
    if is_raw(data):
        raise UnsupportedPhotoError(
            "a camera's raw file; develop it first and edit the TIFF or JPEG that comes of it"
        )
    pages, _ = count_tiff_pages(data)
    if pages > 1:
        raise UnsupportedPhotoError(
            f"a TIFF of {pages} pages; only single pictures are edited: save one on its own"
        )


def check_kind(kind: str, image: ImageFile.ImageFile, bits: int) -> None:
    """Raise UnsupportedPhotoError for an animation or a kind of pixels that is not edited."""
    frames = 1 if kind == "TIFF" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise UnsupportedPhotoError(
            f"an animation of {frames} frames; only single pictures are edited: save one on its own"
        )
    if bits > 8 and kind in ("PNG", "AVIF"):
        return
    if bits > 8 or image.mode not in _SUPPORTED_MODES:
        raise UnsupportedPhotoError(
            f"pixels of mode {image.mode!r} ({kind}); convert it to RGB or greyscale"
        )
