"""The stages of a row, as plain callables: read, work, commit. Light until `setup`.

Here are those of `enhance` and what all tasks share: the commit and the row boundary. The stages
of the other tasks are in `pipeline.generating` and `pipeline.inverting`.
"""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doodl.errors import DoodlError
from manifests.changes import Changes
from manifests.commits import EDITED, OutputFolder
from manifests.errors import LinkedOutputError, ManifestError
from manifests.identity import hash_bytes, row_seed
from manifests.rows import ResultRow
from manifests.secrets import scrub, scrub_uri
from pipeline.beside import keep_mtime, sidecar
from pipeline.errors import (
    DiskFullError,
    OutputUnwritableError,
    PipelineError,
    output_error,
)
from pipeline.guide_files import check_guide_files
from pipeline.hardware import device_name, memory_share
from pipeline.memory import is_device_error, is_out_of_memory, release_memory
from pipeline.metrics import WorkerMeter, device_memory_bytes
from pipeline.outcomes import AGAIN, Outcome, WorkItem
from pipeline.spec import MAX_AUTO_BATCH, JobSpec, version
from pipeline.tasks import (
    SUFFIXES,
    Finished,
    checkpointing,
    load_tool,
    read_unchanged,
    relpath_of,
    row_aim,
    stages_of,
)

if TYPE_CHECKING:
    from doodl.editing.editor import PhotoEditor
    from doodl.editing.requests import EditRequest, EditResult
    from doodl.engine.room import FittingRoom
    from doodl.images import Photo
    from pipeline.protecting import ReadMasks

OUTPUT_FAULTS = ("disk_full", "unwritable")
"""Outcomes that say nothing of the row: the output folder did not take it."""

Times = tuple[datetime, datetime]
"""When a row's work began and when it ended."""

NamedFiles = Mapping[str, tuple[str, bytes]]
"""A row's files by result column: the path below the column's own folder, and the bytes."""


@contextmanager
def writing_output() -> Iterator[None]:
    """Turn an OSError of the body into what it means for the run: the output is at fault."""
    try:
        yield
    except LinkedOutputError as error:
        raise OutputUnwritableError(str(error)) from error
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


