"""Photos in and out: nothing lost that was in the file, and one clear line for a bad one."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, features

from doodl.errors import (
    PhotoError,
    PhotoTooLargeError,
    PhotoTooSmallError,
    UnreadablePhotoError,
    UnsupportedPhotoError,
)
from doodl.images import Photo, decode_photo, encode_photo, into_photo_space, model_view
from doodl.images.fineness import as_fine
from doodl.images.tiff import Tag, read_tags, write_tags
from doodl.images.xmp import edit_xmp
from tests.doodl.photo_files import (
    MAKER_NOTE,
    XMP,
    all_tags,
    cmyk_profile,
    exif_block,
    picture,
    save,
    wide_gamut_profile,
)

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, of files made broken
FULL = Path(__file__).parents[3] / "shared" / "photos" / "full"
FULL_PHOTOS = sorted(FULL.glob("*.jpg")) if FULL.is_dir() else []
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RGB = Image.fromarray(picture())
GREY = RGB.convert("L")
RGBA = Image.merge("RGBA", (*RGB.split(), GREY.point(lambda v: 0 if v < 110 else v)))
PALETTE = RGB.quantize(64)
CMYK = Image.merge("CMYK", (*RGB.split(), GREY.point(lambda v: 255 - v)))


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _clear_palette() -> Image.Image:
    image = PALETTE.copy()
    image.info["transparency"] = 3
    return image


def _bomb() -> bytes:
    """Return a PNG of a few bytes whose header says 30,000 × 30,000."""
    data = save(Image.new("RGB", (64, 64)), "PNG")
    header = struct.pack(">II", 30_000, 30_000) + data[24:29]
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return data[:16] + header + crc + data[33:]


def _animation(kind: str) -> bytes:
    frames = [Image.fromarray(picture(seed=i)) for i in range(3)]
    return save(frames[0], kind, save_all=True, append_images=frames[1:])


LOSSLESS: dict[str, bytes] = {
    "PNG RGB": save(RGB, "PNG"),
    "PNG L": save(GREY, "PNG"),
    "PNG LA": save(RGBA.convert("LA"), "PNG"),
    "PNG RGBA": save(RGBA, "PNG"),
    "PNG P": save(PALETTE, "PNG"),
    "PNG P with a clear colour": save(_clear_palette(), "PNG"),
    "PNG P with many opacities": save(RGBA.quantize(128), "PNG"),
    "PNG RGB with a clear colour": save(RGB, "PNG", transparency=tuple(picture()[5, 5].tolist())),
    "TIFF RGB": save(RGB, "TIFF"),
    "TIFF L": save(GREY, "TIFF"),
    "TIFF RGBA": save(RGBA, "TIFF", compression="tiff_lzw"),
    "TIFF RGB LZW": save(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF RGB deflate": save(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF CMYK": save(CMYK, "TIFF"),
    "WEBP lossless RGB": save(RGB, "WEBP", lossless=True),
    "WEBP lossless, profile": save(RGB, "WEBP", lossless=True, icc_profile=SRGB, xmp=XMP),
    "WEBP lossless RGBA": save(RGBA, "WEBP", lossless=True, exact=True),
    "BMP RGB": save(RGB, "BMP"),
    "BMP L": save(GREY, "BMP"),
    "GIF": save(PALETTE, "GIF"),
    "GIF with a clear colour": save(_clear_palette(), "GIF"),
}
LOSSY: dict[str, bytes] = {
    "JPEG RGB": save(RGB, "JPEG", quality=92),
    "JPEG L": save(GREY, "JPEG", quality=92),
    "JPEG CMYK": save(CMYK, "JPEG", quality=92),
    "JPEG progressive": save(RGB, "JPEG", quality=80, progressive=True),
    "JPEG 4:4:4": save(RGB, "JPEG", quality=90, subsampling=0),
    "JPEG coded as RGB": save(RGB, "JPEG", quality=90, keep_rgb=True),
    "WEBP RGB": save(RGB, "WEBP", quality=85),
    "TIFF JPEG": save(RGB, "TIFF", compression="jpeg", quality=90),
}
if features.check("avif"):
    LOSSY["AVIF RGB"] = save(RGB, "AVIF", quality=85)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_file_unchanged_has_exactly_its_pixels_and_its_kind(name: str) -> None:
    data = LOSSLESS[name]
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels)
    source, result = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(delivered))
    assert result.format == source.format
    assert result.size == source.size
    if "clear colour" not in name:  # as palette or alpha plane, it is the same picture
        assert result.mode == source.mode
    assert result.info.get("compression") == source.info.get("compression")
    before, after = (np.array(i if i.mode == "CMYK" else i.convert("RGBA"))
                     for i in (source, result))  # fmt: skip
    if name.startswith("GIF"):  # what is fully clear has no colour there
        before, after = (np.where(p[:, :, 3:] == 0, 0, p) for p in (before, after))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_file_unchanged_is_within_its_own_requantisation(name: str) -> None:
    data = LOSSY[name]
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels)
    source, result = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(delivered))
    assert (result.format, result.mode, result.size) == (source.format, source.mode, source.size)
    # The first encoding of this picture costs 38 to 45 dB; a second, equal one much less.
    assert _psnr_db(np.array(source), np.array(result)) > (40 if name.startswith("J") else 36)
    if isinstance(source, JpegImagePlugin.JpegImageFile):
        assert isinstance(result, JpegImagePlugin.JpegImageFile)
        assert result.quantization == source.quantization
        assert JpegImagePlugin.get_sampling(result) == JpegImagePlugin.get_sampling(source)
        assert result.info.get("progressive") == source.info.get("progressive")
        assert result.info.get("adobe_transform") == source.info.get("adobe_transform")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "zstd"])
def test_a_tiff_of_8_bits_keeps_its_predictor(compression: str) -> None:
    def predictor(data: bytes) -> int | None:
        return Image.open(io.BytesIO(data)).tag_v2.get(317)  # type: ignore[attr-defined]

    for wanted in (None, 2):
        info = {317: wanted} if wanted else {}
        data = save(RGB, "TIFF", compression=compression, tiffinfo=info)
        photo = decode_photo(data)
        delivered = encode_photo(photo, photo.pixels)
        assert predictor(delivered) == predictor(data) == wanted
        assert len(delivered) < len(data) + 2000
        assert np.array_equal(decode_photo(delivered).pixels, photo.pixels)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:0:0"])
def test_an_avif_keeps_its_subsampling_and_its_alpha(subsampling: str) -> None:
    image = RGBA.convert("LA") if subsampling == "4:0:0" else RGBA
    data = save(image, "AVIF", quality=85, subsampling=subsampling)
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels)
    record = [d[d.index(b"av1C") + 6] & 0x1C for d in (data, delivered)]
    assert record[0] == record[1]
    assert photo.alpha is not None
    assert np.array_equal(decode_photo(delivered).alpha, photo.alpha)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_finely_coded_photo_is_not_coded_more_coarsely(kind: str) -> None:
    photo = decode_photo(save(Image.fromarray(picture(192, 128)), kind, quality=100))
    delivered = decode_photo(encode_photo(photo, photo.pixels))
    coarser = decode_photo(save(Image.fromarray(photo.pixels), kind, quality=90))
    kept, lost = (_psnr_db(photo.pixels, p.pixels) for p in (delivered, coarser))
    assert kept > lost + 3


def test_the_lowest_quality_that_spends_the_sources_bytes_is_taken() -> None:
    def encode(quality: int) -> bytes:
        return bytes(10 * quality)

    assert [len(as_fine(encode, size)) for size in (0, 900, 901, 950, 990, 5000)] == [
        900, 900, 950, 950, 1000, 1000,
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_an_edit_shows_in_the_delivered_file(name: str) -> None:
    photo = decode_photo((LOSSLESS | LOSSY)[name])
    wanted = (photo.pixels * 0.8 + 30).astype(np.uint8)
    if photo.grey:
        wanted = np.repeat(wanted[:, :, :1], 3, axis=2)
    delivered = decode_photo(encode_photo(photo, wanted))
    assert delivered.grey == photo.grey
    if photo.alpha is not None:
        assert delivered.alpha is not None
        assert np.array_equal(delivered.alpha, photo.alpha)
        seen = photo.alpha > 0
        wanted, shown = wanted[seen], delivered.pixels[seen]
    else:
        shown = delivered.pixels
    # JPEG at 92 of noisy texture: 35 dB and more; 256 colours with dither: 30
    assert _psnr_db(wanted, shown) > (28 if photo.format == "GIF" else 33)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW", "AVIF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_tag_is_kept_but_those_that_must_change(name: str, order: str) -> None:
    data = _with_metadata(name, order)
    photo = decode_photo(data)
    assert (photo.width_px, photo.height_px) == (64, 96)  # 96×64 with orientation 6
    delivered = encode_photo(photo, photo.pixels, software="doodl-batch 1.2.3", note="up & away")
    before, after = all_tags(data), all_tags(delivered)
    kept = decode_photo(delivered)
    assert (kept.width_px, kept.height_px, kept.orientation) == (64, 96, 6)
    assert after.pop("0/305") == "doodl-batch 1.2.3"
    structural = {"0/34665", "0/34853", *(f"0/{t}" for t in (254, *range(256, 260), 262, 273,
                  277, 278, 279, 284, 317, 338, 700))}  # fmt: skip
    for tags in (before, after):
        for tag in structural:
            tags.pop(tag, None)
    before.pop("0/305")
    assert after == before
    assert (after["0/274"], after["Exif/40962"], after["Exif/40963"]) == (6, 96, 64)
    assert after["Exif/37500"] == MAKER_NOTE
    assert after["GPSInfo/2"] == (48.0, 51.0, 30.0)
    assert kept.icc_profile == SRGB
    assert kept.xmp is not None
    assert b"up &amp; away" in kept.xmp
    assert b"compositeWithTrainedAlgorithmicMedia" in kept.xmp
    assert b'tiff:Orientation="6"' in kept.xmp
    assert b"A. Author" in kept.xmp


def _with_metadata(name: str, order: str) -> bytes:
    block = b"Exif\0\0" + exif_block(order=order)
    options: dict[str, object] = {"exif": block, "icc_profile": SRGB, "xmp": XMP}
    if name == "PNG":
        del options["xmp"]
        data = save(RGB, "PNG", **options, dpi=(300, 300))
        at = data.index(b"IDAT") - 4
        text = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + XMP
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        return data[:at] + chunk + data[at:]
    if name.startswith("TIFF"):
        from doodl.images.tiff import read_tags, write_tags

        tags = read_tags(exif_block(order=order))
        base = save(RGB, "TIFF", compression="tiff_lzw" if "LZW" in name else None)
        return write_tags(
            write_tags(base, tags),
            (
                *(type(tags[0])(t, 7 if t != 700 else 1, len(v), v)
                  for t, v in ((700, XMP), (34675, SRGB))),
            ),
        )  # fmt: skip
    if name == "AVIF":
        if not features.check("avif"):
            pytest.skip("Pillow without AVIF")
        return save(RGB, "AVIF", **options)
    return save(RGB, name, **options)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW"])
def test_strip_gps_leaves_no_position_anywhere(name: str) -> None:
    data = _with_metadata(name, "<")
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels, note="up", strip_gps=True)
    assert not any(key.startswith("GPS") or key == "0/34853" for key in all_tags(delivered))
    xmp = decode_photo(delivered).xmp
    assert xmp is not None
    assert b"GPS" not in xmp
    assert b"48,51" not in delivered
    assert b"2,17.4E" not in delivered
    # 48 / 1, 51 / 1, 30 / 1 as it lay in the block
    assert struct.pack("<6I", 48, 1, 51, 1, 30, 1) not in delivered
    assert all_tags(delivered)["Exif/37500"] == MAKER_NOTE


def test_a_file_without_metadata_gains_only_the_software_tag_and_the_note() -> None:
    photo = decode_photo(save(RGB, "JPEG"))
    delivered = encode_photo(photo, photo.pixels, software="doodl-batch 1.2.3")
    assert all_tags(delivered) == {"0/305": "doodl-batch 1.2.3"}
    unmarked = encode_photo(photo, photo.pixels, source_type=None)
    assert decode_photo(unmarked).xmp is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_handled_once(orientation: int) -> None:
    from PIL import ImageOps

    block = b"Exif\0\0" + exif_block(orientation)
    data = save(RGB, "PNG", exif=block)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    photo = decode_photo(data)
    assert np.array_equal(photo.pixels, upright)
    result = Image.open(io.BytesIO(encode_photo(photo, photo.pixels)))
    assert result.getexif()[0x0112] == orientation
    assert np.array_equal(np.array(result), np.array(RGB))  # stored as the source was


def test_the_thumbnail_shows_the_edited_photo() -> None:
    data = save(RGB, "JPEG", exif=b"Exif\0\0" + exif_block())
    photo = decode_photo(data)
    delivered = encode_photo(photo, np.full_like(photo.pixels, 200))
    exif = Image.open(io.BytesIO(delivered)).getexif()
    first = exif.get_ifd(ExifTags.IFD.IFD1)
    block = decode_photo(delivered).exif
    assert block is not None
    thumbnail = Image.open(io.BytesIO(block[first[0x0201] : first[0x0201] + first[0x0202]]))
    assert thumbnail.size == (96, 64)  # stored turned, as the photo itself
    assert abs(np.asarray(thumbnail).mean() - 200) < 2


@pytest.mark.parametrize("path", FULL_PHOTOS, ids=lambda p: p.stem)
def test_real_photos_come_back_with_size_metadata_and_pixels(path: Path) -> None:
    data = path.read_bytes()
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels)
    kept = decode_photo(delivered)
    assert (kept.width_px, kept.height_px) == (photo.width_px, photo.height_px)
    assert (kept.mode, kept.icc_profile) == (photo.mode, photo.icc_profile)
    if photo.dpi:  # with EXIF but without a resolution in it, Pillow says 72
        assert kept.dpi == photo.dpi
    assert kept.extras == photo.extras
    assert edit_xmp(kept.xmp, None) == kept.xmp  # nothing in it speaks of what is gone
    assert kept.coding == photo.coding
    before, after = all_tags(data), all_tags(delivered)
    assert after.pop("0/305").startswith("doodl-batch ")
    before.pop("0/305", None)
    tag = "0/34665"  # where the next directory lies
    assert (tag in before) == (tag in after)
    before.pop(tag, None)
    after.pop(tag, None)
    assert sorted(map(repr, after.items())) == sorted(map(repr, before.items()))  # NaN == NaN
    # 54 dB and more, turned photos too, as the blocks stay in place (worst: church, quality 97)
    assert _psnr_db(photo.pixels, kept.pixels) > 53


def test_a_cmyk_photo_with_a_profile_keeps_inks_and_shows_the_edit() -> None:
    profile = cmyk_profile()
    data = save(CMYK, "TIFF", icc_profile=profile)
    photo = decode_photo(data)
    unchanged = Image.open(io.BytesIO(encode_photo(photo, photo.pixels)))
    assert np.array_equal(np.array(unchanged), np.array(CMYK))
    assert unchanged.info["icc_profile"] == profile
    wanted = (photo.pixels * 0.9 + 20).astype(np.uint8)
    shown = decode_photo(encode_photo(photo, wanted))
    assert shown.mode == "CMYK"
    before, after = _psnr_db(photo.pixels, wanted), _psnr_db(shown.pixels, wanted)
    assert after > 30
    assert after > before + 6


def test_the_colour_under_transparency_does_not_reach_the_model() -> None:
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:, 48:] = 0
    views = []
    for hidden in (0, 255):
        pixels = picture()
        pixels[:, 48:] = hidden
        data = save(Image.fromarray(np.dstack([pixels, alpha])), "PNG")
        views.append(model_view(decode_photo(data), 32))
    assert torch.equal(*views)
    assert abs(float(views[0][..., 30:].mean())) < 0.02  # neutral grey


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (600, 400, (128, 192)),
        (400, 600, (192, 128)),
        (500, 500, (128, 128)),
        (33, 1000, (512, 128)),
        (4000, 40, (128, 512)),
        (1344, 1008, (128, 168)),
    ],
)
def test_the_view_keeps_the_whole_frame_and_its_aspect(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    """A panorama beyond 4:1 is squeezed to 4:1."""
    view = model_view(_photo_of(np.full((height, width, 3), 255, np.uint8)), 128)
    assert tuple(view.shape) == (1, 3, *expected)
    assert float(view.min()) == 1.0


def test_the_view_does_not_alias() -> None:
    """A one-pixel checkerboard is grey from afar."""
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    view = model_view(_photo_of(np.repeat(board[:, :, None], 3, 2)), 64)
    assert view.abs().max() < 0.03


def test_a_wide_gamut_photo_is_shown_in_srgb_and_goes_back() -> None:
    photo = decode_photo(save(RGB, "PNG", icc_profile=wide_gamut_profile()))
    plain = decode_photo(save(RGB, "PNG"))
    view, unconverted = model_view(photo, 64), model_view(plain, 64)
    # gamma 1.8 shown as such would be much too bright, and its colours dull
    assert (view - unconverted).abs().mean() > 0.05
    back = into_photo_space(photo, view)
    inside = (view.abs() < 0.98).all(dim=1, keepdim=True).expand_as(back)
    assert (back - unconverted)[inside].abs().mean() < 0.01
    assert into_photo_space(plain, view) is view


@pytest.mark.parametrize(("index", "converted"), [(b"R03\0", True), (b"R98\0", False)])
def test_a_cameras_adobe_rgb_without_a_profile_reaches_the_model_as_srgb(
    index: bytes, converted: bool
) -> None:
    order = struct.Struct("<HHI4s")
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + order.pack(0x8769, 4, 1, b"\x1a\0\0\0")
    exif += bytes(4) + struct.pack("<H", 2)
    exif += order.pack(0xA001, 3, 1, b"\xff\xff\0\0") + order.pack(0xA005, 4, 1, b"\x38\0\0\0")
    exif += bytes(4) + struct.pack("<H", 1) + order.pack(1, 2, 4, index) + bytes(4)
    photo = decode_photo(save(RGB, "JPEG", quality=95, exif=b"Exif\0\0" + exif))
    plain = decode_photo(save(RGB, "JPEG", quality=95))
    difference = (model_view(photo, 64) - model_view(plain, 64)).abs().mean()
    assert (difference > 0.01) == converted
    delivered = Image.open(io.BytesIO(encode_photo(photo, photo.pixels)))
    assert "icc_profile" not in delivered.info  # it says so as it did


def _photo_of(pixels: np.ndarray) -> Photo:
    return Photo(pixels=pixels, format="PNG", mode="RGB")


def test_an_mpo_is_a_jpeg_with_its_first_picture() -> None:
    frames = [Image.fromarray(picture(seed=i)) for i in range(2)]
    data = save(frames[0], "MPO", save_all=True, append_images=frames[1:])
    photo = decode_photo(data)
    assert photo.format == "JPEG"
    result = Image.open(io.BytesIO(encode_photo(photo, photo.pixels)))
    assert (result.format, getattr(result, "n_frames", 1)) == ("JPEG", 1)


def test_iptc_and_comments_stay_and_the_old_thumbnail_goes() -> None:
    iptc = b"8BIM\x04\x04\0\0" + struct.pack(">I", 5) + b"\x1c\x02\x05\0\0\0"
    old = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 6) + b"secret"
    app13 = b"Photoshop 3.0\0" + old + iptc
    segment = b"\xff\xed" + struct.pack(">H", len(app13) + 2) + app13
    plain = save(RGB, "JPEG", comment=b"hello", dpi=(240, 240))
    photo = decode_photo(plain[:2] + segment + plain[2:])
    result = encode_photo(photo, photo.pixels)
    assert iptc in result
    assert b"secret" not in result
    reopened = Image.open(io.BytesIO(result))
    assert reopened.info["comment"] == b"hello"
    assert reopened.info["dpi"] == (240, 240)


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def test_the_thumbnails_of_jfif_go() -> None:
    plain = save(RGB, "JPEG")
    small = save(RGB.resize((24, 16)), "JPEG")
    jfif = b"JFIF\0\1\2\1\0\x48\0\x48\2\2" + b"old" * 4
    data = plain[:2] + _segment(0xE0, jfif) + _segment(0xE0, b"JFXX\0\x10" + small) + plain[20:]
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels)
    assert delivered[2:20] == _segment(0xE0, jfif[:12] + b"\0\0")
    assert b"JFXX" not in delivered
    assert Image.open(io.BytesIO(delivered)).info["dpi"] == (72, 72)


def test_exif_of_more_than_one_segment_stays() -> None:
    block = exif_block(1, thumbnail=False)
    block += bytes(i % 251 for i in range(90_000 - len(block)))
    plain = save(RGB, "JPEG")
    parts = [block[:65_000], block[65_000:]]
    data = plain[:2] + b"".join(_segment(0xE1, b"Exif\0\0" + p) for p in parts) + plain[2:]
    photo = decode_photo(data)
    delivered = encode_photo(photo, photo.pixels)
    assert all_tags(delivered) == all_tags(data)
    assert (decode_photo(delivered).exif or b"").endswith(block[-50_000:])


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpegs_picture_is_named_and_padding_is_not(progressive: bool) -> None:
    plain = save(RGB, "JPEG", progressive=progressive)
    assert decode_photo(plain + bytes(512)).dropped == ()
    photo = decode_photo(plain + b"SEFH a maker's trailer")
    assert photo.dropped == ("what follows the picture in the file",)
    delivered = encode_photo(photo, photo.pixels)
    assert b"SEFH" not in delivered
    assert b"what follows the picture" in (decode_photo(delivered).xmp or b"")


def test_a_geotiffs_place_is_stripped_and_else_kept() -> None:
    tie = struct.pack("<6d", 0, 0, 0, 2.29, 48.85, 0)
    places = (Tag(33922, 12, 6, tie), Tag(34737, 2, 7, b"WGS 84|"))
    photo = decode_photo(write_tags(save(RGB, "TIFF"), places))
    kept, stripped = (encode_photo(photo, photo.pixels, strip_gps=s) for s in (False, True))
    assert {t.tag for t in read_tags(kept)} >= {33922, 34737}
    assert not {t.tag for t in read_tags(stripped)} & {33922, 34737}
    assert tie not in stripped


def test_a_malformed_exif_block_does_not_stop_the_photo() -> None:
    for broken in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0nonsense and more"):
        photo = decode_photo(save(RGB, "JPEG", exif=broken))
        assert decode_photo(encode_photo(photo, photo.pixels)).width_px == 96


def test_metadata_that_fills_its_segment_is_kept_rather_than_noted() -> None:
    exif = exif_block(1, thumbnail=False)
    exif += bytes(65520 - len(exif))
    xmp = XMP.replace(b"Tower", b"Tower" + b" " * (65480 - len(XMP)))
    data = save(RGB, "JPEG", exif=b"Exif\0\0" + exif, xmp=xmp)
    photo = decode_photo(data)
    assert (len(photo.exif or b""), len(photo.xmp or b"")) == (len(exif), len(xmp))
    delivered = encode_photo(photo, photo.pixels, note="up")
    assert all_tags(delivered) == all_tags(data)
    assert b"A. Author" in (decode_photo(delivered).xmp or b"")


def test_a_progressive_jpeg_too_detailed_for_pillow_is_written_as_an_ordinary_one() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    ordinary = decode_photo(save(Image.fromarray(noise), "JPEG", quality=97, subsampling=0))
    photo = replace(ordinary, coding={**ordinary.coding, "progressive": True})
    delivered = decode_photo(encode_photo(photo, photo.pixels))
    assert delivered.coding == ordinary.coding


JPEG = LOSSY["JPEG RGB"]
HOSTILE: dict[str, tuple[Callable[[], bytes], type[PhotoError], str]] = {
    "empty": (lambda: b"", UnreadablePhotoError, "empty"),
    "text": (lambda: b"Dear diary, today I took a photo.", UnreadablePhotoError, "not a photo"),
    "a few bytes": (lambda: b"\xff\xd8\xff", UnreadablePhotoError, "JPEG"),
    "truncated JPEG": (lambda: JPEG[: len(JPEG) // 2], UnreadablePhotoError, "truncated"),
    "JPEG less its end": (lambda: JPEG[:-40], UnreadablePhotoError, "truncated"),
    "truncated progressive JPEG": (
        lambda: LOSSY["JPEG progressive"][:-300],
        UnreadablePhotoError,
        "truncated",
    ),
    "header only": (lambda: JPEG[:300], UnreadablePhotoError, "JPEG"),
    "truncated PNG": (lambda: LOSSLESS["PNG RGB"][:4000], UnreadablePhotoError, "PNG"),
    "truncated TIFF": (lambda: LOSSLESS["TIFF RGB LZW"][:3000], UnreadablePhotoError, "TIFF"),
    "truncated WebP": (lambda: LOSSLESS["WEBP lossless RGB"][:900], UnreadablePhotoError, "WEBP"),
    "truncated GIF": (lambda: LOSSLESS["GIF"][:2500], UnreadablePhotoError, "GIF"),
    "truncated BMP": (lambda: LOSSLESS["BMP RGB"][:2500], UnreadablePhotoError, "BMP"),
    "1×1": (lambda: save(Image.new("RGB", (1, 1)), "PNG"), PhotoTooSmallError, "1×1"),
    "a line": (lambda: save(Image.new("RGB", (900, 8)), "JPEG"), PhotoTooSmallError, "900×8"),
    "bomb": (_bomb, PhotoTooLargeError, "900 megapixels"),
    "animated GIF": (lambda: _animation("GIF"), UnsupportedPhotoError, "3 frames"),
    "animated WebP": (lambda: _animation("WEBP"), UnsupportedPhotoError, "3 frames"),
    "animated PNG": (lambda: _animation("PNG"), UnsupportedPhotoError, "3 frames"),
    "TIFF of pages": (lambda: _animation("TIFF"), UnsupportedPhotoError, "3 pages"),
    "film": (lambda: b"\0\0\0\x18ftypisom" + bytes(99), UnreadablePhotoError, "isom"),
    "one-bit scan": (lambda: save(RGB.convert("1"), "PNG"), UnsupportedPhotoError, "'1'"),
    "HEIC of nothing": (
        lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        UnreadablePhotoError,
        "HEIF",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_gives_its_own_error_on_one_line(name: str) -> None:
    make, error, part = HOSTILE[name]
    with pytest.raises(error, match=part) as caught:
        decode_photo(make())
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250


def test_every_cut_of_a_jpeg_is_an_error_or_the_whole_picture() -> None:
    whole = decode_photo(JPEG).pixels
    for end in range(0, len(JPEG), 97):
        try:
            photo = decode_photo(JPEG[:end])
        except PhotoError:
            continue
        assert np.array_equal(photo.pixels, whole)


def test_the_limit_on_pixels_is_the_callers_and_no_global_one() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PhotoTooLargeError, match="96×64"):
        decode_photo(JPEG, max_pixels=6000)
    Image.MAX_IMAGE_PIXELS = 100  # another library's choice in the same process
    try:
        assert decode_photo(JPEG).width_px == 96
        assert decode_photo(LOSSLESS["PNG RGB"]).width_px == 96
    finally:
        Image.MAX_IMAGE_PIXELS = before


def test_pixels_of_another_size_are_refused() -> None:
    photo = decode_photo(JPEG)
    with pytest.raises(ValueError, match="64, 96, 3"):
        encode_photo(photo, photo.pixels[1:])


@pytest.mark.parametrize("name", ["PNG L", "PNG RGB"])
def test_grey_is_seen_in_rgb_files_too(name: str) -> None:
    assert decode_photo(LOSSLESS[name]).grey == (name == "PNG L")
    tripled = save(Image.merge("RGB", [GREY] * 3), "PNG")
    assert decode_photo(tripled).grey
