"""Where an output folder lies: a local folder, or any storage pyarrow knows by URI.

Every write is atomic: a reader sees the old file or the new one, never a part of one. On a file
system that is a temporary file, fsync, rename, fsync of the folder; on an object store one PUT.
Paths are relative to the root, with `/`. Temporary files lie in TEMP_FOLDER only, so that
`results/` and `images/` hold Parquet parts at every instant.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa

from manifests.originals import unlinked
from manifests.paths import has_scheme, is_safe_relpath, local_path
from manifests.remote import filesystem_of

TEMP_FOLDER = "_state/tmp"
_TEMP_NAME = re.compile(r"[0-9a-f]+\.tmp")


@dataclass(frozen=True)
class Entry:
    """One file of a folder: its name, its size and when it was written (ns since 1970)."""

    name: str
    size_bytes: int
    mtime_ns: int


class Storage(Protocol):
    """What an output folder asks of its storage. `path` is relative to the root."""

    uri: str

    def read(self, path: str) -> bytes:
        """Return the file's bytes; FileNotFoundError if there is none."""

    def open(self, path: str) -> pa.NativeFile:
        """Return the file open for reading, with seek."""

    def write(self, path: str, data: bytes) -> None:
        """Put a file in place, whole, durable, over any file of that name."""

    def write_stream(self, path: str, fill: Callable[[BinaryIO], None]) -> None:
        """Put in place what `fill` writes; nothing appears if it raises."""

    def files(self, folder: str) -> list[Entry]:
        """Return the files of a folder by name, without its folders; [] if there is none."""

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders of a folder; [] if there is none."""

    def exists(self, path: str) -> bool:
        """Return whether there is a file of that name."""

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""

    def link(self, path: str, other: str) -> None:
        """Let `other` hold the file's bytes too, unless there is a file of that name already."""

    def move(self, path: str, other: str) -> None:
        """Give a file another name, over any file of that name."""

    def clear_temporary(self) -> int:
        """Remove what a killed writer left half done, and return how many files that was."""


def own_files(storage: Storage, folder: str, names: re.Pattern[str]) -> list[Entry]:
    """Return the files of a folder that have names of ours.

    What else lies there (.DS_Store, Thumbs.db, a sync tool's copies) is passed over: it is never
    read and never deleted.
    """
    return [entry for entry in storage.files(folder) if names.fullmatch(entry.name)]


def open_storage(root: str | os.PathLike[str]) -> Storage:
    """Return the storage that a path or a URI names."""
    uri = os.fspath(root)
    path = local_path(uri)
    if path is not None:
        return LocalStorage(path)
    return ArrowStorage(uri)


def _checked(path: str) -> str:
    if path and not is_safe_relpath(path):  # "" is the root itself, to list
        raise ValueError(f"path (={path!r}) must be a plain path inside the output folder.")
    return path


