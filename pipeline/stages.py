"""The stages of a row, as plain callables: read, work, commit. Light until `setup`.

Here are those of `enhance` and what all tasks share: the commit and the row boundary. The stages
of the other tasks are in `pipeline.generating` and `pipeline.inverting`.
"""

from __future__ import annotations

import importlib
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from doodl.errors import DoodlError
from manifests.commits import EDITED, OutputFolder
from manifests.errors import ManifestError
from manifests.identity import hash_bytes, row_seed
from manifests.inline import read_input
from manifests.paths import edited_relpath, picture_relpath
from manifests.rows import ManifestRow, ResultRow
from pipeline.errors import (
    DiskFullError,
    OutputUnwritableError,
    PhotoChangedError,
    PipelineError,
    output_error,
)
from pipeline.hardware import device_name
from pipeline.metrics import WorkerMeter, device_memory_bytes
from pipeline.outcomes import Outcome, WorkItem
from pipeline.spec import FROM_PROMPTS, LATENTS_SUFFIX, JobSpec, version

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


@dataclass(frozen=True)
class Finished:
    """What a row's work came to, ready to commit.

    Attributes:
        status: ok | rejected | skipped.
        values: result columns beside those of what was asked, of what with, and when.
        files: by result column, the path below the column's own folder, and the bytes.
        image: the delivered picture's bytes; None if none is delivered.
    """

    status: str
    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    image: bytes | None = None


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
        if row.image is not None:
            data = row.image
        else:
            data = read_unchanged(str(row.image_uri), item.image_hash)
        return decode_photo(data, max_pixels=self.spec.max_pixels)


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


