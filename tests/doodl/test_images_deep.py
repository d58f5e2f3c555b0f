"""Photos of more than 8 bits a channel: nothing is cut on the way in, out, or to the model."""

import io
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import ImageCms

from doodl.errors import PhotoError, PhotoTooLargeError, UnreadablePhotoError, UnsupportedPhotoError
from doodl.images import Photo, decode_photo, encode_photo, into_photo_space, model_view
from doodl.images.tiff import Tag, read_tags, write_tags
from tests.doodl.photo_files import XMP, all_tags, exif_block, picture, wide_gamut_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def deep_picture(channels: int = 3, width: int = 96, height: int = 64) -> np.ndarray:
    """Return (height, width, channels) uint16 whose low bytes are no copies of the high ones."""
    smooth = picture(width, height).astype(np.uint16) * 256
    low = np.random.default_rng(1).integers(0, 256, smooth.shape, dtype=np.uint16)
    colours = smooth + low
    alpha = np.linspace(0, 65535, width).astype(np.uint16)[None, :, None].repeat(height, 0)
    planes = {1: [colours[:, :, :1]], 2: [colours[:, :, :1], alpha], 3: [colours],
              4: [colours, alpha]}[channels]  # fmt: skip
    return np.concatenate(planes, axis=2)


def png(samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    data = imagecodecs.png_encode(samples.squeeze())
    at = data.index(b"IDAT") - 4
    added = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return data[:at] + added + data[at:]


def tiff(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    options = {"photometric": "rgb" if samples.shape[-1] >= 3 else "minisblack", **options}
    tifffile.imwrite(buffer, samples.squeeze(), metadata=None, software=False, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def stored(data: bytes) -> np.ndarray:
    """Return a file's samples by a reader that is not ours."""
    if data.startswith(b"\x89PNG"):
        samples = imagecodecs.png_decode(data)
    else:
        samples = tifffile.imread(io.BytesIO(data))
    return samples[:, :, None] if samples.ndim == 2 else samples


FILES: dict[str, Callable[[], bytes]] = {
    "PNG grey": lambda: png(deep_picture(1)),
    "PNG grey and alpha": lambda: png(deep_picture(2)),
    "PNG RGB": lambda: png(deep_picture(3)),
    "PNG RGBA": lambda: png(deep_picture(4)),
    "TIFF grey": lambda: tiff(deep_picture(1)),
    "TIFF RGB": lambda: tiff(deep_picture(3)),
    "TIFF RGB big-endian": lambda: tiff(deep_picture(3), byteorder=">"),
    "TIFF RGB LZW, predictor": lambda: tiff(deep_picture(3), compression="lzw", predictor=True),
    "TIFF RGB deflate": lambda: tiff(deep_picture(3), compression="adobe_deflate"),
    "TIFF RGB tiles": lambda: tiff(deep_picture(3), tile=(32, 32), compression="zstd"),
    "TIFF RGBA": lambda: tiff(deep_picture(4), extrasamples=("unassalpha",)),
}


@pytest.mark.parametrize("name", FILES)
def test_sixteen_bits_come_back_exactly_and_in_kind(name: str) -> None:
    data = FILES[name]()
    photo = decode_photo(data)
    assert (photo.pixels.dtype, photo.bits) == (np.uint16, 16)
    source = stored(data)
    colours = source[:, :, :3] if source.shape[2] >= 3 else source[:, :, :1].repeat(3, 2)
    assert np.array_equal(photo.pixels, colours)
    delivered = encode_photo(photo, photo.pixels)
    assert delivered[:4] == data[:4] or name == "TIFF RGB big-endian"
    assert np.array_equal(stored(delivered), source)
    if name.startswith("TIFF"):
        before, after = (tifffile.TiffFile(io.BytesIO(d)).pages.first for d in (data, delivered))
        assert (after.compression, after.predictor) == (before.compression, before.predictor)


@pytest.mark.parametrize("name", FILES)
def test_an_edit_of_less_than_an_eighth_bit_shows(name: str) -> None:
    photo = decode_photo(FILES[name]())
    wanted = (photo.pixels.astype(np.int32) + 100).clip(0, 65535).astype(np.uint16)  # 0.4 of 1/255
    again = decode_photo(encode_photo(photo, wanted))
    assert np.array_equal(again.pixels, wanted)
    assert (again.alpha is None) == (photo.alpha is None)
    if photo.alpha is not None:
        assert np.array_equal(again.alpha, photo.alpha)


def test_planar_and_inverted_tiffs_show_what_they_mean() -> None:
    samples = deep_picture(3)
    planar = tiff(np.moveaxis(samples, 2, 0), planarconfig="separate", photometric="rgb")
    photo = decode_photo(planar)
    assert np.array_equal(photo.pixels, samples)
    assert np.array_equal(stored(encode_photo(photo, photo.pixels)), samples)
    negative = tiff(deep_picture(1), photometric="miniswhite")
    assert np.array_equal(decode_photo(negative).pixels[:, :, 0], 65535 - deep_picture(1)[:, :, 0])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF LZW"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_tag_of_a_sixteen_bit_file_is_kept(kind: str, order: str) -> None:
    block = exif_block(order=order)
    if kind == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
        icc = b"ICC profile\0\0" + zlib.compress(SRGB)
        data = png(deep_picture(), (b"iCCP", icc), (b"eXIf", block), (b"iTXt", text))
    else:
        tags = read_tags(block)
        more = tuple(type(tags[0])(t, 7, len(v), v) for t, v in ((700, XMP), (34675, SRGB)))
        base = tiff(deep_picture(), compression="lzw" if "LZW" in kind else None, byteorder=order)
        data = write_tags(write_tags(base, tags), more)
    photo = decode_photo(data)
    assert (photo.width_px, photo.height_px, photo.icc_profile) == (64, 96, SRGB)
    delivered = encode_photo(photo, photo.pixels, software="doodl-batch 1.2.3", note="up")
    assert np.array_equal(stored(delivered), deep_picture())
    before, after = all_tags(data), all_tags(delivered)
    assert (before.pop("0/305"), after.pop("0/305")) == ("camera firmware 1.0", "doodl-batch 1.2.3")
    # where directories and strips lie, and the XMP, which is compared elsewhere
    for tag in ("0/34665", "0/34853", "0/273", "0/278", "0/279", "0/700"):
        before.pop(tag, None)
        after.pop(tag, None)
    assert after == before
    stripped = encode_photo(photo, photo.pixels, strip_gps=True)
    assert not any("GPS" in key for key in all_tags(stripped))
    assert b"48,51" not in stripped


def test_the_model_sees_sixteen_bits_as_it_sees_eight() -> None:
    samples = np.clip(deep_picture(4, 500, 401), 0, 65535)
    deep = decode_photo(png(samples))
    shallow = decode_photo(png(np.round(samples / 257).astype(np.uint8)))
    views = [model_view(photo, 64) for photo in (deep, shallow)]
    assert views[0].shape == views[1].shape
    # the 8-bit one is rounded four times, half a level of 127.5 each: pixels, alpha, blocks, view
    assert (views[0] - views[1]).abs().max() < 2 / 127.5
    assert float((views[0] - views[1]).mean()) == pytest.approx(0, abs=0.25 / 127.5)


def test_a_gradient_finer_than_eight_bits_reaches_the_model() -> None:
    ramp = np.linspace(30000, 30256, 400).astype(np.uint16)[None, :, None]
    view = model_view(Photo(pixels=ramp.repeat(64, 0).repeat(3, 2), format="PNG", mode="RGB"), 64)
    columns = view[0, 0].mean(0)[4:-4]
    assert (columns.diff() > 0).all()


def test_a_deep_wide_gamut_photo_goes_to_the_model_and_back_finer_than_eight_bits() -> None:
    profile = wide_gamut_profile()
    icc = b"ICC profile\0\0" + zlib.compress(profile)
    photo = decode_photo(png(deep_picture(), (b"iCCP", icc)))
    plain = decode_photo(png(deep_picture()))
    view, unconverted = model_view(photo, 64), model_view(plain, 64)
    assert (view - unconverted).abs().mean() > 0.05
    back = into_photo_space(photo, view)
    inside = (view.abs() < 0.98).all(dim=1, keepdim=True).expand_as(back)
    assert (back - unconverted)[inside].abs().max() < 0.2 / 127.5
    assert torch.equal(into_photo_space(plain, view), view)


@pytest.mark.parametrize(
    ("code_points", "what"),
    [((9, 16), "PQ"), ((9, 18), "HLG")],
)
def test_an_hdr_png_is_refused_by_name(code_points: tuple[int, int], what: str) -> None:
    with pytest.raises(UnsupportedPhotoError, match=what):
        decode_photo(png(deep_picture(), (b"cICP", bytes([*code_points, 0, 1]))))


def test_a_png_that_names_display_p3_by_code_points_is_converted_and_keeps_its_chunk() -> None:
    photo = decode_photo(png(deep_picture(), (b"cICP", bytes([12, 13, 0, 1]))))
    plain = decode_photo(png(deep_picture()))
    view = model_view(photo, 64)
    assert (view - model_view(plain, 64)).abs().mean() > 0.01
    assert (into_photo_space(photo, view) - model_view(plain, 64)).abs().mean() < 0.01
    delivered = encode_photo(photo, photo.pixels)
    assert b"cICP\x0c\x0d\x00\x01" in delivered
    assert b"iCCP" not in delivered


def test_a_ten_bit_avif_is_delivered_as_a_sixteen_bit_png_and_says_so() -> None:
    samples = (deep_picture() >> 6).astype(np.uint16)
    data = imagecodecs.avif_encode(samples, level=100, bitspersample=10)
    photo = decode_photo(data)
    assert (photo.format, photo.bits) == ("PNG", 16)
    wanted = np.round(samples * (65535 / 1023))
    assert np.abs(photo.pixels - wanted).max() <= 65535 / 1023 * 3  # lossy, near lossless
    delivered = encode_photo(photo, photo.pixels)
    assert np.array_equal(stored(delivered), photo.pixels)
    assert b"the AVIF form" in (decode_photo(delivered).xmp or b"")


def _with_pages(*subfile_types: int) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for subfile_type in subfile_types:
            writer.write(
                deep_picture(), photometric="rgb", subfiletype=subfile_type, metadata=None
            )  # fmt: skip
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiffs_iptc_record_stays_byte_for_byte_in_either_byte_order(
    order: str, bits: int
) -> None:
    record = b"\x1c\x02\x50\0\x09A. Author\0\0"
    samples = deep_picture() if bits == 16 else (deep_picture() >> 8).astype(np.uint8)
    as_longs = Tag(0x83BB, 4, len(record) // 4, record)
    photo = decode_photo(write_tags(tiff(samples, byteorder=order), (as_longs,)))
    delivered = encode_photo(photo, photo.pixels)
    assert delivered.count(record) == 1
    kept = {tag.tag: tag for tag in read_tags(delivered)}
    assert kept[0x83BB] == as_longs


@pytest.mark.parametrize("extra", [("unspecified",), ("unassalpha", "unspecified"), ("assocalpha",
    "unspecified", "unspecified")])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_saved_selections_of_a_tiff_stay_as_they_were(
    extra: tuple[str, ...], dtype: type, compression: str | None
) -> None:
    peak = np.iinfo(dtype).max
    planes = [(deep_picture(3) >> (8 if dtype is np.uint8 else 0)).astype(dtype)]
    planes += [np.roll(planes[0][:, :, :1], i + 1, axis=1) for i in range(len(extra))]
    if extra[0] == "assocalpha":
        planes[1] = np.full_like(planes[1], peak)
    source = np.concatenate(planes, axis=2)
    data = tiff(source, extrasamples=extra, compression=compression, predictor=bool(compression))
    photo = decode_photo(data)
    assert (photo.pixels.dtype, photo.alpha is None) == (dtype, extra[0] == "unspecified")
    assert np.array_equal(stored(encode_photo(photo, photo.pixels)), source)
    edited = stored(encode_photo(photo, 255 - photo.pixels // 2))
    assert np.array_equal(edited[:, :, 3:], source[:, :, 3:])
    assert not np.array_equal(edited[:, :, :3], source[:, :, :3])


def test_a_turned_tiff_turns_its_selections_too() -> None:
    source = np.concatenate([deep_picture(3), deep_picture(1)[::-1]], axis=2)
    turned = Tag(0x112, 3, 1, struct.pack("<H", 6))
    photo = decode_photo(write_tags(tiff(source, extrasamples=("unspecified",)), (turned,)))
    assert photo.spare is not None
    assert photo.spare.shape == (96, 64, 1)
    assert np.array_equal(stored(encode_photo(photo, photo.pixels)), source)


def test_what_else_a_tiff_held_is_named() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(deep_picture(), photometric="rgb", subifds=1, metadata=None)
        writer.write(deep_picture()[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    assert decode_photo(buffer.getvalue()).dropped == ("smaller copies or masks",)
    inks = tiff(
        (deep_picture(3).repeat(2, 2)[:, :, :5] >> 8).astype(np.uint8), photometric="separated"
    )
    photo = decode_photo(inks)
    assert (photo.mode, photo.dropped) == ("CMYK", ("inks beyond four",))
    delivered = decode_photo(encode_photo(photo, photo.pixels))
    assert b"inks beyond four" in (delivered.xmp or b"")


def test_a_tiffs_smaller_copies_do_not_make_it_a_document() -> None:
    photo = decode_photo(_with_pages(0, 1))
    assert photo.dropped == ("smaller copies or masks",)
    with pytest.raises(UnsupportedPhotoError, match="2 pages"):
        decode_photo(_with_pages(0, 0))


def _tiff_bomb() -> bytes:
    """Return a TIFF of a few hundred bytes whose header says 30,000 × 30,000."""
    small = tiff(deep_picture(), compression="adobe_deflate")
    tags = read_tags(small)
    big = type(tags[0]) if tags else None
    assert big is not None
    return write_tags(small, tuple(big(t, 4, 1, struct.pack("<I", 30_000)) for t in (256, 257)))


HOSTILE: dict[str, tuple[Callable[[], bytes], type[PhotoError], str]] = {
    "truncated PNG": (lambda: png(deep_picture())[:9000], UnreadablePhotoError, "PNG"),
    "truncated TIFF": (
        lambda: tiff(deep_picture(), compression="lzw")[:9000],
        UnreadablePhotoError,
        "TIFF",
    ),
    "TIFF bomb": (_tiff_bomb, PhotoTooLargeError, "900 megapixels"),
    "TIFF larger than its strips": (
        lambda: write_tags(
            tiff(deep_picture()),
            (type(read_tags(tiff(deep_picture()))[0])(257, 4, 1, struct.pack("<I", 640)),),
        ),
        UnreadablePhotoError,
        "TIFF",
    ),
    "floating-point TIFF": (
        lambda: tiff(deep_picture().astype(np.float32)),
        UnsupportedPhotoError,
        "32-bit floating-point",
    ),
    "signed TIFF": (
        lambda: tiff(deep_picture().astype(np.int16)),
        UnsupportedPhotoError,
        "16-bit signed",
    ),
    "TIFF of inks": (
        lambda: tiff(deep_picture(4), photometric="separated"),
        UnsupportedPhotoError,
        "interpretation 5",
    ),
    "TIFF of very many channels": (
        lambda: tiff(deep_picture(3).repeat(5, 2), extrasamples=("unspecified",) * 12),
        UnsupportedPhotoError,
        "15 to a pixel",
    ),
    "DNG": (
        lambda: write_tags(tiff(deep_picture()), (Tag(0xC612, 1, 4, bytes([1, 4, 0, 0])),)),
        UnsupportedPhotoError,
        "raw file",
    ),
    "NEF": (lambda: _with_pages(1, 0), UnsupportedPhotoError, "raw file"),
    "CR2": (
        lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(500),
        UnsupportedPhotoError,
        "raw file",
    ),
    "colour filter array": (
        lambda: write_tags(tiff(deep_picture(1)), (Tag(262, 3, 1, struct.pack("<H", 32803)),)),
        UnsupportedPhotoError,
        "raw file",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_deep_file_gives_its_own_error_on_one_line(name: str) -> None:
    make, error, part = HOSTILE[name]
    with pytest.raises(error, match=part) as caught:
        decode_photo(make())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["PNG RGBA", "TIFF RGB LZW, predictor", "TIFF RGB"])
def test_every_cut_or_flip_of_a_deep_file_is_an_error_or_a_photo(name: str) -> None:
    data = FILES[name]()
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), 2):
            broken[at] ^= 1 << rng.integers(0, 8)
        try:
            photo = decode_photo(bytes(broken), max_pixels=1_000_000)
            encode_photo(photo, photo.pixels)
        except PhotoError:
            continue
    for end in range(0, len(data), max(1, len(data) // 40)):
        try:
            photo = decode_photo(data[:end])
        except PhotoError:
            continue
        assert photo.pixels.shape == (64, 96, 3)


def test_pixels_of_another_depth_are_refused() -> None:
    photo = decode_photo(png(deep_picture()))
    with pytest.raises(ValueError, match="uint16"):
        encode_photo(photo, (photo.pixels >> 8).astype(np.uint8))
