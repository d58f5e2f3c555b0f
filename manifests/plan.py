"""What is left to do: the manifest's rows minus what is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from manifests.duplicates import copy_order, find_copies
from manifests.errors import ManifestError
from manifests.identity import work_key
from manifests.keys import input_keys
from manifests.states import (
    CHANGED,
    COMPUTED,
    COPY,
    DEFERRED,
    DONE,
    FAILED,
    FORCED,
    INVALID,
    NEW,
    RETRY,
    STATES,
    is_any,
    true,
    whole,
)

__all__ = [
    "CHANGED",
    "COMPUTED",
    "COPY",
    "DEFERRED",
    "DONE",
    "FAILED",
    "FORCED",
    "INVALID",
    "NEW",
    "RETRY",
    "STATES",
    "Plan",
    "PlanOptions",
    "plan_rows",
]


@dataclass(frozen=True)
class PlanOptions:
    """Which rows a run takes up.

    Attributes:
        force: do selected rows again even if they are done.
        retry_failed: which failed rows are tried again, their input being what it was:
            those whose error_type is in `retryable`, all, or none.
        retryable: classes of failure that may well not happen again.
        only_failed: take up rows whose last result failed, and no others.
        only_classes: with only_failed, only those whose error_type is among these; all if empty.
        only_rows: take up these rows and no others; all if None.
        since: take up rows whose photo was modified at that instant or later.
        limit: at most so many rows to compute; copies and invalid rows do not count.
    """

    force: bool = False
    retry_failed: Literal["retryable", "all", "none"] = "retryable"
    retryable: frozenset[str] = frozenset()
    only_failed: bool = False
    only_classes: frozenset[str] = frozenset()
    only_rows: frozenset[str] | None = None
    since: datetime | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Plan:
    """The input table with, for each row, its keys and its state.

    Attributes:
        table: the input table's columns, then input_key, work_key (null for rows that need none),
            state, source_row_id (for copies) and source_pending (its source is computed in this
            run, not done before it).
        counts: rows by state, every state named.
        num_orphans: done rows whose row_id the manifest no longer has; they keep their results.
    """

    table: pa.Table
    counts: dict[str, int]
    num_orphans: int

    def select(self, *states: str) -> pa.Table:
        """Return the rows in any of these states, in the manifest's order."""
        return self.table.filter(pc.is_in(self.table["state"], pa.array(states, pa.string())))

    def to_compute(self) -> pa.Table:
        """Return the rows to compute, in the manifest's order."""
        return self.select(*COMPUTED)

    def copies_first(self) -> pa.Table:
        """Return the copies of rows done before, in an order in which they are safe.

        Make them before anything is computed: a source may be recomputed in this run. One copy
        that writes over another's source comes after it.
        """
        copies = self.select(COPY)
        copies = copies.filter(pc.invert(copies["source_pending"]))
        return copies.take(pa.array(copy_order(copies), pa.int64()))

    def copies_after(self) -> pa.Table:
        """Return the copies of rows computed in this run: make each after its source's commit."""
        copies = self.select(COPY)
        return copies.filter(copies["source_pending"])

    def invalid(self) -> pa.Table:
        """Return the rows that cannot be run and have no result row that says so yet."""
        return self.select(INVALID)

    @property
    def num_pending(self) -> int:
        """How many rows still lack their result."""
        return sum(self.counts[s] for s in (*COMPUTED, COPY, INVALID, DEFERRED))


