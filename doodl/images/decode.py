"""Bytes to a `Photo`, or one line that says what is wrong with them."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from doodl.images import deep
from doodl.images.checks import check_kind, check_pages, check_size, one_line_errors
from doodl.images.colour import cicp_profile, cmyk_to_rgb, implied_by_exif
from doodl.images.containers import (
    jpeg_dropped,
    jpeg_extras,
    png_cicp,
    png_dropped,
    png_extras,
    webp_is_lossless,
)
from doodl.images.heif import C2PA_UUID, decode_heif, open_heif
from doodl.images.isobmff import av1_bits, av1_subsampling, nclx
from doodl.images.photo import Photo, upright
from doodl.images.sniff import sniff
from doodl.images.tiff import read_tags, tiff_dropped, tiff_facts

# The plugins are called directly: Image.open compares sizes with a limit that is global to the
# process and warns about it, and it would take an MPO for something other than a JPEG.
_OPENERS: Mapping[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_ORIENTATION = 0x0112


def decode_photo(data: bytes, *, max_pixels: int = 200_000_000) -> Photo:
    """Return the photo in `data` as displayed, with what is needed to write it back in kind.

    Args:
        data: a JPEG, PNG, TIFF, WebP, HEIC, AVIF, BMP or GIF file.
        max_pixels: checked on the header, before anything is decoded.
    Raises: UnreadablePhotoError, UnsupportedPhotoError, PhotoTooLargeError, PhotoTooSmallError.
    """
    kind = sniff(data)
    with one_line_errors(kind, data, max_pixels):
        if kind == "HEIF":
            file = open_heif(data)
            check_size(file.size[0], file.size[1], max_pixels)
            return decode_heif(file, data)
        if kind == "TIFF":
            check_pages(data)
            layout = deep.tiff_layout(data)
            if layout.bits > 8 or layout.spare:  # Pillow would cut the one, leave out the other
                check_size(layout.width_px, layout.height_px, max_pixels)
                return _deep_tiff(data, layout)
        return _by_pillow(kind, data, max_pixels)


def _by_pillow(kind: str, data: bytes, max_pixels: int) -> Photo:
    image = _OPENERS[kind](io.BytesIO(data))
    check_size(image.width, image.height, max_pixels)
    bits = _bits_per_channel(kind, image, data)
    check_kind(kind, image, bits)
    orientation = image.getexif().get(_ORIENTATION, 1)
    xmp = image.info.get("xmp")
    image.load()
    # Only after loading: Pillow turns a TIFF upright by itself, and says so here; a PNG may
    # hold its texts behind the pixels.
    to_turn = image.getexif().get(_ORIENTATION, 1)
    xmp = xmp or image.info.get("xmp")
    exif = _exif_block(image)
    icc_profile = image.info.get("icc_profile") or None
    implied = None if icc_profile else _implied_profile(kind, data, exif)
    fields: dict[str, Any] = {
        "format": kind,
        "mode": image.mode,
        "coding": _coding(kind, image, data),
        "extras": _extras(kind, data),
        "dropped": _dropped(kind, data),
    }
    if bits > 8:
        samples = _deep_samples(kind, data)
        colours, alpha = _split(samples)
        cmyk = None
        fields |= {"mode": deep.MODES[samples.shape[2]], "bits": bits}
        if kind == "AVIF":  # nothing here writes one of more than 8 bits with its metadata
            fields |= {"format": "PNG", "bits": 16, "coding": {}, "extras": ()}
            fields["dropped"] += (f"the AVIF form (its {bits} bits are kept in a 16-bit PNG)",)
    else:
        colours, alpha, cmyk = _planes(image)
    return Photo(
        pixels=upright(colours, to_turn),
        alpha=None if alpha is None else upright(alpha, to_turn),
        cmyk=None if cmyk is None else upright(cmyk, to_turn),
        exif=exif,
        orientation=orientation if orientation in range(1, 9) else 1,
        icc_profile=icc_profile,
        implied_profile=implied,
        xmp=xmp if isinstance(xmp, bytes) else None,
        dpi=image.info.get("dpi"),
        **fields,
    )


def _deep_tiff(data: bytes, layout: deep.TiffLayout) -> Photo:
    """Return a TIFF of 16 bits or of spare channels; Pillow has no part in it."""
    tags = read_tags(data)
    orientation, xmp, icc_profile = tiff_facts(tags)
    samples = deep.read_tiff(data, layout)
    shown = layout.channels - layout.spare
    colours, alpha = _split(samples[:, :, :shown])
    spare = np.ascontiguousarray(samples[:, :, shown:]) if layout.spare else None
    return Photo(
        pixels=upright(colours, orientation),
        format="TIFF",
        mode=deep.MODES[shown],
        bits=layout.bits,
        alpha=None if alpha is None else upright(alpha, orientation),
        spare=None if spare is None else upright(spare, orientation),
        orientation=orientation if orientation in range(1, 9) else 1,
        icc_profile=icc_profile,
        xmp=xmp,
        coding=layout.coding,
        extras=tags,
        dropped=_dropped("TIFF", data),
    )


def _deep_samples(kind: str, data: bytes) -> np.ndarray:
    """Return (H, W, C) uint16 samples, as stored, of a PNG or AVIF of more than 8 bits."""
    if kind == "PNG":
        return deep.read_png(data)
    import imagecodecs

    samples = imagecodecs.avif_decode(data, numthreads=1)
    peak = 2 ** av1_bits(data) - 1
    samples = ((samples.astype(np.uint32) * 65535 + peak // 2) // peak).astype(np.uint16)
    return samples[:, :, None] if samples.ndim == 2 else samples


def _split(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (H, W, 3) colours and alpha (or None) of (H, W, 1 to 4) samples."""
    height, width, channels = samples.shape
    alpha = np.ascontiguousarray(samples[:, :, -1]) if channels in (2, 4) else None
    colours = samples[:, :, :-1] if alpha is not None else samples
    return np.ascontiguousarray(np.broadcast_to(colours, (height, width, 3))), alpha


