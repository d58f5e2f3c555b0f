"""Hashes of the input photos, remembered, so that an unchanged collection is planned unread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import TimeoutError as NotYet
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.addresses import said
from manifests.errors import AddressError
from manifests.inline import hash_input, stat_input
from manifests.paths import local_path
from manifests.reading import DamagedFileError, parsed, read_table
from manifests.remote import is_web
from manifests.secrets import scrub
from manifests.storage import Storage

HASHES_FILE = "_state/hashes.parquet"
HASHES_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("image_hash", pa.string()),
        ("hashed_at_ns", pa.int64()),
    ]
)

RACY_NS = 2_000_000_000
"""A file this young when it was hashed may change again without its mtime moving: hash it again.

Two seconds is the coarsest modification time in use, FAT's.
"""

T = TypeVar("T")

_CHUNK_ROWS = 65_536
_TELL_SECONDS = 1.0


def hash_inputs(
    inputs: pa.Table,
    storage: Storage | None,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Return the input table with image_hash and subject_hashes filled in.

    A photo whose size and modification time are those remembered in the output folder is not
    read. One that cannot be read gives its row a row_error, of the error's own class.

    Args:
        inputs: a table of INPUT_SCHEMA, from `scan_photos` or `read_manifest`.
        storage: the output folder's (`out.storage`); None remembers nothing.
        workers: threads that read photos; default: four to a core.
        progress: called with (photos hashed, photos to hash) now and then.
    """
    known = _read_cache(storage)
    wanted = pc.and_(
        pc.is_valid(inputs["image_uri"]),
        pc.and_(pc.is_null(inputs["image_hash"]), pc.is_null(inputs["row_error"])),
    )
    photos = inputs.select(["image_uri", "size_bytes", "mtime_ns"]).filter(wanted)
    photos = photos.rename_columns(["uri", "size_bytes", "mtime_ns"])
    subjects = _subjects(inputs)
    files = pa.concat_tables([photos, subjects]) if subjects.num_rows else photos
    workers = workers or 4 * (os.cpu_count() or 1)
    tell = progress or _tell_nobody
    files, errors = _with_stats(files, workers, tell)
    hashes = _remembered(files, known)
    fresh = _hash_missing(files, hashes, errors, workers, tell)
    if fresh:
        hashes = _filled(hashes, fresh)
        _write_cache(storage, known, files, fresh)
    photo_hashes = hashes.slice(0, photos.num_rows)
    photo_errors = {i: e for i, e in errors.items() if i < photos.num_rows}
    inputs = _put(inputs, wanted, files.slice(0, photos.num_rows), photo_hashes, photo_errors)
    if subjects.num_rows:
        offset = photos.num_rows
        inputs = _put_subjects(
            inputs,
            dict(zip(subjects["uri"].to_pylist(), hashes.slice(offset).to_pylist(), strict=True)),
            {files["uri"][i].as_py(): e for i, e in errors.items() if i >= offset},
        )
    return inputs


def _tell_nobody(done: int, total: int) -> None:
    del done, total


def _read_cache(storage: Storage | None) -> pa.Table:
    if storage is not None:
        try:
            return parsed(storage, HASHES_FILE, _parse_cache)
        except (FileNotFoundError, DamagedFileError):
            pass  # every photo is read once more
    return HASHES_SCHEMA.empty_table()


def _parse_cache(source: Any) -> pa.Table:
    return read_table(source).select(HASHES_SCHEMA.names).cast(HASHES_SCHEMA)


def _write_cache(
    storage: Storage | None, known: pa.Table, files: pa.Table, fresh: dict[int, tuple[str, int]]
) -> None:
    if storage is None:
        return
    at = pa.array(list(fresh), pa.int64())
    new = files.take(at)
    new = new.append_column("image_hash", pa.array([h for h, _ in fresh.values()], pa.string()))
    new = new.append_column("hashed_at_ns", pa.array([t for _, t in fresh.values()], pa.int64()))
    new = new.filter(pc.is_valid(new["size_bytes"])).cast(HASHES_SCHEMA)
    # A URI that holds a password is not written down: its photo is read each night.
    new = new.filter(pc.invert(pc.match_substring_regex(new["uri"], r"://[^/]*@|^[^/]+://.*\?")))
    kept = known.filter(pc.invert(pc.is_in(known["uri"], new["uri"].combine_chunks())))
    table = pa.concat_tables([kept, new])
    storage.write_stream(
        HASHES_FILE,
        lambda sink: pq.write_table(
            table, sink, compression="zstd", use_dictionary=False, write_statistics=False
        ),
    )


