"""Colour spaces: what a photo's numbers mean, and the way to sRGB and back.

Conversions are made by Little CMS in floating point, so that a wide-gamut photo of 16 bits is
not squeezed through 8; colours outside the target's gamut come back outside [0, 1], not clipped.
"""

import io
import struct
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from doodl.errors import UnsupportedPhotoError
from doodl.images.exif import EXIF_IFD, Block
from doodl.images.photo import Photo

_INTEROP_IFD, _INTEROP_INDEX, _COLOR_SPACE = 0xA005, 1, 0xA001
_RELATIVE_COLORIMETRIC = 1
_D65 = (0.3127, 0.3290)
# Code points of ITU-T H.273: chromaticities of red, green and blue, by colour primaries.
_PRIMARIES = {
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_ADOBE_RGB = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_UNSPECIFIED, _LINEAR, _SRGB = 2, 8, 13


def pixel_profile(photo: Photo) -> bytes | None:
    """Return the ICC profile of the pixels' space if it is a usable RGB one other than sRGB."""
    data = photo.icc_profile or photo.implied_profile
    if not data or photo.mode == "CMYK":
        return None
    return data if _is_other_rgb(data) else None


@lru_cache(maxsize=16)
def _is_other_rgb(data: bytes) -> bool:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = ImageCms.getProfileDescription(profile)
        space = profile.profile.xcolor_space.strip()
        if space != "RGB" or "srgb" in name.lower():
            return False
        corners = np.array([[[0, 0, 0], [1, 1, 1]]], np.float32)
        there = _transform(corners, data, srgb_profile())
        return bool(np.isfinite(_transform(there, srgb_profile(), data)).all())
    except (OSError, ImageCms.PyCMSError, RuntimeError, ValueError):
        return False  # a broken profile: shown as sRGB, as browsers do


def to_srgb(values: np.ndarray, profile: bytes) -> np.ndarray:
    """Return colours (H, W, 3) float32, 0 to 1, of a profile's space in sRGB."""
    return _transform(values, profile, srgb_profile())


def from_srgb(values: np.ndarray, profile: bytes) -> np.ndarray:
    """Return sRGB colours (H, W, 3) float32, 0 to 1, in a profile's space."""
    return _transform(values, srgb_profile(), profile)


def _transform(values: np.ndarray, source: bytes, target: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.cms_transform(
        np.ascontiguousarray(values, np.float32),
        source,
        target,
        colorspace="rgb",
        outcolorspace="rgb",
        intent=_RELATIVE_COLORIMETRIC,
    )


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB."""
    import imagecodecs

    return imagecodecs.cms_profile("srgb")


def cicp_profile(primaries: int, transfer: int) -> bytes | None:
    """Return the profile that H.273's code points name; None for sRGB and what is taken for it.

    Raises: UnsupportedPhotoError for the HDR transfers: their white is no white of a print.
    """
    if transfer in _HDR_TRANSFERS:
        raise UnsupportedPhotoError(
            f"an HDR photo ({_HDR_TRANSFERS[transfer]}); export it in standard dynamic range"
        )
    if primaries not in _PRIMARIES and transfer != _LINEAR:
        return None
    chromaticities = _PRIMARIES.get(primaries, (0.64, 0.33, 0.30, 0.60, 0.15, 0.06))
    if transfer == _LINEAR:
        return _matrix_profile(chromaticities, gamma=1.0)
    return _matrix_profile(chromaticities, gamma=None)


def implied_by_exif(exif: bytes | None) -> bytes | None:
    """Return the profile of Adobe RGB if EXIF says so by the name of its file system's rules.

    Cameras that write no ICC profile mark it so: ColorSpace "uncalibrated" and interoperability
    index R03 (DCF 2.0, the optional colour space).
    """
    if not exif:
        return None
    try:
        block = Block(exif)
        first = {e.tag: e for e in block.read(block.unpack("I", 4)[0])[0]}
        camera = {e.tag: e for e in block.read(block.number(first[EXIF_IFD]))[0]}
        interop = {e.tag: e for e in block.read(block.number(camera[_INTEROP_IFD]))[0]}
        index = block.value(interop[_INTEROP_INDEX])
        uncalibrated = block.number(camera[_COLOR_SPACE]) != 1
    except (struct.error, LookupError):
        return None
    if not (uncalibrated and index.startswith(b"R03")):
        return None
    return _matrix_profile(_ADOBE_RGB, gamma=563 / 256)


@lru_cache(maxsize=8)
def _matrix_profile(chromaticities: tuple[float, ...], gamma: float | None) -> bytes:
    """Return a profile of these primaries, D65 white and a gamma, None meaning sRGB's curve."""
    import imagecodecs

    primaries = [
        value for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True)
        for value in (x, y, 1.0)
    ]  # fmt: skip
    curve = None if gamma is not None else _srgb_curve()
    made = imagecodecs.cms_profile(
        "rgb", whitepoint=(*_D65, 1.0), primaries=primaries, gamma=gamma, transferfunction=curve
    )
    return made[:24] + bytes(12) + made[36:]  # without the date of its making


def _srgb_curve() -> np.ndarray:
    """Return sRGB's decoding curve at 4096 points (IEC 61966-2-1)."""
    value = np.linspace(0, 1, 4096)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return (linear * 65535).round().astype(np.uint16)


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


def rgb_to_cmyk(pixels: np.ndarray, icc_profile: bytes | None) -> np.ndarray | None:
    """Return sRGB pixels as inks (H, W, 4) int16, or None if there is no profile that works."""
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