class LocalStorage:
    """A folder of a local (or mounted) file system.

    The methods with a leading underscore are the boundaries at which a process can die; the tests
    of the commit protocol kill it at each of them.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root).absolute()
        self.uri = str(self.root)

    def local(self, path: str) -> Path:
        """Return the file's own path."""
        return self.root / _checked(path)

    def target(self, path: str, *, in_place: bool = False) -> Path:
        """Return the path of a file to be written, moved or removed.

        Args:
            in_place: it is opened as it is, to append or to lock, and not replaced.
        Raises: LinkedOutputError if a link would lead the write elsewhere.
        """
        return unlinked(self.root, self.local(path), whole=in_place)

    def read(self, path: str) -> bytes:
        return self.local(path).read_bytes()

    def open(self, path: str) -> pa.NativeFile:
        return pa.OSFile(str(self.local(path)))

    def write(self, path: str, data: bytes) -> None:
        self.write_stream(path, lambda file: _write_all(file, data))

    def write_stream(self, path: str, fill: Callable[[BinaryIO], None]) -> None:
        target = self.target(path)
        temporary = self.target(f"{TEMP_FOLDER}/{uuid.uuid4().hex}.tmp")
        self._make_folder(temporary.parent)
        self._make_folder(target.parent)
        try:
            self._write_temporary(temporary, fill)
            self._rename(temporary, target)
        except Exception:
            # Out of space, most likely: give back what the half-written file took.
            with suppress(OSError):
                temporary.unlink()
            raise
        self._sync_folder(target.parent)

    def files(self, folder: str) -> list[Entry]:
        root = str(self.local(folder))
        try:
            with os.scandir(root) as scan:
                names = sorted(entry.name for entry in scan)
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            # One that is gone meanwhile, or a link to nowhere, hides no other.
            with suppress(FileNotFoundError):
                status = os.stat(f"{root}/{name}")  # noqa: PTH116 (a million of them)
                if not stat.S_ISDIR(status.st_mode):
                    found.append(Entry(name, status.st_size, status.st_mtime_ns))
        return found

    def folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.local(folder)) as entries:
                return sorted(e.name for e in entries if e.is_dir())
        except FileNotFoundError:
            return []

    def exists(self, path: str) -> bool:
        # Not Path.is_file: to some Pythons a file that cannot be looked at is not there.
        try:
            return stat.S_ISREG(self.local(path).stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._unlink(self.target(path))

    def link(self, path: str, other: str) -> None:
        target = self.target(other)
        if target.exists():
            return
        self._make_folder(target.parent)
        try:
            self._link(self.local(path), target)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            self.write(other, self.read(path))
        self._sync_folder(target.parent)

    def move(self, path: str, other: str) -> None:
        target = self.target(other)
        self._make_folder(target.parent)
        self._rename(self.target(path), target)
        self.delete(path)  # POSIX: to rename one of two links onto the other does nothing
        self._sync_folder(target.parent)

    def clear_temporary(self) -> int:
        entries = own_files(self, TEMP_FOLDER, _TEMP_NAME)
        for entry in entries:
            self.delete(f"{TEMP_FOLDER}/{entry.name}")
        return len(entries)

    def free_bytes(self) -> int:
        """Return the space left where the folder lies (or where it will lie)."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        parent = folder.parent
        self._make_folder(parent)
        with suppress(FileExistsError):
            folder.mkdir()
        self._sync_folder(parent)

    def _write_temporary(self, path: Path, fill: Callable[[BinaryIO], None]) -> None:
        with path.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def _link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)

    def _unlink(self, path: Path) -> None:
        path.unlink()

    def _sync_folder(self, folder: Path) -> None:
        if os.name == "nt":  # Windows opens no folder; its renames are journalled
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


_OBJECT_STORES = ("s3", "gcs", "abfs")


def _unguarded() -> None: ...


class ArrowStorage:
    """Any storage of `manifests.remote` (`s3://bucket/prefix`, `gs://…`), one PUT to a file.

    Attributes:
        guard: asked before each write: raises once a driver has lost the folder to another.
    """

    def __init__(self, uri: str, filesystem: pa.fs.FileSystem | None = None):
        self.guard: Callable[[], None] = _unguarded
        self.uri = uri.rstrip("/")
        if filesystem is None:
            if not has_scheme(uri):
                raise ValueError(f"uri (={uri!r}) must name its storage, as s3://bucket/folder.")
            filesystem, root = filesystem_of(uri)
        else:
            root = uri
        self.filesystem = self._fs = filesystem
        self._root = root.rstrip("/")
        # An object store has no folders: to make one would be a request more, and an object.
        self._has_folders = filesystem.type_name not in _OBJECT_STORES

    def path(self, path: str) -> str:
        """Return a file's path in the file system."""
        return f"{self._root}/{_checked(path)}".rstrip("/")

    def read(self, path: str) -> bytes:
        with self._fs.open_input_stream(self.path(path)) as stream:
            return stream.read()

    def open(self, path: str) -> pa.NativeFile:
        return self._fs.open_input_file(self.path(path))

    def write(self, path: str, data: bytes) -> None:
        self.guard()
        target = self.path(path)
        if self._has_folders:
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(target) as stream:
            stream.write(data)

    def write_stream(self, path: str, fill: Callable[[BinaryIO], None]) -> None:
        # The whole file first: a pyarrow output stream publishes what it has when its body raises.
        buffer = io.BytesIO()
        fill(buffer)
        self.write(path, buffer.getvalue())

    def _infos(self, folder: str) -> Iterator[pa.fs.FileInfo]:
        from pyarrow import fs

        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        yield from sorted(self._fs.get_file_info(selector), key=lambda info: info.base_name)

    def files(self, folder: str) -> list[Entry]:
        from pyarrow import fs

        return [
            Entry(info.base_name, info.size or 0, info.mtime_ns or 0)
            for info in self._infos(folder)
            if info.type == fs.FileType.File
        ]

    def folders(self, folder: str) -> list[str]:
        from pyarrow import fs

        return [i.base_name for i in self._infos(folder) if i.type == fs.FileType.Directory]

    def exists(self, path: str) -> bool:
        from pyarrow import fs

        return self._fs.get_file_info(self.path(path)).type == fs.FileType.File

    def delete(self, path: str) -> None:
        self.guard()
        with suppress(FileNotFoundError):
            self._fs.delete_file(self.path(path))

    def link(self, path: str, other: str) -> None:
        if not self.exists(other):
            self.write(other, self.read(path))

    def move(self, path: str, other: str) -> None:
        self.write(other, self.read(path))
        self.delete(path)

    def clear_temporary(self) -> int:
        return 0  # a PUT leaves nothing half done
