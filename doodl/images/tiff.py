"""A TIFF's descriptive tags, taken from the source file and put into a freshly encoded one.

Pillow writes EXIF and GPS directories into uncompressed TIFFs only, so the tags are merged here:
each value is copied byte for byte (put into the new file's byte order), directories included.
"""

import struct
from typing import NamedTuple, Union

from doodl.images.exif import EXIF_IFD, GPS_IFD, ORIENTATION, SOFTWARE, Block, Entry
from doodl.images.photoshop import edit_resources

_INTEROP_IFD = 0xA005
_DIRECTORIES = {EXIF_IFD, GPS_IFD, _INTEROP_IFD}
_XMP, _ICC, _PHOTOSHOP, _PHOTOSHOP_LAYERS, _C2PA = 0x02BC, 0x8773, 0x8649, 0x935C, 0xCD41
_IPTC = 0x83BB  # often typed as LONG, but a string of bytes in either byte order
# How the pixels lie in the file: the encoder's business. Layers and smaller copies of the picture
# would show it before the edit, and a C2PA manifest signs it.
_LAYOUT = {
    *range(0x00FE, 0x0104), 0x0106, 0x0107, 0x0108, 0x0109, 0x010A, 0x0111, *range(0x0115, 0x011A),
    0x011C, 0x0120, 0x0121, 0x0122, 0x0123, 0x0124, 0x0125, 0x012D, 0x013D, *range(0x0140, 0x014B),
    0x0152, 0x0153, 0x0154, 0x0155, 0x0156, 0x015B, *range(0x0200, 0x0210),
    *range(0x0211, 0x0215), _PHOTOSHOP_LAYERS, _C2PA,
}  # fmt: skip
# GeoTIFF's and GDAL's: scale, tie points, transformation, keys, and what GDAL writes of them.
_PLACES = {33550, 33920, 33922, 34264, 34735, 34736, 34737, 42112}
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
            value = block.value(entry)
            if entry.tag != _IPTC:
                value = _swapped(value, entry.kind, block.order)
        tags.append(Tag(entry.tag, entry.kind, entry.length, value))
    return tuple(tags)


def _swapped(value: bytes, kind: int, order: str) -> bytes:
    """Return a value turned from `order` to little-endian, or back: the same operation."""
    unit = _UNIT_BYTES.get(kind, 1)
    if order == "<" or unit == 1:
        return value
    return b"".join(value[i : i + unit][::-1] for i in range(0, len(value), unit))


def tiff_value(tags: tuple[Tag, ...], tag: int) -> bytes | None:
    """Return the bytes of a tag that is no directory, None without it."""
    value = next((t.value for t in tags if t.tag == tag), None)
    return value if isinstance(value, bytes) else None


def tiff_facts(tags: tuple[Tag, ...]) -> tuple[int, bytes | None, bytes | None]:
    """Return (orientation, XMP, ICC profile) of a TIFF's tags."""
    stored = tiff_value(tags, ORIENTATION)
    orientation = struct.unpack_from("<H", stored)[0] if stored and len(stored) >= 2 else 1
    return orientation, tiff_value(tags, _XMP), tiff_value(tags, _ICC)


def tiff_dropped(data: bytes) -> tuple[str, ...]:
    """Return, in words, what the first page of a TIFF holds that an edited one cannot."""
    block = Block(data)
    held = {entry.tag for entry in block.read(block.unpack("I", 4)[0])[0]}
    named = {_PHOTOSHOP_LAYERS: "Photoshop layers", _C2PA: "Content Credentials (C2PA)"}
    return tuple(words for tag, words in named.items() if tag in held)


def edit_tags(
    tags: tuple[Tag, ...], *, software: str, xmp: bytes | None, strip_gps: bool
) -> tuple[Tag, ...]:
    """Return the tags of the edited photo: Software and XMP set, GPS left out if asked."""
    by_tag = {tag.tag: tag for tag in tags}
    name = software.encode("ascii", "replace") + b"\0"
    by_tag[SOFTWARE] = Tag(SOFTWARE, 2, len(name), name)
    by_tag.pop(_XMP, None)
    if xmp:
        by_tag[_XMP] = Tag(_XMP, 1, len(xmp), xmp)
    if _PHOTOSHOP in by_tag:
        value = by_tag[_PHOTOSHOP].value
        assert isinstance(value, bytes)
        resources = edit_resources(value, strip_gps=strip_gps)
        by_tag[_PHOTOSHOP] = by_tag[_PHOTOSHOP]._replace(length=len(resources), value=resources)
    if strip_gps:
        for tag in {GPS_IFD, *_PLACES}:
            by_tag.pop(tag, None)
    return tuple(by_tag.values())


class _Appended(Block):
    """A TIFF and what is to follow its last byte: it may be too large to be copied lightly."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.more = bytearray()

    def append(self, data: bytes) -> int:
        """Append bytes at an even offset of the file and return it."""
        self.more += b"\0" * ((len(self.bytes) + len(self.more)) % 2)
        self.more += data
        return len(self.bytes) + len(self.more) - len(data)


def write_tags(encoded: bytes, tags: tuple[Tag, ...]) -> bytes:
    """Return a freshly encoded TIFF with the tags added."""
    block = _Appended(encoded)
    own, following = block.read(block.unpack("I", 4)[0])
    merged = {entry.tag: entry for entry in own}
    merged.update((tag.tag, _entry(block, tag)) for tag in tags)
    at = block.append(block.directory(list(merged.values()), following))
    return b"".join((encoded[:4], block.pack("I", at), memoryview(encoded)[8:], block.more))


def _entry(block: _Appended, tag: Tag) -> Entry:
    if isinstance(tag.value, tuple):
        entries = [_entry(block, child) for child in tag.value]
        at = block.append(block.directory(entries, 0))
        return Entry(tag.tag, 4, 1, block.pack("I", at))
    value = tag.value if tag.tag == _IPTC else _swapped(tag.value, tag.kind, block.order)
    field = value.ljust(4, b"\0") if len(value) <= 4 else block.pack("I", block.append(value))
    return Entry(tag.tag, tag.kind, tag.length, field)
