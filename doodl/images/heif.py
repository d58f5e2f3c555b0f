"""HEIC photos, by libheif: read whole at their own depth, and written as HEIC again."""

import io
from typing import Any

import numpy as np

from doodl.errors import UnsupportedPhotoError
from doodl.images.colour import cicp_profile
from doodl.images.exif import ORIENTATION, Block
from doodl.images.fineness import as_fine
from doodl.images.photo import Photo
from doodl.images.xmp import xmp_orientation

_QUALITIES = (90, 95)  # x265 makes the same file of 95 and more, short of lossless
_THUMBNAIL_PX = 320
C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
"""How an ISO base media file marks its box of Content Credentials (C2PA 2.1, annex A.5)."""


def open_heif(data: bytes) -> Any:
    """Return the file as pillow_heif's HeifFile, nothing decoded yet; `.size` is the displayed one.

    libheif's own limits on sizes, items and memory stay on: the caller compares the size first.
    Raises: ValueError, RuntimeError or others if it is not well-formed.
    """
    import pillow_heif

    return pillow_heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)


def decode_heif(file: Any, data: bytes) -> Photo:
    """Return the photo of an opened file. Raises: as `open_heif`, and UnsupportedPhotoError."""
    image = file[file.primary_index]
    mode, _, _ = image.mode.partition(";")
    if mode == "I":  # pillow_heif's grey of more than 8 bits
        mode = "L"
    bits = int(image.info["bit_depth"])
    if mode not in ("L", "LA", "RGB", "RGBA") or bits not in (8, 10, 12):
        raise UnsupportedPhotoError(
            f"a HEIC with pixels of mode {image.mode!r}; export it as JPEG or PNG"
        )
    nclx = image.info.get("nclx_profile") or {}
    icc_profile = image.info.get("icc_profile") or None
    implied = None
    if icc_profile is None and nclx:
        implied = cicp_profile(nclx["color_primaries"], nclx["transfer_characteristics"])
    samples = _widened(np.asarray(image), bits)
    width, height = file.size
    samples = samples[:, :width].reshape(height, width, -1)
    colours = samples[:, :, :-1] if mode in ("LA", "RGBA") else samples
    exif = image.info.get("exif")
    xmp = image.info.get("xmp")
    return Photo(
        pixels=np.ascontiguousarray(np.broadcast_to(colours, (height, width, 3))),
        format="HEIF",
        mode=mode,
        bits=bits,
        alpha=np.ascontiguousarray(samples[:, :, -1]) if mode in ("LA", "RGBA") else None,
        exif=exif.removeprefix(b"Exif\0\0") if exif else None,
        orientation=_orientation(exif, xmp),
        icc_profile=icc_profile,
        implied_profile=implied,
        xmp=xmp,
        coding={
            "source_bytes": len(data),
            "chroma": image.info.get("chroma", 420),
            "nclx_profile": nclx or None,
            "thumbnails": [_THUMBNAIL_PX] if image.info.get("thumbnails") else [],
        },
        dropped=_dropped(file, image, data),
    )


def encode_heif(
    photo: Photo,
    samples: np.ndarray,
    *,
    exif: bytes | None,
    xmp: bytes | None,
    icc_profile: bytes | None,
) -> bytes:
    """Return a HEIC of (H, W, C) samples as the photo's orientation stores them.

    pillow_heif turns EXIF's orientation into the container's own, which is what readers obey.
    """
    import pillow_heif

    height, width, _ = samples.shape
    mode = photo.mode
    if photo.bits > 8:
        peak = 2**photo.bits - 1
        samples = ((samples.astype(np.uint32) * peak + 32767) // 65535).astype(np.uint16)
        mode = f"{'I' if mode == 'L' else mode};{photo.bits}"
    metadata: dict[str, Any] = {"xmp": xmp, "icc_profile": icc_profile}
    if exif:
        metadata["exif"] = b"Exif\0\0" + exif
    options: dict[str, Any] = {key: value for key, value in metadata.items() if value}
    options.update({key: value for key, value in photo.coding.items() if value})
    if photo.bits > 8:
        options["bit_depth"] = photo.bits
    # libheif's default, slow, takes 1.9 s of CPU a megapixel for files 6 % smaller; this 0.8.
    options["enc_params"] = {"preset": "medium"}
    source_bytes, pixels = options.pop("source_bytes", 0), samples.tobytes()

    def encoded(quality: int) -> bytes:
        buffer = io.BytesIO()
        pillow_heif.encode(mode, (width, height), pixels, buffer, quality=quality, **options)
        return buffer.getvalue()

    return as_fine(encoded, source_bytes, _QUALITIES)


def _widened(samples: np.ndarray, bits: int) -> np.ndarray:
    """Return samples of 10 or 12 bits over the whole range of uint16; 8 stay as they are."""
    if bits == 8:
        return samples
    peak = 2**bits - 1
    return ((samples.astype(np.uint32) * 65535 + peak // 2) // peak).astype(np.uint16)


def _orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation pillow_heif will store a picture with this metadata in.

    The pixels come displayed, whatever EXIF says; they are turned by this before they are written,
    and the container turns them back.
    """
    value = 1
    try:
        block = Block((exif or b"").removeprefix(b"Exif\0\0"))
        entries, _ = block.read(block.unpack("I", 4)[0])
        value = next((block.number(e) for e in entries if e.tag == ORIENTATION), 1)
    except Exception:  # a malformed block: pillow_heif passes over it too
        value = 1
    if value == 1:
        value = xmp_orientation(xmp)
    return value if 1 <= value <= 8 else 1


def _dropped(file: Any, image: Any, data: bytes) -> tuple[str, ...]:
    dropped = []
    if len(file) > 1:
        dropped.append(f"{len(file) - 1} further pictures")
    if image.info.get("depth_images"):
        dropped.append("a depth map")
    if image.info.get("aux"):
        dropped.append("auxiliary pictures (an HDR gain map or a matte)")
    if C2PA_UUID in data:
        dropped.append("Content Credentials (C2PA)")
    return tuple(dropped)
