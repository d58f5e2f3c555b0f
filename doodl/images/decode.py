"""Bytes to a `Photo`, or one line that says what is wrong with them."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from doodl.errors import (
    PhotoTooLargeError,
    PhotoTooSmallError,
    UnreadablePhotoError,
    UnsupportedPhotoError,
)
from doodl.images.containers import PNG_SIGNATURE, jpeg_extras, png_extras
from doodl.images.photo import MIN_SIDE_PX, Photo
from doodl.images.tiff import read_tags

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
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,  # the AVIF decoder
    struct.error,
    zlib.error,
)
_SUPPORTED_MODES = {"L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_ORIENTATION = 0x0112
# For each EXIF orientation: the transposition that makes the picture upright.
_UPRIGHT: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: p.swapaxes(0, 1)[::-1],
}


def decode_photo(data: bytes, *, max_pixels: int = 200_000_000) -> Photo:
    """Return the photo in `data` as displayed, with what is needed to write it back in kind.

    Args:
        data: a JPEG, PNG, TIFF, WebP, BMP, GIF or AVIF file.
        max_pixels: checked on the header, before anything is decoded.
    Raises: UnreadablePhotoError, UnsupportedPhotoError, PhotoTooLargeError, PhotoTooSmallError.
    """
    kind = _sniff(data)
    try:
        image = _OPENERS[kind](io.BytesIO(data))
    except Image.DecompressionBombError:
        raise _too_large("its header declares", max_pixels) from None
    except _DECODE_ERRORS as error:
        raise UnreadablePhotoError(_broken(kind, data, error)) from error
    _check_size(image, max_pixels)
    try:
        _check_kind(kind, image, data)
        orientation = image.getexif().get(_ORIENTATION, 1)
        xmp = image.info.get("xmp")
        image.load()
        # Only after loading: Pillow turns a TIFF upright by itself, and says so here; a PNG may
        # hold its texts behind the pixels.
        to_turn = image.getexif().get(_ORIENTATION, 1)
        xmp = xmp or image.info.get("xmp")
        exif = _exif_block(image)
        extras = _extras(kind, data)
    except Image.DecompressionBombError:
        raise _too_large("it unpacks to", max_pixels) from None
    except _DECODE_ERRORS as error:
        raise UnreadablePhotoError(_broken(kind, data, error)) from error
    pixels, alpha, cmyk = (_upright(plane, to_turn) for plane in _planes(image))
    assert pixels is not None
    return Photo(
        pixels=pixels,
        format=kind,
        mode=image.mode,
        alpha=alpha,
        cmyk=cmyk,
        exif=exif,
        orientation=orientation if orientation in _UPRIGHT else 1,
        icc_profile=image.info.get("icc_profile") or None,
        xmp=xmp if isinstance(xmp, bytes) else None,
        dpi=image.info.get("dpi"),
        coding=_coding(kind, image, data),
        extras=extras,
    )


def _sniff(data: bytes) -> str:
    """Return the format that the first bytes announce; the file's name plays no part."""
    if not data:
        raise UnreadablePhotoError("the file is empty; copy it again from where it came from")
    brands = data[8:64] if data[4:8] == b"ftyp" else b""
    if brands and any(brand in brands for brand in (b"avif", b"avis")):
        return "AVIF"
    if brands and any(brand in brands for brand in (b"hei", b"hev", b"mif1", b"msf1")):
        raise UnsupportedPhotoError("HEIC photos are not read yet; convert it to JPEG or AVIF")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II+\0", b"MM\0+")):
        raise UnsupportedPhotoError("a BigTIFF; save it as an ordinary TIFF")
    for start, kind in (
        (b"\xff\xd8\xff", "JPEG"),
        (PNG_SIGNATURE, "PNG"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
    ):
        if data.startswith(start):
            return kind
    raise UnreadablePhotoError(
        f"not a photo: the file begins with {data[:12]!r}; "
        "JPEG, PNG, TIFF, WebP, BMP, GIF and AVIF are read"
    )


def _broken(kind: str, data: bytes, error: BaseException) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the {kind} cannot be decoded ({reason}; {len(data):,} bytes); is the copy complete?"


def _too_large(what: str, max_pixels: int) -> PhotoTooLargeError:
    return PhotoTooLargeError(
        f"{what} more pixels than the limit of {max_pixels / 1e6:.0f} megapixels; "
        "raise max_pixels if it is really a photo"
    )


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    size = f"the photo has {width:,}×{height:,} px"
    if width * height > max_pixels:
        megapixels = width * height / 1e6
        raise _too_large(f"{size} ({megapixels:.0f} megapixels),", max_pixels)
    if min(width, height) < MIN_SIDE_PX:
        raise PhotoTooSmallError(
            f"{size}; each side must be {MIN_SIDE_PX} or more: leave it out, it is not a photo"
        )


def _check_kind(kind: str, image: ImageFile.ImageFile, data: bytes) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        what = f"a TIFF of {frames} pages" if kind == "TIFF" else f"an animation of {frames} frames"
        raise UnsupportedPhotoError(f"{what}; only single pictures are edited: save one on its own")
    bits = _bits_per_channel(kind, image, data)
    if bits > 8:
        raise UnsupportedPhotoError(
            f"{bits} bits per channel ({kind}); only 8 are edited yet, and it is not cut to 8 "
            "silently: convert it to 8 bits"
        )
    if image.mode not in _SUPPORTED_MODES:
        raise UnsupportedPhotoError(
            f"pixels of mode {image.mode!r} ({kind}); convert it to 8-bit RGB or greyscale"
        )


def _bits_per_channel(kind: str, image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the file's bit depth: Pillow opens 16-bit RGB PNGs and 10-bit AVIFs as 8-bit."""
    if kind == "PNG":
        return data[24]
    if kind == "TIFF":
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    if kind == "AVIF":
        # AV1CodecConfigurationRecord (AV1-ISOBMFF 2.3.3): byte 2 holds high_bitdepth, twelve_bit.
        at = data.find(b"av1C")
        flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return 16 if image.mode.startswith("I") else 8


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
        return {"compression": compression} | ({"quality": 95} if compression == "jpeg" else {})
    if kind == "WEBP":
        return {"lossless": True, "exact": True} if b"VP8L" in data[12:64] else {"quality": 90}
    return {"quality": 90} if kind == "AVIF" else {}


def _planes(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return RGB pixels, alpha and inks of a loaded picture, the last two None without."""
    if image.mode == "CMYK":
        return np.array(cmyk_to_rgb(image, image.info.get("icc_profile"))), None, np.array(image)
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        rgba = np.array(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[:, :, :3]), np.ascontiguousarray(rgba[:, :, 3]), None
    return np.array(image.convert("RGB")), None, None


def cmyk_to_rgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Return a CMYK picture in sRGB, by its profile if it has one that works."""
    if icc_profile:
        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)),
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
            )
        except (OSError, ImageCms.PyCMSError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _upright(plane: np.ndarray | None, orientation: int) -> np.ndarray | None:
    if plane is None or orientation not in _UPRIGHT:
        return plane
    return np.ascontiguousarray(_UPRIGHT[orientation](plane))
