"""Thumbnails for the report."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from doodl.errors import UnreadablePhotoError
from doodl.images.thumbnails import thumbnail
from tests.doodl.photo_files import exif_block, picture
from tests.doodl.test_images_deep import FILES, stored
from tests.doodl.test_images_heif import displayed, heic
from tests.photos import jpeg


def as_image(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("container", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_tones(container):
    ramp = np.linspace(0, 65535, 600).astype(np.uint16)[None].repeat(300, 0)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, container)
    small = as_image(thumbnail(buffer.getvalue(), side_px=100))
    assert small.shape == (50, 100, 3)
    expected = np.linspace(0, 255, 100)
    assert np.abs(small.mean((0, 2)) - expected).max() < 3


@pytest.mark.parametrize("make", [f for n, f in FILES.items() if "RGB" in n], ids=str)
def test_sixteen_bit_colour_shows_as_eight(make):
    data = make()
    shown = as_image(thumbnail(data, side_px=96)).astype(float)
    colours = stored(data)[:, :, :3] / 257
    if stored(data).shape[2] == 4:  # on white
        alpha = stored(data)[:, :, 3:] / 65535
        colours = colours * alpha + 255 * (1 - alpha)
    assert np.abs(shown - colours).mean() < 4  # JPEG at 85 of a noisy picture


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_heic_is_shown_upright(orientation):
    data = heic(picture(), exif=b"Exif\0\0" + exif_block(orientation))
    shown = as_image(thumbnail(data, side_px=96)).astype(float)
    assert np.abs(shown - displayed(data)).mean() < 4


def test_thumbnail_is_at_most_as_asked():
    assert max(as_image(thumbnail(jpeg(0, (300, 200)), side_px=64)).shape) == 64


@pytest.mark.parametrize("data", [b"", b"no photo", jpeg(0)[:300]])
def test_bytes_that_are_no_photo_are_unreadable(data):
    with pytest.raises(UnreadablePhotoError):
        thumbnail(data)


@pytest.mark.parametrize("error", [struct.error, EOFError, IndexError, KeyError, TypeError])
def test_what_pillow_raises_inside_a_plugin_is_unreadable(monkeypatch, error):
    def fail(self):
        raise error("inside a plugin")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(UnreadablePhotoError, match="no thumbnail"):
        thumbnail(jpeg(0))
