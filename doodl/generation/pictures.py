"""Decoded images as files that say what made them, and subject photos as images."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from doodl.images import Photo, decode_photo, encode_photo, model_view

FORMATS = ("PNG", "JPEG", "WEBP")

_CODING: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}

# IPTC's term for a picture that a trained model made altogether; an edit of a photo has another.
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/'
    'trainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>\n"
    '<?xpacket end="w"?>'
)


def shown_name(model: str) -> str:
    """Return a model's name without its folder: a file that is passed on tells no path of ours."""
    return PurePath(model).name


def pixels_of(image: Tensor) -> np.ndarray:
    """Return (H, W, 3) uint8 of an image (3, H, W) in [-1, 1], clipped and rounded."""
    scaled = image.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.byte().permute(1, 2, 0).cpu().numpy()


def encode_picture(
    image: Tensor, format: str, *, software: str, note: str, made: bool = True
) -> bytes:
    """Return the file of an image (3, H, W) in [-1, 1].

    Args:
        format: PNG, JPEG or WEBP.
        software: for EXIF's Software tag. note: what was done, for XMP.
        made: whether the model made the picture altogether, or from a photo.
    """
    pixels = pixels_of(image)
    xmp = _PACKET.encode() if made else None
    photo = Photo(pixels=pixels, format=format, mode="RGB", xmp=xmp, coding=_CODING[format])
    return encode_photo(photo, pixels, software=software, note=note)


def subject_image(data: bytes, *, side_px: int, max_pixels: int) -> Tensor:
    """Return a subject photo's bytes as an image (3, h, w) in [-1, 1], the shorter side side_px.

    Raises: PhotoError if it cannot be read or has more than max_pixels.
    """
    photo = decode_photo(data, max_pixels=max_pixels)
    return model_view(photo, side_px)[0]


def viewed(encoded: bytes, device: torch.device) -> Tensor:
    """Return an encoded picture as a person sees it, (1, 3, H, W) in [-1, 1]."""
    photo = decode_photo(encoded)
    return torch.from_numpy(photo.pixels.copy()).permute(2, 0, 1)[None].to(device) / 127.5 - 1
