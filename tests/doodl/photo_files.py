"""Small photo files of every kind, made on the spot, and what their metadata says."""

import io
import struct
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x='
    b'"adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    b'exif:GPSLatitude="48,51.5N" tiff:Orientation="6" dc:creator="A. Author">'
    b"<exif:GPSLongitude>2,17.4E</exif:GPSLongitude><dc:title>Tower</dc:title>"
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)
MAKER_NOTE = b"ACME\0" + bytes(range(60))


def picture(width: int = 96, height: int = 64, seed: int = 0) -> np.ndarray:
    """Return (height, width, 3) uint8: smooth colour with texture, like a photo to a codec."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 225, (5, 7, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 3, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_block(orientation: int = 6, *, thumbnail: bool = True, order: str = "<") -> bytes:
    """Return an EXIF block as cameras write it: IFD0, Exif with a maker's note, GPS, thumbnail."""
    small = save(Image.fromarray(picture(32, 24)), "JPEG")

    def ascii_(text: str) -> tuple[int, int, bytes]:
        return 2, len(text) + 1, text.encode() + b"\0"

    def numbers(kind: int, *values: int) -> tuple[int, int, bytes]:
        layout, per = {3: ("H", 1), 4: ("I", 1), 5: ("I", 2)}[kind]
        packed = struct.pack(order + layout * len(values), *values)
        return kind, len(values) // per, packed

    out = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8))

    def directory(tags: dict[int, tuple[int, int, bytes]], following: int = 0) -> bytes:
        at = len(out) + 2 + 12 * len(tags) + 4
        rows, values = b"", b""
        for tag, (kind, count, value) in sorted(tags.items()):
            field = value.ljust(4, b"\0")
            if len(value) > 4:
                field = struct.pack(order + "I", at + len(values))
                values += value + b"\0" * (len(value) % 2)
            rows += struct.pack(order + "HHI", tag, kind, count) + field
        return struct.pack(order + "H", len(tags)) + rows + struct.pack(
            order + "I", following
        ) + values  # fmt: skip

    ifd0 = {
        0x010F: ascii_("ACME"),
        0x0112: numbers(3, orientation),
        0x0131: ascii_("camera firmware 1.0"),
        0x0132: ascii_("2020:05:17 10:20:30"),
        0x8298: ascii_("A. Author"),
        0x8769: numbers(4, 0),
        0x8825: numbers(4, 0),
    }
    exif = {
        0x829A: numbers(5, 1, 200),
        0x9003: ascii_("2020:05:17 10:20:30"),
        0x927C: (7, len(MAKER_NOTE), MAKER_NOTE),
        0xA002: numbers(4, 96),
        0xA003: numbers(4, 64),
    }
    gps = {
        1: ascii_("N"),
        2: numbers(5, 48, 1, 51, 1, 30, 1),
        3: ascii_("E"),
        4: numbers(5, 2, 1, 17, 1, 24, 1),
    }
    first = directory(ifd0)
    start = len(out)
    out += first
    exif_at = len(out)
    out += directory(exif)
    gps_at = len(out)
    out += directory(gps)
    thumbnail_at = len(out) if thumbnail else 0
    if thumbnail:
        ifd1 = {0x0103: numbers(3, 6), 0x0201: numbers(4, 0), 0x0202: numbers(4, len(small))}
        size = len(directory(ifd1))
        ifd1[0x0201] = numbers(4, len(out) + size)
        out += directory(ifd1) + small
    ifd0[0x8769], ifd0[0x8825] = numbers(4, exif_at), numbers(4, gps_at)
    rest = bytes(out[start + len(first) :])
    del out[start:]
    out += directory(ifd0, thumbnail_at) + rest
    return bytes(out)


def all_tags(data: bytes) -> dict[str, Any]:
    """Return every EXIF tag of a file as Pillow reads it, by directory and name."""
    exif = Image.open(io.BytesIO(data)).getexif()
    tags = {f"0/{tag}": value for tag, value in exif.items()}
    for name in ("Exif", "GPSInfo", "Interop"):
        try:
            directory = exif.get_ifd(ExifTags.IFD[name])
        except KeyError:  # Pillow 11 at a missing Interop directory
            continue
        tags |= {f"{name}/{tag}": value for tag, value in directory.items()}
    return {k: float(v) if isinstance(v, IFDRational) else v for k, v in tags.items()}


def _icc(device_class: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s4sIIIQI", 0, b"lcms", 0x02400000, device_class, space, pcs,
        bytes(12), b"acsp", b"\0" * 4, 0, 0, 0, 0, 0,
    ) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)  # fmt: skip
    profile = header.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def _icc_text(text: str) -> dict[bytes, bytes]:
    raw = text.encode() + b"\0"
    return {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(raw)) + raw + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D),
    }


def wide_gamut_profile() -> bytes:
    """Return a matrix profile with ProPhoto's primaries and a gamma of 1.8."""
    primaries = {
        b"rXYZ": (0.7977, 0.2880, 0.0),
        b"gXYZ": (0.1352, 0.7119, 0.0),
        b"bXYZ": (0.0313, 0.0001, 0.8249),
    }
    tags = _icc_text("wide gamut")
    for name, xyz in primaries.items():
        fixed = (round(value * 65536) for value in xyz)
        tags[name] = b"XYZ " + bytes(4) + struct.pack(">3i", *fixed)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(1.8 * 256))
    return _icc(b"mntr", b"RGB ", b"XYZ ", tags)


def cmyk_profile() -> bytes:
    """Return a small printer profile: R = (1 - C)(1 - K), half of the common grey as black."""

    def lab(rgb: np.ndarray) -> np.ndarray:
        linear = rgb**2.2
        xyz = linear @ np.array(
            [[0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]]
        ) / np.array([0.9642, 1, 0.8249])  # fmt: skip
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        x, y, z = f[..., 0], f[..., 1], f[..., 2]
        return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)

    def rgb(values: np.ndarray) -> np.ndarray:
        y = (values[..., 0] + 16) / 116
        f = np.stack([y + values[..., 1] / 500, y, y - values[..., 2] / 200], -1)
        xyz = np.where(f > 0.2069, f**3, (f - 16 / 116) / 7.787) * [0.9642, 1, 0.8249]
        back = np.array(
            [[3.1339, -0.9785, 0.0720], [-1.6170, 1.9160, -0.2290], [-0.4906, 0.0333, 1.4057]]
        )
        return (xyz @ back).clip(0, 1) ** (1 / 2.2)

    def table(inputs: int, outputs: int, points: int, clut: np.ndarray) -> bytes:
        ramp = bytes(range(256))
        head = b"mft1" + bytes(4) + bytes([inputs, outputs, points, 0])
        unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
        values = clut.round().clip(0, 255).astype(np.uint8).tobytes()
        return head + unit + ramp * inputs + values + ramp * outputs

    inks = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 4, indexing="ij"), -1).reshape(-1, 4)
    shown = lab((1 - inks[:, :3]) * (1 - inks[:, 3:]))
    a2b = table(4, 3, 9, shown * [2.55, 1, 1] + [0, 128, 128])
    axes = [np.linspace(0, 255, 17)] * 3
    encoded = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    colour = rgb((encoded - [0, 128, 128]) / [2.55, 1, 1])
    black = (1 - colour.max(-1, keepdims=True)) * 0.5
    cmy = 1 - colour / (1 - black)
    b2a = table(3, 4, 17, np.concatenate([cmy, black], -1) * 255)
    return _icc(b"prtr", b"CMYK", b"Lab ", _icc_text("press") | {b"A2B0": a2b, b"B2A0": b2a})
