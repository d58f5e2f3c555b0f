"""The local transfer: exact where nothing changed, true where much did, small and fast."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from doodl.delivery.transfer import (
    TransferFit,
    apply_transfer,
    apply_transfer_to_pixels,
    enlarge_to_pixels,
    fit_transfer,
)

FULL = Path(__file__).parents[3] / "shared" / "photos" / "full"
SAMPLES = Path(__file__).parents[2] / "doodl" / "pocket" / "samples"
WORKING_PX = 128


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in a worker; more threads are slower at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _image(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def _small(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    scale = WORKING_PX / min(height, width)
    size = (round(width * scale / 8) * 8, round(height * scale / 8) * 8)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _through_an_autoencoder(pixels: np.ndarray) -> np.ndarray:
    """Stand in for a lossy decoder: 8-pixel blocks, smeared colour, ringing (about 28 dB)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=18)
    return np.array(Image.open(buffer))


def _photo(name: str = "coffee.jpg", longer_px: int = 800) -> np.ndarray:
    path = SAMPLES / name if (SAMPLES / name).exists() else FULL / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    image = Image.open(path).convert("RGB")
    image.thumbnail((longer_px, longer_px))
    return np.array(image)


def _changed(pixels: np.ndarray, change: str) -> np.ndarray:
    x = pixels.astype(np.float32) / 255
    height, width, _ = x.shape
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    luminance = (x @ np.array([0.2126, 0.7152, 0.0722], np.float32))[..., None]
    y = {
        "gamma": lambda: x**0.7,
        "cast": lambda: x * np.array([1.1, 1, 0.85], np.float32),
        "s-curve": lambda: x + 0.15 * np.sin(2 * np.pi * (x - 0.5)),
        "exposure ramp": lambda: x * (0.8 + 0.5 * down),
        "lit spot": lambda: (
            x * (1 + 0.5 * np.exp(-((across - 0.35) ** 2 + (down - 0.4) ** 2) / 0.04))
        ),
        "saturation": lambda: luminance + 1.5 * (x - luminance),
    }[change]()
    return (y.clip(0, 1) * 255).round().astype(np.uint8)


def test_no_change_gives_exactly_the_identity() -> None:
    before = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    transfer = fit_transfer(before, before.clone())
    assert transfer.coefficients.count_nonzero() == 0
    pixels = _photo()
    assert np.array_equal(apply_transfer_to_pixels(transfer[0], pixels), pixels)


def test_strength_zero_returns_the_input_and_strength_scales_the_change() -> None:
    pixels = _photo(longer_px=300)
    before = _image(_small(pixels))
    transfer = fit_transfer(before, before + 0.2)
    assert np.array_equal(apply_transfer_to_pixels(transfer, pixels, strength=0), pixels)
    dark = np.minimum(pixels, 200)
    half = apply_transfer_to_pixels(transfer, dark, strength=0.5).astype(int) - dark
    # 0.2 of the [-1, 1] range is 25.5 levels; a flat change is found to a fraction of a level
    assert np.abs(half - 12.75).max() < 1.3


def test_a_flat_picture_takes_an_offset_and_no_gain() -> None:
    before = torch.full((1, 3, 64, 64), 0.1)
    transfer = fit_transfer(before, before + 0.3)
    assert transfer.coefficients[:, :15].abs().max() < 1e-5
    torch.testing.assert_close(
        apply_transfer(transfer, before), before + 0.3, rtol=0, atol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "floor_db"),
    [
        ("gamma", 35),
        ("cast", 35),
        # Not a low power, and at this decoder's noise the fit gives 0.3 dB for following real
        # decoders 1 dB closer (tests/benchmarks/transfer.py).
        ("s-curve", 29),
        ("exposure ramp", 32),
        ("lit spot", 33),
        ("saturation", 33),
    ],
)
@pytest.mark.parametrize("name", ["coffee.jpg", "parked_car.jpg", "kona.jpg"])
def test_a_known_change_is_found_again_through_a_lossy_decoder(
    name: str, change: str, floor_db: float
) -> None:
    """And better than adding the enlarged difference, which also adds the decoder's errors."""
    pixels = _photo(name)
    wanted = _changed(pixels, change)
    before = _image(_through_an_autoencoder(_small(pixels)))
    after = _image(_through_an_autoencoder(_small(wanted)))
    delivered = apply_transfer_to_pixels(fit_transfer(before, after), pixels)
    difference = torch.nn.functional.interpolate(after - before, pixels.shape[:2], mode="bicubic")
    residual = pixels + 127.5 * difference[0].permute(1, 2, 0).numpy()
    found = _psnr_db(delivered, wanted)
    assert found > floor_db
    assert found > _psnr_db(residual.clip(0, 255), wanted) + 2


