"""What the model sees of a photo, and back into the photo's own colours."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from doodl.images.colour import from_srgb, pixel_profile, to_srgb
from doodl.images.photo import Photo

MAX_ASPECT = 4
_NEUTRAL = 128
_REDUCING_GAP = 3


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
    if photo.pixels.dtype == np.uint16:
        small = _resized_deep(photo, height, width)
    else:
        small = _resized(photo, height, width)
    profile = pixel_profile(photo)
    if profile is not None:
        small = np.float32(255) * to_srgb(small / np.float32(255), profile).clip(0, 1)
    return torch.from_numpy(small).permute(2, 0, 1)[None].div(127.5).sub(1)


def _resized(photo: Photo, height: int, width: int) -> np.ndarray:
    """Return an 8-bit photo on grey, (height, width, 3) float32, 0 to 255."""
    pixels = photo.pixels
    if photo.alpha is not None:
        alpha = photo.alpha[:, :, None].astype(np.uint16)
        pixels = ((pixels * alpha + _NEUTRAL * (255 - alpha) + 127) // 255).astype(np.uint8)
    # reducing_gap: average whole blocks first, which is many times faster on a large photo.
    small = Image.fromarray(pixels).resize(
        (width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP
    )
    return np.asarray(small).astype(np.float32)


def _resized_deep(photo: Photo, height: int, width: int) -> np.ndarray:
    """Return a 16-bit photo on grey, (height, width, 3) float32, 0 to 255.

    Pillow resizes floating-point planes one by one; whole blocks are averaged first here too.
    """
    pixels, alpha = photo.pixels, photo.alpha
    rows, columns = pixels.shape[:2]
    down, across = (max(1, n // (_REDUCING_GAP * m)) for n, m in ((rows, height), (columns, width)))
    coarse = np.empty((-(-rows // down), -(-columns // across), 3), np.float32)
    for i in range(len(coarse)):
        strip: np.ndarray = pixels[i * down : (i + 1) * down].astype(np.float32)
        if alpha is not None:
            share = alpha[i * down : (i + 1) * down, :, None].astype(np.float32) / 65535
            strip = strip * share + (_NEUTRAL / 255 * 65535) * (1 - share)
        starts = np.arange(0, columns, across)
        counts = np.diff(np.append(starts, columns))[:, None] * len(strip)
        coarse[i] = np.add.reduceat(strip.sum(axis=0), starts, axis=0) / counts
    # The last blocks may be narrower than the others: the box says where the picture ends.
    box = (0.0, 0.0, columns / across, rows / down)
    planes = [
        Image.fromarray(np.ascontiguousarray(coarse[:, :, i])).resize(
            (width, height), Image.Resampling.LANCZOS, box=box
        )
        for i in range(3)
    ]
    small = np.stack([np.asarray(plane) for plane in planes], axis=2) / 257
    return small.clip(0, 255).astype(np.float32)


def into_photo_space(photo: Photo, image: Tensor) -> Tensor:
    """Return sRGB images (B, 3, h, w) in [-1, 1] in the photo's own RGB space, float32.

    The pixels to deliver are in the photo's space, so the final transfer is fitted there. Images
    of sRGB photos come back as they are.
    """
    profile = pixel_profile(photo)
    if profile is None:
        return image
    values = image.detach().clamp(-1, 1).add(1).div(2).permute(0, 2, 3, 1).float().cpu().numpy()
    converted = np.stack([from_srgb(frame, profile) for frame in values])
    stacked = torch.from_numpy(converted).permute(0, 3, 1, 2)
    return stacked.to(image.device).mul(2).sub(1).clamp(-1, 1)