def plan_rows(
    inputs: pa.Table,
    done: pa.Table,
    params_fingerprint: str,
    options: PlanOptions | None = None,
    key_columns: Sequence[str] = (),
) -> Plan:
    """Return the plan of a run.

    Args:
        inputs: a table of INPUT_SCHEMA with its hashes (`hashes.hash_inputs`), row_id unique.
        done: `OutputFolder.done()`: in a redo it holds only the rows redone, so the rest is new.
        params_fingerprint: of the job as it runs now, for the work_keys.
        key_columns: those that change a result in this job's task, beside the photo's own.
    A row is done if the row of its name is ok, rejected or skipped with the same input_key,
    whatever version of the software did it.
    """
    options = options or PlanOptions()
    keys = input_keys(inputs, key_columns)
    at = pc.index_in(inputs["row_id"], value_set=done["row_id"])
    known = pc.is_valid(at)
    same = true(pc.equal(done["input_key"].take(at), keys))
    has_failed = true(pc.equal(done["status"].take(at), "failed"))
    invalid = pc.is_valid(inputs["row_error"])
    valid = pc.invert(invalid)
    failed_same = pc.and_(same, has_failed)
    done_same = pc.and_(same, pc.invert(has_failed))

    retried = pc.and_(failed_same, _retried(done, at, options))
    state = pc.case_when(
        pc.make_struct(
            pc.and_(invalid, same),
            invalid,
            done_same,
            retried,
            failed_same,
            known,
        ),
        FAILED,
        INVALID,
        FORCED if options.force else DONE,
        RETRY,
        FAILED,
        CHANGED,
        NEW,
    )
    chosen = pc.and_(valid, is_any(state, COMPUTED))
    if options.only_classes:
        classes = pa.array(sorted(options.only_classes), pa.string())
        of_class = true(pc.is_in(done["error_type"], value_set=classes).take(at))
        has_failed = pc.and_(has_failed, of_class)
    selected = _selected(inputs, has_failed, options)
    left = pc.and_(chosen, pc.invert(selected))
    # A row that is done stays so: `force` takes up selected rows only.
    state = pc.if_else(left, pc.if_else(done_same, DONE, DEFERRED), state)
    state, sources, pending = find_copies(
        inputs, done, keys, state, force=options.force, limit=options.limit
    )
    table = inputs
    for name, column in (
        ("input_key", keys),
        ("work_key", _work_keys(keys, state, params_fingerprint)),
        ("state", state),
        ("source_row_id", sources),
        ("source_pending", pending),
    ):
        table = table.append_column(name, column)
    counts = dict.fromkeys(STATES, 0)
    for entry in pc.value_counts(whole(state)).to_pylist():
        counts[entry["values"]] = entry["counts"]
    orphans = done.num_rows - pc.sum(known).as_py() if inputs.num_rows else done.num_rows
    return Plan(table, counts, orphans)


def _retried(done: pa.Table, at: Any, options: PlanOptions) -> Any:
    if options.retry_failed == "all" or options.force:
        return pa.scalar(True)
    if options.retry_failed == "none":
        return pa.scalar(False)
    retryable = pa.array(sorted(options.retryable), pa.string())
    return true(pc.is_in(done["error_type"], value_set=retryable).take(at))


def _selected(inputs: pa.Table, has_failed: Any, options: PlanOptions) -> Any:
    selected = pa.scalar(True)
    if options.only_failed:
        selected = has_failed
    if options.only_rows is not None:
        named = pa.array(sorted(options.only_rows), pa.string())
        selected = pc.and_(selected, pc.is_in(inputs["row_id"], value_set=named))
    if options.since is not None:
        if options.since.tzinfo is None:
            raise ManifestError(f"since (={options.since}) must name its time zone.")
        since_ns = int(options.since.timestamp() * 1e9)
        young = pc.fill_null(pc.greater_equal(inputs["mtime_ns"], since_ns), True)
        selected = pc.and_(selected, young)
    return selected


def _work_keys(keys: Any, state: Any, params_fingerprint: str) -> pa.Array:
    needs = whole(pc.invert(is_any(state, (DONE, FAILED))))
    made = [work_key(key, params_fingerprint) for key in keys.filter(needs).to_pylist()]
    empty = pa.nulls(len(keys), pa.string())
    return pc.replace_with_mask(empty, needs, pa.array(made, pa.string()))