def test_a_strong_edge_gets_no_halo() -> None:
    """Shadows are lifted by 40 levels and the sky is left: right up to the edge, in both."""
    rng = np.random.default_rng(0)
    pixels = np.full((480, 720, 3), 215.0)
    pixels[:, :360] = 45
    pixels += rng.normal(0, 4, pixels.shape)
    wanted = pixels.copy()
    wanted[:, :360] += 40
    photo, lifted = pixels.astype(np.uint8), wanted.astype(np.uint8)
    transfer = fit_transfer(_image(_small(photo)), _image(_small(lifted)))
    error = apply_transfer_to_pixels(transfer, photo).astype(float) - lifted
    by_column = error.mean(axis=(0, 2))
    assert np.abs(by_column).max() < 3  # of 40 levels; a halo would be 10 and more
    assert np.abs(by_column[300:420]).mean() < 1.5


def test_a_grey_photo_stays_exactly_grey_whatever_the_colour_of_the_edit() -> None:
    grey = np.repeat(_photo("camera.jpg")[:, :, :1], 3, axis=2)
    before = _image(_small(grey))
    after = before * 0.8 + torch.tensor([0.2, 0.05, -0.1]).view(1, 3, 1, 1)
    transfer = fit_transfer(before, after, grey=True)
    delivered = apply_transfer_to_pixels(transfer, grey)
    assert np.array_equal(delivered[:, :, 0], delivered[:, :, 1])
    assert np.array_equal(delivered[:, :, 1], delivered[:, :, 2])
    shown = apply_transfer(transfer, before)
    assert (shown[:, 0] - shown[:, 2]).abs().max() < 1e-5
    wanted = _image(grey) * 0.8 + (0.2126 * 0.2 + 0.7152 * 0.05 - 0.0722 * 0.1)
    assert (_image(delivered) - wanted).abs().mean() < 0.01


def test_grey_and_colour_photos_of_one_batch_do_not_touch_each_other() -> None:
    generator = torch.Generator().manual_seed(1)
    before = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    after = before * 0.7 + 0.1
    both = fit_transfer(before, after, grey=[True, False])
    alone = fit_transfer(before[1:], after[1:])
    torch.testing.assert_close(both[1].coefficients, alone.coefficients, rtol=0, atol=1e-5)
    assert (both.grey, both[0].grey) == ((True, False), (True,))


def test_full_resolution_and_tensor_agree() -> None:
    pixels = _photo(longer_px=400)
    before = _image(_small(pixels))
    transfer = fit_transfer(before, before**3 * 0.5 + 0.4 * before)
    shown = (apply_transfer(transfer, _image(pixels), strength=0.7)[0] + 1) * 127.5
    expected = shown.permute(1, 2, 0).round().clamp(0, 255).numpy().astype(int)
    for tile_rows in (17, 64):
        tiled = apply_transfer_to_pixels(transfer, pixels, strength=0.7, tile_rows=tile_rows)
        # float32 in another order: a value at .5 may round the other way
        assert np.abs(tiled - expected).max() <= 1
        assert (tiled != expected).mean() < 1e-3


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(2)
    before = torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1
    after = (before * 0.9).requires_grad_()
    fit = TransferFit(before)

    def loss(image: torch.Tensor) -> torch.Tensor:
        return apply_transfer(fit.fit(image), before).square().mean()

    (gradient,) = torch.autograd.grad(loss(after), after)
    step = torch.randn(after.shape, generator=generator)
    with torch.no_grad():
        slope = (loss(after + 0.05 * step) - loss(after - 0.05 * step)) / 0.1
    # the loss is quadratic in `after`, so the central difference is exact up to float32
    assert float((gradient * step).sum()) == pytest.approx(float(slope), rel=2e-2)


