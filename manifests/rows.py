"""One manifest row, one result row, and their way to and from Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from manifests.errors import ManifestError
from manifests.records import to_records
from manifests.schemas import (
    INPUT_SCHEMA,
    MANIFEST_SCHEMA,
    PROMPT_SCHEMA,
    RESULT_SCHEMA,
    STATUSES,
    with_extras,
)

Status = Literal["ok", "rejected", "skipped", "failed"]


@dataclass(frozen=True)
class ManifestRow:
    """What is asked for one photo.

    `image` holds the photo's bytes only where the caller has put them; a table of rows carries
    URIs, and `manifests.inline.read_input` reads what a URI names.
    """

    row_id: str
    image_uri: str | None = None
    image: bytes | None = field(default=None, repr=False)
    prompt: str | None = None
    subject_uris: tuple[str, ...] = ()
    direction: str | None = None
    target: float | None = None
    seed: int | None = None
    strength: float | None = None
    negative_prompt: str | None = None
    guides: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class ResultRow:
    """What became of one manifest row; the fields are RESULT_SCHEMA's, in its order."""

    row_id: str
    input_key: str
    work_key: str
    status: Status
    image_uri: str | None = None
    task: str | None = None
    direction: str | None = None
    target: float | None = None
    strength: float | None = None
    prompt: str | None = None
    seed: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    edited_uri: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    score_before: float | None = None
    score_after: float | None = None
    judge_before: float | None = None
    judge_after: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    inversion_error: float | None = None
    num_optim_steps: int | None = None
    stop_reason: str | None = None
    loss_curve: list[float] | None = None
    edit_seconds: float | None = None
    model: str | None = None
    model_revision: str | None = None
    params_fingerprint: str | None = None
    doodl_version: str | None = None
    device: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    negative_prompt: str | None = None
    guides: str | None = None
    guide_values_before: str | None = None
    guide_values_after: str | None = None
    num_subjects: int | None = None
    safety: str | None = None
    unguided_uri: str | None = None
    latents_uri: str | None = None
    autoencoder_psnr_db: float | None = None
    delta_e: float | None = None
    protected: float | None = None
    delivered_strength: float | None = None
    edited_hash: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status (={self.status!r}) must be one of {', '.join(STATUSES)}.")


_RESULT_FIELDS = tuple(f.name for f in fields(ResultRow) if f.name != "extra")
assert sorted(_RESULT_FIELDS) == sorted(RESULT_SCHEMA.names)


def manifest_rows(table: pa.Table, *, batch_rows: int = 1024) -> Iterator[ManifestRow]:
    """Yield the rows of an input table (or of any table with some of its columns).

    Columns that no schema of ours knows become `extra`.
    """
    fields_of_rows = [*MANIFEST_SCHEMA.names, *PROMPT_SCHEMA.names]
    names = [n for n in fields_of_rows if n in table.column_names]
    ours = {*INPUT_SCHEMA.names, *PROMPT_SCHEMA.names, *_PLAN_COLUMNS}
    extras = [n for n in table.column_names if n not in ours]
    for batch in table.select(names + extras).to_batches(max_chunksize=batch_rows):
        for record in to_records(batch):
            extra = {name: record.pop(name) for name in extras}
            record["subject_uris"] = tuple(record.get("subject_uris") or ())
            yield ManifestRow(**record, extra=extra)


# What `manifests.plan` adds to an input table: known here so that a plan's rows read back.
_PLAN_COLUMNS = frozenset({"input_key", "work_key", "state", "source_row_id", "source_pending"})


def result_record(row: ResultRow) -> dict[str, Any]:
    """Return the row as one flat record: its result columns, then its extra columns."""
    record = {name: getattr(row, name) for name in _RESULT_FIELDS}
    record.update(row.extra)
    return record


def results_table(rows: Iterable[ResultRow], extras: pa.Schema | None = None) -> pa.Table:
    """Return the rows as a table of RESULT_SCHEMA followed by `extras`.

    Raises: ManifestError if a row holds a value, or an extra column, the schema has no room for.
    """
    schema = with_extras(RESULT_SCHEMA, extras)
    records = [result_record(row) for row in rows]
    unknown = {name for record in records for name in record} - set(schema.names)
    if unknown:
        raise ManifestError(
            f"extra column {sorted(unknown)[0]!r} is not among the job's extra columns "
            f"({', '.join(schema.names[len(RESULT_SCHEMA) :]) or 'none'}); "
            "give open_job the input table's extra_schema."
        )
    return _table(records, schema)


def _table(records: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = []
    for schema_field in schema:
        values = [record.get(schema_field.name) for record in records]
        try:
            columns.append(pa.array(values, schema_field.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            got = sorted({type(v).__name__ for v in values if v is not None})
            raise ManifestError(
                f"column {schema_field.name!r}: got {', '.join(got)}, "
                f"want {schema_field.type}: {error}"
            ) from error
    return pa.table(columns, schema=schema)


def result_rows(table: pa.Table, *, batch_rows: int = 1024) -> Iterator[ResultRow]:
    """Yield the rows of a result table; columns outside RESULT_SCHEMA become `extra`."""
    extras = [n for n in table.column_names if n not in RESULT_SCHEMA.names]
    for batch in table.to_batches(max_chunksize=batch_rows):
        for record in to_records(batch):
            extra = {name: record.pop(name) for name in extras}
            yield ResultRow(**record, extra=extra)
