"""An input table as it may be written down: its URIs without passwords and signatures."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.secrets import scrub_uri

_SUSPECT = r"://[^ ]*[?@]"


def without_secrets(table: pa.Table) -> pa.Table:
    """Return the table with the URIs of photos and subjects as `scrub_uri` leaves them."""
    if "image_uri" in table.column_names:
        uris = table["image_uri"]
        suspect = pc.fill_null(pc.match_substring_regex(uris, _SUSPECT), False)
        if pc.any(suspect).as_py():
            table = _set(table, "image_uri", [_scrubbed(uri) for uri in uris.to_pylist()])
    if "subject_uris" in table.column_names:
        subjects = table["subject_uris"]
        if subjects.null_count < len(subjects):
            rows = [
                None if uris is None else [_scrubbed(uri) for uri in uris]
                for uris in subjects.to_pylist()
            ]
            table = _set(table, "subject_uris", rows)
    return table


def _scrubbed(uri: str | None) -> str | None:
    return None if uri is None else scrub_uri(uri)


def _set(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.column_names.index(name)
    field = table.schema.field(at)
    return table.set_column(at, field, pa.array(values, field.type))