def test_without_locality_the_same_colour_changes_alike_everywhere() -> None:
    generator = torch.Generator().manual_seed(3)
    before = torch.rand(1, 3, 48, 64, generator=generator) * 1.6 - 0.8
    brighter_left = torch.linspace(0.3, 0.0, 64).view(1, 1, 1, -1)
    after = before * 0.9 + brighter_left
    same = torch.full((1, 3, 48, 64), 0.25)

    def spread(locality: float) -> float:
        red = apply_transfer(TransferFit(before, locality=locality).fit(after), same)[0, 0]
        return float(red.max() - red.min())

    whole, half, none = spread(1.0), spread(0.5), spread(0.0)
    assert whole > 0.2
    assert half == pytest.approx(whole / 2, rel=1e-3)
    assert none < 1e-5
    # A change that is the same everywhere keeps all of itself.
    tone = before * 0.8 + 0.1
    kept = TransferFit(before, locality=0.0).fit(tone)
    assert float((apply_transfer(kept, before) - tone).square().mean().sqrt()) < 0.01


def test_a_sixteen_bit_photo_gets_the_same_change_finer() -> None:
    pixels = _photo(longer_px=300)
    before = _image(_small(pixels))
    transfer = fit_transfer(before, before * 0.8 + 0.1)
    deep = pixels.astype(np.uint16) * 257
    changed = apply_transfer_to_pixels(transfer, deep)
    assert changed.dtype == np.uint16
    shallow = apply_transfer_to_pixels(transfer, pixels).astype(np.float64)
    # each is rounded to its own level, so they differ by half of an 8-bit one
    assert np.abs(changed / 257 - shallow).max() <= 0.51
    assert len(np.unique(changed)) > 4 * len(np.unique(shallow))
    assert np.array_equal(apply_transfer_to_pixels(transfer, deep, strength=0), deep)


def test_detail_is_added_where_it_lies_and_scales_with_the_strength() -> None:
    pixels = np.full((300, 420, 3), 100, np.uint8)
    before = torch.zeros(1, 3, 64, 96)
    nothing = fit_transfer(before, before)
    detail = torch.zeros(3, 64, 96)
    detail[0, 32, 48] = 0.4
    for strength in (1.0, 0.5):
        changed = apply_transfer_to_pixels(nothing, pixels, strength=strength, detail=detail)
        where = np.unravel_index(changed[:, :, 0].argmax(), (300, 420))
        # the middle of row 32 of 64 in 300, of column 48 of 96 in 420, to half a sample
        assert np.abs(np.array(where) - [32.5 / 64 * 300, 48.5 / 96 * 420]).max() < 2.5
        peak = changed[:, :, 0].max() - 100.0
        assert peak == pytest.approx(127.5 * 0.4 * strength, abs=2)
        assert (changed[:, :, 1:] == 100).all()


def test_an_enlarged_image_passes_through_its_own_pixels() -> None:
    image = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same = enlarge_to_pixels(image, np.zeros((40, 56, 3), np.uint8))
    expected = ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(same - expected).max() <= 1e-3
    thrice = enlarge_to_pixels(image, np.zeros((120, 168, 3), np.uint16))
    centres = ((image + 1) * 32767.5).permute(1, 2, 0).numpy()
    assert np.abs(thrice[1::3, 1::3] - centres).max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: TransferFit(b[0]), "shape"),
        (lambda b: TransferFit(b, radius=2), "radius"),
        (lambda b: TransferFit(b, eps=0), "eps"),
        (lambda b: TransferFit(b, locality=1.2), "locality"),
        (lambda b: TransferFit(b, grey=[True]), "grey"),
        (lambda b: apply_transfer(fit_transfer(b, b), b[:1]), "photos"),
        (
            lambda b: apply_transfer_to_pixels(fit_transfer(b, b), np.zeros((9, 9, 3), np.uint8)),
            "photos",
        ),
        (lambda b: apply_transfer_to_pixels(fit_transfer(b, b)[0], np.zeros((9, 9))), "uint16"),
    ],
)
def test_a_wrong_argument_is_named(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 32, 32))
