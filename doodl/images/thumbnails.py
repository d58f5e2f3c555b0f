"""Small pictures of photos for a report. Imports no torch."""

from __future__ import annotations

import io
import struct
import warnings

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from doodl.errors import UnreadablePhotoError

_MAX_PIXELS = 250_000_000
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    RuntimeError,  # pillow_heif
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow's plugins raise on files that are not whole or not what they say."""


def thumbnail(data: bytes, side_px: int = 480) -> bytes:
    """Return an upright sRGB JPEG of at most side_px a side, without metadata.

    Raises: UnreadablePhotoError if the bytes are not a photo or hold too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _open(data)
        if image.width * image.height > _MAX_PIXELS:
            raise UnreadablePhotoError(f"{image.width}x{image.height} pixels are too many.")
        image.draft("RGB", (side_px, side_px))
        profile = image.info.get("icc_profile")
        image = _to_eight_bits(ImageOps.exif_transpose(image))
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
        image = _to_srgb(image, profile)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
    except _PILLOW_ERRORS as error:
        raise UnreadablePhotoError(f"no thumbnail: {error}") from error
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if data[4:8] != b"ftyp":
            raise
    from pillow_heif import HeifImageFile  # only where there is a HEIC: it loads libheif

    return HeifImageFile(io.BytesIO(data))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image as 8 bits; Pillow's own conversion would clip at 255."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if profile and image.mode in ("RGB", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile is no reason to show nothing
    return image.convert("RGB")
