"""The stages of a row, as plain callables: decode, edit, commit. Light until `setup`."""

from __future__ import annotations

import importlib
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from doodl.errors import DoodlError
from manifests.changes import Changes
from manifests.commits import OutputFolder
from manifests.errors import ManifestError
from manifests.identity import hash_bytes, row_seed
from manifests.inline import read_input
from manifests.paths import edited_relpath
from manifests.rows import ManifestRow, ResultRow
from pipeline.beside import keep_mtime, sidecar
from pipeline.errors import (
    DiskFullError,
    OutputUnwritableError,
    PhotoChangedError,
    PipelineError,
    output_error,
)
from pipeline.outcomes import Outcome, WorkItem
from pipeline.spec import JobSpec, version

if TYPE_CHECKING:
    from doodl.edit import EditRequest, EditResult, PhotoEditor
    from doodl.images import Photo

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


Times = tuple[datetime, datetime]
"""When a row's work began and when it ended."""


@contextmanager
def writing_output() -> Iterator[None]:
    """Turn an OSError of the body into what it means for the run: the output is at fault."""
    try:
        yield
    except OSError as error:
        raise output_error(error) from error


class DecodePhotos:
    """Read a row's photo and decode it: `(WorkItem) -> Photo`. Raises what makes the row fail."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec

    def __call__(self, item: WorkItem) -> Photo:
        from doodl.images import decode_photo

        row = item.row
        data = row.image if row.image is not None else read_input(str(row.image_uri))
        if item.image_hash is not None and hash_bytes(data) != item.image_hash:
            raise PhotoChangedError(
                "the photo was changed while the job ran; run again to take it up."
            )
        return decode_photo(data, max_pixels=self.spec.max_pixels)


class EditPhotos:
    """Edit decoded photos together: `(items, photos) -> results`; the models load in `setup`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.editor: PhotoEditor | None = None

    def setup(self) -> None:
        """Load the models, once per worker. Raises: ModelError."""
        import torch

        module, _, function = self.spec.editor.partition(":")
        load_editor = getattr(importlib.import_module(module), function)
        if self.spec.device == "cpu":
            # Measured: at the pocket model's sizes two threads are slower than one; workers scale.
            torch.set_num_threads(1)
        self.editor = load_editor(
            self.spec.model,
            self.spec.edit_config,
            device=self.spec.device,
            software=f"doodl-batch {version()}",
        )

    def request(self, item: WorkItem, photo: Photo, checkpoint: bytes | None) -> EditRequest:
        """Return the row's own options, or the job's where the row has none."""
        from doodl.edit import EditRequest
        from doodl.objective import Aim

        row, spec = item.row, self.spec
        direction, target = row_aim(row, spec)
        return EditRequest(
            photo=photo,
            aim=Aim(direction, target),
            seed=row_seed(item.work_key, row.seed if row.seed is not None else spec.seed),
            prompt=spec.prompt if row.prompt is None else row.prompt,
            strength=spec.strength if row.strength is None else row.strength,
            detail=spec.detail,
            deliver=spec.deliver,
            strip_gps=spec.strip_gps,
            checkpoint=checkpoint,
        )

    def __call__(
        self,
        items: Sequence[WorkItem],
        photos: Sequence[Photo],
        *,
        load_checkpoint: Callable[[str], bytes | None],
        save_checkpoint: Callable[[str, bytes], None],
    ) -> list[EditResult | DoodlError]:
        from doodl.checkpoints import state_to_bytes

        if self.editor is None:
            self.setup()
        assert self.editor is not None
        every = self.spec.checkpoint_every

        def on_iteration(index: int, state: Any) -> None:
            if every and state.stop_reason is None and state.iteration % every == 0:
                save_checkpoint(items[index].work_key, state_to_bytes(state))

        requests = [
            self.request(item, photo, load_checkpoint(item.work_key))
            for item, photo in zip(items, photos, strict=True)
        ]
        return self.editor.edit(requests, on_iteration=on_iteration)


