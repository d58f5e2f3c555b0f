"""Rows whose work is known, or about to be, under another row_id: they cost a copy."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.states import CHANGED, COMPUTED, COPY, DEFERRED, is_any, whole


def find_copies(
    inputs: pa.Table, done: pa.Table, keys: Any, state: Any, *, force: bool, limit: int | None
) -> tuple[Any, Any, Any]:
    """Return the states with copies among them, each copy's source, whether that is pending.

    Args:
        keys: each row's input_key.
        state: each row's state so far.
        force: copy from nothing done before.
        limit: defer what would be computed beyond so many rows, and its copies.
    """
    computed = is_any(state, COMPUTED)
    nothing = pa.scalar(None, pa.string())
    sources = pa.chunked_array([pa.nulls(inputs.num_rows, pa.string())])
    if not force:
        delivered = done.filter(pc.not_equal(done["status"], "failed"))
        at = pc.index_in(keys, value_set=delivered["input_key"])
        found = pc.and_(computed, pc.is_valid(at))
        sources = pc.if_else(found, delivered["row_id"].take(at), nothing)
        state = pc.if_else(found, COPY, state)
        state, sources = _break_cycles(inputs, state, sources)
        computed = is_any(state, COMPUTED)
    return _copies_of_pending(inputs, keys, state, sources, computed, limit)


def _copies_of_pending(
    inputs: pa.Table, keys: Any, state: Any, sources: Any, computed: Any, limit: int | None
) -> tuple[Any, Any, Any]:
    places = pc.indices_nonzero(whole(computed))
    pending_keys = whole(keys.take(places))
    first = pc.index_in(pending_keys, value_set=pending_keys)
    here = pa.array(range(len(first)), pa.int32())
    repeats = pc.not_equal(first, here)
    if limit is not None:
        originals = pc.cumulative_sum(pc.cast(pc.invert(repeats), pa.int64()))
        beyond = pc.greater(originals, limit).take(first)
    else:
        beyond = pa.array([False] * 0, pa.bool_())
    new_state = whole(state.take(places))
    new_sources = whole(sources.take(places))
    new_pending = pa.array([False] * len(places), pa.bool_())
    if pc.any(repeats).as_py():
        source_ids = inputs["row_id"].take(places.take(first))
        new_state = pc.if_else(repeats, COPY, new_state)
        new_sources = pc.if_else(repeats, whole(source_ids), new_sources)
        new_pending = repeats
    if len(beyond):
        new_state = pc.if_else(beyond, DEFERRED, new_state)
        new_sources = pc.if_else(beyond, pa.scalar(None, pa.string()), new_sources)
        new_pending = pc.and_(new_pending, pc.invert(beyond))
    mask = whole(computed)
    state = pc.replace_with_mask(whole(state), mask, whole(new_state))
    sources = pc.replace_with_mask(whole(sources), mask, whole(new_sources))
    pending = pc.replace_with_mask(
        pa.array([False] * inputs.num_rows, pa.bool_()), mask, whole(new_pending)
    )
    return state, sources, pending


def _copy_links(row_ids: Any, sources: Any) -> dict[str, str]:
    """Return {row_id: source} of the copies that write over another copy's source, and of those."""
    touched = pc.or_(
        pc.is_in(sources, value_set=whole(row_ids)), pc.is_in(row_ids, value_set=whole(sources))
    )
    return dict(
        zip(row_ids.filter(touched).to_pylist(), sources.filter(touched).to_pylist(), strict=True)
    )


def _break_cycles(inputs: pa.Table, state: Any, sources: Any) -> tuple[Any, Any]:
    """Compute one row of every ring of copies: two photos that swapped names, say."""
    is_copy = is_any(state, (COPY,))
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


def copy_order(copies: pa.Table) -> list[int]:
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
