"""PSNR and SSIM of photos of any shape."""

import numpy as np
import pytest

from doodl.measures.fidelity import psnr_db, ssim


def noise(size, dtype=np.uint8):
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top + 1, (*size, 3)).astype(dtype)


@pytest.mark.parametrize("size", [(200, 20000), (20000, 200), (11, 5000), (64, 64), (1200, 900)])
def test_ssim_of_a_photo_with_itself_is_one_at_any_shape(size):
    pixels = noise(size)
    assert ssim(pixels, pixels) == pytest.approx(1.0)
    assert ssim(pixels, 255 - pixels) < 0.9


def test_psnr_is_ten_log_peak_squared_over_the_mean_square():
    source = np.full((300, 40, 3), 100, np.uint8)
    assert psnr_db(source, source) == float("inf")
    assert psnr_db(source, source + 5) == pytest.approx(10 * np.log10(255**2 / 25))


def test_photos_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="agree"):
        ssim(noise((20, 20)), noise((20, 20), np.uint16))
