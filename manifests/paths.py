"""Names: from a row to a file that cannot leave the output folder, from a URI to a file."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import PurePosixPath
from urllib.parse import quote_from_bytes, unquote_to_bytes

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".heic", ".heif", ".avif", ".bmp", ".gif"}
)
"""What a photo's file name ends in, compared in lower case."""

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
"""What a manifest's file name ends in."""

OUTPUT_MARKS = frozenset({"_job.json", "_replay.json", "_restrength.json", "_evaluation.json"})
"""Files that mark a folder as one that a command has filled: no photo of it is an original."""

FILE_FOLDERS = ("edited/", "unguided/", "latents/")
"""Where the files that result rows name lie in an output folder."""

_LITTER = frozenset(
    {
        "Thumbs.db", "desktop.ini", "@eaDir", "#recycle", "$RECYCLE.BIN",
        "System Volume Information", "lost+found",
    }
)  # fmt: skip

MAX_ROW_ID_BYTES = 1024
_MAX_COMPONENT_BYTES = 200  # file systems stop at 255; room for our hash and suffix
_SAME_SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif", ".heif": ".heic"}
_DRIVE = re.compile(r"^[A-Za-z]:")
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\\\u2028\u2029]")
_HASHED = re.compile(r"~[0-9a-f]{12}$")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def row_id_problem(row_id: str) -> str | None:
    """Return why `row_id` cannot name a file inside the output folder, or None if it can."""
    if not row_id:
        return "row_id is empty; give the row a name."
    if "\x00" in row_id:
        return f"row_id (={row_id!r}) holds a NUL character; leave it out."
    if len(row_id.encode("utf-8", "backslashreplace")) > MAX_ROW_ID_BYTES:
        return f"row_id (={row_id[:60]!r}...) is longer than {MAX_ROW_ID_BYTES} bytes; shorten it."
    if row_id.startswith(("/", "\\")) or _DRIVE.match(row_id):
        return f"row_id (={row_id!r}) is an absolute path; give a name without a root or a drive."
    if ".." in re.split(r"[/\\]", row_id):
        return f"row_id (={row_id!r}) climbs out with '..'; give a name without it."
    return None


def edited_relpath(row_id: str, suffix: str) -> str:
    """Return the delivered photo's path inside `OUT/edited`: safe, and unique to the row.

    An ordinary name keeps its folders and itself: `trip/a.jpg` stays, `trip/a.heic` delivered as
    JPEG becomes `trip/a.heic.jpg`. A name that cannot be used as it is (`..`, a root, control
    characters, too long) is made safe and carries 12 hex digits of its hash: `trip/a~1f….jpg`.
    No two row_ids share a path: a plain name that looks like one of those made names is hashed
    too. Folders never end in a photo's suffix and files always do, so neither hides the other.

    Args:
        suffix: of the delivered format, with its dot: `.jpg`.
    """
    if suffix.lower() not in PHOTO_SUFFIXES:
        raise ValueError(f"suffix (={suffix!r}) must be one of {', '.join(sorted(PHOTO_SUFFIXES))}")
    if row_id_problem(row_id) is None:
        *folders, name = row_id.split("/")
        stem, own = split_suffix(name)
        if all(map(_is_ordinary_folder, folders)) and _is_ordinary(name) and stem:
            if _format(own) == _format(suffix):
                if _format(split_suffix(stem)[1]) is None and not _HASHED.search(stem):
                    return row_id
            elif _format(own) is not None:
                return row_id + suffix
    return _made_relpath(row_id, suffix)


