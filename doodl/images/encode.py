"""A `Photo` and its edited pixels to the bytes of a file of the same kind."""

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from doodl.engine.software import SOFTWARE
from doodl.images import deep
from doodl.images.colour import rgb_to_cmyk
from doodl.images.containers import (
    MAX_JPEG_XMP_BYTES,
    public_jpeg_extras,
    public_png_extras,
    write_jpeg_metadata,
    write_png_metadata,
)
from doodl.images.exif import edit_exif
from doodl.images.fineness import as_fine
from doodl.images.heif import encode_heif
from doodl.images.palette import with_palette
from doodl.images.photo import Photo, as_stored
from doodl.images.tiff import edit_tags, write_tags
from doodl.images.xmp import EditNote, SourceType, edit_xmp, without_padding

_THUMBNAIL_PX = 160  # Exif 2.32 section 4.5.5 asks for 160×120
_BARE = ("GIF", "BMP")  # written without metadata
EDITED: SourceType = "compositeWithTrainedAlgorithmicMedia"
GENERATED: SourceType = "trainedAlgorithmicMedia"


def encode_photo(
    photo: Photo,
    pixels: np.ndarray,
    *,
    software: str = SOFTWARE,
    note: str | None = None,
    source_type: SourceType | None = EDITED,
    strip_gps: bool = False,
) -> bytes:
    """Return a file of the photo's own format, depth and kind that shows `pixels`, metadata kept.

    The picture is stored in the orientation of the source, whose metadata (face regions, focus
    points, sizes) speak of it so; and an unchanged part of a JPEG keeps its blocks. A JPEG is
    quantised with the source's own tables; inks and alpha that the edit does not concern stay as
    they were; a palette is kept only if the colours fit one. Metadata stays as it was except for
    Software, the history and source type in XMP, the thumbnail and, on request, the position.

    Args:
        photo: the source, as decoded.
        pixels: (H, W, 3) upright, in the photo's RGB space, of the photo's size and dtype.
        software: for EXIF's Software tag and XMP's history.
        note: what was done, for XMP's history.
        source_type: what XMP's DigitalSourceType (IPTC) becomes; None leaves XMP as it is.
        strip_gps: leave out the place where the photo was taken.
    """
    if pixels.shape != photo.pixels.shape or pixels.dtype != photo.pixels.dtype:
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}; the photo's are "
            f"{photo.pixels.dtype} {photo.pixels.shape}"
        )
    xmp = _xmp(photo, software, note, source_type, strip_gps)
    stored = _stored_planes(photo, pixels)
    if photo.format == "TIFF":
        tags = edit_tags(photo.extras, software=software, xmp=xmp, strip_gps=strip_gps)
        return write_tags(_plain_file(photo, stored), tags)
    metadata: dict[str, Any] = {
        "exif": _exif(photo, pixels, software, strip_gps),
        "xmp": xmp,
        "icc_profile": photo.icc_profile,
    }
    if photo.format == "HEIF":
        return encode_heif(photo, stored, **metadata)
    extras = list(photo.extras)
    if photo.format == "JPEG":
        extras = public_jpeg_extras(extras) if strip_gps else extras
        return write_jpeg_metadata(_plain_file(photo, stored), extras, **metadata)
    if photo.format == "PNG":
        metadata["icc_profile"] = photo.icc_profile or (
            # A PNG that was an AVIF; its own would be named by a chunk among the extras.
            None if any(name == "cICP" for name, _ in extras) else photo.implied_profile
        )
        extras = public_png_extras(extras) if strip_gps else extras
        return write_png_metadata(_plain_file(photo, stored), extras, **metadata)
    image = _in_kind(photo, stored)
    if photo.format in ("WEBP", "AVIF"):
        metadata["icc_profile"] = photo.icc_profile or photo.implied_profile
        options = {key: value for key, value in metadata.items() if value} | dict(photo.coding)
        if photo.format == "AVIF" and photo.alpha is not None:
            options |= {"codec": "aom", "advanced": {"alpha:lossless": "1"}}
        source_bytes = options.pop("source_bytes", None)
        if source_bytes is None:
            return _save(image, photo.format, **options)
        return as_fine(lambda q: _save(image, photo.format, quality=q, **options), source_bytes)
    dpi = {"dpi": photo.dpi} if photo.dpi else {}
    return _save(image, photo.format, **dpi, **photo.coding)


