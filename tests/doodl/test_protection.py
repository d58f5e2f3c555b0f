"""Protected regions: masks from files and from a hook, and what they keep."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from doodl.delivery.deliver import Delivery, restrength
from doodl.delivery.mask import (
    checked_mask,
    decode_mask,
    joined,
    keep_protected,
    load_protector,
    view_of_mask,
)
from doodl.editing.editor import load_editor
from doodl.editing.objective import Aim
from doodl.editing.requests import EditRequest
from doodl.errors import ProtectionError
from doodl.images import decode_photo
from doodl.recipes.presets import preset
from tests.photos import jpeg, pixels

PHOTO = decode_photo(jpeg(1, (64, 96)))


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG")
    return buffer.getvalue()


def left_half(height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_mask_as_large_as_a_photo_of_100_megapixels_is_taken():
    data = io.BytesIO()
    Image.new("1", (12_000, 8_000), 1).save(data, "PNG")
    assert decode_mask(data.getvalue(), PHOTO).min() == 255


def test_a_mask_of_any_size_and_the_photos_shape_is_scaled_to_it():
    mask = decode_mask(png(left_half(32, 48)), PHOTO)
    assert mask.shape == (64, 96)
    assert np.array_equal(mask, left_half(64, 96))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(left_half(64, 64)), "the photo 96x64"),
        (b"no picture", "cannot be read"),
        (png(left_half(64, 96))[:60], "cannot be read"),
    ],
)
def test_a_mask_that_does_not_fit_or_cannot_be_read_is_refused(data, words):
    with pytest.raises(ProtectionError, match=words):
        decode_mask(data, PHOTO)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_keeps_the_pixel_black_leaves_it_and_grey_blends(dtype):
    top = np.iinfo(dtype).max
    source, edited = np.zeros((4, 3, 3), dtype), np.full((4, 3, 3), top, dtype)
    mask = np.tile(np.array([255, 51, 0], np.uint8), (4, 1))
    kept = keep_protected(source, edited, mask)
    assert kept.dtype == dtype
    assert kept[0, :, 0].tolist() == [0, pytest.approx(0.8 * top, abs=1), top]


def test_what_a_protector_gives_is_checked():
    good = np.zeros((64, 96), bool)
    good[:8] = True
    assert checked_mask(good, PHOTO)[:8].min() == 255
    assert checked_mask(None, PHOTO) is None
    for bad in (good.T, good * 255.0, np.full((64, 96), np.nan), np.full((64, 96), "x")):
        with pytest.raises(ProtectionError, match="protector"):
            checked_mask(bad, PHOTO)


def test_two_masks_protect_what_either_does():
    one, two = left_half(4, 4), left_half(4, 4)[:, ::-1]
    assert joined(one, None) is one
    assert joined(None, None) is None
    assert joined(one, two).min() == 255


def test_the_hook_is_a_function_of_a_module_of_ones_own():
    assert load_protector("tests.doodl.test_protection:left_half") is not None
    with pytest.raises(ValueError, match="module:function"):
        load_protector("faces")
    for missing in ("no_such_module:f", "tests.photos:nothing", "tests.photos:__doc__"):
        with pytest.raises(ProtectionError, match=missing.partition(":")[0]):
            load_protector(missing)


@pytest.fixture(scope="module")
def edited():
    """One photo of PNG, left half protected, and the same photo without."""
    torch.set_num_threads(1)
    config = preset("pocket")
    config = replace(config, optimiser=replace(config.optimiser, num_optim_steps=2), num_crops=1)
    editor = load_editor("pocket", config)
    source = png(pixels(2, (160, 160)))
    photo = decode_photo(source)
    free = EditRequest(photo, Aim("up"), seed=1)
    mask = left_half(160, 160)
    return source, mask, *editor.edit([free, replace(free, protect=mask)])


def test_protected_pixels_are_the_sources_own_bit_for_bit(edited):
    source, mask, free, kept = edited
    before, without, with_mask = (
        decode_photo(data).pixels for data in (source, free.encoded, kept.encoded)
    )
    assert not np.array_equal(without[mask == 255], before[mask == 255])
    assert np.array_equal(with_mask[mask == 255], before[mask == 255])
    assert not np.array_equal(with_mask[mask == 0], before[mask == 0])
    assert (free.protected, kept.protected) == (None, pytest.approx(0.5))


def test_a_kept_change_keeps_its_mask_at_every_strength(edited):
    source, mask, _, kept = edited
    assert restrength(source, kept.change, Delivery(), software="doodl-batch")[1] == kept.encoded
    photo, half = restrength(source, kept.change, Delivery(strength=0.5))
    protected = mask == 255
    assert np.array_equal(decode_photo(half).pixels[protected], photo.pixels[protected])


def test_a_mask_of_another_size_is_the_callers_mistake():
    with pytest.raises(ValueError, match="protect"):
        EditRequest(PHOTO, Aim("up"), seed=1, protect=left_half(8, 8))


def test_the_models_view_of_a_mask_is_its_share():
    view = view_of_mask(left_half(64, 96), 8, 12)
    assert view.shape == (1, 1, 8, 12)
    assert view[0, 0, 0].tolist() == [1.0] * 6 + [0.0] * 6
