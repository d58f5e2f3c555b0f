"""What a job is about, as a table: a folder scanned or a manifest read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from manifests.errors import ManifestError
from manifests.reader import read_manifest, scan_photos


def load_input(photos: str) -> pa.Table:
    """Return the input table of a folder of photos or of a manifest file.

    Raises: ManifestError if the path is neither, or the folder holds no photo.
    """
    path = Path(photos)
    if path.is_dir():
        return scan_photos(path)
    if path.is_file():
        return read_manifest(path)
    raise ManifestError(f"{photos} does not exist; give a folder of photos or a manifest.")
