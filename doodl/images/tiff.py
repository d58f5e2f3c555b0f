"""A TIFF's descriptive tags, taken from the source file and put into a freshly encoded one.

Pillow writes EXIF and GPS directories into uncompressed TIFFs only, so the tags are merged here:
each value is copied byte for byte (put into the new file's byte order), directories included.
"""

import struct
from typing import NamedTuple, Union

from doodl.images.exif import (
    EXIF_IFD,
    GPS_IFD,
    ORIENTATION,
    PIXEL_X,
    PIXEL_Y,
    SOFTWARE,
    Block,
    Entry,
)
from doodl.images.photoshop import without_thumbnail

_INTEROP_IFD = 0xA005
_DIRECTORIES = {EXIF_IFD, GPS_IFD, _INTEROP_IFD}
_XMP, _PHOTOSHOP, _PHOTOSHOP_LAYERS = 0x02BC, 0x8649, 0x935C
# How the pixels lie in the file: the encoder's business. Layers and smaller copies of the picture
# would show it before the edit.
_LAYOUT = {
    *range(0x00FE, 0x0104), 0x0106, 0x0107, 0x0108, 0x0109, 0x010A, 0x0111, *range(0x0115, 0x011A),
    0x011C, 0x0120, 0x0121, 0x0122, 0x0123, 0x0124, 0x0125, 0x012D, 0x013D, *range(0x0140, 0x014B),
    0x0152, 0x0153, 0x0154, 0x0155, 0x0156, 0x015B, *range(0x0200, 0x0210),
    *range(0x0211, 0x0215), _PHOTOSHOP_LAYERS,
}  # fmt: skip
_UNIT_BYTES = {3: 2, 8: 2, 4: 4, 5: 4, 9: 4, 10: 4, 11: 4, 13: 4, 12: 8}


class Tag(NamedTuple):
    """A tag with its value in little-endian order, or the directory it points to."""

    tag: int
    kind: int
    length: int
    value: Union[bytes, "tuple[Tag, ...]"]


def read_tags(data: bytes) -> tuple[Tag, ...]:
    """Return the descriptive tags of a TIFF, directories included.

    Raises: struct.error or LookupError if a directory is malformed.
    """
    block = Block(data)
    return tuple(
        tag for tag in _read(block, block.unpack("I", 4)[0], depth=0) if tag.tag not in _LAYOUT
    )


def _read(block: Block, at: int, depth: int) -> tuple[Tag, ...]:
    tags = []
    for entry in block.read(at)[0]:
        if entry.tag in _DIRECTORIES and depth < 2:
            value: bytes | tuple[Tag, ...] = _read(block, block.number(entry), depth + 1)
        else:
            value = _swapped(block.value(entry), entry.kind, block.order)
        tags.append(Tag(entry.tag, entry.kind, entry.length, value))
    return tuple(tags)


def _swapped(value: bytes, kind: int, order: str) -> bytes:
    """Return a value turned from `order` to little-endian, or back: the same operation."""
    unit = _UNIT_BYTES.get(kind, 1)
    if order == "<" or unit == 1:
        return value
    return b"".join(value[i : i + unit][::-1] for i in range(0, len(value), unit))


def edit_tags(
    tags: tuple[Tag, ...], *, software: str, xmp: bytes | None, turned: bool, strip_gps: bool
) -> tuple[Tag, ...]:
    """Return the tags of the edited photo: upright, Software and XMP set, GPS left out if asked."""
    by_tag = {tag.tag: tag for tag in tags}
    if turned and EXIF_IFD in by_tag:
        by_tag[EXIF_IFD] = by_tag[EXIF_IFD]._replace(value=_turned(by_tag[EXIF_IFD].value))
    name = software.encode("ascii", "replace") + b"\0"
    by_tag[SOFTWARE] = Tag(SOFTWARE, 2, len(name), name)
    if ORIENTATION in by_tag:
        by_tag[ORIENTATION] = Tag(ORIENTATION, 3, 1, struct.pack("<H", 1))
    if xmp:
        by_tag[_XMP] = Tag(_XMP, 1, len(xmp), xmp)
    if _PHOTOSHOP in by_tag:
        value = by_tag[_PHOTOSHOP].value
        assert isinstance(value, bytes)
        resources = without_thumbnail(value)
        by_tag[_PHOTOSHOP] = by_tag[_PHOTOSHOP]._replace(length=len(resources), value=resources)
    if strip_gps:
        by_tag.pop(GPS_IFD, None)
    return tuple(by_tag.values())


def _turned(tags: "bytes | tuple[Tag, ...]") -> tuple[Tag, ...]:
    """Return an EXIF directory with the picture's width and height in each other's places."""
    assert isinstance(tags, tuple)
    other = {PIXEL_X: PIXEL_Y, PIXEL_Y: PIXEL_X}
    return tuple(tag._replace(tag=other.get(tag.tag, tag.tag)) for tag in tags)


def write_tags(encoded: bytes, tags: tuple[Tag, ...]) -> bytes:
    """Return a freshly encoded TIFF with the tags added."""
    block = Block(encoded)
    own, following = block.read(block.unpack("I", 4)[0])
    merged = {entry.tag: entry for entry in own}
    merged.update((tag.tag, _entry(block, tag)) for tag in tags)
    at = block.append(block.directory(list(merged.values()), following))
    block.bytes[4:8] = block.pack("I", at)
    return bytes(block.bytes)


def _entry(block: Block, tag: Tag) -> Entry:
    if isinstance(tag.value, tuple):
        entries = [_entry(block, child) for child in tag.value]
        at = block.append(block.directory(entries, 0))
        return Entry(tag.tag, 4, 1, block.pack("I", at))
    value = _swapped(tag.value, tag.kind, block.order)
    field = value.ljust(4, b"\0") if len(value) <= 4 else block.pack("I", block.append(value))
    return Entry(tag.tag, tag.kind, tag.length, field)
