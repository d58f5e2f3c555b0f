"""One fuzz target in this process: `python -m tests.fuzz.targets TARGET SECONDS FOLDER`.

The input in work is kept in FOLDER/current, so that one that kills the process is not lost.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from doodl.errors import DoodlError
from manifests.errors import ManifestError
from manifests.reader import read_manifest
from tests.photos import jpeg, pixels

HANG_SECONDS = 20
MAX_PIXELS = 4_000_000
EXTRA_BYTES = 2**30


class HangError(Exception):
    """An input took longer than HANG_SECONDS."""


def _hung(number, frame):
    raise HangError(f"no end after {HANG_SECONDS} s")


def _tables():
    table = pa.table(
        {
            "row_id": ["a.jpg", "b.jpg", None],
            "image_uri": ["a.jpg", "/photos/b.jpg", "s3://bucket/c.jpg"],
            "prompt": ["a flower", None, "\u0000"],
            "strength": [0.5, None, 1.0],
            "seed": [1, None, 3],
            "subject_uris": [["x.jpg"], None, []],
            "extra": pa.array([{"a": 1}, None, {"a": 2}]),
            "image": [jpeg(1, (32, 32)), None, b""],
        }
    )
    for options in ({}, {"compression": "none"}, {"use_dictionary": False, "version": "1.0"}):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        yield buffer.getvalue()


def _photos():
    array = pixels(1, (48, 64))
    for kind, options in (
        ("JPEG", {"quality": 80}), ("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {}), ("JPEG", {"progressive": True}),
        ("AVIF", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind, **options)
        yield buffer.getvalue()
    deep = io.BytesIO()
    import tifffile

    tifffile.imwrite(deep, (array.astype(np.uint16) << 8), photometric="rgb")
    yield deep.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", exif=Image.Exif().tobytes(), icc_profile=b"x" * 200)
    yield buffer.getvalue()


CSV = b"row_id,image_uri,prompt,strength,seed\na,a.jpg,x,0.5,1\nb,b.jpg,,nan,\n"
JSONL = b'{"row_id": "a", "image_uri": "a.jpg", "extra": {"x": [1, null]}}\n{"image_uri": "b"}\n'


def mutated(data: bytes, seed: int) -> bytes:
    """Return the bytes with a few faults of the kinds that break parsers, told by the seed."""
    rng = random.Random(seed)
    bytes_ = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not bytes_:
            break
        at = rng.randrange(len(bytes_))
        kind = rng.randrange(7)
        if kind == 0:
            bytes_[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            bytes_[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:  # a length or an offset that lies
            width = rng.choice((2, 4, 8))
            value = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, rng.randrange(2**32)))
            order = rng.choice(("big", "little"))
            bytes_[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, order)
        elif kind == 3:
            del bytes_[at:]
        elif kind == 4:
            del bytes_[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            bytes_[at:at] = bytes_[at : at + rng.randrange(1, 256)]
        else:
            bytes_[at : at + 16] = rng.randbytes(16)
    return bytes(bytes_)


def manifest(suffix):
    def read(data, folder):
        path = folder / f"current{suffix}"
        path.write_bytes(data)
        try:
            table = read_manifest(path)
        except ManifestError as error:
            return type(error)
        assert table["row_id"].null_count == 0
        assert len(set(table["row_id"].to_pylist())) == table.num_rows
        return type(None)

    return read


def photo(data, folder):
    from doodl.images import decode_photo

    (folder / "current").write_bytes(data)
    try:
        found = decode_photo(data, max_pixels=MAX_PIXELS)
    except (DoodlError, MemoryError) as error:
        return type(error)
    height, width = found.pixels.shape[:2]
    assert height * width <= MAX_PIXELS
    return type(None)


VALUES = st.one_of(
    st.none(), st.text(max_size=30), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(
        max_size=10), st.booleans(), st.lists(st.text(max_size=5), max_size=3),
)  # fmt: skip
NAMES = st.sampled_from(
    ["row_id", "image_uri", "prompt", "subject_uris", "direction", "target", "seed", "strength",
     "image", "status", "manifest_status", "size_bytes", "label"]
)  # fmt: skip


@st.composite
def value_tables(draw):
    """A table whose columns have our names and any values of one type each."""
    count = draw(st.integers(0, 5))
    columns = {}
    for name in draw(st.sets(NAMES, min_size=1, max_size=6)):
        kind = draw(
            st.sampled_from(
                [st.text(max_size=30), st.integers(-(2**63), 2**63 - 1), st.floats(),
                 st.binary(max_size=10), st.booleans(), st.lists(st.text(max_size=5), max_size=3),
                 st.dictionaries(st.sampled_from(["bytes", "path"]), st.binary(max_size=4)),
                 st.datetimes()]
            )
        )  # fmt: skip
        columns[name] = draw(st.lists(st.none() | kind, min_size=count, max_size=count))
    try:
        table = pa.table(columns)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
    except (pa.ArrowException, TypeError, ValueError):
        return None
    return buffer.getvalue()


def bound_memory():
    """Let this process map EXTRA_BYTES more than its libraries have mapped already."""
    import doodl.images  # noqa: F401 (torch maps gigabytes)

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(target: str, seconds: float, folder: Path) -> int:
    signal.signal(signal.SIGALRM, _hung)
    bound_memory()
    seeds = {
        "manifest_parquet": (list(_tables()), manifest(".parquet")),
        "manifest_csv": ([CSV], manifest(".csv")),
        "manifest_jsonl": ([JSONL], manifest(".jsonl")),
        "photo": (list(_photos()), photo),
    }
    counts: dict[str, int] = {}
    inputs = 0
    deadline = None  # from the first input: a busy machine takes its time to import

    def over():
        nonlocal deadline
        deadline = deadline or time.monotonic() + seconds
        return time.monotonic() > deadline

    def one(data, check):
        nonlocal inputs
        signal.alarm(HANG_SECONDS)
        try:
            kind = check(data, folder).__name__
        except BaseException:
            (folder / f"failed-{inputs}").write_bytes(data)
            raise
        finally:
            signal.alarm(0)
        counts[kind] = counts.get(kind, 0) + 1
        inputs += 1

    if target == "manifest_values":
        check = manifest(".parquet")

        @settings(
            max_examples=10**9, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(value_tables())
        def fuzz(data):
            if over():
                raise KeyboardInterrupt
            if data is not None:
                one(data, check)

        with contextlib.suppress(KeyboardInterrupt):
            fuzz()
    else:
        originals, check = seeds[target]
        for original in originals:
            one(original, check)  # as it is: it must be read
        assert counts == {"NoneType": len(originals)}, counts
        seed = 0
        while not over():
            one(mutated(originals[seed % len(originals)], seed), check)
            seed += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()))
    print(f"{target}: {inputs:,} inputs in {seconds:g} s, peak {peak:,.0f} MiB: {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])))
