"""A job's plan: its input table, hashed, minus what its output folder has done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import OutputFolder
from manifests.errors import JobConflictError
from manifests.hashes import hash_inputs
from manifests.identity import params_fingerprint
from manifests.job import WAY_OUT, refuse_other_photos
from manifests.originals import input_folders
from manifests.paths import local_path
from manifests.plan import Plan, PlanOptions, plan_rows
from manifests.rows import manifest_rows
from manifests.scan import linked_folders
from manifests.schemas import DONE_STATUSES
from manifests.secret_columns import without_secrets
from pipeline.guide_files import changed_options, named_changes, with_row_guides
from pipeline.inputs import load_rows
from pipeline.outcomes import TRANSIENT_ERRORS, WorkItem
from pipeline.prompts import PROMPT_KEY_COLUMNS
from pipeline.spec import FROM_PROMPTS, JobSpec, version

_AGE = re.compile(r"(\d+)\s*([smhdw])")
_AGE_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

IF_RUNNING = ("fail", "skip", "wait")


@dataclass(frozen=True)
class RunChoice:
    """Which rows one run takes up; nothing here changes a result.

    Attributes:
        redo: do everything again under this run's options.
        moved: the photos are those of before in another place, though the folder has another name.
        force: compute selected rows again though they are done.
        retry_failed: retry every failed row, not only those that may go better next time.
        only_failed: take up failed rows and no others.
        only_classes: with only_failed, only failures of these classes.
        only_rows: take up these rows and no others.
        since: an instant (ISO 8601) or an age (`7d`, `12h`): only photos modified since.
        limit: at most so many rows.
        max_gpu_hours: stop in order once the workers have spent so many hours on photos; on a CPU
            they are CPU-worker hours.
        if_running: fail | skip | wait when another run has the folder.
    """

    redo: bool = False
    moved: bool = False
    force: bool = False
    retry_failed: bool = False
    only_failed: bool = False
    only_classes: tuple[str, ...] = ()
    only_rows: tuple[str, ...] | None = None
    since: str | None = None
    limit: int | None = None
    max_gpu_hours: float | None = None
    if_running: str = "fail"

    def __post_init__(self) -> None:
        if self.if_running not in IF_RUNNING:
            raise ValueError(
                f"if_running (={self.if_running!r}) must be one of {', '.join(IF_RUNNING)}."
            )
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit (={self.limit}) must not be negative.")
        if self.max_gpu_hours is not None and not self.max_gpu_hours > 0:
            raise ValueError(f"max_gpu_hours (={self.max_gpu_hours}) must be above zero.")
        if self.since is not None:
            parse_since(self.since)

    def options(self) -> PlanOptions:
        retry_all = self.retry_failed or self.only_failed
        return PlanOptions(
            force=self.force,
            retry_failed="all" if retry_all else "retryable",
            retryable=frozenset(TRANSIENT_ERRORS),
            only_failed=self.only_failed,
            only_classes=frozenset(self.only_classes),
            only_rows=None if self.only_rows is None else frozenset(self.only_rows),
            since=None if self.since is None else parse_since(self.since),
            limit=self.limit,
        )


def parse_since(text: str) -> datetime:
    """Return the instant of an ISO 8601 text (local time if it names no zone) or of an age.

    Raises: ValueError if it is neither.
    """
    match = _AGE.fullmatch(text.strip())
    if match is not None:
        return datetime.now(UTC) - timedelta(**{_AGE_UNITS[match[2]]: int(match[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise ValueError(
            f"since (={text!r}) must be a date such as 2026-11-01 or an age such as 7d."
        ) from None


def job_record(spec: JobSpec) -> dict[str, Any]:
    """Return what `_job.json` records of a spec."""
    return {
        "task": spec.task,
        "params": spec.params(),
        "params_fingerprint": params_fingerprint(spec.params()),
        "doodl_version": version(),
        "preset": spec.preset,
        "photos": spec.photos,
        "photos_real": _real(spec.photos),
        "beside_revisions": spec.beside_revisions,
    }


def _real(photos: str) -> str | None:
    path = local_path(photos) if photos else None
    return None if path is None else os.path.realpath(path)


def make_plan(
    spec: JobSpec,
    choice: RunChoice,
    folder: OutputFolder,
    inputs: pa.Table,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Return the plan of `load_rows`'s table for a folder that has been opened and recovered."""
    inputs = hash_inputs(inputs, folder.storage, progress=progress)
    return _planned(spec, choice, inputs, folder.done())


def _planned(spec: JobSpec, choice: RunChoice, inputs: pa.Table, done: pa.Table) -> Plan:
    columns = PROMPT_KEY_COLUMNS if spec.task in FROM_PROMPTS else ()
    return plan_rows(inputs, done, params_fingerprint(spec.params()), choice.options(), columns)


