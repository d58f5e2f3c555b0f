"""Folders that a command fills beside output folders: its own from the first file on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from manifests.errors import OriginalError
from manifests.originals import refuse_overlap, unlinked
from manifests.paths import is_litter
from manifests.storage import LocalStorage


def claim_folder(
    folder: Path,
    mark: str,
    record: Mapping[str, Any],
    option: str,
    *,
    inputs: Iterable[str] = (),
    older_marks: Collection[str] = (),
) -> None:
    """Mark a folder as one that a command of ours fills: it must be new, empty or marked before.

    Args:
        mark: name of the file that marks it. record: what the file says.
        option: by which another folder is chosen, as `--to`.
        inputs: folders and files that the command reads.
        older_marks: names that mark one which an earlier version has filled.
    Raises: OriginalError if it is a file, holds anything else, one of the inputs, or a link that
        leads elsewhere. Links farther down are refused when something is written through them.
    """
    if folder.exists() and not folder.is_dir():
        raise OriginalError(f"{folder} is a file; choose a folder with {option}.")
    refuse_overlap(folder, inputs, option)
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [path.name for path in held if not is_litter(path.name)]
    if names and {mark, *older_marks}.isdisjoint(names):
        raise OriginalError(f"{folder} holds other files; choose a new or empty one with {option}.")
    for path in held:
        unlinked(folder, path, whole=True)
    LocalStorage(folder).write(mark, (json.dumps(dict(record), indent=1) + "\n").encode())
