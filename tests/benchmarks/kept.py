"""What a delivered file keeps of its source: a table, file by file, metadata tag by tag.

    python -m tests.benchmarks.kept --photos FOLDER
    python -m tests.benchmarks.kept --tags PHOTO          # every entry of one file

Every file is delivered at strength 0, with a change that would show at any other: its pixels have
to be the source's, exactly where the format is lossless, within its own requantisation elsewhere.
"""

from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import ExifTags, Image, ImageCms

from doodl.delivery.deliver import Delivery, deliver
from doodl.images import Photo, decode_photo, model_view
from doodl.images.tiff import Tag, read_tags, write_tags
from tests.doodl.photo_files import XMP, cmyk_profile, exif_block, picture, save, wide_gamut_profile
from tests.doodl.test_images_deep import deep_picture, png, tiff
from tests.doodl.test_images_heif import heic

INTENDED = {
    "Exif 0/305": "Software",
    "xmpMM:History": "History",
    "DigitalSourceType": "source type",
}
# Where parts of the file lie, not what it says.
STRUCTURE = {"Exif 0/34665", "Exif 0/34853", "Exif Exif/40965"}
IPTC = b"8BIM\x04\x04\0\0" + struct.pack(">I", 14) + b"\x1c\x02\x50\0\x09A. Author"


def with_iptc(data: bytes) -> bytes:
    payload = b"Photoshop 3.0\0" + IPTC
    return data[:2] + struct.pack(">BBH", 0xFF, 0xED, len(payload) + 2) + payload + data[2:]


def synthetic() -> Iterator[tuple[str, bytes]]:
    """Yield files of every kind, all with EXIF, XMP and a profile where the format has room."""
    width, height = 192, 128
    rgb = Image.fromarray(picture(width, height))
    grey = rgb.convert("L")
    inks = Image.merge("CMYK", (*rgb.split(), grey))
    clear = Image.merge("RGBA", (*rgb.split(), grey))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = wide_gamut_profile()
    block = exif_block(1)
    exif = b"Exif\0\0" + block
    tags = {"exif": exif, "xmp": XMP}
    text = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)

    def chunks(profile: bytes) -> list[tuple[bytes, bytes]]:
        return [(b"iCCP", b"ICC\0\0" + zlib.compress(profile)), (b"eXIf", block), text]

    def tagged(data: bytes, profile: bytes) -> bytes:
        more = tuple(Tag(t, 7, len(v), v) for t, v in ((700, XMP), (34675, profile)))
        return write_tags(write_tags(data, read_tags(block)), more)

    yield "JPEG, IPTC", with_iptc(save(rgb, "JPEG", quality=90, icc_profile=srgb, **tags))
    yield "JPEG, rotated", save(
        rgb, "JPEG", quality=90, exif=b"Exif\0\0" + exif_block(6), xmp=XMP
    )  # fmt: skip
    yield "JPEG, 4:4:4 progressive", save(
        rgb, "JPEG", quality=90, subsampling=0, progressive=True, **tags
    )  # fmt: skip
    yield "JPEG, wide gamut", save(rgb, "JPEG", quality=95, icc_profile=wide, **tags)
    yield "JPEG, Adobe RGB without a profile", save(
        rgb, "JPEG", quality=95, exif=b"Exif\0\0" + adobe_rgb_exif(), xmp=XMP
    )  # fmt: skip
    yield "JPEG of several pictures (MPO)", save(
        rgb, "MPO", save_all=True, append_images=[rgb], exif=exif, xmp=XMP
    )  # fmt: skip
    yield "JPEG, grey", save(grey, "JPEG", quality=90, **tags)
    yield "JPEG, CMYK", save(inks, "JPEG", quality=90, icc_profile=cmyk_profile(), **tags)
    yield "PNG, 8 bits", png(picture(width, height), *chunks(srgb))
    yield "PNG, 16 bits", png(deep_picture(3, width, height), *chunks(srgb))
    yield "PNG, 16 bits, wide gamut", png(deep_picture(3, width, height), *chunks(wide))
    yield "PNG, 16 bits, grey and alpha", png(deep_picture(2, width, height), text)
    yield "PNG, alpha", save(clear, "PNG", exif=exif)
    yield "PNG, palette", save(rgb.quantize(64), "PNG", exif=exif)
    yield "PNG, palette with opacities", save(clear.quantize(64), "PNG", exif=exif)
    yield "PNG, Display P3 by code points", png(
        deep_picture(3, width, height), (b"cICP", bytes([12, 13, 0, 1])), (b"eXIf", block)
    )  # fmt: skip
    yield "TIFF, 8 bits", tagged(save(rgb, "TIFF", compression="tiff_lzw"), srgb)
    yield (
        "TIFF, 16 bits, LZW",
        tagged(tiff(deep_picture(3, width, height), compression="lzw", predictor=True), wide),
    )
    yield (
        "TIFF, 16 bits, alpha and a selection",
        tagged(
            tiff(
                np.dstack([deep_picture(4, width, height), deep_picture(1, width, height)]),
                extrasamples=("unassalpha", "unspecified"),
            ),
            srgb,
        ),
    )
    yield "TIFF, CMYK", tagged(save(inks, "TIFF"), cmyk_profile())
    yield "WebP, lossless", save(rgb, "WEBP", lossless=True, icc_profile=srgb, **tags)
    yield "WebP", save(rgb, "WEBP", quality=85, icc_profile=srgb, **tags)
    yield "WebP, alpha", save(clear, "WEBP", quality=85, **tags)
    turned = b"Exif\0\0" + exif_block(6)
    yield "HEIC, rotated", heic(picture(width, height), exif=turned, chroma=420, quality=85)
    yield "HEIC", heic(picture(width, height), exif=exif, xmp=XMP, icc_profile=srgb)
    yield (
        "HEIC, 10 bits",
        heic(deep_picture(3, width, height), bit_depth=10, exif=exif, xmp=XMP, icc_profile=wide),
    )
    yield "AVIF", save(rgb, "AVIF", quality=90, icc_profile=srgb, **tags)
    yield "AVIF, 4:4:4 and alpha", save(clear, "AVIF", quality=95, subsampling="4:4:4", **tags)
    yield "GIF", save(rgb.quantize(64), "GIF")
    yield "BMP", save(rgb, "BMP")


