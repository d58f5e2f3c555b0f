"""Photos of an object store as an input table."""

from __future__ import annotations

import pyarrow as pa

from manifests.addresses import reaching
from manifests.errors import ManifestError
from manifests.job import JOB_FILE
from manifests.paths import PHOTO_SUFFIXES, row_id_problem, split_suffix
from manifests.remote import filesystem_of
from manifests.schemas import INPUT_SCHEMA


def scan_remote(uri: str) -> pa.Table:
    """Return the photos below a URI as a table of INPUT_SCHEMA, sorted by row_id.

    As `scan_photos`: hidden names are passed over, and so is any folder that holds a `_job.json`.
    Raises: ManifestError if nothing is there, or it is a job's output.
    """
    from pyarrow import fs

    try:
        with reaching(uri):
            filesystem, root = filesystem_of(uri)
            root = root.rstrip("/")
            infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ManifestError(f"{uri} does not exist; give photos or a manifest.") from None
        raise ManifestError(f"{uri} cannot be listed ({error}).") from error
    files = {i.path[len(root) + 1 :]: i for i in infos if i.type == fs.FileType.File}
    outputs = {path[: -len(JOB_FILE)] for path in files if path.split("/")[-1] == JOB_FILE}
    if "" in outputs:
        raise ManifestError(
            f"{uri} is a job's output (it holds {JOB_FILE}); give the folder of the originals."
        )
    if not files:
        raise ManifestError(f"{uri} holds nothing; give photos or a manifest.")
    found = sorted(path for path in files if _is_photo(path, outputs))
    problems = [row_id_problem(path) for path in found]
    columns = {
        "row_id": pa.array(found, pa.string()),
        "image_uri": pa.array([f"{uri}/{path}" for path in found], pa.string()),
        "size_bytes": pa.array([files[path].size for path in found], pa.int64()),
        "mtime_ns": pa.array([files[path].mtime_ns for path in found], pa.int64()),
        "row_error_type": pa.array(["InvalidRow" if p else None for p in problems], pa.string()),
        "row_error": pa.array(problems, pa.string()),
    }
    count = len(found)
    return pa.table(
        [columns.get(f.name, pa.nulls(count, f.type)) for f in INPUT_SCHEMA], schema=INPUT_SCHEMA
    )


def _is_photo(path: str, outputs: set[str]) -> bool:
    parts = path.split("/")
    if any(part.startswith(".") for part in parts) or any(map(path.startswith, outputs)):
        return False
    return split_suffix(parts[-1])[1].lower() in PHOTO_SUFFIXES