def picture_relpath(row_id: str, suffix: str) -> str:
    """Return the path of a picture whose row is named by words and not by a file.

    As `edited_relpath`, but a name without a photo's suffix keeps itself: `a-rose-seed0` becomes
    `a-rose-seed0.png`. In a job whose paths all come from here no two row_ids share one.
    """
    if suffix.lower() not in PHOTO_SUFFIXES:
        raise ValueError(f"suffix (={suffix!r}) must be one of {', '.join(sorted(PHOTO_SUFFIXES))}")
    *folders, name = row_id.split("/")
    plain = row_id_problem(row_id) is None and all(map(_is_ordinary_folder, folders))
    same_format = _format(split_suffix(name)[1]) == _format(suffix)
    if plain and _is_ordinary(name) and not same_format and not _HASHED.search(name):
        return row_id + suffix
    return _made_relpath(row_id, suffix)


def split_suffix(name: str) -> tuple[str, str]:
    """Return a file name as (stem, suffix with its dot); a leading dot begins no suffix."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem else (name, "")


def _format(suffix: str) -> str | None:
    """Return one name for each photo format's suffixes; None for any other suffix."""
    suffix = suffix.lower()
    return _SAME_SUFFIX.get(suffix, suffix) if suffix in PHOTO_SUFFIXES else None


def _is_ordinary(component: str) -> bool:
    return (
        component not in ("", ".", "..")
        and not _UNUSABLE.search(component)
        and not any(0xD800 <= ord(c) < 0xE000 for c in component)
        and len(component.encode("utf-8", "backslashreplace")) <= _MAX_COMPONENT_BYTES
    )


def _is_ordinary_folder(component: str) -> bool:
    return _is_ordinary(component) and _format(split_suffix(component)[1]) is None


def _made_relpath(row_id: str, suffix: str) -> str:
    raw = row_id.encode("utf-8", "backslashreplace")
    digest = hashlib.blake2b(raw, digest_size=6).hexdigest()
    components = [_cleaned(c) for c in re.split(r"[/\\]", row_id)]
    *folders, name = [c for c in components if c] or ["photo"]
    stem, own = split_suffix(name)
    if _format(own) is not None:
        name = stem
    # A folder that ends in a photo's suffix could stand where another row's photo goes.
    folders = [f if _is_ordinary_folder(f) else f + "_" for f in folders]
    if sum(len(f.encode()) + 1 for f in folders) > MAX_ROW_ID_BYTES // 2:
        folders = []
    return "/".join([*folders, f"{name}~{digest}{suffix}"])


def _cleaned(component: str) -> str:
    component = _UNUSABLE.sub("_", component)
    component = _DRIVE.sub(lambda m: m.group()[0] + "_", component)
    if component in ("..", "."):
        return ""
    encoded = component.encode("utf-8", "replace")[: _MAX_COMPONENT_BYTES - 40]
    return encoded.decode("utf-8", "ignore")


def is_safe_relpath(relpath: str) -> bool:
    """Return whether `relpath` names something strictly inside the folder it is joined to."""
    parts = PurePosixPath(relpath).parts
    return (
        bool(parts)
        and relpath == "/".join(parts)
        and not relpath.startswith("/")
        and not _DRIVE.match(relpath)
        and "\\" not in relpath
        and "\x00" not in relpath
        and ".." not in parts
    )


def is_litter(name: str) -> bool:
    """Return whether it is the name of what desktops and file systems leave in any folder."""
    return name.startswith(".") or name in _LITTER


def has_scheme(uri: str) -> bool:
    """Return whether `uri` names its storage (`s3://…`, `file:///…`), as a plain path does not."""
    return "://" in uri and _SCHEME.match(uri) is not None


def local_path(uri: str) -> str | None:
    """Return the local path that `uri` names, None when it names other storage.

    A `file://` URI may hold any bytes, percent-encoded: file names that are not UTF-8 travel so.
    """
    if uri[:7].lower() == "file://":
        _, slash, path = uri[len("file://") :].partition("/")  # before the slash: a host
        return os.fsdecode(unquote_to_bytes(slash + path))
    return None if has_scheme(uri) else uri


def path_uri(path: str) -> str:
    """Return `path` itself, or a `file://` URI if its bytes are not UTF-8 (Arrow text is)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path
