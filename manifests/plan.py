"""What is left to do: the manifest's rows minus what is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ManifestError
from manifests.identity import (
    RESULT_CHANGING_COLUMNS,
    columns_json,
    digest_of,
    framed,
    input_key_of_framed,
    work_key,
)

NEW = "new"  # no row of this name is done
CHANGED = "changed"  # the photo, its options or its subjects are not those that were done
RETRY = "retry"  # it failed, and is tried again
FORCED = "forced"  # it is done, and done again
COPY = "copy"  # the same work is done, or about to be, under another row_id
INVALID = "invalid"  # it cannot be run: a failed row says why
DONE = "done"
FAILED = "failed"  # it failed, and is left so
DEFERRED = "deferred"  # pending, but not in this run: only_failed, since or limit says so

COMPUTED = (NEW, CHANGED, RETRY, FORCED)
STATES = (*COMPUTED, COPY, INVALID, DONE, FAILED, DEFERRED)

_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class PlanOptions:
    """Which rows a run takes up.

    Attributes:
        force: do selected rows again even if they are done.
        retry_failed: which failed rows are tried again, their input being what it was:
            those whose error_type is in `retryable`, all, or none.
        retryable: classes of failure that may well not happen again.
        only_failed: take up rows whose last result failed, and no others.
        since: take up rows whose photo was modified at that instant or later.
        limit: at most so many rows to compute; copies and invalid rows do not count.
    """

    force: bool = False
    retry_failed: Literal["retryable", "all", "none"] = "retryable"
    retryable: frozenset[str] = frozenset()
    only_failed: bool = False
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
        return copies.take(pa.array(_copy_order(copies), pa.int64()))

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
) -> Plan:
    """Return the plan of a run.

    Args:
        inputs: a table of INPUT_SCHEMA with its hashes (`hashes.hash_inputs`), row_id unique.
        done: `OutputFolder.done()`: in a redo it holds only the rows redone, so the rest is new.
        params_fingerprint: of the job as it runs now, for the work_keys.
    A row is done if the row of its name is ok, rejected or skipped with the same input_key,
    whatever version of the software did it.
    """
    options = options or PlanOptions()
    keys = input_keys(inputs)
    at = pc.index_in(inputs["row_id"], value_set=done["row_id"])
    known = pc.is_valid(at)
    same = _true(pc.equal(done["input_key"].take(at), keys))
    has_failed = _true(pc.equal(done["status"].take(at), "failed"))
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
    chosen = pc.and_(valid, _is_any(state, COMPUTED))
    selected = _selected(inputs, has_failed, options)
    state = pc.if_else(pc.and_(chosen, pc.invert(selected)), DEFERRED, state)
    state, sources, pending = _find_copies(inputs, done, keys, state, options)
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
    for entry in pc.value_counts(_whole(state)).to_pylist():
        counts[entry["values"]] = entry["counts"]
    orphans = done.num_rows - pc.sum(known).as_py() if inputs.num_rows else done.num_rows
    return Plan(table, counts, orphans)


def input_keys(inputs: pa.Table) -> pa.ChunkedArray:
    """Return the input_key of every row, as `identity.input_key` makes it.

    A row that cannot be run has the key of its error: it fails once, not every night.
    """
    names = ["image_hash", *RESULT_CHANGING_COLUMNS, "subject_hashes", "row_error"]
    batches = inputs.select(names).to_batches(max_chunksize=_CHUNK_ROWS)
    return pa.chunked_array([pa.array(_chunk_keys(b), pa.string()) for b in batches], pa.string())


def _chunk_keys(batch: pa.RecordBatch) -> Iterator[str]:
    # The same few option values fill most manifests: their JSON is made once.
    made: dict[tuple[Any, ...], bytes] = {}
    options = [_values(batch, name) for name in RESULT_CHANGING_COLUMNS]
    for image_hash, subjects, error, *said in zip(
        _values(batch, "image_hash"),
        _values(batch, "subject_hashes"),
        _values(batch, "row_error"),
        *options,
        strict=True,
    ):
        if error is not None:
            yield digest_of(b"invalid/1", (error.encode(),))
            continue
        combination = tuple(said)
        columns = made.get(combination)
        if columns is None:
            columns = framed(columns_json(dict(zip(RESULT_CHANGING_COLUMNS, said, strict=True))))
            if len(made) < 10_000:
                made[combination] = columns
        yield input_key_of_framed(image_hash, columns, subjects or ())


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    column = batch.column(name)
    return [None] * len(column) if column.null_count == len(column) else column.to_pylist()


def _true(mask: Any) -> Any:
    return pc.fill_null(mask, False)


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_any(state: Any, states: tuple[str, ...]) -> Any:
    return pc.is_in(state, value_set=pa.array(states, pa.string()))


def _retried(done: pa.Table, at: Any, options: PlanOptions) -> Any:
    if options.retry_failed == "all" or options.force:
        return pa.scalar(True)
    if options.retry_failed == "none":
        return pa.scalar(False)
    retryable = pa.array(sorted(options.retryable), pa.string())
    return _true(pc.is_in(done["error_type"], value_set=retryable).take(at))


def _selected(inputs: pa.Table, has_failed: Any, options: PlanOptions) -> Any:
    selected = pa.scalar(True)
    if options.only_failed:
        selected = has_failed
    if options.since is not None:
        if options.since.tzinfo is None:
            raise ManifestError(f"since (={options.since}) must name its time zone.")
        since_ns = int(options.since.timestamp() * 1e9)
        young = pc.fill_null(pc.greater_equal(inputs["mtime_ns"], since_ns), True)
        selected = pc.and_(selected, young)
    return selected


def _find_copies(
    inputs: pa.Table, done: pa.Table, keys: Any, state: Any, options: PlanOptions
) -> tuple[Any, Any, Any]:
    """Return the states with copies among them, each copy's source, whether that is pending."""
    computed = _is_any(state, COMPUTED)
    nothing = pa.scalar(None, pa.string())
    sources = pa.chunked_array([pa.nulls(inputs.num_rows, pa.string())])
    if not options.force:
        delivered = done.filter(pc.not_equal(done["status"], "failed"))
        at = pc.index_in(keys, value_set=delivered["input_key"])
        found = pc.and_(computed, pc.is_valid(at))
        sources = pc.if_else(found, delivered["row_id"].take(at), nothing)
        state = pc.if_else(found, COPY, state)
        state, sources = _break_cycles(inputs, state, sources)
        computed = _is_any(state, COMPUTED)
    return _copies_of_pending(inputs, keys, state, sources, computed, options)


