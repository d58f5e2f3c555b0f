"""Rows of a table as Python values, without a time zone database: slim containers have none."""

from __future__ import annotations

from datetime import UTC
from functools import lru_cache
from typing import Any

import pyarrow as pa


def to_records(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows as `to_pylist` does, but with every instant in UTC, whatever its zone."""
    zoned = {f.name: f.type for f in table.schema if _zoneless(f.type) != f.type}
    for name in zoned:
        index = table.schema.get_field_index(name)
        column = table.column(index)
        table = table.set_column(index, name, column.cast(_zoneless(column.type)))
    records = table.to_pylist()
    for record in records if zoned else ():
        for name, kind in zoned.items():
            record[name] = _in_utc(record[name], kind)
    return records


@lru_cache(maxsize=256)
def _zoneless(kind: pa.DataType) -> pa.DataType:
    """Return the type with its instants as UTC without saying so."""
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_zoneless(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_zoneless(field.type)) for field in kind])
    return kind


def _in_utc(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return value.replace(tzinfo=UTC)
    if pa.types.is_list(kind):
        return [_in_utc(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _in_utc(value[field.name], field.type) for field in kind}
    return value