def _subjects(inputs: pa.Table) -> pa.Table:
    if inputs["subject_uris"].null_count == inputs.num_rows:
        uris = pa.array([], pa.string())
    else:
        flat = pa.chunked_array(
            [chunk.flatten() for chunk in inputs["subject_uris"].chunks], pa.string()
        )
        uris = pc.unique(flat.drop_null())
    unknown = pa.nulls(len(uris), pa.int64())
    return pa.table({"uri": uris, "size_bytes": unknown, "mtime_ns": unknown})


def _with_stats(
    files: pa.Table, workers: int, tell: Callable[[int, int], None]
) -> tuple[pa.Table, dict[int, Exception]]:
    """Return the files with the sizes and times that were unknown, and the files not to be had."""
    errors: dict[int, Exception] = {}
    unknown = pc.is_null(files["size_bytes"])
    if not pc.any(unknown).as_py():
        return files, errors
    places = pc.indices_nonzero(unknown)
    uris = files["uri"].filter(unknown)
    sizes, mtimes = [], []
    for first in range(0, len(uris), _CHUNK_ROWS):
        chunk = uris.slice(first, _CHUNK_ROWS).to_pylist()
        # A store's answers take time and threads; local files answer faster than threads start.
        outcomes: Iterable[Any] = map(_stat, chunk)
        if any(map(_is_far, chunk)):
            outcomes = _in_turn(_stat, chunk, workers, lambda _: tell(0, len(uris)))
        found: list[tuple[int | None, int | None]] = []
        for offset, outcome in enumerate(outcomes):
            if isinstance(outcome, Exception):
                errors[places[first + offset].as_py()] = outcome
                found.append((None, None))
            else:
                found.append(outcome)
        sizes.append(pa.array([size for size, _ in found], pa.int64()))
        mtimes.append(pa.array([mtime for _, mtime in found], pa.int64()))
    files = _replace(files, "size_bytes", unknown, pa.chunked_array(sizes, pa.int64()))
    return _replace(files, "mtime_ns", unknown, pa.chunked_array(mtimes, pa.int64())), errors


def _is_far(uri: str) -> bool:
    return local_path(uri) is None and not is_web(uri)


def _stat(uri: str) -> tuple[int | None, int | None] | Exception:
    return _or_error(stat_input, uri)


def _hash(uri: str) -> tuple[str, int] | Exception:
    """Return (hash, when): the time before reading, as what changes meanwhile is then young."""
    now = time.time_ns()
    outcome = _or_error(hash_input, uri)
    return outcome if isinstance(outcome, Exception) else (outcome, now)


def _or_error(ask: Callable[[str], T], uri: str) -> T | Exception:
    try:
        return ask(uri)
    except OSError as error:
        return error
    except MemoryError:  # of whatever library: its class is to be the one that is tried again
        return MemoryError("out of memory")


def _in_turn(
    ask: Callable[[str], T], uris: Sequence[str], workers: int, tell: Callable[[int], None]
) -> Iterator[T]:
    """Yield what is found out of each URI, in order, with so many threads at work.

    They are daemons: whoever stops waits for none of them. `tell` is called with the number of
    those done in each second of waiting, and may raise.
    """
    with _threads(workers) as pool:
        found = pool.imap(ask, uris)
        for done in range(len(uris)):
            while True:
                try:
                    outcome = found.next(timeout=_TELL_SECONDS)
                    break
                except NotYet:
                    tell(done)
            yield outcome


def _threads(workers: int) -> ThreadPool:
    """Return a pool of threads. Raises: RuntimeError if so many cannot be started."""
    try:
        return ThreadPool(workers)
    except AttributeError as error:
        # When its second thread or a later one fails, the pool goes on to terminate the first,
        # as if that were a process.
        raise error.__context__ or error from None


def _remembered(files: pa.Table, known: pa.Table) -> pa.ChunkedArray:
    """Return the remembered hash of each file that is the file it was, null for the others."""
    if known.num_rows == 0:
        return pa.chunked_array([pa.nulls(files.num_rows, pa.string())])
    at = pc.index_in(files["uri"], value_set=known["uri"])
    same = pc.and_(
        pc.equal(files["size_bytes"], known["size_bytes"].take(at)),
        pc.equal(files["mtime_ns"], known["mtime_ns"].take(at)),
    )
    age = pc.subtract(known["hashed_at_ns"], known["mtime_ns"])
    settled = pc.greater(age, RACY_NS).take(at)
    trusted = pc.fill_null(pc.and_(same, settled), False)
    return pc.if_else(trusted, known["image_hash"].take(at), pa.scalar(None, pa.string()))