class CommitRows:
    """Write the edited photo, then its staged row: the commit point of PIPELINE.md.

    Args:
        job: what the driver's `open_job` returned: its epoch marks what this run commits.
    Raises: DiskFullError, OutputUnwritableError from every method, if OUT does not take it.
    """

    def __init__(self, spec: JobSpec, fingerprint: str, job: Mapping[str, Any]) -> None:
        self.spec, self.fingerprint, self.job = spec, fingerprint, job
        self.out = OutputFolder(spec.out)
        self.changes = Changes(self.out.storage)
        self.out.join(job)

    def edited(self, item: WorkItem, photo: Photo, result: EditResult, times: Times) -> None:
        """Commit a row whose photo was edited; only an `ok` one is delivered."""
        delivered = result.status == "ok"
        row = self._row(item, result.status, times)
        row.width_px, row.height_px = photo.width_px, photo.height_px
        for name in (
            "score_before", "score_after", "judge_before", "judge_after", "psnr_db", "ssim",
            "inversion_error", "num_optim_steps", "stop_reason", "loss_curve",
        ):  # fmt: skip
            setattr(row, name, getattr(result, name))
        row.edit_seconds = (times[1] - times[0]).total_seconds()
        with writing_output():
            if delivered and result.change is not None:
                self.changes.save(item.work_key, result.change)
            if delivered and self.spec.keep_files:
                relpath = edited_relpath(item.row_id, SUFFIXES[photo.format])
                row.edited_uri = self.out.write_edited(relpath, result.encoded)
                keep_mtime(item.row.image_uri, self.out.edited_path(row.edited_uri))
                if self.spec.sidecar:
                    self.out.write_edited(f"{relpath}.json", sidecar(row))
            self.out.stage(row, result.encoded if delivered and self.spec.keep_parquet else None)
            self.out.checkpoints.drop(item.work_key)

    def failed(self, item: WorkItem, error_type: str, message: str, times: Times) -> None:
        """Commit a row that could not be edited, with its class of error and one line why."""
        row = self._row(item, "failed", times)
        row.error_type, row.error_message = error_type, one_line(message)
        with writing_output():
            try:
                self.out.stage(row, None)
            except ManifestError as error:
                # A value of the manifest's own that no result column takes: the row fails even so.
                row.error_message = one_line(f"{message}; {error}")
                self.out.stage(replace(row, extra={}, prompt=None, image_uri=None), None)
            self.out.checkpoints.drop(item.work_key)

    def load_checkpoint(self, work_key: str) -> bytes | None:
        """Return the newest checkpoint of this work, None if there is none."""
        return self.out.checkpoints.load(work_key)

    def save_checkpoint(self, work_key: str, data: bytes) -> None:
        """Keep a checkpoint of this work."""
        with writing_output():
            self.out.checkpoints.save(work_key, data)

    def _row(self, item: WorkItem, status: Any, times: tuple[datetime, datetime]) -> ResultRow:
        spec, source = self.spec, item.row
        direction, target = row_aim(source, spec)
        return ResultRow(
            row_id=item.row_id,
            input_key=item.input_key,
            work_key=item.work_key,
            status=status,
            image_uri=source.image_uri,
            task=spec.task,
            direction=direction,
            target=target,
            strength=spec.strength if source.strength is None else source.strength,
            prompt=spec.prompt if source.prompt is None else source.prompt,
            seed=row_seed(item.work_key, source.seed if source.seed is not None else spec.seed),
            model=spec.model,
            model_revision=spec.model_revision,
            params_fingerprint=self.fingerprint,
            doodl_version=version(),
            device=spec.device,
            started_at=times[0],
            finished_at=times[1],
            extra=source.extra,
        )


