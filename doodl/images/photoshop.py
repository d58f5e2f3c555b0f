"""Photoshop's image resources, which hold a photo's IPTC record and often a thumbnail of it."""

import struct

_SIGNATURE = b"8BIM"
_THUMBNAILS = (0x0409, 0x040C)
_COPIES = (0x0422, 0x0423, 0x0424)  # of EXIF and of XMP


def edit_resources(resources: bytes, *, strip_gps: bool = False) -> bytes:
    """Return the resources without the thumbnail, which would show the photo before the edit.

    On request the copies of EXIF and XMP go too, which may hold a position. Resources that do not
    parse come back as they are, or not at all where a position must not be left in them.
    Source: Adobe Photoshop File Formats Specification, "Image Resource Blocks".
    """
    unwanted = _THUMBNAILS + (_COPIES if strip_gps else ())
    kept: list[bytes] = []
    at = 0
    while resources.startswith(_SIGNATURE, at):
        try:
            number, name_bytes = struct.unpack_from(">HB", resources, at + 4)
            data = at + 6 + (name_bytes + 2) // 2 * 2
            (size,) = struct.unpack_from(">I", resources, data)
        except struct.error:
            return b"".join(kept) if strip_gps else resources
        end = data + 4 + (size + 1) // 2 * 2
        if number not in unwanted:
            kept.append(resources[at:end])
        at = end
    return b"".join(kept) + (b"" if strip_gps else resources[at:])