class EditPhotos:
    """Edit decoded photos together: `(items, inputs) -> results`; the models load in `setup`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.editor: PhotoEditor | None = None
        self.meter = WorkerMeter(Path(spec.out).name, spec.device)

    def setup(self) -> None:
        """Load the models, once per worker. Raises: ModelError."""
        self.editor = load_tool(self.spec)

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
            checkpoint=checkpoint,
        )

    def __call__(
        self,
        items: Sequence[WorkItem],
        inputs: Sequence[Photo],
        *,
        load_checkpoint: Callable[[str], bytes | None],
        save_checkpoint: Callable[[str, bytes], None],
    ) -> list[EditResult | DoodlError]:
        if self.editor is None:
            self.setup()
        assert self.editor is not None
        requests = [
            self.request(item, photo, load_checkpoint(item.work_key))
            for item, photo in zip(items, inputs, strict=True)
        ]
        every = self.spec.checkpoint_every
        return self.editor.edit(
            requests,
            on_iteration=checkpointing(items, save_checkpoint, every=every, meter=self.meter),
        )

    def finished(self, item: WorkItem, read: Photo, result: EditResult) -> Finished:
        """Return the row of an edit; only an `ok` one is delivered."""
        columns = (
            "score_before", "score_after", "judge_before", "judge_after", "psnr_db", "ssim",
            "inversion_error", "num_optim_steps", "stop_reason", "loss_curve",
        )  # fmt: skip
        values = {name: getattr(result, name) for name in columns}
        values["width_px"], values["height_px"] = read.width_px, read.height_px
        if result.status != "ok":
            return Finished(result.status, values)
        relpath = relpath_of(item.row_id, SUFFIXES[read.format], self.spec)
        files = {"edited_uri": (relpath, result.encoded)}
        return Finished(result.status, values, files, result.encoded)

    def asked(self, item: WorkItem) -> dict[str, Any]:
        """Return the row's own options, or the job's where the row has none."""
        row, spec = item.row, self.spec
        direction, target = row_aim(row, spec)
        return {
            "direction": direction,
            "target": target,
            "strength": spec.strength if row.strength is None else row.strength,
            "prompt": spec.prompt if row.prompt is None else row.prompt,
        }


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
    from doodl.checkpoints import state_to_bytes

    meter.begin()

    def on_iteration(index: int, state: Any) -> None:
        meter.iteration()
        if every and state.stop_reason is None and state.iteration % every == 0:
            save_checkpoint(items[index].work_key, state_to_bytes(state))

    return on_iteration


class CommitRows:
    """Write a row's files, then the staged row: the commit point of PIPELINE.md.

    Args:
        job: what the driver's `open_job` returned: its epoch marks what this run commits.
    Raises: DiskFullError, OutputUnwritableError from every method, if OUT does not take it.
    """

    def __init__(self, spec: JobSpec, fingerprint: str, job: Mapping[str, Any]) -> None:
        self.spec, self.fingerprint, self.job = spec, fingerprint, job
        self._asked = stages_of(spec)[1].asked
        self.out = OutputFolder(spec.out)
        self.out.join(job)

    def finished(self, item: WorkItem, done: Finished, times: Times) -> None:
        """Commit a row whose work is done, with its files."""
        row = self._row(item, done.status, times)
        for name, value in done.values.items():
            setattr(row, name, value)
        row.edit_seconds = (times[1] - times[0]).total_seconds()
        with writing_output():
            for column, (relpath, data) in done.files.items():
                if column == "latents_uri" or self.spec.keep_files:
                    folder = column.removesuffix("_uri")
                    if folder == EDITED:
                        row.edited_uri = self.out.write_edited(relpath, data)
                    else:
                        setattr(row, column, self.out.write_file(folder, relpath, data))
            self.out.stage(row, done.image if self.spec.keep_parquet else None)
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
                bare = replace(row, extra={}, prompt=None, image_uri=None, negative_prompt=None)
                self.out.stage(bare, None)
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
        return ResultRow(
            row_id=item.row_id,
            input_key=item.input_key,
            work_key=item.work_key,
            status=status,
            image_uri=source.image_uri,
            task=spec.task,
            seed=row_seed(item.work_key, source.seed if source.seed is not None else spec.seed),
            model=spec.model,
            model_revision=spec.model_revision,
            params_fingerprint=self.fingerprint,
            doodl_version=version(),
            device=spec.device,
            started_at=times[0],
            finished_at=times[1],
            extra=source.extra,
            **self._asked(item),
        )


class RowProcessor:
    """The row boundary: items in, committed rows out, every error turned into its row's error."""

    def __init__(self, spec: JobSpec, fingerprint: str, job: Mapping[str, Any]) -> None:
        self.read, self.work = stages_of(spec)
        self.commit = CommitRows(spec, fingerprint, job)
        self.device, self._device_name = spec.device, device_name(spec.device)

    def setup(self) -> None:
        """Load the models. Raises: whatever keeps them from loading; no row is charged for it."""
        self.work.setup()

    def __call__(self, items: Sequence[WorkItem]) -> list[Outcome]:
        """Process items that may share a batch; returns one outcome per item, in any order."""
        started = _now()
        outcomes: list[Outcome] = []
        ready: list[tuple[WorkItem, Any]] = []
        for item in items:
            try:
                ready.append((item, self.read(item)))
            except Exception as error:  # the row boundary
                outcomes.append(self._charge(item, error, started))
        outcomes.extend(self._work_and_commit(ready, started))
        return outcomes

    def _work_and_commit(
        self, ready: list[tuple[WorkItem, Any]], started: datetime
    ) -> list[Outcome]:
        if not ready:
            return []
        items, inputs = [item for item, _ in ready], [read for _, read in ready]
        try:
            results = self.work(
                items,
                inputs,
                load_checkpoint=self.commit.load_checkpoint,
                save_checkpoint=self.commit.save_checkpoint,
            )
        except Exception as error:  # the row boundary
            if len(ready) == 1 or isinstance(error, PipelineError):
                return [self._charge(item, error, started) for item in items]
            # One photo's fault must not fail the others of its batch: learn whose it is.
            return [o for pair in ready for o in self._work_and_commit([pair], started)]
        outcomes = []
        for (item, read), result in zip(ready, results, strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                done = self.work.finished(item, read, result)
                self.commit.finished(item, done, (started, _now()))
                outcomes.append(self._outcome(item, done.status, started))
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
            peak_memory_bytes=_peak_memory_bytes(self.device),
            started_at=started,
            finished_at=finished,
            node=socket.gethostname(),
            device=self._device_name,
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


def _peak_memory_bytes(device: str) -> int:
    if device != "cpu":
        return device_memory_bytes(device, peak=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
