"""The driver: plan, feed the workers, compact; every row ends as one row or stays pending."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.commits import OutputFolder
from manifests.hashes import hash_inputs
from manifests.identity import params_fingerprint
from manifests.job import SCHEMA_VERSION
from manifests.ledger import Ledger
from manifests.plan import COMPUTED, DEFERRED, Plan
from manifests.reader import INVALID_ROW
from manifests.scan import unlisted
from manifests.schemas import DONE_STATUSES, extra_schema
from pipeline.collection import standing
from pipeline.copies import Copy, copy_rows, one_of_each_work, planned_copies
from pipeline.errors import (
    BreakerTrippedError,
    DiskFullError,
    OutputUnwritableError,
    UnusableEnvironmentError,
)
from pipeline.feed import Feeder
from pipeline.guide_files import adopt_guide_files, check_guide_files, with_row_guides
from pipeline.inputs import load_rows, unlisted_lines
from pipeline.models import resolve_device
from pipeline.observers import Broadcast, Observer, Silent
from pipeline.outcomes import WorkItem
from pipeline.plan import (
    RunChoice,
    is_elsewhere,
    job_record,
    make_plan,
    refuse_conflict,
    refuse_folder,
    refuse_other_rows,
    work_items,
)
from pipeline.pools import InlinePool, Pool
from pipeline.recording import Recording
from pipeline.signals import StopRequest
from pipeline.spec import JobSpec, model_revision
from pipeline.stages import CommitRows, writing_output

_log = logging.getLogger(__name__)

_COMPACT_EVERY_SECONDS = 5.0
_FLUSH_EVERY_SECONDS = 30.0
_MIN_FREE_BYTES = 64 * 2**20
# A delivered photo is about its source's size, each time it is kept.
_OUTPUT_PER_INPUT_BYTE = 1.25
GPU_HOURS_EXIT = 8
# The driver itself works on a row, which on a CPU takes what it takes: it gives no sign meanwhile.
_INLINE_HEARTBEAT_TIMEOUT_SECONDS = 24 * 3600.0


@dataclass
class RunSummary:
    """What a run did, and how its collection stands after it.

    Attributes:
        counts: rows of the manifest by status, and `pending`.
        computed, copied: rows done in this run. statuses: those computed, by status, and the
            rows that could not be (failed).
        unlisted: what of PHOTOS could not be listed: the photos there are not counted.
        exit_code: 0 no row failed, and none is pending but by --limit, --since or --only-failed;
            3 some are, or some could not be listed; 4 breaker, 6 output not writable, 7 disk full,
            8 bound of GPU hours reached, 130/143 signals.
    """

    out: str
    run_id: str
    counts: dict[str, int] = field(default_factory=dict)
    computed: int = 0
    copied: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    exit_code: int = 0
    stopped_by: str | None = None
    unlisted: list[str] = field(default_factory=list)


def run_job(
    spec: JobSpec, choice: RunChoice | None = None, observer: Observer | None = None
) -> RunSummary:
    """Run a job until every selected row is done, and return what happened.

    Raises: OutputLockedError, JobConflictError, ManifestError before anything is computed;
        UnusableEnvironmentError if no worker can start. Rows never raise: they fail.
    """
    choice, observer = choice or RunChoice(), observer or Silent()
    inputs = load_rows(spec)
    spec = with_row_guides(spec, inputs)
    folder = OutputFolder(spec.out)
    refuse_folder(folder, spec, choice, inputs)
    held = folder.lock(
        if_running=choice.if_running,  # type: ignore[arg-type]
        heartbeat_timeout_seconds=(
            _INLINE_HEARTBEAT_TIMEOUT_SECONDS if spec.runner == "inline" else None
        ),
    )
    with writing_output(), held:
        return _Run(spec, choice, observer, folder).run(inputs)


class _Run:
    """One run's moving parts; `run` reads in order."""

    def __init__(
        self, spec: JobSpec, choice: RunChoice, observer: Observer, folder: OutputFolder
    ) -> None:
        self.spec, self.choice, self.folder = spec, choice, folder
        self.observer = Broadcast(observer)
        now = datetime.now(UTC)
        # To the millisecond: runs are told in the order of their ids.
        instant = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z"
        self.run_id = f"{instant}-{secrets.token_hex(3)}"
        self.summary = RunSummary(spec.out, self.run_id)
        self.fingerprint = params_fingerprint(spec.params())
        self.stop = StopRequest()
        self.recording = Recording(self.observer, self.summary)
        self.invalid = 0
        self._compacted_at = self._flushed_at = self._told_at = time.monotonic()

    def run(self, inputs: pa.Table) -> RunSummary:
        ledger = self.folder.ledger(
            self.run_id, model=self.spec.model, params_fingerprint=self.fingerprint
        )
        with self.stop.installed(), self.recording.until_end(), ledger:
            plan, job = self._open(inputs)
            commit = CommitRows(self.spec, self.fingerprint, job)
            feeder = Feeder(self.spec, self.choice, commit, ledger, self.observer, self.stop)
            try:
                self._process(plan, ledger, commit, feeder)
            except (BreakerTrippedError, DiskFullError, OutputUnwritableError) as reason:
                self.summary.exit_code, self.summary.stopped_by = reason.exit_code, str(reason)
            finally:
                self._settle(plan, feeder)
        return self.summary

    def _open(self, inputs: pa.Table) -> tuple[Plan, dict[str, Any]]:
        spec, folder = self.spec, self.folder
        job, adopted = self._open_job(inputs)
        self.recording.begin(folder.storage, spec, self.choice, self.fingerprint)
        self._tell_unlisted(inputs)
        inputs = inputs.replace_schema_metadata(None)  # it is of this scan, not of the manifest
        if adopted is not None:
            self.observer.message(adopted)
        report = folder.recover()
        if report.intents_redone or report.quarantined:
            self.observer.message(
                f"recovered: {report.intents_redone} unfinished compaction(s) redone, "
                f"{len(report.quarantined)} damaged staged row(s) set aside"
            )
        folder.storage.write("_state/spec.json", spec.to_json().encode())

        def hashing(done: int, total: int) -> None:
            folder.beat()
            if self.stop.signal is not None:
                raise SystemExit(self.stop.exit_code)
            if done == total or time.monotonic() - self._told_at > 10:
                self._told_at = time.monotonic()
                self.observer.message(f"read {done:,} of {total:,} new or changed photos")

        plan = make_plan(spec, self.choice, folder, inputs, progress=hashing)
        folder.write_manifest(plan.table.drop_columns(["source_row_id", "source_pending"]))
        counts = {state: count for state, count in plan.counts.items() if count}
        compute = sum(plan.counts[state] for state in COMPUTED)
        self.observer.event("planned", counts=counts, compute=compute, orphans=plan.num_orphans)
        if not self.summary.unlisted:  # a photo out of sight may be half done
            folder.checkpoints.prune(set(plan.to_compute()["work_key"].to_pylist()))
        return plan, job

    def _open_job(self, inputs: pa.Table) -> tuple[dict[str, Any], str | None]:
        """Return the folder's job, now this one, and a line on guides' files it has learnt of."""
        spec, folder, choice = self.spec, self.folder, self.choice
        record, adopted = job_record(spec), None
        recorded = folder.read_job()
        if recorded is not None:
            if is_elsewhere(recorded, spec, choice):
                refuse_other_rows(folder, recorded, spec, hash_inputs(inputs, folder.storage))
            if not choice.redo and recorded.get("schema_version", 0) <= SCHEMA_VERSION:
                refuse_conflict(recorded, spec)
                adopted = adopt_guide_files(folder.storage, recorded, spec)
            before = recorded.get("beside_revisions", {})
            record["beside_revisions"] = {**before, **spec.beside_revisions}
        extras = extra_schema(inputs.schema)
        job = folder.open_job(record, redo=choice.redo, moved=choice.moved, extras=extras)
        return job, adopted

    def _tell_unlisted(self, inputs: pa.Table) -> None:
        for path, reason in unlisted(inputs):
            self.observer.event("unlisted", path=path, error=reason)
            self.summary.unlisted.append(path)
        for line in unlisted_lines(inputs):
            self.observer.message(line)

    def _process(self, plan: Plan, ledger: Ledger, commit: CommitRows, feeder: Feeder) -> None:
        """Copy, fail or compute every row of the plan; each source stands until it is copied."""
        todo = plan.to_compute()
        first, after = planned_copies(plan.copies_first()), planned_copies(plan.copies_after())
        orphaned = self._copy(first, commit, feeder, pending_sources=False)
        self._fail_invalid(plan, commit)
        # Published before anything is computed: a copy's source may be redone.
        self.folder.compact(force=True)
        alone, others = one_of_each_work(orphaned, todo)
        self._compute(alone, todo, ledger, commit, feeder)
        copies = chain(others, after)
        # A photo computed in this run may be gone before it is copied: its copy is computed then.
        while orphaned := self._copy(copies, commit, feeder, pending_sources=True):
            alone, again = one_of_each_work(orphaned, todo.slice(0, 0))
            self._compute(alone, todo.slice(0, 0), ledger, commit, feeder)
            copies = chain(again)

    def _fail_invalid(self, plan: Plan, commit: CommitRows) -> None:
        """Commit the rows that cannot run; but a photo out of reach tonight keeps its result."""
        invalid = plan.invalid()
        done = self.folder.done()
        finished = done.filter(pc.is_in(done["status"], value_set=pa.array(DONE_STATUSES)))
        out_of_reach = pc.and_(
            pc.not_equal(invalid["row_error_type"], INVALID_ROW),
            pc.is_in(invalid["row_id"], value_set=finished["row_id"].combine_chunks()),
        )
        if kept := pc.sum(out_of_reach).as_py():
            self.observer.message(
                f"{kept:,} photo(s) cannot be read now; their earlier results are kept"
            )
        invalid = invalid.filter(pc.invert(out_of_reach))
        kinds, errors = invalid["row_error_type"].to_pylist(), invalid["row_error"].to_pylist()
        for item, kind, message in zip(work_items(invalid), kinds, errors, strict=True):
            if self.stop.signal is not None:
                return
            now = datetime.now(UTC)
            commit.failed(item, kind, message, (now, now))
            self.observer.message(f"failed: {item.row_id}: {message}")
            self.observer.event(
                "row", row_id=item.row_id, status="failed", error_type=kind, error=message
            )
            self.invalid += 1
            self._now_and_then(None)

    def _copy(
        self,
        copies: Iterable[Copy],
        commit: CommitRows,
        feeder: Feeder,
        *,
        pending_sources: bool,
    ) -> list[WorkItem]:
        made, orphaned = copy_rows(
            self.folder,
            copies,
            commit,
            pending_sources=pending_sources,
            go_on=lambda: self._goes_on(feeder),
        )
        self.summary.copied += made
        return orphaned

    def _goes_on(self, feeder: Feeder) -> bool:
        self.folder.beat()
        return feeder.going_on

    def _compute(
        self,
        orphaned: list[WorkItem],
        todo: pa.Table,
        ledger: Ledger,
        commit: CommitRows,
        feeder: Feeder,
    ) -> None:
        total = todo.num_rows + len(orphaned)
        self.observer.start(total)
        self.observer.event("loading", rows=total)
        if total == 0 or not feeder.going_on:
            return
        self._check_space(todo)
        pool = self._open_pool(total, commit)
        try:
            items = chain(orphaned, work_items(todo))
            feeder.feed(pool, items, lambda: self._now_and_then(ledger), total)
        finally:
            pool.close()

    def _check_space(self, todo: pa.Table) -> None:
        free = getattr(self.folder.storage, "free_bytes", None)
        if free is None:
            return
        copies = self.spec.keep_files + self.spec.keep_parquet
        needed = (pc.sum(todo["size_bytes"]).as_py() or 0) * _OUTPUT_PER_INPUT_BYTE * copies
        needed += _MIN_FREE_BYTES
        have = free()
        if have < needed:
            raise DiskFullError(
                f"{self.spec.out} has {have / 2**20:,.0f} MiB free and this run may need "
                f"{needed / 2**20:,.0f} MiB; free some, or take fewer photos with --limit."
            )

    def _open_pool(self, num_rows: int, commit: CommitRows) -> Pool:
        spec = self.spec
        found = model_revision(spec.model)
        if found != spec.model_revision:
            raise UnusableEnvironmentError(
                f"model {spec.model} is {found} here and {spec.model_revision} in the job's spec; "
                "start the job anew with this installation."
            )
        check_guide_files(spec)
        if spec.runner == "inline":
            spec = replace(spec, device=resolve_device(spec.device))
        self.observer.message(f"loading model {spec.model} on {spec.device} ({spec.runner})")
        if spec.runner == "inline":
            return InlinePool(spec, self.fingerprint, commit.job)
        from pipeline.cluster import RayPool

        batches = -(-num_rows // max(spec.batch_size, 1))
        return RayPool(spec, self.fingerprint, commit.job, batches, self.observer.message)

    def _now_and_then(self, ledger: Ledger | None) -> None:
        self.folder.beat()
        now = time.monotonic()
        if now - self._compacted_at > _COMPACT_EVERY_SECONDS:
            with writing_output():
                self.folder.compact()
            self._compacted_at = now
        if ledger is not None and now - self._flushed_at > _FLUSH_EVERY_SECONDS:
            with writing_output():
                ledger.flush()
            self._flushed_at = now

    def _settle(self, plan: Plan, feeder: Feeder) -> None:
        """Publish what is staged and count how the collection stands."""
        try:
            self.folder.compact(force=True)
        except OSError as error:
            # Staged rows are committed all the same; the next run publishes them.
            _log.warning("compaction put off: %s", error)
        self.summary.computed = feeder.computed
        self.summary.statuses = dict(feeder.statuses + Counter(failed=self.invalid))
        counts = self.summary.counts = standing(plan.table, self.folder.done())
        left_undone = counts["pending"] - plan.counts[DEFERRED]
        if self.stop.signal is not None:
            self.summary.exit_code = self.stop.exit_code
            self.summary.stopped_by = f"stopped by {self.stop.signal.name}"
        elif self.summary.exit_code == 0 and feeder.bound_reached and left_undone > 0:
            self.summary.exit_code = GPU_HOURS_EXIT
            self.summary.stopped_by = f"--max-gpu-hours {self.choice.max_gpu_hours:g} is spent"
        elif self.summary.exit_code == 0 and (
            counts["failed"] or left_undone > 0 or self.summary.unlisted
        ):
            self.summary.exit_code = 3
        if self.summary.stopped_by is not None:
            self.observer.event(
                "stopped", reason=self.summary.stopped_by, exit_code=self.summary.exit_code
            )
        if counts["pending"] == 0 and not self.summary.unlisted:
            self.folder.close_redo()