def preview_plan(spec: JobSpec, choice: RunChoice) -> Plan:
    """Return the plan of a job without touching its output folder.

    Raises: JobConflictError if the folder belongs to a job with other options.
    """
    inputs = load_rows(spec)
    spec = with_row_guides(spec, inputs)
    folder = OutputFolder(spec.out)
    recorded = refuse_folder(folder, spec, choice, inputs)
    done = folder.done() if recorded is not None else _nothing_done()
    if recorded is not None and choice.redo:
        # An interrupted redo of the same options goes on; any other begins anew.
        going_on = recorded.get("redo", {}).get("open")
        if not going_on or changed_options(recorded, job_record(spec)):
            done = done.slice(0, 0)
    inputs = hash_inputs(inputs, folder.storage if recorded is not None else None)
    if recorded is not None and is_elsewhere(recorded, spec, choice):
        refuse_other_rows(folder, recorded, spec, inputs)
    return _planned(spec, choice, inputs, done)


def refuse_folder(
    folder: OutputFolder, spec: JobSpec, choice: RunChoice, inputs: pa.Table | None = None
) -> dict[str, Any] | None:
    """Raise what keeps a job from its output folder, before anything is put in it.

    Args:
        inputs: the job's rows, where they are known yet.
    Returns: the folder's job, None if it has none.
    Raises: OriginalError if what the job reads lies in the folder; JobConflictError if the folder
        is another job's, or holds files that are no job's.
    """
    places = [place for place in (spec.photos, spec.protect, *spec.subjects) if place]
    if Path(spec.model).is_absolute():
        places.append(spec.model)
    if inputs is not None:
        places += [*input_folders(inputs), *linked_folders(inputs)]
    folder.refuse_foreign(places)
    recorded = folder.read_job()
    if recorded is not None and not choice.moved:
        refuse_other_photos(spec.out, recorded, job_record(spec))
    if recorded is not None and not choice.redo:
        refuse_conflict(recorded, spec)
    return recorded


def is_elsewhere(recorded: Mapping[str, Any], spec: JobSpec, choice: RunChoice) -> bool:
    """Return whether the rows come from another place than the last run's, as far as is known."""
    now = job_record(spec)
    return not choice.moved and any(
        recorded.get(name, now[name]) != now[name] for name in ("photos", "photos_real")
    )


def refuse_other_rows(
    folder: OutputFolder, recorded: Mapping[str, Any], spec: JobSpec, inputs: pa.Table
) -> None:
    """Raise JobConflictError if finished rows of these names are of other photos, elsewhere.

    Elsewhere is under another address; or, where a link or a mount of the same name leads to
    another place than it did, there: then most photos have to be others, as a machine may reach
    the same ones by another way.

    Args:
        inputs: of `hash_inputs`.
    """
    done = folder.committed(["row_id", "image_uri", "input_key", "status"])
    done = done.filter(pc.is_in(done["status"], value_set=pa.array(DONE_STATUSES)))
    rows = without_secrets(_planned(spec, RunChoice(), inputs, _nothing_done()).table)
    was = done.take(pc.index_in(rows["row_id"], value_set=done["row_id"].combine_chunks()))
    changed = pc.fill_null(pc.not_equal(was["input_key"], rows["input_key"]), False)
    other = pc.and_(changed, pc.fill_null(pc.not_equal(was["image_uri"], rows["image_uri"]), False))
    if recorded.get("photos") == spec.photos:
        shared = len(was) - was["row_id"].null_count
        other = changed if 2 * (pc.sum(changed).as_py() or 0) > shared else other
    if not pc.any(other).as_py():
        return
    row = pc.index(other, True).as_py()
    old, new = was["image_uri"][row].as_py(), rows["image_uri"][row].as_py()
    led = f", which led to {recorded.get('photos_real')}" if old == new else ""
    raise JobConflictError(
        f"{spec.out} holds the result of {old}{led} as {rows['row_id'][row].as_py()!r}, which is "
        f"now {_real(new) or new if old == new else new}; {WAY_OUT}"
    )


def refuse_conflict(recorded: Mapping[str, Any], spec: JobSpec) -> None:
    """Raise JobConflictError if a folder's recorded job has other options than the spec."""
    changed = changed_options(recorded, job_record(spec))
    if changed:
        raise JobConflictError(
            f"{spec.out} belongs to a job with other options ({named_changes(changed)}); "
            "choose another --out, or do everything again with --redo.",
            changed,
        )


def _nothing_done() -> pa.Table:
    from manifests.commits import DONE_COLUMNS
    from manifests.schemas import RESULT_SCHEMA

    return pa.schema([RESULT_SCHEMA.field(name) for name in DONE_COLUMNS]).empty_table()


def work_items(table: pa.Table) -> Iterator[WorkItem]:
    """Yield the rows of a plan's table as work items, without holding them all."""
    for batch in table.to_batches(max_chunksize=1024):
        part = pa.Table.from_batches([batch])
        keys = zip(
            part["input_key"].to_pylist(),
            part["work_key"].to_pylist(),
            part["image_hash"].to_pylist(),
            part["subject_hashes"].to_pylist(),
            strict=True,
        )
        for row, (input_key, work_key, image_hash, subjects) in zip(
            manifest_rows(part), keys, strict=True
        ):
            yield WorkItem(row, input_key, work_key, image_hash, tuple(subjects or ()))