def _copies_of_pending(
    inputs: pa.Table, keys: Any, state: Any, sources: Any, computed: Any, options: PlanOptions
) -> tuple[Any, Any, Any]:
    places = pc.indices_nonzero(_whole(computed))
    pending_keys = _whole(keys.take(places))
    first = pc.index_in(pending_keys, value_set=pending_keys)
    here = pa.array(range(len(first)), pa.int32())
    repeats = pc.not_equal(first, here)
    if options.limit is not None:
        originals = pc.cumulative_sum(pc.cast(pc.invert(repeats), pa.int64()))
        beyond = pc.greater(originals, options.limit).take(first)
    else:
        beyond = pa.array([False] * 0, pa.bool_())
    new_state = _whole(state.take(places))
    new_sources = _whole(sources.take(places))
    new_pending = pa.array([False] * len(places), pa.bool_())
    if pc.any(repeats).as_py():
        source_ids = inputs["row_id"].take(places.take(first))
        new_state = pc.if_else(repeats, COPY, new_state)
        new_sources = pc.if_else(repeats, _whole(source_ids), new_sources)
        new_pending = repeats
    if len(beyond):
        new_state = pc.if_else(beyond, DEFERRED, new_state)
        new_sources = pc.if_else(beyond, pa.scalar(None, pa.string()), new_sources)
        new_pending = pc.and_(new_pending, pc.invert(beyond))
    mask = _whole(computed)
    state = pc.replace_with_mask(_whole(state), mask, _whole(new_state))
    sources = pc.replace_with_mask(_whole(sources), mask, _whole(new_sources))
    pending = pc.replace_with_mask(
        pa.array([False] * inputs.num_rows, pa.bool_()), mask, _whole(new_pending)
    )
    return state, sources, pending


def _copy_links(row_ids: Any, sources: Any) -> dict[str, str]:
    """Return {row_id: source} of the copies that write over another copy's source, and of those."""
    touched = pc.or_(
        pc.is_in(sources, value_set=_whole(row_ids)), pc.is_in(row_ids, value_set=_whole(sources))
    )
    return dict(
        zip(row_ids.filter(touched).to_pylist(), sources.filter(touched).to_pylist(), strict=True)
    )


def _break_cycles(inputs: pa.Table, state: Any, sources: Any) -> tuple[Any, Any]:
    """Compute one row of every ring of copies: two photos that swapped names, say."""
    is_copy = _is_any(state, (COPY,))
    links = _copy_links(inputs["row_id"].filter(is_copy), sources.filter(is_copy))
    broken = set()
    settled: set[str] = set()
    for start in links:
        path: list[str] = []
        on_path: set[str] = set()
        row_id: str | None = start
        while row_id is not None and row_id not in settled and row_id not in on_path:
            path.append(row_id)
            on_path.add(row_id)
            row_id = links.get(row_id)
        if row_id is not None and row_id in on_path:
            broken.add(row_id)
        settled.update(path)
    if broken:
        rings = pc.is_in(inputs["row_id"], value_set=pa.array(sorted(broken), pa.string()))
        state = pc.if_else(rings, CHANGED, state)
        sources = pc.if_else(rings, pa.scalar(None, pa.string()), sources)
    return state, sources


def _copy_order(copies: pa.Table) -> list[int]:
    """Return the order in which each copy is made before its source is written over."""
    row_ids = copies["row_id"]
    links = _copy_links(row_ids, copies["source_row_id"])
    readers: dict[str, list[str]] = {}
    for row_id, source in links.items():
        readers.setdefault(source, []).append(row_id)
    position = {row_id: i for i, row_id in enumerate(row_ids.to_pylist()) if row_id in links}
    first: list[int] = []
    written: set[str] = set()
    for start in links:
        stack = [start]
        while stack:
            row_id = stack[-1]
            waiting = [r for r in readers.get(row_id, ()) if r not in written and r in position]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if row_id not in written:
                written.add(row_id)
                first.append(position[row_id])
    chosen = set(first)
    return first + [i for i in range(copies.num_rows) if i not in chosen]


def _work_keys(keys: Any, state: Any, params_fingerprint: str) -> pa.Array:
    needs = _whole(pc.invert(_is_any(state, (DONE, FAILED))))
    made = [work_key(key, params_fingerprint) for key in keys.filter(needs).to_pylist()]
    empty = pa.nulls(len(keys), pa.string())
    return pc.replace_with_mask(empty, needs, pa.array(made, pa.string()))
