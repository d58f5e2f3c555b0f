"""What an output folder says of itself against what lies in it: parts, staged rows, photos."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.committed import committed_rows
from manifests.errors import OutputCorruptError
from manifests.identity import hash_bytes, hash_file
from manifests.parts import (
    IMAGES,
    RESULTS,
    foreign_tables,
    list_parts,
    open_part,
    parse_part,
    part_path,
    read_part,
)
from manifests.paths import FILE_FOLDERS, PHOTO_SUFFIXES, is_safe_relpath
from manifests.reading import DamagedFileError, open_parquet
from manifests.records import to_records
from manifests.schemas import FILE_COLUMNS, RESULT_SCHEMA
from manifests.settling import QUARANTINE, files_set_aside, load_staged
from manifests.staging import STAGING, read_staged, staged_files
from manifests.storage import Storage
from manifests.walk import walk_files
from pipeline.collection import OutputView

logger = logging.getLogger(__name__)

KINDS = {
    "damaged": "a part or a staged row that cannot be read",
    "foreign": "a file that is none of this job's, among its tables",
    "unreadable": "a file that cannot be read now; it may well be whole, and nothing is done to it",
    "double": "a row that two parts hold",
    "missing": "a delivered file that is gone",
    "changed": "a delivered file that is not what its row says",
    "orphaned": "a file among the delivered ones that no row names",
    "set aside": "a file that was moved to _state/quarantine: damaged, or none of this job's",
    "clock": "a row whose times cannot be: the clock of its machine has jumped",
}

_COLUMNS = (
    "row_id", "work_key", "status", "started_at", "finished_at", "edited_hash", *FILE_COLUMNS,
)  # fmt: skip
# What delivered files are called: an index of Synology's, or a file of a desktop's, is nobody's.
_DELIVERED = re.compile(
    rf"(?!.*/[.@]).+({'|'.join(map(re.escape, sorted(PHOTO_SUFFIXES)))}|\.json|\.safetensors)",
    re.IGNORECASE | re.DOTALL,
)
_CLOCK_SLACK = timedelta(minutes=10)


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: its kind (KINDS), its path or row, and why."""

    kind: str
    name: str
    detail: str
    row_id: str | None = None


@dataclass
class Verdict:
    """What `verify_output` found.

    Attributes:
        rows: committed rows; photos: delivered files read; unhashed: those of older rows that do
            not say their hash: they are there, and that is all that is known of them.
    """

    rows: int = 0
    photos: int = 0
    unhashed: int = 0
    findings: list[Finding] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return the findings by kind, those that there are."""
        return dict(Counter(finding.kind for finding in self.findings))

    def damaged_rows(self) -> list[str]:
        """Return the row_ids whose delivered file is missing or changed."""
        named = (f.row_id for f in self.findings if f.kind in ("missing", "changed"))
        return sorted({row_id for row_id in named if row_id is not None})


def verify_output(out: str, *, workers: int = 8) -> Verdict:
    """Read everything that is committed and compare; change nothing.

    Raises: ManifestError if the folder holds no job, or its `_job.json` is damaged.
    """
    view = OutputView(out)
    storage = view.folder.storage
    verdict = Verdict()
    readable = _check_parts(storage, verdict)
    _check_staged(storage, verdict)
    unreadable = {
        f.name for f in verdict.findings if f.kind in ("damaged", "foreign", "unreadable")
    }
    rows = committed_rows(
        _Without(storage, unreadable),
        pa.schema([RESULT_SCHEMA.field(name) for name in _COLUMNS]),
        redo_epoch=view.job["redo"]["epoch"],
    )
    verdict.rows = rows.num_rows
    _check_doubles(storage, readable[RESULTS], verdict)
    _check_clocks(rows, verdict)
    _check_files(storage, rows, verdict, workers)
    _check_images(storage, readable[IMAGES], rows, verdict)
    _check_held(_Without(storage, unreadable), rows, verdict)
    return verdict


class _Without:
    """A storage without the files that cannot be read: what is left can be."""

    def __init__(self, storage: Storage, gone: set[str]) -> None:
        self._storage, self._gone = storage, gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def files(self, folder: str) -> list[Any]:
        entries = self._storage.files(folder)
        return [entry for entry in entries if f"{folder}/{entry.name}" not in self._gone]


def _check_parts(storage: Storage, verdict: Verdict) -> dict[str, list[str]]:
    """Return the parts that can be read, by folder."""
    readable: dict[str, list[str]] = {RESULTS: [], IMAGES: []}
    for folder, paths in readable.items():
        for name in foreign_tables(storage, folder):
            verdict.findings.append(Finding("foreign", f"{folder}/{name}", "move it elsewhere"))
        mine = _Without(storage, {finding.name for finding in verdict.findings})
        for entry in list_parts(mine, folder).values():
            path = f"{folder}/{entry.name}"
            try:
                parse_part(storage, path, _read_through)
            except (OutputCorruptError, OSError) as error:
                verdict.findings.append(_finding(error, path))
            else:
                paths.append(path)
    return readable


def _finding(error: Exception, path: str, row_id: str | None = None) -> Finding:
    """Return what it means that a file cannot be read: damage, or that it cannot be had now."""
    kind = "unreadable" if isinstance(error, OSError) else "damaged"
    return Finding(kind, path, _first_line(error), row_id)


def _read_through(source: Any) -> None:
    """Decode a part, one row group at a time: damage may lie anywhere in it."""
    with open_parquet(source) as part:
        for group in range(part.num_row_groups):
            part.read_row_group(group, use_threads=False)


def _check_staged(storage: Storage, verdict: Verdict) -> None:
    for entry in staged_files(storage):
        path = f"{STAGING}/{entry.name}"
        try:
            read_staged(storage, entry.name)
        except FileNotFoundError:
            continue  # compacted meanwhile
        except (DamagedFileError, OSError) as error:
            verdict.findings.append(_finding(error, path))
    for entry in files_set_aside(storage):
        detail = "nothing reads it; delete it when you have looked at it"
        verdict.findings.append(Finding("set aside", f"{QUARANTINE}/{entry.name}", detail))


def _check_doubles(storage: Storage, parts: list[str], verdict: Verdict) -> None:
    seen: dict[str, str] = {}
    for path in parts:
        for row_id in read_part(storage, path, ["row_id"])["row_id"].to_pylist():
            if row_id in seen:
                detail = f"in {seen[row_id]} and in {path}"
                verdict.findings.append(Finding("double", row_id, detail, row_id))
            seen[row_id] = path


def _check_clocks(rows: pa.Table, verdict: Verdict) -> None:
    latest = datetime.now(UTC) + _CLOCK_SLACK
    ended = rows["finished_at"]
    wrong = pc.or_(
        pc.fill_null(pc.greater(ended, pa.scalar(latest, ended.type)), False),
        pc.fill_null(pc.less(ended, rows["started_at"]), False),
    )
    for row in to_records(rows.filter(wrong).select(["row_id", "started_at", "finished_at"])):
        detail = f"{row['started_at']} to {row['finished_at']}; nothing is decided by it"
        verdict.findings.append(Finding("clock", row["row_id"], detail, row["row_id"]))


def _check_files(storage: Storage, rows: pa.Table, verdict: Verdict, workers: int) -> None:
    """Re-hash the delivered files, and name those that are gone, changed or nobody's."""
    there = {path for folder in FILE_FOLDERS for path in walk_files(storage, folder.rstrip("/"))}
    named: set[str] = set()
    to_hash: list[tuple[str, str, str | None]] = []
    for row in rows.select(["row_id", "edited_hash", *FILE_COLUMNS]).to_pylist():
        for column in FILE_COLUMNS:
            uri = row[column]
            if uri is None:
                continue
            named.add(uri)
            if not is_safe_relpath(uri) or uri not in there:
                verdict.findings.append(Finding("missing", uri, "not there", row["row_id"]))
            elif column == "edited_uri":
                to_hash.append((row["row_id"], uri, row["edited_hash"]))
    with ThreadPoolExecutor(workers) as pool:
        hashes = pool.map(lambda one: _hash(storage, one[1]), to_hash)
        for (row_id, uri, recorded), found in zip(to_hash, hashes, strict=True):
            verdict.photos += 1
            if isinstance(found, FileNotFoundError):
                verdict.findings.append(Finding("missing", uri, "not there", row_id))
            elif isinstance(found, OSError):
                verdict.findings.append(_finding(found, uri, row_id))
            elif recorded is None:
                verdict.unhashed += 1
            elif found != recorded:
                detail = f"its hash is {found}, its row says {recorded}"
                verdict.findings.append(Finding("changed", uri, detail, row_id))
    books = (f"{RESULTS}/", f"{STAGING}/")
    if any(f.kind == "unreadable" and f.name.startswith(books) for f in verdict.findings):
        return  # the rows that cannot be read now may name what else is there
    sidecars = {f"{uri}.json" for uri in named}
    for path in sorted(filter(_DELIVERED.fullmatch, there - named - sidecars)):
        verdict.findings.append(Finding("orphaned", path, "no row names it"))


