"""JSON lines as a table: one object a line, a column for each name that any of them has."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from manifests.errors import ManifestError


def read_json_lines(data: bytes) -> pa.Table:
    """Return the table of a file's bytes; a name that a line lacks is null there.

    Python's parser and not Arrow's: fuzzed, Arrow's (25.0) ended the process by a segmentation
    fault, and a manifest comes from anybody.

    Raises: ManifestError naming the line that is no JSON object; UnicodeError; ArrowException for
        values of one column that no type holds.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ManifestError(f"line {number} is a {type(row).__name__}, want an object {{…}}")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except UnicodeEncodeError:  # half of a character, which JSON can write and UTF-8 cannot
        if name not in ("image_uri", "subject_uris"):
            raise
        return pa.array([_escaped(value) for value in values])  # one row's fault, and no others'


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return [_escaped(item) for item in value] if isinstance(value, list) else value
