"""What an AVIF's boxes say of its samples (ISO base media file format, AV1-ISOBMFF, H.273)."""

import struct


def av1_bits(data: bytes) -> int:
    """Return the bits per channel, from the first AV1CodecConfigurationRecord; 8 without one.

    Source: AV1-ISOBMFF 2.3.3: its byte 2 holds high_bitdepth and twelve_bit.
    """
    at = data.find(b"av1C")
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def av1_subsampling(data: bytes) -> str:
    """Return the chroma subsampling from the same record, in Pillow's words."""
    at = data.find(b"av1C")
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0x0C
    if flags & 0x10:  # monochrome
        return "4:0:0"
    halved = bool(flags & 0x08), bool(flags & 0x04)  # across, down
    return {(False, False): "4:4:4", (True, False): "4:2:2"}.get(halved, "4:2:0")


def nclx(data: bytes) -> tuple[int, int] | None:
    """Return (colour primaries, transfer characteristics) of the first nclx box, None without."""
    at = data.find(b"colrnclx")
    if not 0 <= at <= len(data) - 12:
        return None
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    return primaries, transfer
