"""Which photos of a subject a job's rows were made from."""

from __future__ import annotations

from manifests.commits import MANIFEST_FILE
from manifests.errors import ManifestError
from manifests.parts import read_part
from pipeline.collection import OutputView


def subject_uris(view: OutputView) -> dict[str, tuple[str, ...]]:
    """Return {row_id: its subject photos} of a folder's last plan; rows without are left out.

    Raises: ManifestError if the folder has no plan.
    """
    if not view.folder.storage.exists(MANIFEST_FILE):
        raise ManifestError("the folder has no plan yet, and with it no subjects; run the job.")
    table = read_part(view.folder.storage, MANIFEST_FILE, ["row_id", "subject_uris"])
    pairs = zip(table["row_id"].to_pylist(), table["subject_uris"].to_pylist(), strict=True)
    return {row_id: tuple(uris) for row_id, uris in pairs if uris}