class RowProcessor:
    """The row boundary: items in, committed rows out, every error turned into its row's error."""

    def __init__(self, spec: JobSpec, fingerprint: str, job: Mapping[str, Any]) -> None:
        self.decode = DecodePhotos(spec)
        self.edit = EditPhotos(spec)
        self.commit = CommitRows(spec, fingerprint, job)
        self.device = spec.device

    def setup(self) -> None:
        """Load the models. Raises: whatever keeps them from loading; no row is charged for it."""
        self.edit.setup()

    def __call__(self, items: Sequence[WorkItem]) -> list[Outcome]:
        """Process items that may share a batch; returns one outcome per item, in any order."""
        started = _now()
        outcomes: list[Outcome] = []
        decoded: list[tuple[WorkItem, Photo]] = []
        for item in items:
            try:
                decoded.append((item, self.decode(item)))
            except Exception as error:  # the row boundary
                outcomes.append(self._charge(item, error, started))
        outcomes.extend(self._edit_and_commit(decoded, started))
        return outcomes

    def _edit_and_commit(
        self, decoded: list[tuple[WorkItem, Photo]], started: datetime
    ) -> list[Outcome]:
        if not decoded:
            return []
        items, photos = [item for item, _ in decoded], [photo for _, photo in decoded]
        try:
            results = self.edit(
                items,
                photos,
                load_checkpoint=self.commit.load_checkpoint,
                save_checkpoint=self.commit.save_checkpoint,
            )
        except Exception as error:  # the row boundary
            if len(decoded) == 1 or isinstance(error, PipelineError):
                return [self._charge(item, error, started) for item in items]
            # One photo's fault must not fail the others of its batch: learn whose it is.
            return [o for pair in decoded for o in self._edit_and_commit([pair], started)]
        outcomes = []
        for (item, photo), result in zip(decoded, results, strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                self.commit.edited(item, photo, result, (started, _now()))
                outcomes.append(self._outcome(item, result.status, started))
            except Exception as error:  # the row boundary
                outcomes.append(self._charge(item, error, started))
        return outcomes

    def _charge(self, item: WorkItem, error: Exception, started: datetime) -> Outcome:
        """Commit the row as failed; unless the output folder is at fault, which is no row's."""
        kind, message = describe(error)
        try:
            if isinstance(error, (DiskFullError, OutputUnwritableError)):
                raise error
            self.commit.failed(item, kind, message, (started, _now()))
        except (DiskFullError, OutputUnwritableError) as fault:
            status = "disk_full" if isinstance(fault, DiskFullError) else "unwritable"
            return self._outcome(item, status, started, *describe(fault))
        return self._outcome(item, "failed", started, kind, message)

    def _outcome(
        self,
        item: WorkItem,
        status: str,
        started: datetime,
        error_type: str | None = None,
        error_message: str | None = None,
    ) -> Outcome:
        finished = _now()
        return Outcome(
            row_id=item.row_id,
            work_key=item.work_key,
            status=status,
            error_type=error_type,
            error_message=error_message,
            edit_seconds=(finished - started).total_seconds(),
            peak_memory_bytes=_peak_memory_bytes(),
            started_at=started,
            finished_at=finished,
            node=socket.gethostname(),
            device=self.device,
        )


def row_aim(row: ManifestRow, spec: JobSpec) -> tuple[str, float | None]:
    """Return (direction, target) of a row: its own, or the job's. A target alone means `target`."""
    if row.direction is None and row.target is None:
        return spec.direction, spec.target
    direction = row.direction or "target"
    return direction, row.target if row.target is not None else (
        spec.target if direction == "target" else None
    )


def describe(error: BaseException) -> tuple[str, str]:
    """Return (class name, one-line message) for a result row."""
    kind = type(error).__name__
    if isinstance(error, MemoryError):
        return "OutOfMemoryError", "out of memory while editing this photo"
    expected = isinstance(error, (DoodlError, ManifestError, PipelineError, OSError, ValueError))
    text = str(error) if expected else f"{kind}: {error}"
    return kind, one_line(text) or kind


def one_line(text: str, limit: int = 500) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _now() -> datetime:
    return datetime.now(UTC)


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
