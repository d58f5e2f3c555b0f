"""What the model sees of a photo, and back into the photo's own colours."""

import io

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from doodl.images.photo import Photo

MAX_ASPECT = 4
_NEUTRAL = 128


def view_size_px(photo: Photo, working_px: int, multiple: int = 8) -> tuple[int, int]:
    """Return (height, width) of the model's view.

    The shorter side is working_px and the longer keeps the aspect ratio, both rounded to
    `multiple`. A panorama wider than 4:1 is squeezed to 4:1: the view still holds the whole
    frame, and the cost of an edit stays bounded.
    """
    if working_px < multiple or multiple < 1:
        raise ValueError(f"working_px (={working_px}) must be at least multiple (={multiple})")
    shorter = round(working_px / multiple) * multiple
    aspect = max(photo.width_px, photo.height_px) / min(photo.width_px, photo.height_px)
    longer = max(round(shorter * min(aspect, MAX_ASPECT) / multiple) * multiple, shorter)
    return (shorter, longer) if photo.width_px >= photo.height_px else (longer, shorter)


def model_view(photo: Photo, working_px: int, multiple: int = 8) -> Tensor:
    """Return the whole frame at the model's resolution: (1, 3, h, w) float32 in [-1, 1], sRGB.

    Transparent parts are shown on neutral grey, composited before scaling, so that the colour
    under full transparency cannot bleed in.
    """
    height, width = view_size_px(photo, working_px, multiple)
    pixels = photo.pixels
    if photo.alpha is not None:
        alpha = photo.alpha[:, :, None].astype(np.uint16)
        pixels = ((pixels * alpha + _NEUTRAL * (255 - alpha) + 127) // 255).astype(np.uint8)
    # reducing_gap: average whole blocks first, which is many times faster on a large photo.
    small = Image.fromarray(pixels).resize(
        (width, height), Image.Resampling.LANCZOS, reducing_gap=3.0
    )
    small = _converted(small, photo, to_srgb=True)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float().div(127.5).sub(1)


def into_photo_space(photo: Photo, image: Tensor) -> Tensor:
    """Return sRGB images (B, 3, h, w) in [-1, 1] in the photo's own RGB space.

    The pixels to deliver are in the photo's space, so the final transfer is fitted there. Images
    of sRGB photos come back as they are; others are rounded to 8 bits on the way.
    """
    if not _has_other_space(photo):
        return image
    rounded = image.detach().clamp(-1, 1).add(1).mul(127.5).round().byte()
    pixels = rounded.permute(0, 2, 3, 1).cpu().numpy()
    converted = [np.array(_converted(Image.fromarray(p), photo, to_srgb=False)) for p in pixels]
    stacked = torch.from_numpy(np.stack(converted)).permute(0, 3, 1, 2)
    return stacked.to(image).div(127.5).sub(1)


def _has_other_space(photo: Photo) -> bool:
    """Whether the pixels are in an RGB space other than sRGB, by a profile that can be used."""
    return _rgb_profile(photo) is not None


def _rgb_profile(photo: Photo) -> ImageCms.ImageCmsProfile | None:
    if not photo.icc_profile or photo.mode == "CMYK":
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(photo.icc_profile))
        name = ImageCms.getProfileDescription(profile)
    except (OSError, ImageCms.PyCMSError):
        return None  # a broken profile: shown as sRGB, as browsers do
    if profile.profile.xcolor_space.strip() != "RGB" or "srgb" in name.lower():
        return None
    return profile


def _converted(image: Image.Image, photo: Photo, *, to_srgb: bool) -> Image.Image:
    profile = _rgb_profile(photo)
    if profile is None:
        return image
    srgb = ImageCms.createProfile("sRGB")
    source, target = (profile, srgb) if to_srgb else (srgb, profile)
    try:
        converted = ImageCms.profileToProfile(
            image, source, target, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
    except ImageCms.PyCMSError:
        return image
    return converted if converted is not None else image
