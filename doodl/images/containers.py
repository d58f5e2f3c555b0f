"""JPEG segments and PNG chunks, read and written as they are, so that metadata stays verbatim."""

import re
import struct
import zlib
from collections.abc import Iterable

from doodl.images.photoshop import edit_resources

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PHOTOSHOP = b"Photoshop 3.0\0"
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_JFIF, _JFXX = b"JFIF\0", b"JFXX\0"
_ICC, _MPF = b"ICC_PROFILE\0", b"MPF\0"
_GAIN_MAP = b"urn:iso:std:iso:ts:21496:"
_APP0, _APP1, _APP2, _APP11, _APP13, _APP14, _COM = 0xE0, 0xE1, 0xE2, 0xEB, 0xED, 0xEE, 0xFE
_SOS, _EOI = 0xDA, 0xD9
_MAX_SEGMENT_BYTES = 65533
MAX_JPEG_XMP_BYTES = _MAX_SEGMENT_BYTES - len(_XMP)
_EXIF_PART_BYTES = _MAX_SEGMENT_BYTES - len(_EXIF)
_ICC_PART_BYTES = _MAX_SEGMENT_BYTES - len(_ICC) - 2
# Of a PNG, what describes the picture or its maker and may stand before the palette.
_PNG_KEPT = {b"cHRM", b"gAMA", b"sRGB", b"cICP", b"pHYs", b"tIME", b"tEXt", b"zTXt", b"iTXt"}
_PNG_XMP = b"XML:com.adobe.xmp"
_RAW_PROFILES = (b"Raw profile type xmp\0", b"Raw profile type APP1\0")  # ImageMagick's
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte nor a restart
_MOTION = re.compile(rb"GCamera:(?:MotionPhoto|MicroVideo)\b")


