"""Which weights exactly: a fingerprint of a model folder. Imports no torch: planning needs it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from doodl.errors import ModelError

_CHUNK_BYTES = 1 << 20
_REMEMBERED_FROM_BYTES = 256 * 2**20
_SETTLED_SECONDS = 2.0

_Known = list[list[str | int]]
"""What is believed of a folder's files: name, size in bytes, time of modification in ns."""


def folder_revision(folder: Path) -> str:
    """Return `blake2b:<16 hex>` over the names and bytes of all files below `folder`, or of a file.

    Hidden folders and files (a download's bookkeeping, .git) are no part of a model. The revision
    of a large folder is remembered in the user's cache, and trusted as long as every file has the
    same name, size and modification time.
    Raises: ModelError if the folder is absent or holds no file.
    """
    return _revision(_files(folder), folder, "")


def files_revision(files: Sequence[Path], folder: Path) -> str:
    """Return the same over some files of a folder alone: those that are loaded of it."""
    return _revision(files, folder, "files")


def file_revision(path: Path) -> str:
    """Return `blake2b:<32 hex>` of a file's bytes alone, whatever it is called.

    Raises: ModelError if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return f"blake2b:{digest.hexdigest()}"


def _revision(files: Sequence[Path], folder: Path, what: str) -> str:
    if not files:
        raise ModelError(f"{folder} holds no model files; check the path or reinstall the package.")
    try:
        stats = [path.stat() for path in files]
        known: _Known = [
            [_name(path, folder), stat.st_size, stat.st_mtime_ns]
            for path, stat in zip(files, stats, strict=True)
        ]
        large = sum(stat.st_size for stat in stats) >= _REMEMBERED_FROM_BYTES
        note = _note(folder, what) if large else None
        revision = _recall(note, known)
        if revision is None:
            revision = _hash(files, folder)
            # A file written just now could change again within its time stamp's resolution.
            age = time.time() - max(stat.st_mtime for stat in stats)
            if age > _SETTLED_SECONDS:
                _remember(note, known, revision)
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error
    return revision


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts
        )
    )


def _name(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()


def _hash(files: Sequence[Path], folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        name = os.fsencode(_name(path, folder))
        digest.update(len(name).to_bytes(8, "big") + name)
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return f"blake2b:{digest.hexdigest()}"


def _note(folder: Path, what: str) -> Path | None:
    """Return where a revision of the folder is remembered; None where there is no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        key = hashlib.blake2b(
            os.fsencode(folder.resolve()), digest_size=16, person=what.encode()
        ).hexdigest()
    except (OSError, RuntimeError):
        return None
    return cache / "doodl-batch" / "revisions" / f"{key}.json"


def _recall(note: Path | None, known: _Known) -> str | None:
    if note is None:
        return None
    try:
        remembered = json.loads(note.read_text())
        revision = remembered["revision"] if remembered["files"] == known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return revision if isinstance(revision, str) else None


def _remember(note: Path | None, known: _Known, revision: str) -> None:
    """Write the note in one move; without a writable home the next run reads the files again."""
    if note is None:
        return
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=note.parent, suffix=".tmp", delete=False
        ) as stream:
            json.dump({"files": known, "revision": revision}, stream)
        try:
            Path(stream.name).replace(note)
        except OSError:
            Path(stream.name).unlink(missing_ok=True)
    except OSError:
        return
