"""The changes of delivered edits, kept under their work_key so that they can be made again.

One small file to a delivered photo, written before its row is committed, as the photo itself is.
The same work gives the same change, so neither a crash nor a second attempt can leave a row with
another's; a row superseded or copied leaves or shares its file, and nobody is misled by one.
"""

from __future__ import annotations

import re

from manifests.storage import Storage

CHANGES = "_state/changes"
_KEY = re.compile(r"^[0-9a-f]{8,}$")


class Changes:
    """The kept changes of one output folder: opaque bytes by work_key."""

    def __init__(self, storage: Storage):
        self._storage = storage

    def save(self, work_key: str, data: bytes) -> None:
        """Keep the change of this work; atomic and durable."""
        self._storage.write(_path(work_key), data)

    def load(self, work_key: str) -> bytes | None:
        """Return the change of this work, None if none was kept."""
        try:
            return self._storage.read(_path(work_key))
        except FileNotFoundError:
            return None


def _path(work_key: str) -> str:
    if not _KEY.match(work_key):
        raise ValueError(f"work_key (={work_key!r}) must be hex digits.")
    # Two digits a folder: a million files in one would slow every listing down.
    return f"{CHANGES}/{work_key[:2]}/{work_key}.safetensors"
