"""Photoshop's image resources, which hold a photo's IPTC record and often a thumbnail of it."""

import struct

_SIGNATURE = b"8BIM"
_THUMBNAILS = (0x0409, 0x040C)


def without_thumbnail(resources: bytes) -> bytes:
    """Return the resources without the thumbnail, which would show the photo before the edit.

    Resources that do not parse come back as they are.
    Source: Adobe Photoshop File Formats Specification, "Image Resource Blocks".
    """
    kept, at = [], 0
    while resources.startswith(_SIGNATURE, at):
        try:
            number, name_bytes = struct.unpack_from(">HB", resources, at + 4)
            data = at + 6 + (name_bytes + 2) // 2 * 2
            (size,) = struct.unpack_from(">I", resources, data)
        except struct.error:
            return resources
        end = data + 4 + (size + 1) // 2 * 2
        if number not in _THUMBNAILS:
            kept.append(resources[at:end])
        at = end
    return b"".join(kept) + resources[at:]
