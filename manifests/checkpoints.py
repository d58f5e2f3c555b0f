"""Work half done on a photo, saved under its work_key so that a kill costs minutes, not hours."""

from __future__ import annotations

import re
from collections.abc import Collection

from manifests.storage import Storage, own_files

CHECKPOINTS = "_state/checkpoints"
_KEY = re.compile(r"[0-9a-f]+")
_NAME = re.compile(rf"{_KEY.pattern}\.bin")


class Checkpoints:
    """The checkpoints of one output folder: opaque bytes by work_key.

    Photos optimised together are saved one by one, so each can be resumed in any company.
    """

    def __init__(self, storage: Storage):
        self._storage = storage

    def save(self, work_key: str, data: bytes) -> None:
        """Keep `data` as the newest checkpoint of this work; atomic and durable."""
        self._storage.write(_path(work_key), data)

    def load(self, work_key: str) -> bytes | None:
        """Return the newest checkpoint of this work, None if there is none."""
        try:
            return self._storage.read(_path(work_key))
        except FileNotFoundError:
            return None

    def drop(self, work_key: str) -> None:
        """Remove the checkpoint of this work, if there is one; for after its commit."""
        self._storage.delete(_path(work_key))

    def work_keys(self) -> list[str]:
        """Return the work_keys that have a checkpoint, sorted."""
        entries = own_files(self._storage, CHECKPOINTS, _NAME)
        return [entry.name.removesuffix(".bin") for entry in entries]

    def prune(self, keep: Collection[str]) -> int:
        """Remove the checkpoints of all other work (photos changed or done); return how many."""
        stale = [key for key in self.work_keys() if key not in keep]
        for work_key in stale:
            self.drop(work_key)
        return len(stale)


def _path(work_key: str) -> str:
    if not _KEY.fullmatch(work_key):
        raise ValueError(f"work_key (={work_key!r}) must be hex digits.")
    return f"{CHECKPOINTS}/{work_key}.bin"
