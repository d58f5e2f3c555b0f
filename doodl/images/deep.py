"""PNG and TIFF of 16 bits a channel, or of channels that Pillow leaves out: read and written whole.

imagecodecs wraps libpng; tifffile knows a TIFF's layouts. Neither is asked for anything before
the header has been found to be what is supported, at a size that is.
"""

import io
import logging
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from doodl.errors import UnsupportedPhotoError
from doodl.images.exif import Block

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's name of a picture by its number of channels, colours and alpha."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 0x100, 0x101, 0x102, 0x103, 0x106
_CHANNELS, PREDICTOR, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBFILE = 0x115, 0x13D, 0x152, 0x153, 0xFE
_SUBIFDS, _DNG_VERSION = 0x14A, 0xC612
# TIFF 6.0 and later: what a photograph of 16 bits is stored with, in tifffile's names.
_COMPRESSIONS = {
    1: None, 5: "lzw", 8: "adobe_deflate", 32946: "adobe_deflate", 32773: "packbits", 50000: "zstd",
}  # fmt: skip
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _CFA, _LINEAR_RAW = 0, 1, 2, 32803, 34892
INKS = 5  # photometric interpretation "separated"
HORIZONTAL = 2  # the predictor of integers
_COLOURS = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3}
_MAX_SPARE = 8
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_MAX_PAGES = 1000


def read_png(data: bytes) -> np.ndarray:
    """Return the (H, W, C) uint16 samples of a 16-bit PNG; a clear colour becomes an alpha plane.

    Raises: RuntimeError (imagecodecs') if it is not whole and well-formed.
    """
    import imagecodecs

    return _with_channels(imagecodecs.png_decode(data))


def write_png(samples: np.ndarray) -> bytes:
    """Return a PNG of (H, W, C) uint16 samples, without metadata."""
    import imagecodecs

    plain = np.ascontiguousarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    return bytes(imagecodecs.png_encode(plain, level=4))


class TiffLayout(NamedTuple):
    """What the first page of a TIFF says of its pixels."""

    width_px: int
    height_px: int
    bits: int
    channels: int
    photometric: int
    compression: int
    predictor: int
    sample_format: int
    extra_samples: tuple[int, ...]

    @property
    def colours(self) -> int:
        """Channels of colour: 1 or 3, 0 if they are neither grey nor RGB."""
        return _COLOURS.get(self.photometric, 0)

    @property
    def has_alpha(self) -> bool:
        """Whether the first channel after the colours is their opacity."""
        return self.extra_samples[:1] in ((_ASSOCIATED_ALPHA,), (_UNASSOCIATED_ALPHA,))

    @property
    def spare(self) -> int:
        """Channels that are neither colour nor alpha: selections, as editors save them."""
        return self.channels - self.colours - self.has_alpha if self.colours else 0

    @property
    def coding(self) -> Mapping[str, Any]:
        """How it was compressed, as keyword arguments of `write_tiff`."""
        compression = _COMPRESSIONS[self.compression]
        return {"compression": compression, "predictor": bool(compression) and self.predictor > 1}


def tiff_layout(data: bytes) -> TiffLayout:
    """Return the layout of a TIFF's first page. Raises: struct.error, LookupError, ValueError."""
    block = Block(data)
    tags = {entry.tag: entry for entry in block.read(block.unpack("I", 4)[0])[0]}

    def numbers(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        if tag not in tags:
            return default
        entry = tags[tag]
        layout, size = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4)}[entry.kind]
        if not 1 <= entry.length <= 64:
            raise ValueError(f"tag {tag:#06x} has {entry.length} values")
        value = block.value(entry)[: size * entry.length]
        return struct.unpack(f"{block.order}{entry.length}{layout}", value)

    return TiffLayout(
        width_px=numbers(_WIDTH, ())[0],
        height_px=numbers(_HEIGHT, ())[0],
        bits=max(numbers(_BITS, (1,))),
        channels=numbers(_CHANNELS, (1,))[0],
        photometric=numbers(_PHOTOMETRIC, (_MIN_IS_BLACK,))[0],
        compression=numbers(_COMPRESSION, (1,))[0],
        predictor=numbers(PREDICTOR, (1,))[0],
        sample_format=max(numbers(_SAMPLE_FORMAT, (1,))),
        extra_samples=numbers(_EXTRA_SAMPLES, ()),
    )


def count_tiff_pages(data: bytes) -> tuple[int, int]:
    """Return how many full pictures a TIFF holds, and how many smaller copies or masks of them.

    Raises: struct.error or LookupError if a directory is malformed.
    """
    block = Block(data)
    (at,) = block.unpack("I", 4)
    full = others = 0
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MAX_PAGES:
        seen.add(at)
        entries, at = block.read(at)
        kind = next((block.number(e) for e in entries if e.tag == _SUBFILE), 0)
        if kind & 0b101:  # bit 0: a copy at reduced resolution; bit 2: a mask
            others += 1
        else:
            full += 1
        others += sum(e.length for e in entries if e.tag == _SUBIFDS)
    return full, others