def _jpeg_header(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Return the segments before the first scan, and where that scan begins."""
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in (_SOS, _EOI):
            break
        (size,) = struct.unpack_from(">H", data, at + 2)
        segments.append((marker, data[at + 4 : at + 2 + size]))
        at += 2 + size
    return segments, at


def _jpeg_end(data: bytes, at: int) -> int:
    """Return where the picture ends whose first scan begins at `at`."""
    while (marker := _MARKER.search(data, at)) is not None:
        at = marker.start()
        if data[at + 1] == _EOI or at + 4 > len(data):
            return at + 2
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return len(data)


def jpeg_extras(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return the segments to keep as they are: JFIF, IPTC, comments, makers' own.

    Left out: EXIF, XMP and ICC (`Photo` holds them), what the encoder writes itself, thumbnails,
    and what `jpeg_dropped` names.
    """
    kept = []
    for marker, payload in _jpeg_header(data)[0]:
        if not (_APP0 <= marker <= 0xEF or marker == _COM) or marker in (_APP11, _APP14):
            continue
        if marker == _APP1 and payload.startswith((_EXIF, _XMP)):
            continue
        if marker == _APP2 and payload.startswith((_ICC, _MPF, _GAIN_MAP)):
            continue
        if marker == _APP13 and payload.startswith(_PHOTOSHOP):
            payload = _PHOTOSHOP + edit_resources(payload[len(_PHOTOSHOP) :])
        if marker == _APP0 and payload.startswith(_JFXX):
            continue
        if marker == _APP0 and payload.startswith(_JFIF) and len(payload) > 14:
            payload = payload[:12] + b"\0\0"  # width and height of the thumbnail that followed
        kept.append(("COM" if marker == _COM else f"APP{marker - _APP0}", payload))
    return tuple(kept)


def jpeg_dropped(data: bytes) -> tuple[str, ...]:
    """Return, in words, what a JPEG holds that an edited one cannot.

    Only the first of several pictures is delivered, and a C2PA manifest signs the pixels: an
    edit invalidates it.
    """
    dropped = []
    segments, scan = _jpeg_header(data)
    if any(m == _APP11 and b"c2pa" in payload for m, payload in segments):
        dropped.append("Content Credentials (C2PA)")
    if any(m == _APP2 and payload.startswith(_MPF) for m, payload in segments):
        dropped.append("further pictures (an HDR gain map or previews)")
    if any(m == _APP1 and _MOTION.search(payload) for m, payload in segments):
        dropped.append("the video of a motion photo")
    if not dropped and data[_jpeg_end(data, scan) :].strip(b"\0\xff"):
        dropped.append("what follows the picture in the file")
    return tuple(dropped)


def public_jpeg_extras(extras: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return the extras that cannot hold a position: JFIF, IPTC and comments only."""
    kept = []
    for name, payload in extras:
        if name == "APP13" and payload.startswith(_PHOTOSHOP):
            resources = edit_resources(payload[len(_PHOTOSHOP) :], strip_gps=True)
            kept.append((name, _PHOTOSHOP + resources))
        elif name in ("APP0", "COM"):
            kept.append((name, payload))
    return kept


def write_jpeg_metadata(
    encoded: bytes,
    extras: Iterable[tuple[str, bytes]],
    *,
    exif: bytes | None,
    xmp: bytes | None,
    icc_profile: bytes | None,
) -> bytes:
    """Return a freshly encoded JPEG with its metadata; a block too large for a JPEG is left out."""
    extras = list(extras)
    head = [(_APP0, payload) for name, payload in extras if name == "APP0"]
    # A block too long for one segment goes on in the next, as the source's did.
    parts = range(0, len(exif or b""), _EXIF_PART_BYTES)
    head += [(_APP1, _EXIF + exif[at : at + _EXIF_PART_BYTES]) for at in parts if exif]
    if xmp:
        head.append((_APP1, _XMP + xmp))
    for name, payload in extras:
        if name != "APP0":
            head.append((_COM if name == "COM" else _APP0 + int(name[3:]), payload))
    if icc_profile:
        parts = range(0, len(icc_profile), _ICC_PART_BYTES)
        for number, start in enumerate(parts, 1):
            part = icc_profile[start : start + _ICC_PART_BYTES]
            head.append((_APP2, _ICC + bytes([number, len(parts)]) + part))
    own, scan = _jpeg_header(encoded)
    head += [(marker, payload) for marker, payload in own if marker != _APP0]
    return b"".join(
        [
            b"\xff\xd8",
            *(
                struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
                for marker, payload in head
                if len(payload) <= _MAX_SEGMENT_BYTES
            ),
            encoded[scan:],
        ]
    )


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png_extras(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return the chunks to keep as they are: colour description, resolution, time and texts."""
    return tuple(
        (name.decode("ascii"), payload)
        for name, payload in _png_chunks(data)
        if name in _PNG_KEPT
        and not payload.startswith((_PNG_XMP + b"\0", b"Raw profile type exif\0"))
    )


def png_dropped(data: bytes) -> tuple[str, ...]:
    """Return, in words, what a PNG holds that an edited one cannot."""
    signed = any(name == b"caBX" for name, _ in _png_chunks(data))
    return ("Content Credentials (C2PA)",) if signed else ()


def png_cicp(data: bytes) -> tuple[int, int] | None:
    """Return (colour primaries, transfer function) of a cICP chunk, None without one."""
    for name, payload in _png_chunks(data):
        if name == b"cICP" and len(payload) == 4:
            return payload[0], payload[1]
    return None


def public_png_extras(extras: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return the extras without the texts in which converters copy a position."""
    return [
        (name, payload)
        for name, payload in extras
        if b"gps" not in payload[:80].lower() and not payload.startswith(_RAW_PROFILES)
    ]


def write_png_metadata(
    encoded: bytes,
    extras: Iterable[tuple[str, bytes]],
    *,
    exif: bytes | None,
    xmp: bytes | None,
    icc_profile: bytes | None,
) -> bytes:
    """Return a freshly encoded PNG with its metadata."""
    header, *rest = _png_chunks(encoded)
    added: list[tuple[bytes, bytes]] = []
    if icc_profile:
        added.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)))
    for name, payload in extras:
        if not (icc_profile and name == "sRGB"):  # a PNG has one or the other
            added.append((name.encode("ascii"), payload))
    if exif:
        added.append((b"eXIf", exif))
    if xmp:
        added.append((b"iTXt", _PNG_XMP + b"\0\0\0\0\0" + xmp))
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(payload)) + name + payload
        + struct.pack(">I", zlib.crc32(name + payload))
        for name, payload in [header, *added, *rest]
    )  # fmt: skip


def webp_is_lossless(data: bytes) -> bool:
    """Return whether a WebP's picture is a VP8L chunk, wherever a profile has moved it."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name in (b"VP8L", b"VP8 "):
            return name == b"VP8L"
        at += 8 + size + size % 2
    return False
