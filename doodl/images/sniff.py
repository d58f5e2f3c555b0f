"""What kind of file it is, by its first bytes; its name plays no part."""

from doodl.errors import UnreadablePhotoError, UnsupportedPhotoError
from doodl.images.containers import PNG_SIGNATURE

_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (PNG_SIGNATURE, "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)


def sniff(data: bytes) -> str:
    """Return "JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "AVIF" or "HEIF".

    Raises: UnreadablePhotoError if it is no photo, UnsupportedPhotoError if of another kind.
    """
    if not data:
        raise UnreadablePhotoError("the file is empty; copy it again from where it came from")
    if data[4:8] == b"ftyp":
        return _of_brands(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"II+\0", b"MM\0+")):
        raise UnsupportedPhotoError("a BigTIFF; save it as an ordinary TIFF")
    for start, kind in _STARTS:
        if data.startswith(start):
            return kind
    raise UnreadablePhotoError(
        f"not a photo: the file begins with {data[:12]!r}; "
        "JPEG, PNG, TIFF, WebP, HEIC, AVIF, BMP and GIF are read"
    )


def _of_brands(data: bytes) -> str:
    """Return the kind of an ISO base media file: its major brand, then the compatible ones."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]
    for brand in brands:
        if brand in _AVIF_BRANDS:
            return "AVIF"
        if brand in _HEIF_BRANDS:
            return "HEIF"
    raise UnreadablePhotoError(
        f"a media file of kind {brands[0]!r}, not a photo; HEIC and AVIF are read"
    )