def _hash(storage: Storage, path: str) -> str | OSError:
    try:
        local = getattr(storage, "local", None)
        return hash_bytes(storage.read(path)) if local is None else hash_file(local(path))
    except OSError as error:
        return error


def _check_images(storage: Storage, parts: list[str], rows: pa.Table, verdict: Verdict) -> None:
    """Compare the photos in the images parts with their rows' hashes."""
    recorded = dict(zip(rows["row_id"].to_pylist(), rows["edited_hash"].to_pylist(), strict=True))
    for path in parts:
        for row_id, data in part_photos(storage, path):
            want = recorded.get(row_id)
            if want is not None and (data is None or hash_bytes(data) != want):
                detail = "the photo in it is not what the row says"
                verdict.findings.append(Finding("changed", path, detail, row_id))


def _check_held(storage: Storage, rows: pa.Table, verdict: Verdict) -> None:
    """Name the rows whose photo was kept as no file and is in no images part either."""
    alone = pc.and_(pc.is_null(rows["edited_uri"]), pc.is_valid(rows["edited_hash"]))
    wanted = rows.filter(alone).select(["row_id", "work_key"])
    if wanted.num_rows == 0:
        return
    books = (f"{IMAGES}/", f"{STAGING}/")
    if any(f.kind == "unreadable" and f.name.startswith(books) for f in verdict.findings):
        return  # what cannot be read now may hold them
    # Staged rows first: a photo that is compacted meanwhile is then found in its part.
    held = {(row.row_id, row.work_key) for row in load_staged(storage) if row.has_image}
    for number in list_parts(storage, IMAGES):
        table = read_part(storage, part_path(IMAGES, number), ["row_id", "work_key"])
        held.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    for row_id, work_key in zip(*(column.to_pylist() for column in wanted.columns), strict=True):
        if (row_id, work_key) not in held:
            detail = "no part there holds its photo"
            verdict.findings.append(Finding("missing", f"{IMAGES}/{row_id}", detail, row_id))


def part_photos(storage: Storage, path: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield (row_id, bytes) of an images part, a few at a time in memory."""
    with open_part(storage, path) as part:
        for batch in part.iter_batches(
            batch_size=16, columns=["row_id", "edited_image"], use_threads=False
        ):
            for row_id, image in zip(*(column.to_pylist() for column in batch), strict=True):
                yield row_id, None if image is None else image["bytes"]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:300]
