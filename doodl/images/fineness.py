"""How finely to code a picture again whose file does not say how finely it was coded."""

from collections.abc import Callable, Sequence

QUALITIES = (90, 95, 100)
"""On the scale of WebP's and AVIF's encoders; at 90 a second coding costs little."""


def as_fine(
    encode: Callable[[int], bytes], source_bytes: int, qualities: Sequence[int] = QUALITIES
) -> bytes:
    """Return the file of the lowest quality that spends no fewer bytes than the source did.

    Args:
        encode: makes the file at a quality. source_bytes: size of the file it came from.
    """
    encoded = b""
    for quality in qualities:
        encoded = encode(quality)
        if len(encoded) >= source_bytes:
            break
    return encoded
