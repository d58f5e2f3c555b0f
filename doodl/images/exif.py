"""Edit an EXIF block in place, so that every tag that is not meant to change keeps its bytes.

Rewriting EXIF through a library moves the values about, and makers' notes, which hold offsets
of their own, break. Here values stay where they are: a tag's four-byte field is overwritten, a
longer value is appended to the block, and the first directory is moved to the end if it grows.
Layout: TIFF 6.0 section 2, Exif 2.32 section 4.6.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

SOFTWARE, ORIENTATION, EXIF_IFD, GPS_IFD = 0x0131, 0x0112, 0x8769, 0x8825
_XMP_COPIES = {0x02BC, 0x8649}  # XMP itself, and Photoshop's resources, which may hold one
_THUMBNAIL_OFFSET, _THUMBNAIL_BYTES = 0x0201, 0x0202
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MAX_BLOCK_BYTES = 65533 - 6  # a JPEG segment less its length and "Exif\0\0"


class Entry(NamedTuple):
    """One row of a directory."""

    tag: int
    kind: int
    length: int
    field: bytes  # the value itself, if it fits four bytes, or its offset


class Block:
    """The bytes of an EXIF block or a TIFF, to read its directories; nothing is copied."""

    def __init__(self, data: bytes | bytearray) -> None:
        """Take the bytes from the TIFF header on; LookupError if they do not begin with one."""
        self.bytes = data
        self.order = {b"II": "<", b"MM": ">"}[bytes(data[:2])]

    def unpack(self, layout: str, at: int) -> tuple[int, ...]:
        """Return the numbers at an offset, in the block's byte order."""
        return struct.unpack_from(self.order + layout, self.bytes, at)

    def pack(self, layout: str, *values: int) -> bytes:
        """Return numbers as bytes, in the block's byte order."""
        return struct.pack(self.order + layout, *values)

    def number(self, entry: Entry) -> int:
        """Return the value of a one-number entry (SHORT or LONG)."""
        layout = "H" if entry.kind == 3 else "I"
        return struct.unpack_from(self.order + layout, entry.field)[0]

    def read(self, at: int) -> tuple[list[Entry], int]:
        """Return a directory's entries and the offset of the next directory (0: none)."""
        (count,) = self.unpack("H", at)
        entries = []
        for i in range(count):
            tag, kind, size = self.unpack("HHI", at + 2 + 12 * i)
            field = bytes(self.bytes[at + 10 + 12 * i : at + 14 + 12 * i])
            entries.append(Entry(tag, kind, size, field))
        return entries, self.unpack("I", at + 2 + 12 * count)[0]

    def value(self, entry: Entry) -> bytes:
        """Return the bytes of an entry's value; struct.error if they lie outside the block."""
        size = _TYPE_BYTES.get(entry.kind, 1) * entry.length
        if size <= 4:
            return entry.field[:size]
        (at,) = struct.unpack(self.order + "I", entry.field)
        if at + size > len(self.bytes):
            raise struct.error(f"tag {entry.tag:#06x} points outside the block")
        return bytes(self.bytes[at : at + size])

    def directory(self, entries: list[Entry], following: int) -> bytes:
        """Return the bytes of a directory."""
        rows = (self.pack("HHI", e.tag, e.kind, e.length) + e.field for e in sorted(entries))
        return self.pack("H", len(entries)) + b"".join(rows) + self.pack("I", following)


class Draft(Block):
    """A copy of a block that is being changed. buffer: its bytes."""

    def __init__(self, data: bytes) -> None:
        """Copy the bytes; as `Block`."""
        self.buffer = bytearray(data)
        super().__init__(self.buffer)

    def append(self, data: bytes) -> int:
        """Append bytes at an even offset and return it."""
        self.buffer += b"\0" * (len(self.buffer) % 2)
        self.buffer += data
        return len(self.buffer) - len(data)

    def blank(self, at: int, size: int) -> None:
        """Overwrite bytes that nothing refers to any more."""
        end = min(at + size, len(self.buffer))
        if 8 <= at < end:
            self.buffer[at:end] = bytes(end - at)

    def blank_value(self, entry: Entry) -> None:
        """Overwrite an entry's value if it lies outside its directory."""
        size = _TYPE_BYTES.get(entry.kind, 1) * entry.length
        if size > 4:
            self.blank(struct.unpack(self.order + "I", entry.field)[0], size)

    def blank_directory(self, at: int) -> None:
        """Overwrite a directory and the values that only it refers to."""
        entries, _ = self.read(at)
        for entry in entries:
            self.blank_value(entry)
        self.blank(at, 2 + 12 * len(entries) + 4)