def _hash_missing(
    files: pa.Table,
    hashes: pa.ChunkedArray,
    errors: dict[int, Exception],
    workers: int,
    tell: Callable[[int, int], None],
) -> dict[int, tuple[str, int]]:
    """Return {index: (hash, when)} of the files not remembered; add to `errors` those not read."""
    missing = [i for i in _nulls(hashes) if i not in errors]
    fresh: dict[int, tuple[str, int]] = {}
    if not missing:
        return fresh
    uris = files["uri"].take(pa.array(missing)).to_pylist()
    total = len(missing)
    outcomes = _in_turn(_hash, uris, workers, lambda done: tell(done, total))
    for count, (index, outcome) in enumerate(zip(missing, outcomes, strict=True), 1):
        if isinstance(outcome, Exception):
            errors[index] = outcome
        else:
            fresh[index] = outcome
        if count % 256 == 0 or count == total:
            tell(count, total)
    return fresh


def _nulls(array: pa.ChunkedArray) -> list[int]:
    return pc.indices_nonzero(pc.is_null(array)).to_pylist() if array.null_count else []


def _filled(hashes: pa.ChunkedArray, fresh: dict[int, tuple[str, int]]) -> pa.ChunkedArray:
    if len(fresh) == len(hashes):
        return pa.chunked_array([pa.array([fresh[i][0] for i in range(len(hashes))], pa.string())])
    values: list[Any] = hashes.to_pylist()
    for index, (value, _) in fresh.items():
        values[index] = value
    return pa.chunked_array([pa.array(values, pa.string())])


def _put(
    inputs: pa.Table,
    wanted: pa.ChunkedArray,
    files: pa.Table,
    hashes: pa.ChunkedArray,
    errors: dict[int, Exception],
) -> pa.Table:
    """Return the table with the wanted rows' sizes, times, hashes and errors in place."""
    for name, values in (
        ("size_bytes", files["size_bytes"]),
        ("mtime_ns", files["mtime_ns"]),
        ("image_hash", hashes),
    ):
        inputs = _replace(inputs, name, wanted, values)
    if errors:
        kinds: list[str | None] = [None] * len(hashes)
        messages: list[str | None] = [None] * len(hashes)
        for index, error in errors.items():
            kinds[index] = type(error).__name__
            messages[index] = f"photo cannot be read: {said(error)}"
        inputs = _replace(inputs, "row_error_type", wanted, pa.array(kinds, pa.string()))
        inputs = _replace(inputs, "row_error", wanted, pa.array(messages, pa.string()))
    return inputs


def subject_named(uri: str, error: Exception) -> str:
    """Return what to call a subject photo that cannot be read; an address's error names it."""
    return "subject photo" if isinstance(error, AddressError) else f"subject photo {scrub(uri)!r}"


def _replace(table: pa.Table, name: str, mask: Any, values: Any) -> pa.Table:
    column = values
    if not pc.all(mask).as_py():
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        column = pc.replace_with_mask(table[name].combine_chunks(), mask.combine_chunks(), values)
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)


def _put_subjects(
    inputs: pa.Table, hashes: dict[str, str | None], errors: dict[str, Exception]
) -> pa.Table:
    kinds, messages = inputs["row_error_type"].to_pylist(), inputs["row_error"].to_pylist()
    rows: list[list[str | None] | None] = []
    for index, uris in enumerate(inputs["subject_uris"].to_pylist()):
        rows.append(None if uris is None else [hashes.get(uri) for uri in uris])
        broken = [uri for uri in uris or () if uri in errors]
        if broken and messages[index] is None:
            error = errors[broken[0]]
            kinds[index] = type(error).__name__
            messages[index] = f"{subject_named(broken[0], error)} cannot be read: {said(error)}"
    for name, values in (
        ("subject_hashes", rows),
        ("row_error_type", kinds),
        ("row_error", messages),
    ):
        field = inputs.schema.field(name)
        index = inputs.column_names.index(name)
        inputs = inputs.set_column(index, field, pa.array(values, field.type))
    return inputs