def adobe_rgb_exif() -> bytes:
    """Return EXIF that names Adobe RGB as cameras do: uncalibrated, interoperability index R03."""

    def entries(*rows: tuple[int, int, int, int]) -> bytes:
        packed = b"".join(struct.pack("<HHII", *row) for row in rows)
        return struct.pack("<H", len(rows)) + packed + bytes(4)

    index = int.from_bytes(b"R03\0", "little")
    camera = entries((0xA001, 3, 1, 0xFFFF), (0xA005, 4, 1, 56))
    return (
        struct.pack("<2sHI", b"II", 42, 8)
        + entries((0x8769, 4, 1, 26))
        + camera
        + entries((1, 2, 4, index))
    )


def said(data: bytes) -> dict[str, Any]:
    """Return everything a file says of its picture, by name."""
    photo = decode_photo(data)
    found: dict[str, Any] = {}
    if photo.format == "TIFF":
        found |= dict(_tiff(photo.extras, "0"))
    elif photo.exif:
        found |= dict(_exif(photo.exif))
    if photo.format in ("JPEG", "PNG"):
        for name, payload in photo.extras:
            found[f"{name} {payload[:16]!r}"] = payload
    if photo.icc_profile:
        found["ICC profile"] = photo.icc_profile
    found |= dict(_xmp(photo))
    return {name: value for name, value in found.items() if name not in STRUCTURE}


def _exif(block: bytes) -> Iterator[tuple[str, Any]]:
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + block)
    for tag, value in exif.items():
        yield f"Exif 0/{tag}", repr(value)
    for name in ("Exif", "GPSInfo", "Interop"):
        for tag, value in exif.get_ifd(ExifTags.IFD[name]).items():
            yield f"Exif {name}/{tag}", repr(value)