def is_raw(data: bytes) -> bool:
    """Return whether a TIFF is a camera's raw file, whose first picture is but a preview.

    By DNG's version tag, by Canon's mark in the header, by the samples of a colour filter array,
    or by a first picture that says it is a smaller copy (as NEF, ARW and DNG have it).
    Raises: struct.error or LookupError if the directory is malformed.
    """
    block = Block(data)
    tags = {entry.tag: entry for entry in block.read(block.unpack("I", 4)[0])[0]}
    if _DNG_VERSION in tags or data[4:11] == b"\x10\0\0\0CR\2":
        return True
    if _PHOTOMETRIC in tags and block.number(tags[_PHOTOMETRIC]) in (_CFA, _LINEAR_RAW):
        return True
    return _SUBFILE in tags and block.number(tags[_SUBFILE]) & 1 == 1


def read_tiff(data: bytes, layout: TiffLayout) -> np.ndarray:
    """Return the (H, W, C) samples of a TIFF's first page, alpha unassociated, 0 black.

    uint16, or uint8 of a file of 8 bits; colours, then alpha if it has one, then the spare ones.

    Raises: UnsupportedPhotoError for a layout that is not a grey or RGB photo; ValueError,
        RuntimeError or others if the file is not whole.
    """
    import tifffile

    _check(layout)
    with _quiet("tifffile"), tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        axes, shape = page.axes, page.shape
        expected = {"Y": layout.height_px, "X": layout.width_px, "S": layout.channels}
        if any(expected.get(a, 1) != n for a, n in zip(axes, shape, strict=True)):
            raise ValueError(f"the page has {shape} samples, its header says otherwise")
        samples = page.asarray(maxworkers=1)
    samples = _with_channels(np.moveaxis(samples, 0, -1) if axes == "SYX" else samples)
    dtype = np.uint16 if layout.bits > 8 else np.uint8
    if samples.dtype != dtype:
        raise ValueError(f"the samples are {samples.dtype}")
    if samples.dtype.byteorder == ">":
        samples = samples.astype(dtype)
    if layout.photometric == _MIN_IS_WHITE:
        samples = np.concatenate([~samples[:, :, :1], samples[:, :, 1:]], axis=2)
    if layout.extra_samples[:1] == (_ASSOCIATED_ALPHA,):
        samples = _unassociated(samples, layout.colours)
    return samples


def write_tiff(
    samples: np.ndarray, *, spare: int = 0, compression: str | None = None, predictor: bool = False
) -> bytes:
    """Return a TIFF of (H, W, C) uint8 or uint16 samples without descriptive tags.

    Args:
        spare: how many of the channels, the last ones, are neither colour nor alpha.
    """
    import tifffile

    channels = samples.shape[2]
    shown = channels - spare
    extra = ["unassalpha"] * (shown in (2, 4)) + ["unspecified"] * spare
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        samples[:, :, 0] if channels == 1 else samples,
        photometric="rgb" if shown >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=extra or None,
        compression=compression,
        predictor=predictor or None,
        byteorder="<",
        bigtiff=False,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library from logging what it then raises, or what this module checks itself."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check(layout: TiffLayout) -> None:
    if layout.bits not in (8, 16) or layout.sample_format != 1:
        kind = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(layout.sample_format, "odd")
        what = f"{layout.bits}-bit {kind} samples"
    elif not layout.colours or not 0 <= layout.spare <= _MAX_SPARE:
        what = f"{layout.bits}-bit samples, {layout.channels} to a pixel, of photometric "
        what += f"interpretation {layout.photometric}"
    elif layout.compression not in _COMPRESSIONS or layout.predictor not in (1, HORIZONTAL):
        what = f"{layout.bits}-bit samples of compression {layout.compression}"
    else:
        return
    raise UnsupportedPhotoError(f"a TIFF of {what}; convert it to 8- or 16-bit RGB or greyscale")


def _unassociated(samples: np.ndarray, colours: int) -> np.ndarray:
    """Return samples whose first channels were multiplied by alpha, the next, divided by it."""
    peak = np.iinfo(samples.dtype).max
    alpha = samples[:, :, colours : colours + 1].astype(np.float32)
    divided = samples[:, :, :colours] * (peak / np.maximum(alpha, 1))
    return np.concatenate(
        [divided.round().clip(0, peak).astype(samples.dtype), samples[:, :, colours:]], axis=2
    )


def _with_channels(samples: np.ndarray) -> np.ndarray:
    return samples[:, :, None] if samples.ndim == 2 else samples