def _bits_per_channel(kind: str, image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the file's bit depth: Pillow opens 16-bit RGB PNGs and 10-bit AVIFs as 8-bit."""
    if kind == "PNG":
        return data[24]
    if kind == "AVIF":
        return av1_bits(data)
    return 16 if image.mode.startswith(("I", "F")) else 8


def _implied_profile(kind: str, data: bytes, exif: bytes | None) -> bytes | None:
    """Return the profile of a colour space that the file names without an ICC profile."""
    code_points = png_cicp(data) if kind == "PNG" else nclx(data) if kind == "AVIF" else None
    return cicp_profile(*code_points) if code_points else implied_by_exif(exif)


def _dropped(kind: str, data: bytes) -> tuple[str, ...]:
    if kind == "TIFF":
        _, smaller = deep.count_tiff_pages(data)
        layout = deep.tiff_layout(data)
        spots = layout.photometric == deep.INKS and layout.channels > 4
        found = (("smaller copies or masks", smaller), ("inks beyond four", spots))
        return tiff_dropped(data) + tuple(words for words, held in found if held)
    if kind == "JPEG":
        return jpeg_dropped(data)
    if kind == "PNG":
        return png_dropped(data)
    mark = {"WEBP": b"C2PA", "AVIF": C2PA_UUID}.get(kind)
    signed = mark is not None and mark in data
    return ("Content Credentials (C2PA)",) if signed else ()


def _exif_block(image: ImageFile.ImageFile) -> bytes | None:
    """Return the EXIF block from its TIFF header on; a TIFF's tags are kept as its extras."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        # ImageMagick writes a PNG's EXIF as text, which Pillow reads but does not show in info.
        block = image.getexif().tobytes() if len(image.getexif()) else None
    return block.removeprefix(b"Exif\0\0") if block else None


def _extras(kind: str, data: bytes) -> tuple[Any, ...]:
    if kind == "JPEG":
        return jpeg_extras(data)
    if kind == "PNG":
        return png_extras(data)
    return read_tags(data) if kind == "TIFF" else ()


def _coding(kind: str, image: ImageFile.ImageFile, data: bytes) -> dict[str, Any]:
    """Return how the file was compressed, as keyword arguments of Image.save."""
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        tables = image.quantization
        coding: dict[str, Any] = {"qtables": [tables[i] for i in sorted(tables)]}
        if len(image.getbands()) == 3:
            sampling = JpegImagePlugin.get_sampling(image)
            coding["subsampling"] = sampling if sampling >= 0 else 0  # 4:4:4 holds any other
            coding["keep_rgb"] = image.info.get("adobe_transform") == 0
        if image.info.get("progressive"):
            coding["progressive"] = True
        return coding
    if kind == "TIFF":
        compression = image.info.get("compression", "raw")
        coding = {"compression": compression} | ({"quality": 95} if compression == "jpeg" else {})
        if deep.tiff_layout(data).predictor == deep.HORIZONTAL:
            coding["tiffinfo"] = {deep.PREDICTOR: deep.HORIZONTAL}
        return coding
    if kind == "WEBP" and webp_is_lossless(data):
        return {"lossless": True, "exact": True}
    if kind == "AVIF":
        return {"subsampling": av1_subsampling(data), "source_bytes": len(data)}
    if kind == "GIF":
        return {"comment": image.info["comment"]} if image.info.get("comment") else {}
    return {"source_bytes": len(data)} if kind == "WEBP" else {}


def _planes(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return RGB pixels, alpha and inks of a loaded picture, the last two None without."""
    if image.mode == "CMYK":
        return np.array(cmyk_to_rgb(image, image.info.get("icc_profile"))), None, np.array(image)
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        rgba = np.array(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[:, :, :3]), np.ascontiguousarray(rgba[:, :, 3]), None
    return np.array(image.convert("RGB")), None, None