def _stored_planes(photo: Photo, pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, C) samples as the file stores them: grey, colours or inks, alpha, spares."""
    # Where no tag can say how the picture is turned, it is stored upright.
    orientation = 1 if photo.format in _BARE else photo.orientation
    if photo.cmyk is not None:
        return as_stored(_inks(photo, pixels), orientation)
    planes = [pixels[:, :, 1:2] if photo.mode in ("L", "LA") else pixels]
    if photo.alpha is not None:
        planes.append(photo.alpha[:, :, None])
    if photo.spare is not None:
        planes.append(photo.spare)
    joined = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
    return as_stored(joined, orientation)


def _plain_file(photo: Photo, stored: np.ndarray) -> bytes:
    """Return a JPEG, PNG or TIFF of the samples, without metadata."""
    if photo.format == "TIFF" and (photo.bits > 8 or photo.spare is not None):
        spare = 0 if photo.spare is None else photo.spare.shape[2]
        return deep.write_tiff(stored, spare=spare, **photo.coding)
    if photo.bits > 8:
        return deep.write_png(stored)
    image = _in_kind(photo, stored)
    if photo.format == "JPEG":
        return _jpeg(image, photo.coding)
    options = {"compress_level": 4} if photo.format == "PNG" else photo.coding
    return _save(image, photo.format, **options)


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


def _in_kind(photo: Photo, stored: np.ndarray) -> Image.Image:
    """Return stored 8-bit samples as a Pillow image of the source's mode."""
    if photo.cmyk is not None:
        height, width, _ = stored.shape
        return Image.frombytes("CMYK", (width, height), stored.tobytes())
    image = Image.fromarray(stored.squeeze(axis=2) if stored.shape[2] == 1 else stored)
    if photo.mode in ("P", "PA"):
        return with_palette(image, required=photo.format == "GIF")
    return image


def _inks(photo: Photo, pixels: np.ndarray) -> np.ndarray:
    """Return the inks that print `pixels`; a pixel that did not change keeps its own four."""
    assert photo.cmyk is not None
    before, after = (rgb_to_cmyk(p, photo.icc_profile) for p in (photo.pixels, pixels))
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


def _xmp(
    photo: Photo,
    software: str,
    note: str | None,
    source_type: SourceType | None,
    strip_gps: bool,
) -> bytes | None:
    if photo.format in _BARE:
        return None
    options = {
        "strip_gps": strip_gps,
        "strip_provenance": any("C2PA" in what for what in photo.dropped),
    }
    said = None
    if source_type is not None or note is not None:
        made = "generated" if source_type == GENERATED else "edited"
        lost = f"not carried over: {', '.join(photo.dropped)}" if photo.dropped else None
        said = EditNote(software, "; ".join(filter(None, [note or made, lost])), source_type)
    packet = edit_xmp(photo.xmp, said, **options)
    if photo.format == "JPEG" and packet and len(packet) > MAX_JPEG_XMP_BYTES:
        packet = without_padding(packet)
        if len(packet) > MAX_JPEG_XMP_BYTES:  # no room for the note
            packet = edit_xmp(photo.xmp, None, **options)
    return packet


def _exif(photo: Photo, pixels: np.ndarray, software: str, strip_gps: bool) -> bytes | None:
    if photo.format in _BARE:
        return None
    options: dict[str, Any] = {
        "software": software,
        "thumbnail": lambda own: _thumbnail(pixels, own or photo.orientation),
        "strip_gps": strip_gps,
        "orientation": photo.orientation,
    }
    try:
        return edit_exif(photo.exif, **options)
    except (struct.error, LookupError):
        # A malformed block says nothing reliable about its tags or a place: start a new one.
        return edit_exif(None, **options)


def _thumbnail(pixels: np.ndarray, orientation: int) -> bytes:
    """Return a small JPEG, turned as the picture is stored: that is how viewers take it."""
    step = max(1, min(pixels.shape[:2]) // (4 * _THUMBNAIL_PX))
    coarse = pixels[::step, ::step]
    if coarse.dtype == np.uint16:
        coarse = (coarse >> 8).astype(np.uint8)
    small = Image.fromarray(np.ascontiguousarray(as_stored(coarse, orientation)))
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), reducing_gap=3.0)
    return _save(small, "JPEG", quality=80)