def edit_exif(
    data: bytes | None,
    *,
    software: str,
    thumbnail: Callable[[int | None], bytes] | None = None,
    strip_gps: bool = False,
    orientation: int = 1,
) -> bytes:
    """Return the EXIF block of the edited photo.

    Software is set, an embedded thumbnail is replaced, the GPS directory is erased on request;
    every other tag keeps its value, Orientation too: the picture is stored as the source's was.

    Args:
        data: the source's block from its TIFF header on; None makes one that holds Software.
        thumbnail: makes the JPEG bytes of a new thumbnail, stored in the orientation it is called
            with, or where that is None in the picture's; called only if the source has one.
        orientation: of the picture; only a new block needs it.
    Raises: struct.error, KeyError or IndexError if the block is malformed.
    """
    value = software.encode("ascii", "replace") + b"\0"
    if not data:
        return _new_block(value, orientation)
    block = Draft(data)
    (at,) = block.unpack("I", 4)
    entries, following = block.read(at)
    by_tag = {entry.tag: entry for entry in entries}

    if strip_gps:
        if GPS_IFD in by_tag:
            block.blank_directory(block.number(by_tag.pop(GPS_IFD)))
        for tag in _XMP_COPIES & by_tag.keys():
            block.blank_value(by_tag.pop(tag))
    if following:
        following = _replace_thumbnail(block, following, thumbnail)
    room = _MAX_BLOCK_BYTES - len(block.buffer) - len(value)
    if room > 12 * (len(by_tag) + 1) + 8:  # else a JPEG could not hold the block at all
        by_tag[SOFTWARE] = Entry(SOFTWARE, 2, len(value), block.pack("I", block.append(value)))

    directory = block.directory(list(by_tag.values()), following)
    block.blank(at, 2 + 12 * len(entries) + 4)
    if len(by_tag) > len(entries):
        at = block.append(directory)
        block.buffer[4:8] = block.pack("I", at)
    else:
        block.buffer[at : at + len(directory)] = directory
    return bytes(block.buffer)


def _new_block(software: bytes, orientation: int) -> bytes:
    block = Draft(struct.pack("<2sHI", b"II", 42, 8))
    turned = (
        [Entry(ORIENTATION, 3, 1, block.pack("HH", orientation, 0))] if orientation != 1 else []
    )
    at = 8 + 2 + 12 * (len(turned) + 1) + 4
    entries = [*turned, Entry(SOFTWARE, 2, len(software), block.pack("I", at))]
    return bytes(block.buffer) + block.directory(entries, 0) + software


def _replace_thumbnail(block: Draft, at: int, make: Callable[[int | None], bytes] | None) -> int:
    """Put a new thumbnail where the old one was, or at the end; return its directory's offset.

    A thumbnail that cannot be replaced is dropped: it would show the photo before the edit.
    """
    entries, _ = block.read(at)
    by_tag = {entry.tag: entry for entry in entries}
    if _THUMBNAIL_OFFSET not in by_tag or _THUMBNAIL_BYTES not in by_tag:
        block.blank_directory(at)
        return 0
    start = block.number(by_tag[_THUMBNAIL_OFFSET])
    size = block.number(by_tag[_THUMBNAIL_BYTES])
    if start + size >= len(block.buffer) - 1 and start > at:
        del block.buffer[start:]
    else:
        block.blank(start, size)
    own = by_tag.get(ORIENTATION)
    new = make(block.number(own) if own else None) if make else b""
    if not new or len(block.buffer) + len(new) > _MAX_BLOCK_BYTES - 1024:
        block.blank_directory(at)
        return 0
    where = start if len(new) <= size and start + len(new) <= len(block.buffer) else None
    if where is None:
        where = block.append(new)
    else:
        block.buffer[where : where + len(new)] = new
    by_tag[_THUMBNAIL_OFFSET] = Entry(_THUMBNAIL_OFFSET, 4, 1, block.pack("I", where))
    by_tag[_THUMBNAIL_BYTES] = Entry(_THUMBNAIL_BYTES, 4, 1, block.pack("I", len(new)))
    directory = block.directory(list(by_tag.values()), 0)
    block.buffer[at : at + len(directory)] = directory
    return at