class EditPhotos:
    """Edit decoded photos together: `(items, inputs) -> results`; the models load in `setup`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.editor: PhotoEditor | None = None
        self.masks: ReadMasks | None = None
        self.room: int | FittingRoom = max(1, spec.batch_size)
        self.meter = WorkerMeter(Path(spec.out).name, spec.device)

    def setup(self) -> None:
        """Load the models, once per worker. Raises: ModelError, ProtectionError."""
        if self.spec.protect or self.spec.protect_with:
            from pipeline.protecting import ReadMasks

            self.masks = ReadMasks(self.spec)
        self.editor = load_tool(self.spec)
        if self.spec.batch_size == 0 and self.continuous:
            from doodl.engine.room import FittingRoom, free_bytes

            # Only here are the device and, with the models loaded, what they leave of it known.
            spec = self.spec
            share = memory_share(
                spec.device,
                workers=1 if spec.runner == "inline" else spec.num_workers,
                gpus_per_worker=spec.gpus_per_worker,
            )
            free = free_bytes(self.editor.backbone.device, share=share)
            self.room = FittingRoom(self.editor, free, MAX_AUTO_BATCH)

    def request(self, item: WorkItem, photo: Photo, checkpoint: bytes | None) -> EditRequest:
        """Return the row's own options, or the job's where the row has none."""
        from doodl.editing.objective import Aim
        from doodl.editing.requests import EditRequest

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
            protect=None if self.masks is None else self.masks(item, photo),
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

    @property
    def continuous(self) -> bool:
        """Whether the editor can give a photo's place to the next as soon as it is done."""
        return hasattr(self.editor, "stream")

    def stream(
        self,
        ready: Iterable[tuple[WorkItem, Photo]],
        *,
        load_checkpoint: Callable[[str], bytes | None],
        save_checkpoint: Callable[[str, bytes], None],
    ) -> Iterator[tuple[int, EditResult | Exception]]:
        """Yield (place in `ready`, result or error) as photos are done, `self.room` at a time."""
        assert self.editor is not None
        taken: list[WorkItem] = []

        def requests() -> Iterator[EditRequest]:
            for item, photo in ready:
                taken.append(item)
                yield self.request(item, photo, load_checkpoint(item.work_key))

        saving = checkpointing(
            taken, save_checkpoint, every=self.spec.checkpoint_every, meter=self.meter
        )
        yield from self.editor.stream(requests(), self.room, on_iteration=saving)

    def finished(self, item: WorkItem, read: Photo, result: EditResult) -> Finished:
        """Return the row of an edit; only an `ok` one is delivered."""
        columns = (
            "score_before", "score_after", "judge_before", "judge_after", "psnr_db", "ssim",
            "inversion_error", "num_optim_steps", "stop_reason", "loss_curve", "delta_e",
            "protected", "delivered_strength",
        )  # fmt: skip
        values = {name: getattr(result, name) for name in columns}
        values["error_message"] = result.rejection
        values["width_px"], values["height_px"] = read.width_px, read.height_px
        if result.status != "ok":
            return Finished(result.status, values)
        relpath = relpath_of(item.row_id, SUFFIXES[read.format], self.spec)
        files = {"edited_uri": (relpath, result.encoded)}
        return Finished(result.status, values, files, result.encoded, result.change)

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
        self.changes = Changes(self.out.storage)
        self.out.join(job)

    def finished(self, item: WorkItem, done: Finished, times: Times) -> None:
        """Commit a row whose work is done, with its files."""
        row = self._row(item, done.status, times)
        for name, value in done.values.items():
            setattr(row, name, value)
        row.edit_seconds = (times[1] - times[0]).total_seconds()
        row.edited_hash = None if done.image is None else hash_bytes(done.image)
        with writing_output():
            if done.change is not None:
                self.changes.save(item.work_key, done.change)
            self._deliver(item, row, done.files, done.image)
            self.out.checkpoints.drop(item.work_key)

    def copied(
        self, item: WorkItem, source: ResultRow, files: NamedFiles, image: bytes | None
    ) -> None:
        """Commit a row whose work is another's, with copies of that one's files."""
        # The work is the source's: its work_key, fingerprint and seed stay, for a replay.
        row = replace(
            source,
            row_id=item.row_id,
            image_uri=None if item.row.image_uri is None else scrub_uri(item.row.image_uri),
            extra=item.row.extra,
            edited_uri=None,
            unguided_uri=None,
            latents_uri=None,
        )
        with writing_output():
            self._deliver(item, row, files, image)

    def keeps_file(self, column: str) -> bool:
        """Return whether the file of a FILE_COLUMN is kept as one."""
        return column == "latents_uri" or self.spec.keep_files

    def _deliver(
        self, item: WorkItem, row: ResultRow, files: NamedFiles, image: bytes | None
    ) -> None:
        """Write a row's files and their sidecar, then stage the row."""
        for column, (relpath, data) in files.items():
            if self.keeps_file(column):
                folder, source = column.removesuffix("_uri"), item.row.image_uri
                setattr(row, column, self.out.write_file(folder, relpath, data, source))
                if folder == EDITED:
                    keep_mtime(source, self.out.edited_path(str(row.edited_uri)))
        if self.spec.sidecar and row.edited_uri is not None:
            relpath = files["edited_uri"][0]
            self.out.write_edited(f"{relpath}.json", sidecar(row))
        self.out.stage(row, image if self.spec.keep_parquet else None)

    def failed(self, item: WorkItem, error_type: str, message: str, times: Times) -> None:
        """Commit a row that could not be edited, with its class of error and one line why."""
        row = self._row(item, "failed", times)
        message = scrub(message)
        row.error_type, row.error_message = error_type, one_line(message)
        with writing_output():
            try:
                self.out.stage(row, None)
            except ManifestError as error:
                # A value of the manifest's own that no result column takes: the row fails even so.
                row.error_message = one_line(f"{message}; {scrub(str(error))}")
                bare = replace(row, extra={}, prompt=None, image_uri=None, negative_prompt=None)
                self.out.stage(bare, None)
            self.out.checkpoints.drop(item.work_key)

    def load_checkpoint(self, work_key: str) -> bytes | None:
        """Return the newest checkpoint of this work, None if there is none."""
        # One that cannot be read now is no photo's fault, and no reason to begin it anew.
        with writing_output():
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
            image_uri=None if source.image_uri is None else scrub_uri(source.image_uri),
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
        self.node = socket.gethostname()

    def setup(self) -> None:
        """Load the models. Raises: whatever keeps them from loading; no row is charged for it."""
        check_guide_files(self.commit.spec)
        self.work.setup()

    def __call__(self, items: Sequence[WorkItem]) -> list[Outcome]:
        """Process items and return their outcomes, in any order.

        As many as the spec's batch_size share a batch. Where the work can, an item that is done
        leaves it and the next takes its place. Once the output or this process is found at fault,
        what has not begun has no outcome: it is for others.
        """
        size = max(1, self.commit.spec.batch_size)
        work = self.work
        if len(items) > size and isinstance(work, EditPhotos) and work.continuous:
            outcomes = list(self._continuously(work, items))
            room = work.room if isinstance(work.room, int) else work.room.latest
            return [replace(o, together=min(room, len(items))) for o in outcomes]
        outcomes = []
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            outcomes += [replace(o, together=len(batch)) for o in self._batch(batch)]
            if any(map(_ends_the_work, outcomes)):
                break
        return outcomes

    def _batch(self, items: Sequence[WorkItem]) -> list[Outcome]:
        watch = Watch()
        outcomes: list[Outcome] = []
        ready: list[tuple[WorkItem, Any]] = []
        for item in items:
            try:
                ready.append((item, self.read(item)))
            except Exception as error:  # the row boundary
                outcomes += self._failed([item], error, watch)
        outcomes.extend(self._work_and_commit(ready, watch))
        return outcomes

    def _continuously(self, work: EditPhotos, items: Sequence[WorkItem]) -> Iterator[Outcome]:
        """Yield the outcomes of items that take each other's places in a batch.

        While the batch goes on, the next photo is read in one thread, one that is done delivered
        in another (`doodl.engine.stream`) and one that is delivered committed in a third.
        """
        from doodl.engine.overlap import Behind, read_ahead

        unread: list[Outcome] = []
        at_work: dict[int, tuple[WorkItem, Any, Watch]] = {}
        places = count()
        reading = read_ahead(self.read, items)

        def read() -> Iterator[tuple[WorkItem, Any]]:
            for item, get in reading:
                watch = Watch()
                try:
                    photo = get()
                except Exception as error:  # the row boundary
                    unread.extend(self._failed([item], error, watch))
                    continue
                at_work[next(places)] = (item, photo, watch)
                yield item, photo

        def committed() -> Iterator[Outcome]:
            for _, done in commits.ended(left=0):
                yield from done.result()

        ready, ended = read(), False
        commits: Behind[list[Outcome]] = Behind()
        with closing(reading), commits:
            while not ended:
                places = count()  # of this stream: after a failure the rest begins another
                at_work.clear()
                try:
                    for place, result in work.stream(
                        ready,
                        load_checkpoint=self.commit.load_checkpoint,
                        save_checkpoint=self.commit.save_checkpoint,
                    ):
                        # One at a time: once one has shown the output at fault, none is begun.
                        outcomes = list(committed())
                        yield from outcomes
                        if any(map(_ends_the_work, outcomes)):
                            break
                        item, photo, watch = at_work.pop(place)
                        commits.begin(place, self._commit, item, photo, result, watch)
                    yield from committed()
                    ended = True
                except Exception as error:  # the row boundary
                    outcomes = list(committed())
                    if not at_work:
                        raise
                    if not any(map(_ends_the_work, outcomes)):
                        outcomes += self._after(error, list(at_work.values()))
                    yield from outcomes
                    ended = any(map(_ends_the_work, outcomes))
        yield from unread

    def _after(
        self, error: Exception, at_work: Sequence[tuple[WorkItem, Any, Watch]]
    ) -> list[Outcome]:
        """Return the outcomes of items that shared a batch when it failed."""
        if isinstance(error, PipelineError) or is_out_of_memory(error) or is_device_error(error):
            return self._failed([item for item, _, _ in at_work], error, at_work[0][2])
        # One photo's fault must not fail the others of its batch: learn whose it is.
        return [
            outcome
            for item, photo, watch in at_work
            for outcome in self._work_and_commit([(item, photo)], watch)
        ]

    def _work_and_commit(self, ready: list[tuple[WorkItem, Any]], watch: Watch) -> list[Outcome]:
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
            alone = len(ready) == 1 or isinstance(error, PipelineError)
            if alone or is_out_of_memory(error) or is_device_error(error):
                return self._failed(items, error, watch)
            # One photo's fault must not fail the others of its batch: learn whose it is.
            return [o for pair in ready for o in self._work_and_commit([pair], watch)]
        return [
            outcome
            for (item, read), result in zip(ready, results, strict=True)
            for outcome in self._commit(item, read, result, watch)
        ]

    def _commit(self, item: WorkItem, read: Any, result: Any, watch: Watch) -> list[Outcome]:
        try:
            if isinstance(result, Exception):
                raise result
            done = self.work.finished(item, read, result)
            self.commit.finished(item, done, watch.times())
            return [self._outcome(item, done.status, watch)]
        except Exception as error:  # the row boundary
            return self._failed([item], error, watch)

    def _failed(self, items: Sequence[WorkItem], error: Exception, watch: Watch) -> list[Outcome]:
        """Charge rows, or have them tried again where the process is at fault and not the row.

        Nobody is charged for a batch that was too large or broke its device. A row alone that ran
        out of memory gets one more try, in a fresh process; one that broke its device gets none.
        """
        no_memory = is_out_of_memory(error)
        unfit = no_memory or is_device_error(error)
        if unfit:
            release_memory()
        if unfit and (len(items) > 1 or (no_memory and not items[0].fresh)):
            kind, message = describe(error)
            return [self._outcome(item, AGAIN, watch, kind, message, unfit) for item in items]
        return [self._charge(item, error, watch, unfit) for item in items]

    def _charge(
        self, item: WorkItem, error: Exception, watch: Watch, unfit: bool = False
    ) -> Outcome:
        """Commit the row as failed; unless the output folder is at fault, which is no row's."""
        kind, message = describe(error)
        try:
            if isinstance(error, (DiskFullError, OutputUnwritableError)):
                raise error
            self.commit.failed(item, kind, message, watch.times())
        except (DiskFullError, OutputUnwritableError) as fault:
            status = "disk_full" if isinstance(fault, DiskFullError) else "unwritable"
            return self._outcome(item, status, watch, *describe(fault), unfit)
        return self._outcome(item, "failed", watch, kind, message, unfit)

    def _outcome(
        self,
        item: WorkItem,
        status: str,
        watch: Watch,
        error_type: str | None = None,
        error_message: str | None = None,
        unfit: bool = False,
    ) -> Outcome:
        started, finished = watch.times()
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
            node=self.node,
            device=self._device_name,
            unfit=unfit,
        )


def _ends_the_work(outcome: Outcome) -> bool:
    """Return whether this process should begin nothing more."""
    return outcome.unfit or outcome.status in OUTPUT_FAULTS


def describe(error: BaseException) -> tuple[str, str]:
    """Return (class name, one-line message) for a result row."""
    kind = type(error).__name__
    if is_out_of_memory(error):
        return "OutOfMemoryError", "out of memory while editing this photo"
    expected = isinstance(error, (DoodlError, ManifestError, PipelineError, OSError, ValueError))
    text = str(error) if expected else f"{kind}: {error}"
    return kind, one_line(scrub(text)) or kind


def one_line(text: str, limit: int = 500) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Watch:
    """When a batch's work began, and how long ago: right though the machine's clock is set."""

    def __init__(self) -> None:
        self._started_at, self._started = datetime.now(UTC), time.monotonic()

    def times(self) -> Times:
        """Return when the work began and the instant now."""
        elapsed = timedelta(seconds=time.monotonic() - self._started)
        return self._started_at, self._started_at + elapsed


def _peak_memory_bytes(device: str) -> int:
    if device != "cpu":
        return device_memory_bytes(device, peak=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
