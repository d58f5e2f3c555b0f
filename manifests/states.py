"""The states of a planned row, and masks over them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

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


def true(mask: Any) -> Any:
    """Return the mask with null as false."""
    return pc.fill_null(mask, False)


def whole(column: Any) -> pa.Array:
    """Return the column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def is_any(state: Any, states: tuple[str, ...]) -> Any:
    """Return which rows are in any of these states."""
    return pc.is_in(state, value_set=pa.array(states, pa.string()))
