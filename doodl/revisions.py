"""Which weights exactly: a fingerprint of a model folder. Imports no torch: planning needs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from doodl.errors import ModelError

_CHUNK_BYTES = 1 << 20


def folder_revision(folder: Path) -> str:
    """Return `blake2b:<16 hex>` over the names and bytes of all files below `folder`.

    Raises: ModelError if the folder is absent or holds no file.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    if not files:
        raise ModelError(f"{folder} holds no model files; check the path or reinstall the package.")
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        name = path.relative_to(folder).as_posix().encode()
        digest.update(len(name).to_bytes(8, "big") + name)
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return f"blake2b:{digest.hexdigest()}"
