"""Delivery: a kept change gives the delivered photo again, and any other strength of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from doodl.delivery.change import Change, change_from_bytes, change_to_bytes
from doodl.delivery.deliver import Delivery, deliver, restrength
from doodl.delivery.transfer import apply_transfer_to_pixels, fit_transfer
from doodl.errors import ChangeError
from doodl.images import Photo, decode_photo, encode_photo, model_view
from tests.doodl.photo_files import exif_block, picture
from tests.doodl.photo_files import save as save_image
from tests.doodl.test_images_deep import deep_picture, png

SOFTWARE = "doodl-batch test"


def pair_of(photo: Photo) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two images of the model: the photo, and the photo warmer and with a curve."""
    before = model_view(photo, 64)
    drawn = 0.05 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    warmer = torch.tensor([0.12, 0.0, -0.1]).view(1, 3, 1, 1)
    return before, (0.8 * before + 0.15 * before**2 + warmer + drawn).clamp(-1, 1)


def jpeg() -> bytes:
    return save_image(
        Image.fromarray(picture(200, 136)), "JPEG", quality=95, exif=b"Exif\0\0" + exif_block()
    )


FILES = {
    "JPEG": jpeg,
    "16-bit PNG": lambda: png(deep_picture(3, 200, 136)),
    "grey PNG": lambda: png(deep_picture(1, 200, 136)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("detail", [0.0, 0.6])
def test_the_same_strength_again_gives_the_same_bytes(name: str, detail: float) -> None:
    source = FILES[name]()
    photo = decode_photo(source)
    before, after = pair_of(photo)
    delivery = Delivery(what="up", strength=0.7, detail=detail, strip_gps=True)
    encoded, change = deliver(photo, before, after, delivery, software=SOFTWARE)
    assert change is not None
    again = replace(delivery, what="what was done is the change's to say")
    assert restrength(source, change, again, software=SOFTWARE)[1] == encoded
    assert not np.array_equal(decode_photo(encoded).pixels, photo.pixels)


def test_another_strength_is_what_an_edit_at_that_strength_would_have_delivered() -> None:
    source = FILES["16-bit PNG"]()
    photo = decode_photo(source)
    before, after = pair_of(photo)
    _, change = deliver(photo, before, after, Delivery(), software=SOFTWARE)
    assert change is not None
    for strength in (0.0, 0.25, 1.0):
        delivery = Delivery(strength=strength)
        direct, _ = deliver(photo, before, after, delivery, software=SOFTWARE)
        _, again = restrength(source, change, delivery, software=SOFTWARE)
        assert again == direct
    none, whole = (
        restrength(source, change, Delivery(strength=s), software=SOFTWARE)[1] for s in (0.0, 1.0)
    )
    assert np.array_equal(decode_photo(none).pixels, photo.pixels)
    half = decode_photo(restrength(source, change, Delivery(strength=0.5))[1]).pixels.astype(int)
    middle = (photo.pixels.astype(int) + decode_photo(whole).pixels) / 2
    inside = (decode_photo(whole).pixels % 65535 > 0).all(2) & (photo.pixels % 65535 > 0).all(2)
    assert np.abs(half - middle)[inside].max() <= 1


def test_the_kept_form_is_small_and_errs_by_less_than_a_level() -> None:
    photo = Photo(pixels=picture(1500, 1000), format="PNG", mode="RGB")
    before = model_view(photo, 128)
    after = (before * 0.8 + 0.2 * before**2).clamp(-1, 1)
    exact = fit_transfer(before, after).detach()
    kept = change_to_bytes(Change("00", "up", exact))
    assert len(kept) < 100_000
    error = apply_transfer_to_pixels(exact, photo.pixels).astype(int) - apply_transfer_to_pixels(
        change_from_bytes(kept).transfer, photo.pixels
    )
    # a value at .5 may round the other way; more would be an error of the kept form
    assert np.abs(error).max() <= 1
    assert np.abs(error).mean() < 0.1


def test_no_change_leaves_the_pixels_of_the_photo_whatever_the_autoencoder_loses() -> None:
    photo = decode_photo(jpeg())
    lossy = torch.nn.functional.avg_pool2d(model_view(photo, 64), 5, 1, 2)
    delivery = Delivery(strength=1.0)
    encoded, _ = deliver(photo, lossy, lossy.clone(), delivery, software=SOFTWARE)
    assert encoded == encode_photo(photo, photo.pixels, software=SOFTWARE, note=delivery.note)
    model, change = deliver(photo, lossy, lossy, Delivery(deliver="model"), software=SOFTWARE)
    assert change is None
    shown = decode_photo(model)
    assert shown.pixels.shape == photo.pixels.shape
    assert not np.array_equal(shown.pixels, photo.pixels)


def test_detail_brings_what_no_transfer_can() -> None:
    photo = Photo(pixels=picture(200, 136), format="PNG", mode="RGB")
    before = model_view(photo, 64)
    after = before.clone()
    after[:, :, 30:34, 40:44] += 0.6  # a small new thing
    delivered = [
        decode_photo(
            deliver(photo, before, after, Delivery(detail=d), software=SOFTWARE)[0]
        ).pixels.astype(float)
        for d in (0.0, 1.0)
    ]
    height, width = before.shape[2:]
    where = (
        slice(int(31 / height * 136), int(33 / height * 136)),
        slice(int(41 / width * 200), int(43 / width * 200)),
    )
    new = [(pixels - photo.pixels)[where].mean() for pixels in delivered]
    assert new[0] < 30
    assert new[1] > 60  # of 76


def test_a_change_serves_its_own_photo_only_but_any_metadata() -> None:
    photo = decode_photo(jpeg())
    _, change = deliver(photo, *pair_of(photo), Delivery(), software=SOFTWARE)
    assert change is not None
    retagged = encode_photo(decode_photo(FILES["16-bit PNG"]()), deep_picture(3, 200, 136))
    with pytest.raises(ChangeError, match="not those that were edited"):
        restrength(retagged, change, Delivery())
    tagged = jpeg().replace(b"A. Author", b"B. Buyer!")
    assert restrength(tagged, change, Delivery())[0].width_px == photo.width_px


def test_detail_that_was_not_kept_is_an_error_not_a_silence() -> None:
    source = jpeg()
    photo = decode_photo(source)
    _, change = deliver(photo, *pair_of(photo), Delivery(), software=SOFTWARE)
    assert change is not None
    with pytest.raises(ChangeError, match="--detail"):
        restrength(source, change, Delivery(detail=0.5))


def _with(name: str, tensor: torch.Tensor | None, **metadata: str) -> bytes:
    photo = Photo(pixels=picture(), format="PNG", mode="RGB")
    kept = change_to_bytes(Change.between(photo, *pair_of(photo), with_detail=True))
    size = int.from_bytes(kept[:8], "little")
    tensors, known = load(kept), json.loads(kept[8 : 8 + size])["__metadata__"]
    if tensor is not None:
        tensors[name] = tensor
    else:
        del tensors[name]
    return save(tensors, {**known, **metadata})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        b"\x10" + bytes(300),
        _with("coefficients", None),
        _with("coefficients", torch.zeros(17, 5, 5)),
        _with("coefficients", torch.full((18, 5, 5), float("nan"))),
        _with("coefficients", torch.zeros(18, 1, 5)),
        _with("detail", torch.zeros(2, 8, 8)),
        _with("detail", torch.zeros(3, 8, 8), detail_peak="inf"),
        _with("detail", torch.zeros(3, 8, 8), format="another"),
        _with("detail", torch.zeros(3, 8, 8), grey="maybe"),
    ],
)
def test_bytes_that_are_no_change_are_refused(data: bytes) -> None:
    with pytest.raises(ChangeError):
        change_from_bytes(data)


@pytest.mark.parametrize(
    "options", [{"strength": 2.0}, {"detail": -0.1}, {"deliver": "raw"},
                {"detail": 0.5, "deliver": "model"}],
)  # fmt: skip
def test_a_delivery_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Delivery(**options)  # type: ignore[arg-type]
