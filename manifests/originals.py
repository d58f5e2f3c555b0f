"""Originals are never written: where the inputs lie, against where files go.

Two rules together keep them apart. No input lies in the output folder (`refuse_overlap`, before a
run writes anything): compared are the folders that inputs lie in, and those that linked ones lead
to, by device and inode up to the root, so that no link, mount or spelling hides one. And below an
output folder nothing is a link (`unlinked`, before every write, move and removal), so that what is
written there lies there. `refuse_original` asks once more before each edit is written, as links
change while a run goes on.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import LinkedOutputError, OriginalError
from manifests.inline import is_inline
from manifests.paths import local_path

JOB_FILE = "_job.json"
OWN_FOLDERS = ("edited", "unguided", "latents", "results", "images", "report", "_state")
"""What lies in an output folder, beside files."""

_NAME = r"/+[^/]*$"
_SAME_STORE = {"gcs": "gs", "abfss": "abfs", "s3a": "s3", "s3n": "s3"}

Identity = tuple[int, int]
"""(device, inode) of a folder: the same however it is reached."""


def unlinked(root: Path, path: Path, *, whole: bool = False) -> Path:
    """Return `path` if nothing on the way from `root` to its folder is a link.

    Args:
        path: below `root`. whole: the file itself must be none either: it is opened in place, and
            not put in place of what has its name.
    Raises: LinkedOutputError.
    """
    at = root
    parts = path.relative_to(root).parts
    for part in parts if whole else parts[:-1]:
        at = at / part
        if at.is_symlink() or _is_junction(at):
            raise LinkedOutputError(
                f"{at} is a link to {at.readlink()}: what is written there could be somebody's "
                "originals; put a folder of its own there, or choose another output folder."
            )
    return path


def _is_junction(path: Path) -> bool:
    return os.name == "nt" and hasattr(path, "is_junction") and path.is_junction()


def output_around(path: Path) -> Path | None:
    """Return the output folder that a path is or lies in, None if it is in none."""
    real = Path(os.path.realpath(path))
    return next((folder for folder in (real, *real.parents) if (folder / JOB_FILE).is_file()), None)


def refuse_links(out: str | os.PathLike[str]) -> None:
    """Raise LinkedOutputError if one of an output folder's own folders is a link."""
    root = local_path(os.fspath(out))
    if root is None:
        return
    folder = Path(root).absolute()
    state = folder / "_state"
    inner = [state / entry.name for entry in os.scandir(state)] if state.is_dir() else []
    for own in [*(folder / name for name in OWN_FOLDERS), *inner]:
        unlinked(folder, own, whole=True)


def input_folders(table: pa.Table) -> list[str]:
    """Return the folders, each once, of the photos and subjects that an input table names.

    Those of a manifest that are links also by where they lead; a scan tells that itself
    (`scan.linked_folders`).
    """
    uris = [table["image_uri"].filter(pc.is_null(table["size_bytes"])).combine_chunks()]
    if table["subject_uris"].null_count < table.num_rows:
        uris += [chunk.flatten() for chunk in table["subject_uris"].chunks]
    folders = {
        os.path.dirname(os.path.realpath(path))  # noqa: PTH120
        for column in uris
        for uri in column.drop_null().to_pylist()
        if (path := local_path(uri)) is not None and _is_link(path)
    }
    for column in [table["image_uri"].combine_chunks(), *uris[1:]]:
        named = pc.replace_substring_regex(column.drop_null(), _NAME, "/")
        folders.update(pc.unique(named).to_pylist())
    return sorted(folders)


def _is_link(path: str) -> bool:
    try:
        return os.path.islink(path)  # noqa: PTH114 (a million of them)
    except ValueError:  # a name that no file can have
        return False


def refuse_overlap(
    out: str | os.PathLike[str], places: Iterable[str], option: str = "--out"
) -> None:
    """Raise OriginalError if one of the places, that are read, lies in the output folder.

    Args:
        places: folders or files, by path or URI; one that does not exist overlaps nothing.
        option: by which another output folder is chosen.
    """
    out = os.fspath(out)
    root = local_path(out)
    own = _remote_key(out) if root is None else _own_identities(Path(root))
    known: dict[str, bool] = {}
    for place in places:
        path = local_path(place)
        if isinstance(own, str):
            inside = path is None and f"{_remote_key(place)}/".startswith(f"{own}/")
        else:
            inside = path is not None and _lies_in(os.path.realpath(path), own, known)
        if inside:
            raise OriginalError(
                f"{place} lies in {out}, where files are written, and originals never are; "
                f"choose another folder with {option}."
            )


def _own_identities(root: Path) -> frozenset[Identity]:
    folders = [root, *(root / name for name in OWN_FOLDERS)]
    return frozenset(found for folder in folders if (found := _identity(folder)) is not None)


def _identity(path: str | os.PathLike[str]) -> Identity | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (once for each folder of a million photos)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _lies_in(path: str, own: frozenset[Identity], known: dict[str, bool]) -> bool:
    """Return whether a path is one of these folders or below one, asking each folder once."""
    asked = []
    while path not in known and _identity(path) not in own:
        asked.append(path)
        parent = os.path.dirname(path)  # noqa: PTH120
        if parent == path:
            break
        path = parent
    inside = known.get(path, path not in asked)
    known.update(dict.fromkeys([*asked, path], inside))
    return inside


def _remote_key(uri: str) -> str:
    """Return a URI's store, bucket and path in one spelling, without what signs it."""
    scheme, _, rest = uri.partition("://")
    bucket, _, path = rest.partition("?")[0].partition("/")
    bucket, scheme = bucket.rpartition("@")[2], scheme.lower()
    return f"{_SAME_STORE.get(scheme, scheme)}://{posixpath.normpath(f'{bucket}/{path}')}"


def refuse_original(target: str, source: str | None) -> None:
    """Raise OriginalError if a photo's edit would go where the photo itself lies.

    Args:
        target: path of the file to be written. source: the photo's address.
    """
    if source is None or is_inline(source):
        return
    to, read = local_path(target), local_path(source)
    if to is None or read is None:
        return
    real = os.path.realpath(read)
    folder = _identity(os.path.dirname(to))  # noqa: PTH120
    same_folder = folder is not None and folder == _identity(os.path.dirname(real))  # noqa: PTH120
    if same_folder or (_identity(to) is not None and _identity(to) == _identity(read)):
        raise OriginalError(
            f"the original lies where its edit would go ({to}); choose another --out."
        )