def _tiff(tags: tuple[Tag, ...], where: str) -> Iterator[tuple[str, Any]]:
    for tag in tags:
        if isinstance(tag.value, tuple):
            yield from _tiff(tag.value, str(tag.tag))
        elif tag.tag != 700:  # the XMP is compared property by property
            yield f"Exif {where}/{tag.tag}", tag.value


def _xmp(photo: Photo) -> Iterator[tuple[str, str]]:
    if not photo.xmp:
        return
    text = photo.xmp.decode("utf-8", "replace")
    end = "</x:xmpmeta>"
    root = ElementTree.fromstring(text[text.index("<x:xmpmeta") : text.index(end) + len(end)])
    rdf = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
    for description in root.iterfind(f"{rdf}RDF/{rdf}Description"):
        for name, value in description.attrib.items():
            if name != f"{rdf}about":
                yield f"XMP {name}", value
        for child in description:
            yield f"XMP {child.tag}", ElementTree.tostring(child, "unicode").strip()


def delivered_unchanged(data: bytes) -> bytes:
    """Return the file at strength 0 of a change that would show at any other."""
    photo = decode_photo(data)
    before = model_view(photo, 64)
    after = (before * 0.7 + 0.2).clamp(-1, 1)
    return deliver(photo, before, after, Delivery(strength=0), software="doodl-batch")[0]


def tag_by_tag(data: bytes) -> Iterator[str]:
    """Yield a row for every entry of a file: what it is called and what became of it."""
    source, result = said(data), said(delivered_unchanged(data))
    for name in sorted(source | result):
        if name not in result:
            fate = "lost"
        elif name not in source:
            fate = f"added: {str(result[name])[:70]}"
        elif result[name] == source[name]:
            fate = "kept"
        else:
            fate = f"{str(source[name])[:40]} → {str(result[name])[:70]}"
        yield f"| {name} | {fate} |"


def row(name: str, data: bytes) -> str:
    photo = decode_photo(data)
    encoded = delivered_unchanged(data)
    delivered = decode_photo(encoded)
    source, result = said(data), said(encoded)
    kept = [n for n in source if result.get(n) == source[n]]
    changed = [n for n in source if n in result and result[n] != source[n]]
    lost = [n for n in source if n not in result]
    added = [n for n in result if n not in source]
    odd = [n for n in changed + added if not any(key in n for key in (*INTENDED, "History"))]
    planes = [(photo.pixels, delivered.pixels), (photo.alpha, delivered.alpha)]
    planes += [(photo.cmyk, delivered.cmyk), (photo.spare, delivered.spare)]
    equal = all(
        a is b is None or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in planes
    )
    return (
        f"| {name} | {photo.format} {photo.mode} {photo.bits} → {delivered.format} "
        f"{delivered.mode} {delivered.bits} | {'equal' if equal else _loss(photo, delivered)} | "
        f"{', '.join(photo.dropped) or '-'} | "
        f"{len(kept)} of {len(source)} | {', '.join(sorted(_named(changed + added)))} | "
        f"{', '.join(lost) or '-'} | {', '.join(odd) or '-'} |"
    )


def _loss(photo: Photo, delivered: Photo) -> str:
    peak = float(np.iinfo(photo.pixels.dtype).max)
    error = photo.pixels.astype(np.float64) - delivered.pixels
    return f"{10 * np.log10(peak**2 / np.square(error).mean()):.1f} dB"


def _named(names: list[str]) -> set[str]:
    return {
        words for name in names for key, words in INTENDED.items() if key.split(":")[-1] in name
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs besides the synthetic files")
    parser.add_argument("--tags", type=Path, help="instead, every entry of this one file")
    args = parser.parse_args()
    if args.tags:
        print("\n".join(["| entry | in the delivered file |", "|---|---|"]))
        print("\n".join(tag_by_tag(args.tags.read_bytes())))
        return
    heads = ("file", "source → delivered", "pixels at strength 0", "not carried over",
             "entries kept", "meant to change", "lost", "not meant")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, data in synthetic():
        print(row(name, data), flush=True)
    for path in sorted(args.photos.glob("*.jpg")) if args.photos else ():
        print(row(path.name, path.read_bytes()), flush=True)


if __name__ == "__main__":
    main()
