"""Photographs in and out: decode, what the model sees, and back in kind with their metadata."""

from doodl.images.decode import decode_photo
from doodl.images.encode import EDITED, GENERATED, encode_photo
from doodl.images.photo import MIN_SIDE_PX, Photo
from doodl.images.view import into_photo_space, model_view, view_size_px

__all__ = [
    "EDITED",
    "GENERATED",
    "MIN_SIDE_PX",
    "Photo",
    "decode_photo",
    "encode_photo",
    "into_photo_space",
    "model_view",
    "view_size_px",
]
