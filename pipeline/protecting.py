"""Masks of photos: found beside the photos when a job is planned, read again in the workers.

A mask travels as the last of its row's subject photos: so it is hashed with them, and a photo
whose mask has changed is planned anew.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa

from doodl.errors import ProtectionError
from manifests.errors import ManifestError
from manifests.paths import local_path, path_uri
from pipeline.outcomes import WorkItem
from pipeline.spec import JobSpec
from pipeline.tasks import read_unchanged

if TYPE_CHECKING:
    import numpy as np

    from doodl.delivery.mask import Protector
    from doodl.images import Photo

MASK_SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


def with_masks(inputs: pa.Table, folder: str) -> pa.Table:
    """Return the input table with each row's mask as the last of its subject photos.

    The mask of `trip/a.jpg` is MASK_DIR/trip/a.jpg.png, trip/a.png, or trip/a.jpg itself; other
    kinds of picture too. A photo without one is edited as a whole.
    Raises: ManifestError if the folder is not there, or holds no mask of any photo.
    """
    masks = _masks_in(Path(folder))
    found = [_mask_of(row_id, masks) for row_id in inputs["row_id"].to_pylist()]
    if inputs.num_rows and not any(found):
        raise ManifestError(
            f"{folder} holds no mask of any of these photos; the mask of trip/a.jpg is "
            "trip/a.png or trip/a.jpg.png there."
        )
    subjects = [
        uris if mask is None else [*(uris or ()), path_uri(str(Path(folder) / mask))]
        for uris, mask in zip(inputs["subject_uris"].to_pylist(), found, strict=True)
    ]
    field = inputs.schema.field("subject_uris")
    index = inputs.column_names.index("subject_uris")
    return inputs.set_column(index, field, pa.array(subjects, field.type))


def _masks_in(folder: Path) -> frozenset[str]:
    if not folder.is_dir():
        raise ManifestError(f"{folder} is no folder; give a folder of masks with --protect.")
    return frozenset(
        (Path(root) / name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder, onerror=_refuse_unlisted)
        for name in names
        if name.lower().endswith(MASK_SUFFIXES)
    )


def _refuse_unlisted(error: OSError) -> None:
    """Raise ManifestError: a photo whose mask lies there would be edited unprotected."""
    raise ManifestError(
        f"{error.filename}, of the masks of --protect, cannot be listed ({error.strerror})."
    ) from error


def _mask_of(row_id: str, masks: frozenset[str]) -> str | None:
    stem = str(PurePosixPath(row_id).with_suffix("")) if PurePosixPath(row_id).name else row_id
    names = [row_id + suffix for suffix in MASK_SUFFIXES]
    names += [stem + suffix for suffix in MASK_SUFFIXES]
    return next((name for name in [*names, row_id] if name in masks), None)


class ReadMasks:
    """What is protected in a row's photo: `(item, photo) -> mask or None`.

    Raises: ProtectionError if its mask or the protector is at fault; PhotoChangedError.
    """

    def __init__(self, spec: JobSpec) -> None:
        from doodl.delivery.mask import load_protector

        self.folder = spec.protect
        self.protector: Protector | None = None
        if spec.protect_with:
            self.protector = load_protector(spec.protect_with)

    def __call__(self, item: WorkItem, photo: Photo) -> np.ndarray | None:
        from doodl.delivery.mask import checked_mask, decode_mask, joined

        drawn = found = None
        if (mask := self._uri(item)) is not None:
            image_hash = item.subject_hashes[-1] if item.subject_hashes else None
            drawn = decode_mask(read_unchanged(mask, image_hash, "mask"), photo)
        if self.protector is not None:
            try:
                found = checked_mask(self.protector(photo.pixels), photo)
            except ProtectionError:
                raise
            except Exception as error:  # somebody's own code, on somebody's own photo
                raise ProtectionError(f"the protector failed: {error!r}") from error
        return joined(drawn, found)

    def _uri(self, item: WorkItem) -> str | None:
        uris = item.row.subject_uris
        if not self.folder or not uris:
            return None
        path = local_path(uris[-1])
        inside = path is not None and Path(path).is_relative_to(self.folder)
        return uris[-1] if inside else None
