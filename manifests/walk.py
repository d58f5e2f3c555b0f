"""All files below a folder of an output's storage."""

from __future__ import annotations

from collections.abc import Iterator

from manifests.storage import Storage


def walk_files(storage: Storage, folder: str) -> Iterator[str]:
    """Yield the path of every file below `folder`, relative to the storage's root."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        for entry in storage.files(path):
            yield f"{path}/{entry.name}"
        waiting += [f"{path}/{name}" for name in storage.folders(path)]
