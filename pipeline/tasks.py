"""What every task's stages share: their shape, their names for files, reading and checkpoints."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

from manifests.identity import hash_bytes
from manifests.inline import read_input
from manifests.paths import edited_relpath, picture_relpath
from manifests.rows import ManifestRow
from pipeline.errors import PhotoChangedError
from pipeline.metrics import WorkerMeter
from pipeline.outcomes import WorkItem
from pipeline.spec import FROM_PROMPTS, LATENTS_SUFFIX, JobSpec, version

SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "AVIF": ".avif",
    "HEIF": ".heic",
}


@dataclass(frozen=True)
class Finished:
    """What a row's work came to, ready to commit.

    Attributes:
        status: ok | rejected | skipped.
        values: result columns beside those of what was asked, of what with, and when.
        files: by result column, the path below the column's own folder, and the bytes.
        image: the delivered picture's bytes; None if none is delivered.
        change: what `restrength` needs to deliver the edit anew; None if nothing is kept.
    """

    status: str
    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    image: bytes | None = None
    change: bytes | None = None


class Read(Protocol):
    """The first stage of a row: what its work needs, read and checked."""

    def __call__(self, item: WorkItem) -> Any:
        """Return what `Work` takes. Raises what makes the row fail."""


class Work(Protocol):
    """The second stage: rows worked on together by models that `setup` loads."""

    def setup(self) -> None:
        """Load the models, once per worker. Raises: ModelError."""

    def __call__(
        self,
        items: Sequence[WorkItem],
        inputs: Sequence[Any],
        *,
        load_checkpoint: Callable[[str], bytes | None],
        save_checkpoint: Callable[[str, bytes], None],
    ) -> Sequence[Any]:
        """Return a result, or an error, for each item."""

    def finished(self, item: WorkItem, read: Any, result: Any) -> Finished:
        """Return what is to be committed of a result."""

    def asked(self, item: WorkItem) -> dict[str, Any]:
        """Return the result columns that say what was asked."""


def relpath_of(row_id: str, suffix: str, spec: JobSpec) -> str:
    """Return the path of a row's file below its folder in the output: safe, the row's alone.

    Rows of photos keep their names; those of prompts and of latents files get their suffix.
    """
    if suffix == LATENTS_SUFFIX:
        # `a.jpg` is made again as `a.jpg.png`: the two files differ in their last suffix alone.
        picture = relpath_of(row_id, SUFFIXES[spec.image_format.upper()], spec)
        return str(PurePosixPath(picture).with_suffix(suffix))
    named_by_file = spec.task not in FROM_PROMPTS and not spec.back
    return (edited_relpath if named_by_file else picture_relpath)(row_id, suffix)


def stages_of(spec: JobSpec) -> tuple[Read, Work]:
    """Return the two stages of a job's task."""
    from pipeline.stages import DecodePhotos, EditPhotos

    if spec.task in FROM_PROMPTS:
        from pipeline.generating import MakePictures, ReadSubjects

        return ReadSubjects(spec), MakePictures(spec)
    if spec.task == "invert":
        from pipeline.inverting import InvertPhotos, ReadLatents, RestorePhotos

        if spec.back:
            return ReadLatents(spec), RestorePhotos(spec)
        return DecodePhotos(spec), InvertPhotos(spec)
    return DecodePhotos(spec), EditPhotos(spec)


def load_tool(spec: JobSpec, **options: Any) -> Any:
    """Return what a spec's `editor` loads: the models of a task, on the spec's device."""
    import torch

    module, _, function = spec.editor.partition(":")
    load = getattr(importlib.import_module(module), function)
    if spec.device == "cpu":
        # Measured: at the pocket model's sizes two threads are slower than one; workers scale.
        torch.set_num_threads(1)
    return load(
        spec.model,
        spec.edit_config,
        device=spec.device,
        software=f"doodl-batch {version()}",
        **options,
    )


def read_unchanged(uri: str, image_hash: str | None, what: str = "photo") -> bytes:
    """Return the bytes that a URI names.

    Raises: PhotoChangedError if they are not those of the plan.
    """
    data = read_input(uri)
    if image_hash is not None and hash_bytes(data) != image_hash:
        raise PhotoChangedError(
            f"the {what} was changed while the job ran; run again to take it up."
        )
    return data


def checkpointing(
    items: Sequence[WorkItem],
    save_checkpoint: Callable[[str, bytes], None],
    *,
    every: int,
    meter: WorkerMeter,
) -> Callable[[int, Any], None]:
    """Return the callback of an optimisation that saves each row's state every so many iterations.

    Args:
        every: 0 saves none.
        meter: counts the iterations; its clock starts now.
    """
    from doodl.engine.checkpoints import state_to_bytes

    meter.begin()

    def on_iteration(index: int, state: Any) -> None:
        meter.iteration()
        if every and state.stop_reason is None and state.iteration % every == 0:
            save_checkpoint(items[index].work_key, state_to_bytes(state))

    return on_iteration


def row_aim(row: ManifestRow, spec: JobSpec) -> tuple[str, float | None]:
    """Return (direction, target) of a row: its own, or the job's. A target alone means `target`."""
    if row.direction is None and row.target is None:
        return spec.direction, spec.target
    direction = row.direction or "target"
    return direction, row.target if row.target is not None else (
        spec.target if direction == "target" else None
    )
