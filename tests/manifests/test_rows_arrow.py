"""Rows to Arrow and back."""

from __future__ import annotations

import io
from dataclasses import fields
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import ManifestError
from manifests.rows import ManifestRow, ResultRow, manifest_rows, result_rows, results_table
from manifests.schemas import (
    IMAGE_SCHEMA,
    INPUT_SCHEMA,
    LEDGER_SCHEMA,
    MANIFEST_SCHEMA,
    RESULT_SCHEMA,
    STAGED_SCHEMA,
)

# The columns of DESIGN.md, in its order.
DESIGN_COLUMNS = """row_id, input_key, work_key, image_uri, task, direction, target, strength,
prompt, seed, status, error_type, error_message, edited_uri, width_px, height_px, score_before,
score_after, judge_before, judge_after, psnr_db, ssim, inversion_error, num_optim_steps,
stop_reason, loss_curve, edit_seconds, model, model_revision, params_fingerprint, doodl_version,
device, started_at, finished_at"""
# What generation and inversion tell besides; always at the end.
LATER_COLUMNS = """negative_prompt, guides, guide_values_before, guide_values_after, num_subjects,
safety, unguided_uri, latents_uri, autoencoder_psnr_db, delta_e, protected, delivered_strength,
edited_hash"""

SAFE_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOAT = st.floats(allow_nan=False)
BY_TYPE = {
    pa.string(): SAFE_TEXT,
    pa.float64(): FLOAT,
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.list_(pa.float32()): st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    pa.timestamp("us", tz="UTC"): st.datetimes(
        datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)
    ),
}
EXTRAS = pa.schema(
    [("keywords", pa.list_(pa.string())), ("rating", pa.int64()), ("taken", pa.date32())]
)
ROWS = st.builds(
    ResultRow,
    row_id=SAFE_TEXT,
    input_key=SAFE_TEXT,
    work_key=SAFE_TEXT,
    status=st.sampled_from(["ok", "rejected", "skipped", "failed"]),
    extra=st.fixed_dictionaries(
        {
            "keywords": st.none() | st.lists(SAFE_TEXT, max_size=3),
            "rating": st.none() | st.integers(-5, 5),
            "taken": st.none() | st.dates(),
        }
    ),
    **{
        f.name: st.none() | BY_TYPE[f.type]
        for f in RESULT_SCHEMA
        if f.name not in ("row_id", "input_key", "work_key", "status")
    },
)


def test_result_columns_are_those_of_the_design() -> None:
    columns = f"{DESIGN_COLUMNS},{LATER_COLUMNS}"
    assert RESULT_SCHEMA.names == [name.strip() for name in columns.split(",")]


@pytest.mark.parametrize(
    "schema",
    [MANIFEST_SCHEMA, INPUT_SCHEMA, RESULT_SCHEMA, IMAGE_SCHEMA, STAGED_SCHEMA, LEDGER_SCHEMA],
)
def test_every_column_says_what_it_is(schema: pa.Schema) -> None:
    assert all(field.metadata[b"description"] for field in schema)


@settings(deadline=None)
@given(st.lists(ROWS, max_size=4))
def test_result_rows_come_back_from_parquet_as_they_were(rows: list[ResultRow]) -> None:
    file = io.BytesIO()
    pq.write_table(results_table(rows, EXTRAS), file)
    assert list(result_rows(pq.read_table(file))) == rows


@given(
    st.lists(
        st.builds(
            ManifestRow,
            row_id=SAFE_TEXT,
            image_uri=st.none() | SAFE_TEXT,
            image=st.none(),
            prompt=st.none() | SAFE_TEXT,
            subject_uris=st.lists(SAFE_TEXT, max_size=3).map(tuple),
            direction=st.none() | SAFE_TEXT,
            target=st.none() | FLOAT,
            seed=st.none() | st.integers(0, 2**63 - 1),
            strength=st.none() | FLOAT,
            extra=st.fixed_dictionaries({"rating": st.none() | st.integers(0, 5)}),
        ),
        max_size=4,
    )
)
def test_manifest_rows_come_back_from_arrow_as_they_were(rows: list[ManifestRow]) -> None:
    schema = pa.schema([*MANIFEST_SCHEMA, ("rating", pa.int64())])
    records = [{**{n: getattr(row, n) for n in MANIFEST_SCHEMA.names}, **row.extra} for row in rows]
    assert list(manifest_rows(pa.Table.from_pylist(records, schema=schema))) == rows


def test_result_row_has_every_result_column_and_the_extras() -> None:
    assert {f.name for f in fields(ResultRow)} == {*RESULT_SCHEMA.names, "extra"}


def test_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match=r"done.*must be one of ok, rejected"):
        ResultRow("a", "k", "w", "done")  # type: ignore[arg-type]


def test_value_of_another_type_is_refused_by_column() -> None:
    row = ResultRow("a", "k", "w", "ok", width_px="wide")  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="'width_px': got str, want int32"):
        results_table([row])


def test_extra_column_the_job_does_not_know_is_refused() -> None:
    with pytest.raises(ManifestError, match="'rating' is not among"):
        results_table([ResultRow("a", "k", "w", "ok", extra={"rating": 5})])
