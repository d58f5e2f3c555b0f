"""The change an edit makes, apart from the photo: small enough to keep, and to make again.

An edit optimises for minutes to find one transfer of colour and tone. Kept beside the result, it
gives the same edit at any other strength in seconds. The photo is delivered from the kept form
itself, so the same strength again gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from doodl.delivery.mask import decode_mask, keep_protected, mask_to_bytes
from doodl.delivery.transfer import (
    LocalAffine,
    TransferFit,
    apply_transfer,
    apply_transfer_to_pixels,
)
from doodl.errors import ChangeError
from doodl.images import Photo, into_photo_space

_FORMAT = "doodl-change-1"
_MAX_BYTES = 64 * 2**20
_COEFFICIENTS = 18
_MAX_WORDS = 200


@dataclass(frozen=True)
class Change:
    """What turns one photo into its edit, in the photo's own colour space.

    source: `fingerprint` of the photo it was made for. what: the edit in a few words.
    transfer: of this photo, a batch of one.
    detail: (3, h, w) in [-1, 1] at the model's resolution: what the model drew that no transfer
        explains; None where it was not asked for.
    protect: a PNG of the mask that keeps the photo's own pixels; None where nothing is protected.
    """

    source: str
    what: str
    transfer: LocalAffine
    detail: Tensor | None = None
    protect: bytes | None = None

    @classmethod
    def between(
        cls,
        photo: Photo,
        before: Tensor,
        after: Tensor,
        *,
        what: str = "edited",
        with_detail: bool = False,
        protect: np.ndarray | None = None,
        locality: float = 1.0,
    ) -> Change:
        """Return the change from one of the model's images to another, as it is kept.

        Args:
            photo: whose edit it is. before, after: (1, 3, h, w) sRGB in [-1, 1]: the decoded
                inversion and the decoded optimisation.
            with_detail: keep the detail too, which takes a byte per colour and pixel.
            protect: (H, W) uint8, 255 where the photo's own pixels stay.
            locality: as in `TransferFit`.
        """
        before, after = (into_photo_space(photo, image) for image in (before, after))
        transfer = TransferFit(before, grey=photo.grey, locality=locality).fit(after).detach()
        detail = None
        if with_detail:
            detail = (after - apply_transfer(transfer, before.cpu().float()).to(after))[0].cpu()
        mask = None if protect is None else mask_to_bytes(protect)
        kept = cls(fingerprint(photo), what, transfer, detail, mask)
        return change_from_bytes(change_to_bytes(kept))

    def apply(self, photo: Photo, *, strength: float = 1.0, detail: float = 0.0) -> np.ndarray:
        """Return the edited pixels, (H, W, 3) in the photo's dtype and colour space.

        Args:
            strength: share of the change; 0 gives the photo's own pixels.
            detail: share of the model's new detail that is blended in.
        Raises: ChangeError if it is another photo, or detail is asked for and none was kept.
        """
        if not 0 <= strength <= 1 or not 0 <= detail <= 1:
            raise ValueError(f"strength (={strength}) and detail (={detail}) must be in [0, 1].")
        if fingerprint(photo) != self.source:
            raise ChangeError(
                "the photo's pixels are not those that were edited; edit it again as it is now."
            )
        if detail and self.detail is None:
            raise ChangeError(
                "this edit was made without keeping the model's detail; edit again with --detail."
            )
        added = None if self.detail is None or not detail else detail * self.detail
        pixels = apply_transfer_to_pixels(
            self.transfer, photo.pixels, strength=strength, detail=added
        )
        if self.protect is None:
            return pixels
        return keep_protected(photo.pixels, pixels, decode_mask(self.protect, photo))


def fingerprint(photo: Photo) -> str:
    """Return a hash of the photo's pixels; its metadata may change without unmaking an edit."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{photo.pixels.dtype} {photo.pixels.shape}".encode())
    digest.update(np.ascontiguousarray(photo.pixels).data)
    return digest.hexdigest()


def change_to_bytes(change: Change) -> bytes:
    """Return the change as a safetensors file: half-precision coefficients, 8-bit detail.

    Half precision errs by less than a level of 8 bits, smoothly over the frame, as the change
    itself is smooth.
    """
    coefficients = change.transfer.coefficients[0].detach().cpu()
    limit = torch.finfo(torch.float16).max
    tensors = {"coefficients": coefficients.clamp(-limit, limit).half().contiguous()}
    grey = str(int(change.transfer.grey[0]))
    metadata = {"format": _FORMAT, "source": change.source, "what": change.what, "grey": grey}
    if change.detail is not None:
        peak = float(change.detail.abs().max().clamp_min(1e-6))
        levels = (change.detail * (127 / peak)).round()
        tensors["detail"] = levels.to(torch.int8).contiguous()
        metadata["detail_peak"] = repr(peak)
    if change.protect is not None:
        tensors["protect"] = torch.frombuffer(bytearray(change.protect), dtype=torch.uint8)
    return save(tensors, metadata)


def change_from_bytes(data: bytes) -> Change:
    """Return the change of `change_to_bytes`. Raises: ChangeError if the bytes are none."""
    if len(data) > _MAX_BYTES:
        raise ChangeError(f"a kept change of {len(data):,} bytes is none of ours.")
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        tensors = load(data)
        coefficients = tensors["coefficients"].float()
        detail = tensors["detail"].float() if "detail" in tensors else None
        protect = bytes(tensors["protect"].numpy()) if "protect" in tensors else None
        source, what = str(metadata["source"]), str(metadata["what"])[:_MAX_WORDS]
        grey = {"0": False, "1": True}[metadata["grey"]]
        peak = float(metadata.get("detail_peak", "0")) if detail is not None else 0.0
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ChangeError(f"a kept change cannot be read: {error}") from error
    well_formed = (
        metadata.get("format") == _FORMAT
        and coefficients.ndim == 3
        and coefficients.shape[0] == _COEFFICIENTS
        and min(coefficients.shape[1:]) >= 2
        and bool(coefficients.isfinite().all())
        and 0 <= peak < 10
        and (detail is None or (detail.ndim == 3 and detail.shape[0] == 3 and detail.numel() > 0))
    )
    if not well_formed:
        raise ChangeError("a kept change has odd contents; edit the photo again.")
    transfer = LocalAffine(coefficients[None], (grey,))
    detail = None if detail is None else detail * (peak / 127)
    return Change(source, what, transfer, detail, protect)
