"""The stages of `invert`: a photo to its noise and back, and latents files to photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doodl.errors import DoodlError, LatentsError
from manifests.paths import local_path
from pipeline.outcomes import WorkItem
from pipeline.spec import LATENTS_SUFFIX, JobSpec
from pipeline.tasks import (
    SUFFIXES,
    Finished,
    load_tool,
    read_unchanged,
    relpath_of,
)

if TYPE_CHECKING:
    from doodl.editing.inverter import InvertResult, PhotoInverter, RestoreResult
    from doodl.images import Photo


class InvertPhotos:
    """Invert decoded photos together; the model loads in `setup`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.inverter: PhotoInverter | None = None

    def setup(self) -> None:
        """Load the model, once per worker. Raises: ModelError."""
        self.inverter = load_tool(self.spec, image_format=self.spec.image_format.upper())

    def __call__(
        self,
        items: Sequence[WorkItem],
        inputs: Sequence[Photo],
        *,
        load_checkpoint: Callable[[str], bytes | None],  # noqa: ARG002 (nothing is iterated)
        save_checkpoint: Callable[[str, bytes], None],  # noqa: ARG002
    ) -> list[InvertResult | DoodlError]:
        from doodl.editing.inverter import InvertRequest

        if self.inverter is None:
            self.setup()
        assert self.inverter is not None
        requests = [
            InvertRequest(photo, _prompt(item, self.spec))
            for item, photo in zip(items, inputs, strict=True)
        ]
        return self.inverter.invert(requests)

    def finished(
        self,
        item: WorkItem,
        read: Photo,  # noqa: ARG002 (what every task's stage is given)
        result: InvertResult,
    ) -> Finished:
        """Return the row of an inversion: the noise pair and the photo made of it again."""
        columns = (
            "width_px", "height_px", "inversion_error", "psnr_db", "ssim", "autoencoder_psnr_db",
        )  # fmt: skip
        values = {name: getattr(result, name) for name in columns}
        picture = relpath_of(item.row_id, SUFFIXES[self.spec.image_format.upper()], self.spec)
        latents = relpath_of(item.row_id, LATENTS_SUFFIX, self.spec)
        files = {"latents_uri": (latents, result.latents), "edited_uri": (picture, result.encoded)}
        return Finished("ok", values, files, result.encoded)

    def asked(self, item: WorkItem) -> dict[str, Any]:
        """Return what the denoiser was told."""
        return {"prompt": _prompt(item, self.spec)}


class ReadLatents:
    """Read a latents file: `(WorkItem) -> bytes`. Raises what makes the row fail."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec

    def __call__(self, item: WorkItem) -> bytes:
        from doodl.editing.latent_files import MAX_FILE_BYTES

        uri = str(item.row.image_uri)
        path = local_path(uri)
        if path is not None and (size := Path(path).stat().st_size) > MAX_FILE_BYTES:
            raise LatentsError(f"the file has {size:,} bytes; a latents file has fewer.")
        return read_unchanged(uri, item.image_hash, "latents file")


class RestorePhotos:
    """Make photos of latents files; the model loads in `setup`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.inverter: PhotoInverter | None = None

    def setup(self) -> None:
        """Load the model, once per worker. Raises: ModelError."""
        self.inverter = load_tool(self.spec, image_format=self.spec.image_format.upper())

    def __call__(
        self,
        items: Sequence[WorkItem],  # noqa: ARG002 (what every task's stage is given)
        inputs: Sequence[bytes],
        *,
        load_checkpoint: Callable[[str], bytes | None],  # noqa: ARG002 (nothing is iterated)
        save_checkpoint: Callable[[str, bytes], None],  # noqa: ARG002
    ) -> list[RestoreResult | DoodlError]:
        if self.inverter is None:
            self.setup()
        assert self.inverter is not None
        return self.inverter.restore(inputs)

    def finished(
        self,
        item: WorkItem,
        read: bytes,  # noqa: ARG002
        result: RestoreResult,
    ) -> Finished:
        """Return the row of a photo made of its latents."""
        values = {name: getattr(result, name) for name in ("width_px", "height_px", "prompt")}
        relpath = relpath_of(item.row_id, SUFFIXES[self.spec.image_format.upper()], self.spec)
        return Finished("ok", values, {"edited_uri": (relpath, result.encoded)}, result.encoded)

    def asked(self, item: WorkItem) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: the file says how it was inverted."""
        return {}


def _prompt(item: WorkItem, spec: JobSpec) -> str:
    return spec.prompt if item.row.prompt is None else item.row.prompt
