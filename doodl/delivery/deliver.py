"""From the model's two images to the file that is delivered."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from doodl.delivery.change import Change, change_from_bytes, change_to_bytes
from doodl.delivery.mask import keep_protected
from doodl.delivery.transfer import enlarge_to_pixels
from doodl.delivery.transfer.guide import luminance
from doodl.engine.software import SOFTWARE
from doodl.images import Photo, decode_photo, encode_photo, into_photo_space

DELIVERIES = ("transfer", "model")


@dataclass(frozen=True)
class Delivery:
    """What of an edit goes into the file.

    Attributes:
        what: the edit in a few words, for the file's history: "aesthetic score up".
        strength: share of the change, in [0, 1]. detail: share of the model's new detail.
        deliver: transfer | model: the photo with the change made on it, or the model's own pixels,
            enlarged, with all that its autoencoder loses.
        strip_gps: leave positions out of the file's metadata.
        locality: share of what the places differ in that the transfer keeps, in [0, 1].
    """

    what: str = "edited"
    strength: float = 1.0
    detail: float = 0.0
    deliver: str = "transfer"
    strip_gps: bool = False
    locality: float = 1.0

    def __post_init__(self) -> None:
        for name in ("strength", "detail", "locality"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} (={getattr(self, name)}) must be in [0, 1].")
        if self.deliver not in DELIVERIES:
            raise ValueError(f"deliver (={self.deliver!r}) must be one of {', '.join(DELIVERIES)}.")
        if self.deliver == "model" and self.detail:
            raise ValueError("detail is blended into the photo; the model's own pixels hold it.")

    @property
    def note(self) -> str:
        """What the file's history says."""
        parts = [self.what, f"strength {self.strength:g}"]
        if self.detail:
            parts.append(f"detail {self.detail:g}")
        if self.deliver == "model":
            parts.append("the model's own pixels")
        return "; ".join(parts)


def edit_words(direction: str, target: float | None) -> str:
    """Return an aesthetic edit in words."""
    return (
        f"aesthetic score to {target:g}" if target is not None else f"aesthetic score {direction}"
    )


def deliver(
    photo: Photo,
    before: Tensor,
    after: Tensor,
    delivery: Delivery,
    *,
    software: str,
    protect: np.ndarray | None = None,
) -> tuple[bytes, bytes | None]:
    """Return the delivered file, and the change as it is to be kept (None for `model`).

    Args:
        before, after: (1, 3, h, w) sRGB in [-1, 1]: the decoded inversion and optimisation.
        protect: (H, W) uint8 at the photo's size; 255 keeps the photo's own pixel.
    """
    if delivery.deliver == "model":
        image = into_photo_space(photo, after)[0]
        if photo.grey:
            image = luminance(image[None])[0].expand(3, -1, -1)
        pixels = enlarge_to_pixels(image, photo.pixels, strength=delivery.strength)
        if protect is not None:
            pixels = keep_protected(photo.pixels, pixels, protect)
        kept = None
    else:
        change = Change.between(
            photo,
            before,
            after,
            what=delivery.what,
            with_detail=delivery.detail > 0,
            protect=protect,
            locality=delivery.locality,
        )
        pixels = change.apply(photo, strength=delivery.strength, detail=delivery.detail)
        kept = change_to_bytes(change)
    return _encoded(photo, pixels, delivery, software), kept


def restrength(
    source: bytes,
    change: bytes,
    delivery: Delivery,
    *,
    software: str = SOFTWARE,
    max_pixels: int = 200_000_000,
) -> tuple[Photo, bytes]:
    """Return the decoded source and the file of a kept change at another strength; no model runs.

    With the strength and detail it was delivered with, the file is that one, byte for byte.

    Args:
        source: the original file's bytes. change: what `deliver` returned to be kept.
        delivery: its `what` is the kept change's own.
    Raises: PhotoError as `decode_photo`; ChangeError if the change is not this photo's.
    """
    if delivery.deliver != "transfer":
        raise ValueError("the model's own pixels are not kept; edit again for them.")
    photo = decode_photo(source, max_pixels=max_pixels)
    kept = change_from_bytes(change)
    pixels = kept.apply(photo, strength=delivery.strength, detail=delivery.detail)
    return photo, _encoded(photo, pixels, replace(delivery, what=kept.what), software)


def _encoded(photo: Photo, pixels: np.ndarray, delivery: Delivery, software: str) -> bytes:
    return encode_photo(
        photo, pixels, software=software, note=delivery.note, strip_gps=delivery.strip_gps
    )
