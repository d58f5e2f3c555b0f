"""Which guides exactly: fingerprints of the user's own files among them. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from doodl.guidance.spec import BCE, GuideSpec
from doodl.revisions import folder_revision


def guide_revisions(specs: Sequence[GuideSpec]) -> dict[str, str]:
    """Return, per guide with a file or folder of the user's, the fingerprint of its bytes.

    Guides known by name alone (shipped, published, or in the hub's cache) are not in it, nor is
    the code of a callable: where that changes, the user says `--redo`.
    """
    return {
        spec.name: _revision(path)
        for spec in specs
        for path in [_local_path(spec)]
        if path is not None
    }


def _local_path(spec: GuideSpec) -> Path | None:
    """Return the file or folder that a value names, a class behind it left off."""
    if spec.kind not in ("aesthetic", "classifier") or spec.value is None:
        return None
    path = Path(spec.value.removeprefix(f"{BCE}:").rpartition("@")[2])
    places = [path, *path.parents] if path.is_absolute() else [path]
    found = next((place for place in places[:-1] or places if place.exists()), None)
    if found is None or spec.kind == "aesthetic":
        return found
    # A folder counts only if it is a model's: any absolute path has some parent that exists.
    return found if found.is_file() or (found / "config.json").is_file() else None


def _revision(path: Path) -> str:
    if path.is_dir():
        return folder_revision(path)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8))
    return f"blake2b:{digest.hexdigest()}"
