"""How far the delivered photo is from its source."""

from __future__ import annotations

import numpy as np
from PIL import Image

_SSIM_LONGER_SIDE_PX = 1024
_SSIM_WINDOW_PX = 11  # 3.5 sigma to either side
_ROWS = 256


def psnr_db(source: np.ndarray, delivered: np.ndarray) -> float:
    """Return the PSNR in dB of two (H, W, 3) uint8 or uint16 photos; inf if they are equal.

    Raises: ValueError if shapes or dtypes differ.
    """
    _check(source, delivered)
    total = 0.0
    # By strips: a float copy of a 50-megapixel photo would take 1.2 GB.
    for top in range(0, len(source), _ROWS):
        rows = slice(top, top + _ROWS)
        difference = source[rows].astype(np.float32) - delivered[rows]
        total += float(np.square(difference, out=difference).sum(dtype=np.float64))
    peak = np.iinfo(source.dtype).max
    mean = total / source.size
    return float("inf") if mean == 0 else float(10 * np.log10(peak**2 / mean))


def ssim(source: np.ndarray, delivered: np.ndarray) -> float:
    """Return the structural similarity of the luminance of two photos, 1 if equal.

    Taken at a longer side of at most 1024 px, Gaussian windows of sigma 1.5 (Wang et al. 2004);
    a long strip is kept larger, so that its shorter side still holds a window.
    """
    from skimage.metrics import structural_similarity

    _check(source, delivered)
    first, second = (_small_luminance(pixels) for pixels in (source, delivered))
    return float(
        structural_similarity(
            first,
            second,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


def delta_e(source: np.ndarray, delivered: np.ndarray) -> float:
    """Return the mean CIEDE2000 difference of two sRGB pictures, (H, W, 3) in [0, 1].

    The perceptual distance that needs no network and no weights: 0 if equal, about 1 where a
    difference is just noticed, 100 from black to white. It sees colour and tone, as they are seen
    from where pixels blend; of texture and sharpness `ssim` tells.
    Source: CIE 142-2001, as scikit-image computes it.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    _check(source, delivered)
    first, second = (rgb2lab(np.clip(each, 0, 1)) for each in (source, delivered))
    return float(np.mean(deltaE_ciede2000(first, second)))


def _small_luminance(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    image = Image.fromarray(pixels).convert("L")
    longer, shorter = max(image.size), min(image.size)
    scale = max(_SSIM_LONGER_SIDE_PX / longer, _SSIM_WINDOW_PX / shorter)
    if scale < 1:
        width, height = (max(_SSIM_WINDOW_PX, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(image)


def _check(source: np.ndarray, delivered: np.ndarray) -> None:
    if source.shape != delivered.shape or source.dtype != delivered.dtype:
        raise ValueError(
            f"photos must agree; got {source.shape} {source.dtype} and "
            f"{delivered.shape} {delivered.dtype}."
        )
