"""HEIC photos: in at their own depth, back as HEIC, everything in them kept or named."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from doodl.errors import PhotoError, PhotoTooLargeError, UnsupportedPhotoError
from doodl.images import decode_photo, encode_photo, model_view
from doodl.images.heif import C2PA_UUID
from tests.doodl.photo_files import MAKER_NOTE, XMP, exif_block, picture
from tests.doodl.test_images_deep import deep_picture

pillow_heif = pytest.importorskip("pillow_heif")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def heic(samples: np.ndarray, **options: object) -> bytes:
    """Return a HEIC of samples, lossless but for the colour transform unless told otherwise."""
    height, width = samples.shape[:2]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[samples.shape[2]]
    if samples.dtype == np.uint16:
        mode = {"L": "L;16"}.get(mode, f"{mode};16")
    options = {"quality": -1, "chroma": 444, **options}
    buffer = io.BytesIO()
    pillow_heif.encode(mode, (width, height), samples.tobytes(), buffer, **options)
    return buffer.getvalue()


def psnr_db(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    error = np.square(a.astype(np.float64) - b).mean()
    return float(10 * np.log10(peak**2 / max(error, 1e-9)))


def displayed(data: bytes) -> np.ndarray:
    file = pillow_heif.open_heif(data)
    return np.asarray(file)[:, : file.size[0]]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_heic_comes_back_as_heic_with_its_pixels_and_metadata(orientation: int) -> None:
    block = exif_block(orientation)
    xmp = XMP.replace(b'Orientation="6"', b'Orientation="%d"' % orientation)
    data = heic(picture(), exif=b"Exif\0\0" + block, xmp=xmp, icc_profile=SRGB)
    photo = decode_photo(data)
    assert (photo.format, photo.mode, photo.bits) == ("HEIF", "RGB", 8)
    assert np.array_equal(photo.pixels, displayed(data))
    delivered = encode_photo(photo, photo.pixels, software="doodl-batch 1.2.3", note="up & away")
    kept = decode_photo(delivered)
    assert kept.pixels.shape == photo.pixels.shape
    assert (kept.icc_profile, kept.orientation) == (SRGB, orientation)
    assert psnr_db(kept.pixels, photo.pixels, 255) > 40  # x265 at 90 of a noisy picture
    exif = pillow_heif.open_heif(delivered).info["exif"].removeprefix(b"Exif\0\0")
    assert MAKER_NOTE in exif
    assert exif.index(MAKER_NOTE) == block.index(MAKER_NOTE)  # makers' notes hold offsets
    assert b"doodl-batch 1.2.3" in exif
    assert kept.xmp is not None
    assert b"up &amp; away" in kept.xmp
    assert b"A. Author" in kept.xmp


def test_ten_bits_stay_ten_bits() -> None:
    data = heic(deep_picture(), bit_depth=10)
    photo = decode_photo(data)
    assert (photo.bits, photo.pixels.dtype) == (10, np.uint16)
    assert photo.pixels.max() > 50_000
    assert psnr_db(photo.pixels, deep_picture(), 65535) > 55
    again = decode_photo(encode_photo(photo, photo.pixels))
    assert again.bits == 10
    assert psnr_db(again.pixels, photo.pixels, 65535) > 40


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_come_back_in_kind(channels: int) -> None:
    samples = picture()
    if channels == 4:
        samples = np.dstack([samples, np.full((64, 96), 90, np.uint8)])
    data = heic(samples[:, :, :1] if channels == 1 else samples)
    photo = decode_photo(data)
    again = decode_photo(encode_photo(photo, photo.pixels))
    assert again.mode == photo.mode == {1: "L", 4: "RGBA"}[channels]
    assert photo.grey == (channels == 1)
    if channels == 4:
        assert photo.alpha is not None
        assert again.alpha is not None
        assert np.abs(photo.alpha.astype(int) - 90).max() <= 1
        assert np.abs(again.alpha.astype(int) - 90).max() <= 2


def test_an_odd_size_keeps_every_row_and_column() -> None:
    photo = decode_photo(heic(picture(97, 65), chroma=420))
    assert decode_photo(encode_photo(photo, photo.pixels)).pixels.shape == (65, 97, 3)


def test_display_p3_named_by_code_points_reaches_the_model_as_srgb_and_stays_p3() -> None:
    p3 = {"color_primaries": 12, "transfer_characteristics": 13, "matrix_coefficients": 6,
          "full_range_flag": 1}  # fmt: skip
    photo, plain = decode_photo(heic(picture(), nclx_profile=p3)), decode_photo(heic(picture()))
    assert np.abs(photo.pixels.astype(int) - plain.pixels).max() <= 1
    assert (model_view(photo, 64) - model_view(plain, 64)).abs().mean() > 0.01
    delivered = encode_photo(photo, photo.pixels)
    assert pillow_heif.open_heif(delivered).info["nclx_profile"]["color_primaries"] == 12
    assert psnr_db(decode_photo(delivered).pixels, photo.pixels, 255) > 40


def test_hdr_is_refused_by_name() -> None:
    pq = {"color_primaries": 9, "transfer_characteristics": 16, "matrix_coefficients": 9,
          "full_range_flag": 1}  # fmt: skip
    with pytest.raises(UnsupportedPhotoError, match=r"HDR photo \(PQ"):
        decode_photo(heic(deep_picture(), bit_depth=10, nclx_profile=pq))


def test_what_cannot_be_kept_is_named_in_the_history() -> None:
    file = pillow_heif.from_bytes("RGB", (96, 64), picture().tobytes())
    file.add_frombytes("RGB", (96, 64), picture(seed=1).tobytes())
    buffer = io.BytesIO()
    file.save(buffer)
    signed = C2PA_UUID + bytes(40)
    data = buffer.getvalue() + (len(signed) + 8).to_bytes(4, "big") + b"uuid" + signed
    photo = decode_photo(data)
    assert photo.dropped == ("1 further pictures", "Content Credentials (C2PA)")
    delivered = encode_photo(photo, photo.pixels)
    assert C2PA_UUID not in delivered
    assert b"1 further pictures, Content Credentials" in (decode_photo(delivered).xmp or b"")


def test_strip_gps_leaves_no_position_in_a_heic() -> None:
    data = heic(picture(), exif=b"Exif\0\0" + exif_block(), xmp=XMP)
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels, strip_gps=True)
    assert b"GPS" not in (decode_photo(delivered).xmp or b"")
    exif = Image.Exif()
    exif.load(pillow_heif.open_heif(delivered).info["exif"])
    assert 0x8825 not in exif


def test_size_is_compared_before_anything_is_decoded() -> None:
    with pytest.raises(PhotoTooLargeError, match="96×64"):
        decode_photo(heic(picture()), max_pixels=6000)


def test_every_cut_or_flip_is_an_error_or_a_photo() -> None:
    data = heic(picture(), exif=b"Exif\0\0" + exif_block(), xmp=XMP)
    rng = np.random.default_rng(0)
    broken = [data[:end] for end in range(0, len(data), len(data) // 30)]
    for _ in range(60):
        flipped = bytearray(data)
        for at in rng.integers(0, min(len(data), 1200), 2):
            flipped[at] ^= 1 << rng.integers(0, 8)
        broken.append(bytes(flipped))
    for candidate in broken:
        try:
            photo = decode_photo(candidate, max_pixels=1_000_000)
        except PhotoError:
            continue
        assert photo.pixels.shape[2] == 3
