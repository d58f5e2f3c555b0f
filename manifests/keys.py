"""The input_key of every row of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from manifests.identity import (
    RESULT_CHANGING_COLUMNS,
    columns_json,
    digest_of,
    framed,
    input_key_of_framed,
)

_CHUNK_ROWS = 65_536


def input_keys(inputs: pa.Table, more_columns: Sequence[str] = ()) -> pa.ChunkedArray:
    """Return the input_key of every row, as `identity.input_key` makes it.

    A row that cannot be run has the key of its error: it fails once, not every night.

    Args:
        more_columns: those that change a result beside RESULT_CHANGING_COLUMNS, in the job's task;
            the table need not have them.
    """
    options = [
        *RESULT_CHANGING_COLUMNS,
        *(name for name in more_columns if name in inputs.column_names),
    ]
    names = ["image_hash", *options, "subject_hashes", "row_error"]
    batches = inputs.select(names).to_batches(max_chunksize=_CHUNK_ROWS)
    keys = [pa.array(_chunk_keys(batch, options), pa.string()) for batch in batches]
    return pa.chunked_array(keys, pa.string())


def _chunk_keys(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[str]:
    # The same few option values fill most manifests: their JSON is made once.
    made: dict[tuple[Any, ...], bytes] = {}
    options = [_values(batch, name) for name in names]
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
            columns = framed(columns_json(dict(zip(names, said, strict=True))))
            if len(made) < 10_000:
                made[combination] = columns
        yield input_key_of_framed(image_hash, columns, subjects or ())


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    column = batch.column(name)
    return [None] * len(column) if column.null_count == len(column) else column.to_pylist()
