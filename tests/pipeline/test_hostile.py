"""Hostile input: one row and one clear line each, nothing outside OUT, good photos delivered."""

import io
import os
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from manifests.errors import ManifestError
from pipeline.run import run_job
from tests.photos import collection, jpeg, pixels
from tests.pipeline.conftest import results, spec_of


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width, height, depth, rows):
    """An RGB PNG file with this header around these raw rows, whether they fit or not."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def png_16_bit():
    """A sound photo of 16 bits a channel."""
    rows = (pixels(0).astype(np.uint16) * 257).byteswap()
    height, width = rows.shape[:2]
    return png(width, height, 16, b"".join(b"\0" + row.tobytes() for row in rows))


def animated_gif():
    frames = [Image.fromarray(pixels(seed)).convert("P") for seed in (1, 2)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


BAD = {
    "empty.jpg": b"",
    "truncated.jpg": jpeg(1)[:900],
    "text.jpg": b"these are words, not pixels",
    "one pixel.png": saved(Image.new("RGB", (1, 1)), "PNG"),
    "animated.gif": animated_gif(),
    "bomb.png": png(30_000, 30_000, 8, b"\0" * 100),
    "float.tif": saved(Image.fromarray(pixels(2)[:, :, 0].astype(np.float32)), "TIFF"),
}
GOOD = {
    "deep.png": png_16_bit(),
    "cmyk.jpg": saved(Image.fromarray(pixels(3)).convert("CMYK"), "JPEG"),
    "palette.png": saved(Image.fromarray(pixels(4)).quantize(32), "PNG", transparency=0),
    "grey.jpg": saved(Image.fromarray(pixels(5)).convert("L"), "JPEG"),
    'it\'s "quoted" <b>&amp;.jpg': jpeg(6),
    "emoji 🌻.jpg": jpeg(7),
    "new\nline.jpg": jpeg(8),
    "UPPER.JPEG": jpeg(9),
    ".trailing. .jpg": None,
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    photos = collection(folder / "photos", 1)
    for name, data in {**BAD, **GOOD}.items():
        if data is not None:
            (photos / name).write_bytes(data)
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    os.mkfifo(photos / "pipe.jpg")  # to open it would wait for ever
    (photos / "sub" / "self").symlink_to(photos / "sub" / "self")
    before = {p for p in folder.rglob("*") if "loop" not in p.parts}
    spec = spec_of(photos)
    summary = run_job(spec)
    return folder, photos, spec, summary, before


def test_every_bad_file_is_one_failed_row_with_one_line(hostile):
    _, _, spec, summary, _ = hostile
    assert summary.exit_code == 3
    failed = results(spec).query("status == 'failed'")
    assert sorted(failed.index) == sorted(BAD)
    for row_id, row in failed.iterrows():
        assert row["error_type"].endswith("Error"), row_id
        assert 10 < len(row["error_message"]) < 500, row_id
        assert "\n" not in row["error_message"]


def test_odd_but_sound_files_are_delivered_in_kind(hostile):
    _, photos, spec, _, _ = hostile
    table = results(spec)
    for name, data in GOOD.items():
        if data is None:
            continue
        row = table.loc[name]
        assert row["status"] == "ok", (name, row["error_message"])
        delivered = Image.open(f"{spec.out}/{row['edited_uri']}")
        source = Image.open(photos / name)
        assert delivered.size == source.size
        assert delivered.format == source.format
        assert delivered.mode == source.mode or source.mode == "P"


def test_looping_links_and_pipes_add_no_row(hostile):
    _, _, spec, _, _ = hostile
    assert len(results(spec)) == len(BAD) + len([d for d in GOOD.values() if d is not None]) + 1


def test_nothing_is_written_outside_the_output_folder(hostile):
    folder, _, spec, _, before = hostile
    after = {p for p in folder.rglob("*") if "loop" not in p.parts}
    assert all(str(p).startswith(spec.out) for p in after - before)


def test_unreadable_file_fails_its_row(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    (photos / "p000.jpg").chmod(0)
    if os.access(photos / "p000.jpg", os.R_OK):
        pytest.skip("this user reads everything; try `setpriv --bounding-set=-all` as root")
    spec = spec_of(photos)
    assert run_job(spec).counts["failed"] == 1
    assert results(spec).loc["p000.jpg", "error_type"] == "PermissionError"


def test_hostile_manifest_rows_fail_alone_and_write_nowhere_else(tmp_path):
    photos = collection(tmp_path / "photos", 2)
    good = str(photos / "p000.jpg")
    rows = {
        "fine": good,
        "../../escape.jpg": good,
        "/etc/escape.jpg": good,
        "C:\\escape.jpg": good,
        "nul\0.jpg": good,
        "x" * 3000: good,
        "null photo": None,
        "gone": str(photos / "not there.jpg"),
        "climbing": "../../../etc/hostname",
        "endless": "/dev/zero",
        "pipe": str(tmp_path / "pipe"),
        "twice": good,
        " twice": good,
    }
    names = [name.strip() if name == " twice" else name for name in rows]
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"row_id": names, "image_uri": list(rows.values())}), path)
    os.mkfifo(tmp_path / "pipe")
    before = set(tmp_path.rglob("*"))
    spec = spec_of(path)
    summary = run_job(spec)
    table = results(spec)
    assert len(table) == len(rows)
    assert table.index.is_unique
    assert summary.counts["pending"] == 0
    assert table.loc["fine", "status"] == "ok"
    failed = table.query("status == 'failed'")
    assert {
        "endless",
        "pipe",
        "null photo",
        "gone",
        "climbing",
        "../../escape.jpg",
        "/etc/escape.jpg",
    } <= set(failed.index)
    assert failed["error_message"].str.len().gt(10).all()
    written = set(tmp_path.rglob("*")) - before
    assert all(str(p).startswith(spec.out) for p in written)


@pytest.mark.parametrize("column", ["seed", "target"])
def test_a_value_of_the_wrong_type_fails_its_row(tmp_path, column):
    photos = collection(tmp_path / "photos", 2)
    uris = [str(photos / "p000.jpg"), str(photos / "sub/p001.jpg")]
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"image_uri": uris, column: ["not a number", None]}), path)
    spec = spec_of(path)
    assert run_job(spec).counts["failed"] == 1
    failed = results(spec).query("status == 'failed'")
    assert failed["error_message"].str.contains(column).all()


def test_a_manifest_without_photos_is_refused_whole(tmp_path):
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"picture": ["a.jpg"]}), path)
    with pytest.raises(ManifestError, match="no column image_uri"):
        run_job(spec_of(path))
