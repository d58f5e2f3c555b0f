"""A `Photo` and its edited pixels to the bytes of a file of the same kind."""

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms

import doodl
from doodl.images.containers import (
    MAX_JPEG_XMP_BYTES,
    public_jpeg_extras,
    public_png_extras,
    write_jpeg_metadata,
    write_png_metadata,
)
from doodl.images.exif import edit_exif
from doodl.images.photo import Photo
from doodl.images.tiff import edit_tags, write_tags
from doodl.images.xmp import edit_xmp

_THUMBNAIL_PX = 160  # Exif 2.32 section 4.5.5 asks for 160×120
_PALETTE_COLOURS = 256


def encode_photo(
    photo: Photo,
    pixels: np.ndarray,
    *,
    software: str = f"doodl-batch {doodl.__version__}",
    note: str | None = None,
    strip_gps: bool = False,
) -> bytes:
    """Return a file of the photo's own format and kind that shows `pixels`, metadata kept.

    The picture is stored upright. A JPEG is quantised with the source's own tables; inks and
    alpha that the edit does not concern stay as they were; a palette is kept only if the colours
    fit one. Metadata stays as it was except for Orientation, Software, the note, the thumbnail
    and, on request, the position.

    Args:
        photo: the source, as decoded.
        pixels: (H, W, 3) uint8, upright, in the photo's RGB space, of the photo's size.
        software: for EXIF's Software tag.
        note: what was done, for XMP; None writes no note.
        strip_gps: leave out the place where the photo was taken.
    """
    if pixels.shape != photo.pixels.shape or pixels.dtype != np.uint8:
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}; the photo's are uint8 {photo.pixels.shape}"
        )
    image = _in_kind(photo, pixels)
    xmp = edit_xmp(photo.xmp, note=note, strip_gps=strip_gps)
    if photo.format == "JPEG" and xmp and len(xmp) > MAX_JPEG_XMP_BYTES:
        xmp = edit_xmp(photo.xmp, note=None, strip_gps=strip_gps)  # no room for the note
    if photo.format == "TIFF":
        turned = photo.orientation >= 5
        tags = edit_tags(
            photo.extras, software=software, xmp=xmp, turned=turned, strip_gps=strip_gps
        )
        return write_tags(_save(image, "TIFF", **photo.coding), tags)
    metadata: dict[str, Any] = {
        "exif": _exif(photo, pixels, software, strip_gps),
        "xmp": xmp,
        "icc_profile": photo.icc_profile,
    }
    extras = list(photo.extras)
    if photo.format == "JPEG":
        extras = public_jpeg_extras(extras) if strip_gps else extras
        return write_jpeg_metadata(_jpeg(image, photo.coding), extras, **metadata)
    if photo.format == "PNG":
        extras = public_png_extras(extras) if strip_gps else extras
        return write_png_metadata(_save(image, "PNG", compress_level=4), extras, **metadata)
    if photo.format in ("WEBP", "AVIF"):
        kept = {key: value for key, value in metadata.items() if value}
        return _save(image, photo.format, **photo.coding, **kept)
    return _save(image, photo.format, **({"dpi": photo.dpi} if photo.dpi else {}))


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(image: Image.Image, coding: Mapping[str, Any]) -> bytes:
    try:
        return _save(image, "JPEG", **coding)
    except OSError:
        # Pillow buffers a whole progressive picture and allows it a byte per pixel; a more
        # detailed one is stored as an ordinary JPEG with the same pixels.
        return _save(image, "JPEG", **{**coding, "progressive": False})


def _in_kind(photo: Photo, pixels: np.ndarray) -> Image.Image:
    """Return the pixels as a Pillow image of the source's mode."""
    if photo.cmyk is not None:
        size = (photo.width_px, photo.height_px)
        return Image.frombytes("CMYK", size, _inks(photo, pixels).tobytes())
    planes = [pixels] if photo.alpha is None else [pixels, photo.alpha[:, :, None]]
    if photo.mode in ("L", "LA"):
        planes[0] = pixels[:, :, 1:2]
    image = Image.fromarray(np.concatenate(planes, axis=2).squeeze())
    if photo.mode in ("P", "PA"):
        return _with_palette(image, required=photo.format == "GIF")
    return image


def _inks(photo: Photo, pixels: np.ndarray) -> np.ndarray:
    """Return the inks that print `pixels`; a pixel that did not change keeps its own four."""
    assert photo.cmyk is not None
    before, after = (_separated(p, photo.icc_profile) for p in (photo.pixels, pixels))
    if before is not None and after is not None:
        # RGB does not say how much black ink a colour had, so the change is carried over.
        return (photo.cmyk + (after - before)).clip(0, 255).astype(np.uint8)
    # Without a profile, R = (255 - C) (255 - K) / 255: black stays unless it hides the new colour.
    paper = 255 - photo.cmyk[:, :, 3:].astype(np.float32)
    paper = np.maximum(paper, pixels.max(axis=2, keepdims=True)).clip(1)
    colours = 255 - 255 * pixels.astype(np.float32) / paper
    inks = np.concatenate([colours, 255 - paper], axis=2).round().astype(np.uint8)
    changed = (pixels != photo.pixels).any(axis=2, keepdims=True)
    return np.where(changed, inks, photo.cmyk)


def _separated(pixels: np.ndarray, icc_profile: bytes | None) -> np.ndarray | None:
    """Return sRGB pixels as inks, int16, or None if there is no profile that works."""
    if not icc_profile:
        return None
    try:
        inks = ImageCms.profileToProfile(
            Image.fromarray(pixels),
            ImageCms.createProfile("sRGB"),
            ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="CMYK",
        )
    except (OSError, ImageCms.PyCMSError):
        return None
    return None if inks is None else np.array(inks).astype(np.int16)


def _with_palette(image: Image.Image, *, required: bool) -> Image.Image:
    """Return the picture with a palette if its colours fit one exactly, or if it must (GIF)."""
    values = np.asarray(image)
    if required and image.mode == "RGBA":  # in a GIF a pixel is either clear or opaque
        clear = values[:, :, 3:] < 128
        values = np.where(clear, 0, values | np.array([0, 0, 0, 255], np.uint8))
    codes = values.astype(np.uint32) @ (256 ** np.arange(values.shape[2], dtype=np.uint32))
    colours, index = np.unique(codes, return_inverse=True)
    if len(colours) <= _PALETTE_COLOURS:
        palette = colours.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : values.shape[2]]
        exact = Image.fromarray(index.reshape(codes.shape).astype(np.uint8))
        exact.putpalette(palette[:, :3].tobytes())
        if image.mode == "RGBA":
            opacity = palette[:, 3].tobytes()
            exact.info["transparency"] = opacity.find(b"\0") if required else opacity
        return exact
    if not required:
        return image
    opaque = Image.fromarray(values[:, :, :3])
    limit = _PALETTE_COLOURS - (image.mode == "RGBA")
    chosen = opaque.quantize(limit, Image.Quantize.MEDIANCUT)
    dithered = opaque.quantize(palette=chosen, dither=Image.Dither.FLOYDSTEINBERG)
    if image.mode != "RGBA":
        return dithered
    marked = Image.fromarray(np.where(values[:, :, 3] == 0, limit, np.asarray(dithered)))
    marked.putpalette(dithered.getpalette() or [])
    marked.info["transparency"] = limit
    return marked


def _exif(photo: Photo, pixels: np.ndarray, software: str, strip_gps: bool) -> bytes | None:
    if photo.format in ("GIF", "BMP"):
        return None
    options: dict[str, Any] = {
        "software": software,
        "turned": photo.orientation >= 5,
        "thumbnail": lambda: _thumbnail(pixels),
        "strip_gps": strip_gps,
    }
    try:
        return edit_exif(photo.exif, **options)
    except (struct.error, LookupError):
        # A malformed block says nothing reliable about orientation or place: start a new one.
        return edit_exif(None, **options)


def _thumbnail(pixels: np.ndarray) -> bytes:
    small = Image.fromarray(pixels)
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), reducing_gap=3.0)
    return _save(small, "JPEG", quality=80)
